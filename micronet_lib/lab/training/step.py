"""One optimiser step: mix, forward, loss, backward, SRIP, SGD, masks; the same for every recipe."""

import torch
from torch import Tensor, nn

from micronet_lib.architecture.micronet import MBConv, MicroNet
from micronet_lib.augmentation.mixing import MixDraw, mix
from micronet_lib.lab.data.images import normalize
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.label_smoothing import SmoothingTable, soft_cross_entropy
from micronet_lib.pruning.masks import HeldMasks
from micronet_lib.srip.batches import Srip


def parameter_groups(model: nn.Module, weight_decay: float, decay_all: bool) -> list[dict]:
    """The optimiser's two groups: weights, and what "no bias decay" spares.

    Args:
        model: biases and batch norm have fewer than two dimensions there.
        weight_decay: of the weights.
        decay_all: of the others too.
    """
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {
            "params": [p for p in parameters if p.ndim <= 1],
            "weight_decay": weight_decay if decay_all else 0.0,
        },
    ]


class Step:
    """What a training loop repeats. Inputs have fixed shapes and nothing waits for the device.

    `loss_of(images, targets, draw)`, a batch's loss, is an attribute so that `lab.captured` can
    put a compiled twin in its place.

    Args:
        model: in training mode, on its device, `channels_last`.
        recipe: its SRIP, smoothing and optimiser settings count here.
        generator: draws the first start vectors of warm SRIP, on the model's device.
        masks: of a pruned network; they hold through every step.
    """

    def __init__(
        self,
        model: MicroNet,
        recipe: Recipe,
        generator: torch.Generator | None = None,
        masks: HeldMasks | None = None,
    ) -> None:
        train = recipe.train
        self.model = model
        self.masks = masks
        self.device = next(model.parameters()).device
        self.half = train.precision == "bf16"
        if self.half and self.device.type == "cpu":
            _keep_strided_depthwise_in_float32(model)
        self.table = SmoothingTable(model.head.classifier.weight, recipe.smoothing).to(self.device)
        self.srip = Srip(model, recipe.srip, generator) if recipe.srip.coef else None
        self.optimizer = torch.optim.SGD(
            parameter_groups(model, train.weight_decay, train.decay_all),
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.momentum > 0,
            fused=True,
        )
        self.loss_of = self._loss_of
        self.loss = torch.zeros((), device=self.device)
        self.penalty = torch.zeros((), device=self.device)

    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        draw: MixDraw | None,
        lr: float,
        generator: torch.Generator | None = None,
    ) -> None:
        """Take one step and add its loss and penalty to `loss` and `penalty`.

        Args:
            images: uint8 `[N, 3, 32, 32]`, augmented.
            targets: `[N]`.
            draw: how they are mixed in pairs; None for not at all.
            lr: learning rate.
            generator: of SRIP's start vectors, on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.update(images, targets, draw, generator)

    def update(
        self,
        images: Tensor,
        targets: Tensor,
        draw: MixDraw | None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Take one step at the learning rate that the optimiser has; arguments as of a call."""
        self.optimizer.zero_grad()
        loss = self.loss_of(images, targets, draw)
        loss.backward()
        if self.srip is not None:
            self.penalty += self.srip.value_and_grad(generator)
        if self.masks is not None:
            self.masks.before_step(self.optimizer)
        self.optimizer.step()
        if self.masks is not None:
            self.masks.after_step()
        self.loss += loss.detach()

    def _loss_of(self, images: Tensor, targets: Tensor, draw: MixDraw | None) -> Tensor:
        targets_b = lam = None
        blended = draw is not None and draw.box is None
        inputs = normalize(images) if blended else images  # mixup needs floats, CutMix moves bytes
        if draw is not None:
            inputs, targets, targets_b, lam = mix(inputs, targets, draw)
        if not blended:
            inputs = normalize(inputs)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = self.model(inputs)
        return soft_cross_entropy(logits, self.table(targets, targets_b, lam))


class _Float32Conv2d(nn.Conv2d):
    """A convolution that is computed in float32 whatever its surroundings do."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def _keep_strided_depthwise_in_float32(model: MicroNet) -> None:
    """On a CPU these layers' bfloat16 backward takes many times as long as float32's."""
    for module in model.modules():
        if isinstance(module, MBConv) and module.config.stride > 1:
            module.conv_dw.__class__ = _Float32Conv2d
