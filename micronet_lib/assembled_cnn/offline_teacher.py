"""A teacher that answers once, before the training [lee2020assembled].

Its logits are computed for the training images as they are, without augmentation, and kept. Where
images are mixed, its probabilities are mixed with the same weights. That saves a forward pass of
the teacher in every step; the teacher never sees what the student sees. Chapter `10_assembled_cnn`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from micronet_lib.augmentation.mixing import MixDraw, mix_rows
from micronet_lib.errors import InputError


@dataclass(frozen=True, eq=False)
class TeacherLogits:
    """The stored answers of a teacher.

    Attributes:
        dataset: name of the data set.
        logits: float32 `[N, C]`, one row for each training image, in their order.

    Raises:
        InputError: not a matrix.
    """

    dataset: str
    logits: Tensor

    def __post_init__(self) -> None:
        if self.logits.ndim != 2:
            raise InputError(f"teacher logits are {list(self.logits.shape)}; expected [N, C]")

    def of(self, dataset: str, num_images: int) -> Tensor:
        """Return the logits, if they are for these images.

        Args:
            dataset: name of the data set that is learned.
            num_images: N.

        Raises:
            InputError: they are for another data set, or for another number of images.
        """
        if (self.dataset, len(self.logits)) != (dataset, num_images):
            raise InputError(
                f"teacher logits are for {len(self.logits)} images of {self.dataset}, but "
                f"{num_images} images of {dataset} are trained on: let the teacher answer again"
            )
        return self.logits


def mixed_answers(logits: Tensor, draw: MixDraw | None, temperature: float = 1.0) -> Tensor:
    """Return a teacher's logits for mixed images, so that their softmax is the mixed prediction.

        softmax(result / T) = lam * softmax(logits_a / T) + (1 - lam) * softmax(logits_b / T)

    Args:
        logits: of the loaded images, `[N, C]`.
        draw: how the images are mixed; None for images as they are.
        temperature: T of the distillation.

    Returns:
        `[N, C]`, one row for each mixed image. Logits are defined up to a constant of each row.
    """
    if draw is None:
        return logits
    mixed = mix_rows((logits.float() / temperature).softmax(1), draw)
    return temperature * mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()
