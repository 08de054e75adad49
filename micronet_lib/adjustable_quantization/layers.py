"""Channels with ranges and bit widths of their own: quantizers, sums in integers, layers.

A filter has a range around 0 and a width, a channel of activations a range and a width. Sums over
channels can be made of integers only if the steps of the channels are multiples of one unit. So a
step is rounded to the unit of its quantizer times 2^k, and the integers of a channel are shifted by
k bits before they are multiplied (chapter `09_adjustable_quantization`).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.adjustable_quantization.ranges import (
    MAX_BITS,
    adjusted,
    learned_bits,
    zero_code,
)
from micronet_lib.beyond.arithmetic import EXACT, Sums, rescaled, saturated, scale_factors
from micronet_lib.beyond.layers import (
    MIDDLE,
    PIXEL_UNIT,
    Pixels,
    QuantizedConv2d,
    QuantizedLinear,
    Quantizer,
)
from micronet_lib.beyond.quantizers import OCTAVE, SCALE_BITS, hard_swish_grid, through

if TYPE_CHECKING:
    from micronet_lib.adjustable_quantization.network import Adjust

WIDEST_SHIFT = 7
FINEST = 4.5
"""Of a step in units of `3 / three`, times 3. One integer before HardSwish, where it is steepest,
is then at most one after it."""
TOLERANCE = 0.1
"""In places of a grid: a step so little above one keeps it, and its range becomes narrower, by 7 %
at most for activations (a place is a factor of 2) and by 2 % for filters (a quarter of an octave).
"""


@dataclass(frozen=True, eq=False)
class ChannelGrid:
    """The integers of the channels of a quantizer, as `beyond.arithmetic` reads a `Grid`.

    Attributes:
        unit: the step of a channel is the unit times 2^k.
        shifts: k, `[C]`.
        step: of a channel, float64 `[C, 1, 1]`.
        low: smallest integer of a channel, counted from zero, `[C, 1, 1]`.
        high: its largest.
        three: for HardSwish, the integer that stands for 3; 0 otherwise.
        shift: for HardSwish, bits by which a channel's product is shifted, `[C, 1, 1]`.
    """

    unit: float
    shifts: Tensor
    step: Tensor
    low: Tensor
    high: Tensor
    three: int
    shift: Tensor


class ChannelQuantizer(Quantizer):
    """Rounds activations channel by channel, after HardSwish or not.

    Args:
        quantizer: that it replaces.
        num_channels: C.
        settings: of the whole network.
    """

    low: Tensor
    width: Tensor

    def __init__(self, quantizer: Quantizer, num_channels: int, settings: "Adjust") -> None:
        super().__init__(quantizer.hard_swish)
        del self.step, self.zero
        self.bits, self.pre_bits = MAX_BITS, quantizer.pre_bits
        self.bound_gradient = settings.bound_gradient
        self.range_scale = nn.Parameter(torch.ones(num_channels))
        self.range_shift = nn.Parameter(torch.zeros(num_channels))
        start = torch.full((num_channels,), settings.activation_bits / MAX_BITS)
        self.bit_scale = nn.Parameter(start, requires_grad=settings.target is not None)
        self.register_buffer("low", torch.zeros(num_channels))
        self.register_buffer("width", torch.ones(num_channels))

    def channel_bits(self) -> Tensor:
        """Return the width of each channel, with a gradient, `[C]`."""
        return learned_bits(self.bit_scale)

    def ends(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return lower end, step before it is rounded and `2^bits - 1`, with gradients, `[C]`."""
        top = 2 ** self.channel_bits() - 1
        low = self.low + self.range_shift * self.width
        return low, self.range_scale * self.width / top, top

    @torch.no_grad()
    def steps(self, low: Tensor, step: Tensor, top: Tensor) -> tuple[float, Tensor, int, int]:
        """Return the unit, k of each channel `[C]`, and `three` and `shift` of HardSwish's grid."""
        device = step.device
        low, step, top = torch.stack([low, step, top]).cpu()  # waits for the device once
        while True:
            unit = max(step.min().item(), step.max().item() * 2.0**-WIDEST_SHIFT)
            # Rounded up, so that hardly any range becomes narrower than it is learned.
            shifts = ((step / unit).log2() - TOLERANCE).ceil().clamp(0, WIDEST_SHIFT)
            if not self.hard_swish:
                return unit, shifts.to(device), 0, 0
            reach = 1.05 * max(3.0, (low + unit * 2**shifts * top).max().item())
            grid = hard_swish_grid(unit, math.ceil(math.log2(reach / unit + 2)), self.pre_bits)
            if grid.step * grid.three >= FINEST:
                return grid.step, shifts.to(device), grid.three, grid.shift
            step = step.clamp_min(1.25 * unit)

    @torch.no_grad()
    def grid(self) -> Any:
        """Return the integers of this moment, a `ChannelGrid`."""
        low, step, top = self.ends()
        unit, shifts, three, shift = self.steps(low, step, top)
        zero = zero_code(low, unit * 2**shifts, top)
        as_plane = (-1, 1, 1)
        return ChannelGrid(
            unit,
            shifts,
            unit * 2 ** shifts.double().view(as_plane),
            zero.view(as_plane),
            (zero + top).view(as_plane),
            three,
            shift + shifts.view(as_plane),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded inputs as floats."""
        y = F.hardswish(x) if self.hard_swish else x
        if self.tap is not None:
            self.tap(self, y)
        low, step, top = self.ends()
        unit, shifts, *_ = self.steps(low, step, top)
        step = through(step, unit * 2**shifts)
        shape = (1, -1, *[1] * (x.ndim - 2))
        low, step, top = low.view(shape), step.view(shape), top.view(shape)
        return adjusted(y, step, low, top, bound_gradient=self.bound_gradient)


class ChannelSums(Sums):
    """A layer in integers whose inputs have widths of their own, channel by channel.

    `zeros` has an entry for each input channel, and `tops` the largest unsigned integer of each.
    The weights are shifted instead of the inputs: the products are the same.
    """

    tops: Tensor

    def _per_weight(self, values: Tensor) -> Tensor:
        """Return a value of each input channel for each weight, to multiply rows with."""
        if self.groups > 1:
            return values.double().view(-1, 1)
        return values.double().repeat_interleave(self.weight[0, 0].numel())

    @cached_property
    def start(self) -> Tensor:
        """The bias of a machine that adds unsigned inputs, float64 `[out_chs]`."""
        rows = self.weight.double().flatten(1)
        return self.bias - (rows * self._per_weight(self.zeros)).sum(1)

    @cached_property
    def reach(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest partial sum, whatever the inputs and the order, `[out_chs]` each."""
        rows = self.weight.double().flatten(1)
        tops = self._per_weight(self.tops)
        low = self.start.clamp(max=0) + (rows.clamp(max=0) * tops).sum(1)
        return low, self.start.clamp(min=0) + (rows.clamp(min=0) * tops).sum(1)

    @cached_property
    def exact(self) -> torch.dtype:
        """The narrowest type in which no sum is rounded."""
        most = 2 * max(end.abs().max().item() for end in self.reach)
        return torch.float32 if most < EXACT else torch.float64

    def __call__(self, codes: Tensor) -> Tensor:
        """Return the exact sums of integers that count from zero."""
        exact = self.exact
        weight, bias, codes = self.weight.to(exact), self.bias.to(exact), codes.to(exact)
        if not self.stride:
            return F.linear(codes, weight, bias)
        return F.conv2d(codes, weight, bias, self.stride, self.padding, groups=self.groups)

    def outputs(self, codes: Tensor, unit: float, bits: int = 0) -> Tensor:
        """Return the outputs as integers of that unit, see `beyond.arithmetic.Sums.outputs`.

        Sums are multiplied as they are. With 16 bits of them, their last bit would count for more
        than one of the integers that follow.
        """
        total = self(codes)
        factor = (self.scale / unit).view(1, -1, *[1] * (total.ndim - 2))
        found = rescaled(total, factor)
        return (saturated(found, bits) if bits else found).to(codes.dtype)


class _Layer:
    """What the adjustable convolution and the adjustable linear layer share."""

    weight: Any
    bias: Any
    reads: Any
    weight_bits: int
    bias_bits: int
    range_scale: nn.Parameter
    bit_scale: nn.Parameter
    width: Tensor

    def _adjust(self, layer: Any, settings: "Adjust") -> None:
        made: Any = self
        del made.scale
        made.load_state_dict({"weight": layer.weight, "bias": layer.bias})
        made.weight_bits, made.bias_bits = MAX_BITS, settings.bias_bits
        made.bound_gradient = settings.bound_gradient
        out_chs = len(layer.weight)
        made.range_scale = nn.Parameter(torch.ones(out_chs))
        start = torch.full((out_chs,), settings.weight_bits / MAX_BITS)
        made.bit_scale = nn.Parameter(start, requires_grad=settings.target is not None)
        made.register_buffer("width", torch.ones(out_chs))

    def filter_bits(self) -> Tensor:
        """Return the width of each filter, with a gradient, `[out_chs]`."""
        return learned_bits(self.bit_scale)

    def input_bits(self) -> Tensor:
        """Return the width of each input channel, with a gradient, `[in_chs]`."""
        if isinstance(self.reads, Pixels):
            return self.weight.new_full((len(MIDDLE),), self.reads.bits)
        found: Tensor = self.reads.channel_bits()
        return found

    def free_scales(self) -> Tensor:
        """Return the steps before they are put on the layer's grid, with a gradient."""
        width = (self.range_scale * self.width).clamp_min(1e-8)
        return width / (2 ** self.filter_bits() - 1)

    def stored_scales(self) -> Tensor:
        """Return the places of the steps in the layer's grid, int64 `[out_chs]`.

        They are the next above, or one that is hardly below, see `TOLERANCE`.
        """
        steps = self.free_scales().detach()
        below = ((steps.max() / steps).log2() * OCTAVE + TOLERANCE).floor()
        return below.clamp(0, 2**SCALE_BITS - 1).long()

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the integers of the weights as floats, of the weight's shape."""
        shape = (-1, *[1] * (self.weight.ndim - 1))
        scale, half = (
            each.view(shape)
            for each in (self.scales(), 2 ** (self.filter_bits() - 1))  # type: ignore[attr-defined]
        )
        found: Tensor = (self.weight / scale).round().clamp(-half, half - 1)
        return found

    def rounded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias as training uses them, with gradients."""
        made: Any = self
        top = 2 ** self.filter_bits() - 1
        shape = (-1, *[1] * (self.weight.ndim - 1))
        step, low, top, zero = (
            each.view(shape)
            for each in (
                made.scales(),
                -self.range_scale * self.width / 2,
                top,
                -(top.detach() + 1) / 2,  # two's complement
            )
        )
        weight = adjusted(self.weight, step, low, top, zero, made.bound_gradient)
        bias, unit = self.whole_bias()
        return weight, through(self.bias, (bias * unit).to(self.bias.dtype))

    @torch.no_grad()
    def whole_bias(self) -> tuple[Tensor, Tensor]:
        """Return the biases as integers among the sums, and the unit of a sum, float64 `[out_chs]`.

        With few bits a unit is large, so that rounding a bias to it is seen in training too.
        """
        made: Any = self
        step = PIXEL_UNIT if isinstance(self.reads, Pixels) else self.reads.grid().unit
        unit = scale_factors(self.free_scales().max().item(), made.stored_scales()) * step
        codes, of_bias = made.bias_codes()
        return torch.floor(codes.double() * of_bias.double() / unit + 0.5), unit

    def sums(self) -> ChannelSums:
        """Return the layer in integers, as it is now."""
        weight, reads = self.codes(), self.reads
        if isinstance(reads, Pixels):
            zeros = torch.tensor(MIDDLE, dtype=torch.float64, device=weight.device)
            tops = torch.full_like(zeros, 2**reads.bits - 1)
        else:
            grid = reads.grid()
            zeros = -grid.low.double().flatten()
            tops = (grid.high - grid.low).flatten()
            shape: tuple[int, ...] = (1, -1, *[1] * (weight.ndim - 2))
            if getattr(self, "groups", 1) > 1:
                shape = (-1, 1, 1, 1)
            weight = weight * (2**grid.shifts).view(shape)
        bias, scale = self.whole_bias()
        place: tuple[int, ...] = ()
        if isinstance(self, nn.Conv2d):
            place = (self.stride[0], int(self.padding[0]), self.groups)
        found = ChannelSums(weight, bias, scale, zeros, reads.bits, *place)
        object.__setattr__(found, "tops", tops)
        return found


class AdjustableConv2d(_Layer, QuantizedConv2d):
    """A convolution whose filters have widths of their own.

    Args:
        layer: that it replaces.
        reads: rounds its inputs.
        settings: of the whole network.
    """

    def __init__(self, layer: QuantizedConv2d, reads: Any, settings: "Adjust") -> None:
        super().__init__(layer, reads)
        self._adjust(layer, settings)


class AdjustableLinear(_Layer, QuantizedLinear):
    """A linear layer whose rows have widths of their own. Arguments as for `AdjustableConv2d`."""

    def __init__(self, layer: QuantizedLinear, reads: Any, settings: "Adjust") -> None:
        super().__init__(layer, reads)
        self._adjust(layer, settings)
