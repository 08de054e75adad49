"""What widths of channels cost, for the counter and for the gradient.

`counted` says it to the counter. `price` is the same score as a function of the learned widths, so
that training can steer to a target (`Steer`).
"""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from micronet_lib.adjustable_quantization.ranges import MAX_BITS, MIN_BITS, SCALES, SHIFTS
from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.beyond.allocation import output_positions
from micronet_lib.beyond.counting import counted as counted_integers
from micronet_lib.hooks import Hook
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE, score_network
from micronet_lib.scoring.operations import Work

if TYPE_CHECKING:
    from micronet_lib.adjustable_quantization.network import AdjustableMicroNet

FULL = 32
SUM_BITS, SCALE_BITS = 32, 16
"""A sum is multiplied by its scale with all its bits."""
WIDTH_BITS = 3
"""Bits that say one of the widths from 2 to 8."""
SHIFT_BITS = 3


class _SharedMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, inputs: Tensor, share: float) -> Tensor:
        ctx.shapes, ctx.share = (weights.shape, inputs.shape), share
        return torch.maximum(weights, inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, inputs = ctx.shapes
        to_weights = ((1 - ctx.share) * grad).sum_to_size(weights)
        return to_weights, (ctx.share * grad).sum_to_size(inputs), None


def shared_max(weights: Tensor, inputs: Tensor, share: float = 0.7) -> Tensor:
    """Return the larger one, with a gradient to both [texas_eic].

    The true gradient goes to the wider one alone.

    Args:
        weights: widths, broadcast against each other.
        inputs: widths.
        share: of the gradient that goes to `inputs`.
    """
    made: Tensor = _SharedMax.apply(weights, inputs, share)
    return made


def reading_positions(network: "AdjustableMicroNet") -> dict[str, int]:
    """Return layer -> positions of its input."""
    strides = {name: getattr(layer, "stride", (1,))[0] for name, layer in network.layers.items()}
    return {name: strides[name] ** 2 * n for name, n in output_positions(network).items()
            if name in strides}  # fmt: skip


def _products(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return number of products `[out_chs, in_chs / groups]`, widths of filters and of inputs.

    The widths have gradients and are broadcast against the numbers.
    """
    numbers = (layer.codes() != 0).flatten(1).reshape(*layer.weight.shape[:2], -1).sum(2)
    inputs = layer.input_bits().to(numbers.device)
    depthwise = getattr(layer, "groups", 1) > 1
    inputs = inputs.view(-1, 1) if depthwise else inputs.view(1, -1)
    return numbers, layer.filter_bits().view(-1, 1), inputs


def _variable(network: "AdjustableMicroNet", share: float) -> Iterator[Tensor]:
    """Yield the part of the score that depends on widths and zeros, layer by layer."""
    positions = output_positions(network)
    for name, layer in network.layers.items():
        numbers, weights, inputs = _products(layer)
        rows = numbers.sum(1)
        stored = (rows * weights.flatten()).sum() / FULL
        if int(rows.sum()) < layer.weight.numel():
            stored = stored + layer.weight.numel() / FULL
        mults = (numbers * shared_max(weights, inputs, share)).sum() / FULL
        adds = (rows - 1).clamp_min(0).sum()
        yield stored / PARAM_BASE + positions[name] * (mults + adds) / OPS_BASE


def price(network: "AdjustableMicroNet", fixed: float, share: float = 0.7) -> Tensor:
    """Return the official score, 0-d, with a gradient to every learned width.

    Args:
        network: as it is now.
        fixed: the part that no width changes, from `fixed_price`.
        share: see `shared_max`.
    """
    return torch.stack(list(_variable(network, share))).sum() + fixed


@torch.no_grad()
def fixed_price(network: "AdjustableMicroNet") -> float:
    """Return the part of the official score that neither widths nor zeros change."""
    whole = score_network(network, "official").score
    return whole - torch.stack(list(_variable(network, 0.5))).double().sum().item()


class Ranges(Hook):
    """Hold ranges and widths between their ends.

    Args:
        network: with learned ranges.
    """

    def __init__(self, network: "AdjustableMicroNet") -> None:
        ends = {"range_scale": SCALES, "range_shift": SHIFTS,
                "bit_scale": (MIN_BITS / MAX_BITS, 1.0)}  # fmt: skip
        self._held = [
            (parameter, *ends[name.rpartition(".")[2]])
            for name, parameter in network.named_parameters()
            if name.rpartition(".")[2] in ends
        ]

    @torch.no_grad()
    def after_step(self) -> None:
        """Clip them."""
        for parameter, low, high in self._held:
            parameter.clamp_(low, high)


class Steer(Hook):
    """Steer the widths to a score: the loss grows with the score above it and shrinks below.

        term = strength * sign(score - target) * score / target

    Args:
        network: with learned widths.
        target: the score.
        strength: of the term.
        share: see `shared_max`.
    """

    def __init__(
        self, network: "AdjustableMicroNet", target: float, strength: float, share: float
    ) -> None:
        self._network, self._share = network, share
        self._target, self._strength = target, strength
        self._fixed = fixed_price(network)

    def after_backward(self, generator: torch.Generator | None) -> Tensor | None:
        """Add the gradient of the term. Return nothing: its value is no loss to report."""
        score = price(self._network, self._fixed, self._share)
        sign = (score.detach() - self._target).sign()
        (self._strength * sign * score / self._target).backward()
        return None


@torch.no_grad()
def counted(network: "AdjustableMicroNet", shifted: bool = False) -> MicroNet:
    """Return the MicroNet whose operations are charged.

    A product costs the wider one of its filter and its input channel, the product of a sum and its
    scale 32 bits. Every rounded value costs one
    operation more, which shifts it by the k of its channel. Stored are also, for every channel, its
    width, its k and the integer that stands for 0, and for every filter its width and its scale.

    Args:
        network: as it is now.
        shifted: charge a product the width of the weight with the shift built in, if that is wider:
            a strict reading of the rules, which say nothing of bits that are known to be 0.
    """
    plain = counted_integers(network, savings=False)
    layers: dict[str, Any] = dict(plain.named_modules())
    seen = set[int]()
    for name, own in network.layers.items():
        layer, (numbers, weights, inputs) = layers[name], _products(own)
        layer.weight.data = own.codes()
        rows = numbers.sum(1)
        layer.weight_bits = ((rows * weights.flatten()).sum() / rows.sum().clamp_min(1)).item()
        wider, reads = torch.maximum(weights, inputs), own.reads
        if shifted and hasattr(reads, "channel_bits"):
            wider = torch.maximum(wider, weights + reads.grid().shifts.view(inputs.shape))
        wider = wider.long()
        widths = Counter({int(w): int(numbers[wider == w].sum()) for w in wider.unique()})
        widths[SUM_BITS - SCALE_BITS] += len(rows)  # the rules charge a scale 16 bits
        layer.work = Work(widths, {FULL: int((rows - 1).clamp_min(0).sum())})
        layer.constant_bits += WIDTH_BITS * len(rows)
        if hasattr(reads, "channel_bits") and id(reads) not in seen:
            seen.add(id(reads))
            layer.constant_bits += (WIDTH_BITS + SHIFT_BITS + MAX_BITS) * reads.bit_scale.numel()
            layer.register_forward_pre_hook(_shifted)
    return plain


def _shifted(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Stand for the operation that shifts the integers of a channel."""
    return (inputs[0] * 1.0,)
