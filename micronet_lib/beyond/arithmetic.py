"""The arithmetic of a network in integers, as tensors of floats that hold integers.

1. A layer adds products of integers to an integer bias. Its sum is exact in any order.
2. The sum becomes an integer of another unit: it is shifted to 16 bits, multiplied by the 15-bit
   integer of its channel and shifted. This carries the scales of weights and inputs.
3. HardSwish is one product and a shift, because 3 is an integer (`quantizers.hard_swish_grid`).
4. The stream between blocks, pooled features and logits are integers of 16 bits. The gate's sigmoid
   is read from a table of 1 024 integers.

Halves are rounded up. Every step is exact in float32 or float64, so the result is the same on every
machine, and `integer`, a loop of numpy over a file, finds it too.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from micronet_lib.beyond.quantizers import OCTAVE, SCALE_BITS, Grid

STREAM_BITS = 16
GATE_BITS = 10
GATE_UNIT = 2.0**-6
LOGIT_UNIT = 2.0**-10
MULTIPLIER_BITS = 15
EXACT = 2**24
"""Sums below it are exact in float32, in any order."""
PART = 64
OCTAVES = (1.0, 0.8408964152537145, 0.7071067811865476, 0.5946035575013605)
"""2^(-k/4) for k from 0 to 3."""


def scale_factors(largest: float, places: Tensor) -> Tensor:
    """Return the scales at those places of a layer's grid, float64 of the same shape."""
    steps = range(2**SCALE_BITS)
    table = [OCTAVES[k % OCTAVE] * 2.0 ** -(k // OCTAVE) for k in steps]
    return largest * torch.tensor(table, dtype=torch.float64, device=places.device)[places]


def rescaled(values: Tensor, factor: Tensor) -> Tensor:
    """Return `values * factor` rounded: a product with an integer of 15 bits and a shift.

    Args:
        values: integers of at most 16 bits.
        factor: positive float64, broadcast against the values.
    """
    mantissa, exponent = torch.frexp(factor)
    multiplier = torch.round(mantissa * 2**MULTIPLIER_BITS)
    # Integer and power of two in one float64: the product is exact.
    product = values.double() * torch.ldexp(multiplier, exponent - MULTIPLIER_BITS)
    return product.add_(0.5).floor_()


def saturated(values: Tensor, bits: int) -> Tensor:
    """Return integers clipped to the range of signed integers of that width."""
    return values.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def pooled(stream: Tensor) -> Tensor:
    """Return the rounded means over positions, `[N, C, 1, 1]`."""
    total = stream.double().sum((2, 3), keepdim=True)
    return torch.floor(total / (stream.shape[2] * stream.shape[3]) + 0.5).to(stream.dtype)


def on_grid(values: Tensor, unit: float, grid: Grid) -> Tensor:
    """Return integers of the unit as integers of the grid, counted from its zero."""
    factor = torch.as_tensor(unit / grid.step, dtype=torch.float64)
    return rescaled(values, factor).clamp(grid.low, grid.high).to(values.dtype)


def hard_swish(values: Tensor, grid: Grid, pre_bits: int) -> Tensor:
    """Return HardSwish of integers of the unit `3 / grid.three`, on the grid, from its zero."""
    up = (values + grid.three).clamp_(0, 2**pre_bits - 1)
    product = up.clamp(max=2 * grid.three).mul_(up.sub_(grid.three))
    return product.mul_(2.0**-grid.shift).add_(0.5).floor_().clamp_(grid.low, grid.high)


def sigmoid_table() -> np.ndarray:
    """Return the sigmoid of every gate integer, from the smallest, in units of 2^-15."""
    values = np.arange(-(2 ** (GATE_BITS - 1)), 2 ** (GATE_BITS - 1)) * GATE_UNIT
    return np.rint(2**15 / (1 + np.exp(-values)))


def gated(values: Tensor, logits: Tensor) -> Tensor:
    """Return values times the sigmoid of their channel's gate integer, rounded."""
    table = torch.from_numpy(sigmoid_table()).to(values.device)
    gates = table[(logits + 2 ** (GATE_BITS - 1)).long()]
    product = values.double().mul_(gates).mul_(2.0**-MULTIPLIER_BITS)
    return product.add_(0.5).floor_().to(values.dtype)


@dataclass(frozen=True, eq=False)
class Sums:
    """A layer in integers.

    Attributes:
        weight: integers, `[out_chs, in_chs / groups, ...]`, as floats.
        bias: integers that are added to sums over inputs counted from zero, float64 `[out_chs]`.
        scale: value of one unit of a sum, float64 `[out_chs]`.
        zeros: the integer that stands for an input of 0, for each input channel or for all.
        bits: of the inputs.
        stride: of a convolution; 0 for a linear layer.
        padding: of a convolution.
        groups: of a convolution.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    zeros: Tensor
    bits: int
    stride: int = 0
    padding: int = 0
    groups: int = 1

    @cached_property
    def start(self) -> Tensor:
        """The bias of a machine that adds unsigned inputs, float64 `[out_chs]`.

        Its inputs count from their smallest value, so their zero is inside the bias.
        """
        rows = self.weight.double().flatten(1)
        zeros = self.zeros.double()
        if len(zeros) > 1:
            zeros = zeros.repeat_interleave(rows.shape[1] // len(zeros))
        return self.bias - (rows * zeros).sum(1)

    @cached_property
    def reach(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest partial sum, whatever the inputs and the order, `[out_chs]` each."""
        rows, top = self.weight.double().flatten(1), 2**self.bits - 1
        low = self.start.clamp(max=0) + rows.clamp(max=0).sum(1) * top
        return low, self.start.clamp(min=0) + rows.clamp(min=0).sum(1) * top

    @cached_property
    def width(self) -> int:
        """Bits of the widest sum, sign included [colbert2023]."""
        low, high = self.reach
        return 1 + math.ceil(math.log2(max(-low.min().item(), high.max().item() + 1, 1.0)))

    @cached_property
    def _most(self) -> float:
        """The largest sum of a row's weights, without signs."""
        return self.weight.abs().flatten(1).sum(1).max().item()

    @cached_property
    def _is_small(self) -> bool:
        return self._most * 2**self.bits + self.bias.abs().max().item() < EXACT

    def __call__(self, codes: Tensor) -> Tensor:
        """Return the exact sums of integers that count from zero."""
        if self._is_small:
            total = self._products(codes)
        elif self._most * PART >= EXACT:
            total = self._products(codes.double())
        else:  # in two parts, each exact in float32
            high = torch.floor(codes / PART)
            total = self._products(high).double() * PART + self._products(codes - high * PART)
        return total + self.bias.to(total.dtype).view(1, -1, *[1] * (total.ndim - 2))

    def _products(self, codes: Tensor) -> Tensor:
        weight = self.weight.to(codes.dtype)
        if not self.stride:
            return F.linear(codes, weight)
        return F.conv2d(codes, weight, None, self.stride, self.padding, groups=self.groups)

    def outputs(self, codes: Tensor, unit: float, bits: int = 0) -> Tensor:
        """Return the outputs as integers of that unit.

        Args:
            codes: integers, counted from zero.
            unit: of the result.
            bits: width to clip the result to; 0 does not clip.
        """
        total, down = self(codes), max(0, self.width - STREAM_BITS)
        first = total.mul_(2.0**-down).add_(0.5).floor_()
        factor = self.scale / unit * 2.0**down
        found = rescaled(first, factor.view(1, -1, *[1] * (total.ndim - 2)))
        return (saturated(found, bits) if bits else found).to(codes.dtype)
