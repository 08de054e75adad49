"""Adaptive rounding: each weight rounded down or up, so that a block computes what it did.

Rounding to nearest is best for each weight alone. What counts is the sum, in which errors can
cancel. So a number `v` for each weight decides between its two neighbouring integers, and gradient
descent on unlabelled images decides `v` [nagel2020]:

    code = lower + h(v) * (upper - lower),  h(v) = clip(1.2 * sigmoid(v) - 0.1, 0, 1)

The loss is the error of the block's output [li2021] and a term that draws every `h` to 0 or 1. The
blocks follow one another. Each reads what the rounded blocks before it produce, and aims at the
output of the network in floats. Chapter `11_beyond`.

Differences from [nagel2020]: our integers have no zero, so a weight below its scale has no choice.
The error is divided by that of rounding to nearest, and the regulariser is a mean. So one rounding
weight serves blocks of any size, widths of any number of bits, and few iterations.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from micronet_lib.architecture.network import Network
from micronet_lib.beyond.changes import NUM_TO_CALIBRATE, Quantize
from micronet_lib.beyond.network import IntegerMicroNet, Quantized, Widths
from micronet_lib.beyond.quantizers import FLOAT_BITS
from micronet_lib.errors import InputError

STRETCH = (-0.1, 1.1)
"""Where `h` would end without its clip. With it, 0 and 1 are reached by finite numbers."""
BETAS = (20.0, 2.0)
"""The exponent of the regulariser, at its start and at the end."""
WARM_START = 0.2
"""The part of the iterations without regulariser."""
FORWARD_BATCH = 128


# ---------------------------------------------------------------------------- the pure functions


def rectified_sigmoid(v: Tensor) -> Tensor:
    """Return `h(v)` in [0, 1], of the same shape [nagel2020]."""
    low, high = STRETCH
    return (torch.sigmoid(v) * (high - low) + low).clamp(0, 1)


def rectified_logit(h: Tensor) -> Tensor:
    """Return the `v` whose `rectified_sigmoid` is `h`, in [0, 1]."""
    low, high = STRETCH
    return -torch.log((high - low) / (h - low) - 1)


def neighbours(ratios: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the integers that a weight may become: down and up, each of the same shape.

    Down is towards 0. The two are equal where there is no choice: below 1, because no integer is 0,
    and from the largest integer on. A weight of 0 stays 0.

    Args:
        ratios: weights in units of their scale.
        bits: of an integer.
    """
    sizes, top = ratios.abs().floor(), 2 ** (bits - 1)
    no_choice = sizes == 0
    lower, upper = sizes.clamp(1, top), (sizes + 1 - no_choice.to(sizes.dtype)).clamp(1, top)
    return lower * ratios.sign(), upper * ratios.sign()


def initial_logits(ratios: Tensor, lower: Tensor) -> Tensor:
    """Return the `v` at which the soft codes are the ratios, as far as their range allows."""
    return rectified_logit((ratios - lower).abs().clamp(0, 1))


def soft_codes(v: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return numbers between the two neighbours, with a gradient to `v`, of the same shape."""
    return lower + rectified_sigmoid(v) * (upper - lower)


def hard_codes(v: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the chosen integers: up where `h(v)` is at least 1/2."""
    return torch.where(v >= 0, upper, lower)


def undecided(h: Tensor, beta: float) -> Tensor:
    """Return the regulariser `1 - |2 h - 1|^beta` of each number: 0 at 0 and 1, and 1 at 1/2."""
    return 1 - (2 * h - 1).abs().pow(beta)


def beta_at(progress: float) -> float | None:
    """Return the exponent at a point of the optimisation in [0, 1], or None in the warm start."""
    if progress < WARM_START:
        return None
    first, last = BETAS
    return first + (last - first) * (progress - WARM_START) / (1 - WARM_START)


# ------------------------------------------------------------------------------ block after block


@dataclass(frozen=True)
class RoundingConfig:
    """Settings of adaptive rounding.

    Attributes:
        iterations: of each unit; with 0 every weight is rounded to nearest. So is a unit where
            that turns out to be better.
        batch_size: images of an iteration.
        lr: of Adam, for the numbers `v`.
        rounding_weight: of the regulariser.
        correct_biases: whether biases finally take up the mean error of their channel.
        seed: of all random numbers.

    Raises:
        InputError: a number outside its range.
    """

    iterations: int = 300
    batch_size: int = 32
    lr: float = 0.05
    rounding_weight: float = 1.0
    correct_biases: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise InputError(f"iterations is {self.iterations}; give 0 or more")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}; give 1 or more")
        if not self.lr > 0:
            raise InputError(f"lr is {self.lr}; give a number above 0")
        if not self.rounding_weight >= 0:
            raise InputError(f"rounding_weight is {self.rounding_weight}; give 0 or more")


