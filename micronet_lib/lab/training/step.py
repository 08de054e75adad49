"""One optimiser step: objective, backward, hooks, optimiser; the same for every recipe.

`plain_step` is the specification. `Step` computes the same, faster: SRIP in closed form, labels
from a table on the device, fixed shapes, and no waiting for the device.
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor, nn

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.network import Network
from micronet_lib.assembled_cnn.offline_teacher import mixed_answers
from micronet_lib.assembled_cnn.retrieval import EmbeddingNetwork, arcface_logits
from micronet_lib.augmentation.mixing import MixDraw, mix
from micronet_lib.distillation import DistillationConfig, distillation_loss
from micronet_lib.early_exit import ExitLoss, ExitNetwork, Front, exit_loss
from micronet_lib.errors import InputError
from micronet_lib.hooks import Hook
from micronet_lib.lab.data.images import normalize
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.training.hooks import TargetTable, freeze
from micronet_lib.label_smoothing import smoothed_targets, soft_cross_entropy
from micronet_lib.pruning.masks import apply_masks
from micronet_lib.srip.batches import Srip
from micronet_lib.srip.penalty import SripConfig, srip_network_penalty, srip_weights


def plain_step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    table: Tensor,
    draw: MixDraw | None = None,
    srip: SripConfig | None = None,
    generator: torch.Generator | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Take one training step, written for readers. The tests compare `Step` with it.

    Args:
        network: in training mode.
        optimizer: of its parameters, at the step's learning rate.
        images: uint8 `[N, 3, 32, 32]`, augmented.
        targets: `[N]`.
        table: target of every class, `[C, C]`, from `label_smoothing.target_table`.
        draw: random decisions of CutMix; None does not mix.
        srip: orthogonality regularisation.
        generator: draws SRIP's start vectors.
        masks: of a pruned network.

    Returns:
        The loss without SRIP, and SRIP's penalty.
    """
    partners = lam = None
    if draw is not None:
        images, targets, partners, lam = mix(images, targets, draw)
    logits = network(normalize(images))
    loss = soft_cross_entropy(logits, smoothed_targets(table, targets, partners, lam))
    penalty = loss.new_zeros(())
    if srip is not None:
        weights = srip_weights(network, srip.placement)
        penalty = srip_network_penalty(weights, srip, generator=generator)
    optimizer.zero_grad()
    (loss + penalty).backward()
    optimizer.step()
    if masks is not None:
        apply_masks(network, masks)
    return loss.detach(), penalty.detach()


