"""The distance of a network from its teacher, on images that no training has seen.

A network that starts from a published one has seen the validation images, so its accuracy there
says nothing. Its distance from the teacher on freshly augmented ones orders networks as the test
set does.
"""

import torch
from torch import nn

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.augmentation.policies import AugmentConfig, Policies, augment, draw
from micronet_lib.distillation import distillation_loss
from micronet_lib.lab.data.images import ImageSet
from micronet_lib.lab.training.evaluation import logits_of

SEED = 2019


class Divergence:
    """The mean of KL(teacher || network) in nats, on the same augmented images at every call.

    Args:
        network: is copied and folded at every call.
        teacher: whose logits are computed once.
        data: images, augmented once by the same seed for all runs.
        policies: of the augmentation, or None.
        config: whether to flip and crop.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        data: ImageSet,
        policies: Policies | None,
        config: AugmentConfig,
    ) -> None:
        generator = torch.Generator().manual_seed(SEED)
        device = data.images.device
        draws = draw(policies, len(data), generator, device, crop=config.crop, flip=config.flip)
        self.network = network
        self.images = augment(data.images, draws)
        self.taught = logits_of(fold_batch_norm(teacher), self.images)

    def __call__(self) -> float:
        """Return the divergence of the network as it is now.

        Raises:
            NotFiniteError: a logit is NaN or infinite.
        """
        logits = logits_of(fold_batch_norm(self.network), self.images)
        return distillation_loss(logits, self.taught).item()