class UnitError(NamedTuple):
    """The error of a unit's output, as a fraction of the mean square of what it should be.

    Attributes:
        name: of the unit.
        nearest: with weights rounded to nearest.
        adaptive: with the chosen ones, and corrected biases.
    """

    name: str
    nearest: float
    adaptive: float


def units(network: IntegerMicroNet) -> dict[str, nn.Module]:
    """Return what is reconstructed at once, in the order of execution.

    The stem goes with the first block, pooling with the classifier.
    """
    first, *others = network.blocks
    found: dict[str, nn.Module] = {"blocks.0": nn.Sequential(network.stem, first)}
    found |= {f"blocks.{index}": block for index, block in enumerate(others, 1)}
    return found | {"head": network.head}


def round_adaptively(
    network: IntegerMicroNet, images: Tensor, config: RoundingConfig
) -> list[UnitError]:
    """Round all weights in place, and return the errors of the units.

    Afterwards a weight is its integer times its scale, so that `codes()` returns that integer.

    Args:
        network: with its widths set, and calibrated. Layers with weights in floats stay.
        images: normalised, without labels, `[N, 3, H, W]`.
        config: the settings.

    Raises:
        InputError: no images, or a network whose weights are all in floats.
    """
    if not len(images):
        raise InputError("no images to round with")
    if all(layer.weight_bits == FLOAT_BITS for layer in network.layers.values()):
        raise InputError("the weights are in floats: set their widths and calibrate first")
    floats = copy.deepcopy(network)
    floats.set_widths(Widths())
    learned = [each for each in network.parameters() if each.requires_grad]
    network.requires_grad_(False)
    try:
        return _rounded_units(network, floats, images, config)
    finally:
        for each in learned:
            each.requires_grad_(True)


def _rounded_units(
    network: IntegerMicroNet, floats: IntegerMicroNet, images: Tensor, config: RoundingConfig
) -> list[UnitError]:
    generator = torch.Generator().manual_seed(config.seed)
    errors = []
    exact = rounded = _packed(images)
    for (name, unit), original in zip(units(network).items(), units(floats).values(), strict=True):
        target = _outputs(original, exact)
        reads = _Inputs(rounded, target)
        nearest = _relative_error(unit, reads)
        _round_unit(unit, reads, config, generator)
        if config.correct_biases:
            _correct_biases(unit, original, rounded, exact)
        errors.append(UnitError(name, nearest, _relative_error(unit, reads)))
        rounded, exact = _outputs(unit, rounded), target
    return errors


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What a unit reads in the rounded network, and its output in the one of floats."""

    rounded: Tensor
    target: Tensor

    def drawn(self, config: RoundingConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a batch."""
        chosen = torch.randperm(len(self.rounded), generator=generator)[: config.batch_size]
        return _packed(self.rounded[chosen]), _packed(self.target[chosen])


class _Choice:
    """The choice of every weight of a layer."""

    def __init__(self, layer: Quantized) -> None:
        with torch.no_grad():
            self.scale = layer.scales().view(-1, *[1] * (layer.weight.ndim - 1))
            ratios = layer.weight / self.scale
            self.lower, self.upper = neighbours(ratios, layer.weight_bits)
            self.free = self.lower != self.upper
            self.nearest = layer.codes() * self.scale
            self.v = initial_logits(ratios, self.lower).requires_grad_(True)

    def soft(self) -> Tensor:
        """Return the weight of this moment."""
        return soft_codes(self.v, self.lower, self.upper) * self.scale

    def hard(self) -> Tensor:
        """Return the weight of the integers."""
        return hard_codes(self.v.detach(), self.lower, self.upper) * self.scale

    def undecided(self, beta: float) -> Tensor:
        """Return the sum of the regulariser over weights with a choice, 0-d."""
        return (undecided(rectified_sigmoid(self.v), beta) * self.free).sum()