class Objective:
    """The loss of a batch: soft labels, and a teacher's logits and an early exit if there are any.

    Args:
        table: the targets of the classes.
        teacher: in evaluation mode, on the network's device.
        distillation: weight and temperature of the teacher's term.
        half: compute the networks in bfloat16.
        exits: weight of the early exit's term.
        front: what computes the features of a frozen trunk; None for the network itself.
        widen: adds a margin to logits `[N, C]` of targets `[N]`, see `arcface_logits`.
    """

    def __init__(
        self,
        table: TargetTable,
        teacher: nn.Module | None = None,
        distillation: DistillationConfig | None = None,
        half: bool = False,
        exits: ExitLoss | None = None,
        front: nn.Module | None = None,
        widen: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.table, self.teacher, self.half = table, teacher, half
        self.distillation = distillation or DistillationConfig()
        self.exits, self.front, self.widen = exits or ExitLoss(), front, widen

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        draw: MixDraw | None,
        taught: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss, 0-d.

        Args:
            network: in training mode.
            images: uint8 `[N, 3, 32, 32]`, augmented; `[2N, 3, 32, 32]` where two batches are
                mixed to one.
            targets: `[N]`, or `[2N]`.
            draw: random decisions of CutMix or mixup; None does not mix.
            taught: logits of an offline teacher for the images before augmentation, `[N, C]` or
                `[2N, C]`; None without one.
        """
        if taught is not None:
            taught = mixed_answers(taught, draw, self.distillation.temperature)
        partners = lam = None
        blended = draw is not None and draw.box is None
        inputs = normalize(images) if blended else images  # mixup needs floats, CutMix moves bytes
        if draw is not None:
            inputs, targets, partners, lam = mix(inputs, targets, draw)
        if not blended:
            inputs = normalize(inputs)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        share = self.exits.weight
        if not share:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.half):
                logits = network(inputs)
            return self._last(logits, inputs, targets, partners, lam, taught)
        assert isinstance(network, ExitNetwork)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.half):
            if share == 1:  # nothing learns from the last exit
                features = network.features(inputs) if self.front is None else self.front(inputs)
                early, last = network.exit_head(features), None
            else:
                early, last = network.exits(inputs)
        loss = share * exit_loss(early, self.table(targets, partners, lam), self.exits.confidence)
        if last is not None:
            loss = loss + (1 - share) * self._last(last, inputs, targets, partners, lam, taught)
        return loss

    def _last(
        self,
        logits: Tensor,
        inputs: Tensor,
        targets: Tensor,
        partners: Tensor | None,
        lam: float | Tensor | None,
        taught: Tensor | None,
    ) -> Tensor:
        """Return the loss of the last exit's logits."""
        if self.widen is not None:
            logits = self.widen(logits, targets)
        absent = self.teacher is None and taught is None
        if absent or self.distillation.weight == 0:
            return soft_cross_entropy(logits, self.table(targets, partners, lam))
        if taught is None:
            assert self.teacher is not None
            half = torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.half)
            with torch.no_grad(), half:
                taught = self.teacher(inputs)
        weight, temperature = self.distillation.weight, self.distillation.temperature
        loss = weight * distillation_loss(logits, taught, temperature)
        if weight < 1:
            soft = self.table(targets, partners, lam)
            loss = loss + (1 - weight) * soft_cross_entropy(logits, soft)
        return loss


class Step:
    """The step that a training loop repeats. Shapes are fixed and nothing waits for the device.

    `loss_of(images, targets, draw, taught)`, the loss of a batch, is an attribute, so that
    `captured` can replace it by a compiled one.

    Args:
        network: in training mode, on its device, `channels_last`.
        recipe: SRIP, smoothing, distillation and optimiser settings are used.
        generator: draws the first start vectors of warm SRIP, on the network's device.
        hooks: further hooks, such as held masks.
        teacher: network whose logits are learned from.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        generator: torch.Generator | None = None,
        hooks: Sequence[Hook] = (),
        teacher: nn.Module | None = None,
    ) -> None:
        train = recipe.train
        self.network = network
        self.device = next(network.parameters()).device
        half = train.precision == "bf16"
        if half and self.device.type == "cpu":
            _keep_strided_depthwise_in_float32(network)
        frozen = freeze(network, train.freeze)
        table = TargetTable(network.classifier, recipe.smoothing)
        self.hooks: list[Hook] = [table, frozen]
        if recipe.srip.coef:
            self.hooks.append(Srip(network, recipe.srip, generator))
        self.hooks += hooks
        self.objective = Objective(
            table, teacher, recipe.distillation, half, recipe.exits,
            _frozen_front(network), _margin(network, recipe),
        )  # fmt: skip
        self.optimizer = make_optimizer(network, train)
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
        taught: Tensor | None = None,
    ) -> None:
        """Take one step, and add its loss and penalty to the attributes `loss` and `penalty`.

        Args:
            images: uint8 `[N, 3, 32, 32]`, augmented.
            targets: `[N]`.
            draw: random decisions of CutMix or mixup; None does not mix.
            lr: learning rate.
            generator: draws SRIP's start vectors, on the device.
            taught: logits of an offline teacher, see `Objective`.
        """
        self.set_lr(lr)
        self.update(images, targets, draw, generator, taught)

    def set_lr(self, lr: float | Tensor) -> None:
        """Set the learning rate, multiplied by the factor of each parameter group."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"] if group["factor"] != 1 else lr

    def update(
        self,
        images: Tensor,
        targets: Tensor,
        draw: MixDraw | None,
        generator: torch.Generator | None = None,
        taught: Tensor | None = None,
    ) -> None:
        """Take one step at the current learning rate. Arguments as for a call."""
        self.optimizer.zero_grad()
        loss = self.loss_of(images, targets, draw, taught)
        loss.backward()
        for hook in self.hooks:
            penalty = hook.after_backward(generator)
            if penalty is not None:
                self.penalty += penalty
        for hook in self.hooks:
            hook.before_step(self.optimizer)
        self.optimizer.step()
        for hook in self.hooks:
            hook.after_step()
        self.loss += loss.detach()

    def _loss_of(
        self, images: Tensor, targets: Tensor, draw: MixDraw | None, taught: Tensor | None
    ) -> Tensor:
        return self.objective(self.network, images, targets, draw, taught)