def _round_unit(
    unit: nn.Module, reads: _Inputs, config: RoundingConfig, generator: torch.Generator
) -> None:
    """Choose the integers of a unit's weights and write them into it."""
    layers = {
        name: layer for name, layer in _layers(unit).items() if layer.weight_bits != FLOAT_BITS
    }
    if not layers:
        return
    choices = {name: _Choice(layer) for name, layer in layers.items()}
    widths = {name: layer.weight_bits for name, layer in layers.items()}
    usual = _mean_error(unit, reads)
    for layer in layers.values():
        layer.weight_bits = FLOAT_BITS  # the soft weights are used as they are
    try:
        _decide(unit, choices, reads, config, usual, generator)
    finally:
        for name, layer in layers.items():
            layer.weight_bits = widths[name]
    for name, layer in layers.items():
        _write(layer, choices[name].hard())
    if _mean_error(unit, reads) > usual:
        # Too few iterations: many choices were still open.
        for name, layer in layers.items():
            _write(layer, choices[name].nearest)


def _decide(
    unit: nn.Module,
    choices: Mapping[str, _Choice],
    reads: _Inputs,
    config: RoundingConfig,
    usual: float,
    generator: torch.Generator,
) -> None:
    """Optimise the choices. `usual` is the error of rounding to nearest."""
    num_free = max(1, sum(int(choice.free.sum()) for choice in choices.values()))
    optimizer = torch.optim.Adam([choice.v for choice in choices.values()], lr=config.lr)
    for iteration in range(config.iterations):
        x, target = reads.drawn(config, generator)
        weights = {f"{name}.weight": choice.soft() for name, choice in choices.items()}
        out = functional_call(unit, weights, x)
        loss = F.mse_loss(out, target) / max(1e-20, usual)
        beta = beta_at(iteration / config.iterations)
        if beta is not None:
            total = sum(choice.undecided(beta) for choice in choices.values())
            loss = loss + config.rounding_weight * total / num_free
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _write(layer: Quantized, weight: Tensor) -> None:
    layer.weight.copy_(weight)  # not into `data`: the network must notice


@torch.no_grad()
def _correct_biases(unit: nn.Module, original: nn.Module, rounded: Tensor, exact: Tensor) -> None:
    """Add to each bias what its channel lacks on average, layer after layer."""
    wanted = _layer_means(original, exact)
    for name, layer in _layers(unit).items():
        layer.bias += wanted[name] - _layer_means(unit, rounded)[name]


def _layer_means(unit: nn.Module, x: Tensor) -> Mapping[str, Tensor]:
    """Return layer -> mean output of each channel."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_hook(
            lambda _, __, out, name=name: found.setdefault(name, []).append(
                out.transpose(0, 1).flatten(1).mean(1) * len(out)
            )
        )
        for name, layer in _layers(unit).items()
    ]
    _outputs(unit, x)
    for handle in handles:
        handle.remove()
    return {name: torch.stack(sums).sum(0) / len(x) for name, sums in found.items()}


def _layers(unit: nn.Module) -> dict[str, Quantized]:
    """Return the layers of a unit by name, in the order of their execution."""
    return {name: each for name, each in unit.named_modules() if isinstance(each, Quantized)}


def _packed(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


@torch.no_grad()
def _outputs(unit: nn.Module, x: Tensor) -> Tensor:
    return _packed(torch.cat([unit(part) for part in x.split(FORWARD_BATCH)]))


@torch.no_grad()
def _mean_error(unit: nn.Module, reads: _Inputs) -> float:
    """Return the mean squared error of a unit as it is, over all images."""
    return F.mse_loss(_outputs(unit, reads.rounded), reads.target).item()


def _relative_error(unit: nn.Module, reads: _Inputs) -> float:
    return _mean_error(unit, reads) / max(1e-20, reads.target.square().mean().item())


# ------------------------------------------------------------------------------------ the change


@dataclass(frozen=True)
class RoundAdaptively(RoundingConfig, Quantize):
    """Round weights down or up as their block needs it, without labels and without training.

    Widths and calibration are those of `Quantize`; the further fields those of `RoundingConfig`.

    Attributes:
        num_images: training images, without labels; the first 512 calibrate.
    """

    num_images: int = 1024

    def apply(self, network: Network, images: Tensor) -> IntegerMicroNet:
        """Return the network in integers.

        Raises:
            InputError: a network that cannot be put in integers, a width out of range, or no
                images.
        """
        made = super().apply(network, images[:NUM_TO_CALIBRATE])
        round_adaptively(made, images, self)
        return made