def make_optimizer(network: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of a recipe, with a parameter group for each weight decay and factor.

    Weights come first. Biases and batch norm have fewer than two dimensions and are not decayed
    unless `decay_all` is set.

    Raises:
        InputError: a pattern of `train.lr_factors` that fits no parameter.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in train.lr_factors:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"train.lr_factors: no parameter is named {pattern!r}")
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            factors = (f for pattern, f in train.lr_factors.items() if fnmatchcase(name, pattern))
            factor = next(factors, 1.0) * (_size(parameter) if train.relative_lr else 1.0)
            key = (parameter.ndim > 1, factor)
            groups.setdefault(key, []).append(parameter)
    params = [
        {
            "params": members,
            "weight_decay": train.weight_decay if is_weight or train.decay_all else 0.0,
            "factor": factor,
        }
        for (is_weight, factor), members in groups.items()
        if members
    ]
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            params,
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.momentum > 0,
            fused=True,
        )
    kind = torch.optim.Adam if train.optimizer == "adam" else torch.optim.AdamW
    on_gpu = next(network.parameters()).is_cuda
    return kind(params, lr=train.lr, betas=(train.momentum, 0.999), fused=True, capturable=on_gpu)


@torch.no_grad()
def _size(parameter: Tensor) -> float:
    """Return the root mean square of the non-zero values."""
    mean_square = parameter.square().sum() / parameter.count_nonzero().clamp_min(1)
    return max(1e-4, mean_square.sqrt().item())


def _margin(network: nn.Module, recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return what adds the recipe's angular margin to logits, or None without one."""
    margin = recipe.arcface.margin
    if not margin:
        return None
    if not isinstance(network, EmbeddingNetwork) or not network.scale:
        raise InputError(
            f"arcface.margin is {margin}, but the logits are no cosines: make the change Embed, "
            "with a scale"
        )
    return partial(arcface_logits, scale=network.scale, margin=margin)


def _frozen_front(network: nn.Module) -> nn.Module | None:
    """Return the features of a frozen trunk with folded batch norm, or None without one."""
    if not isinstance(network, ExitNetwork):
        return None
    if any(parameter.requires_grad for parameter in network.trunk.parameters()):
        return None
    return fold_batch_norm(Front(network)).requires_grad_(False)


class _Float32Conv2d(nn.Conv2d):
    """A convolution that is computed in float32 inside autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def _keep_strided_depthwise_in_float32(network: nn.Module) -> None:
    """Exclude layers from bfloat16 whose backward pass on a CPU is many times slower in it."""
    for module in network.modules():
        # A subclass computes in a way of its own.
        if type(module) is not nn.Conv2d or max(module.stride) == 1:
            continue
        if 1 < module.groups == module.in_channels:
            module.__class__ = _Float32Conv2d
