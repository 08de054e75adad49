"""Layers with integer weights, and the quantizers that round what the layers read.

In training they return floats that integers stand for, with gradients. `sums` returns a layer as
`arithmetic` runs it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.beyond.arithmetic import Sums, scale_factors
from micronet_lib.beyond.description import IMAGE_BITS
from micronet_lib.beyond.quantizers import (
    FLOAT_BITS,
    FakeQuantize,
    Grid,
    bias_unit,
    fake_quantize_weight,
    fitted_scales,
    fitted_step,
    hard_swish_grid,
    nearest_scales,
    scale_grid,
    through,
    weight_codes,
)

PIXEL_UNIT = 2.0**-6
SMALLEST_STEP = 2.0**-26
"""Of activations; exact in float32, so that a file can store it."""

# As `lab.data.images.normalize` does it: the network reads normalised images.
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)
MIDDLE = tuple(round(255 * mean) for mean in MEAN)
"""The pixel that stands for 0, for each colour: what padding reads."""


class _Layer(nn.Module):
    """What the quantised convolution and the quantised linear layer share."""

    weight: Any
    bias: Any
    scale: nn.Parameter
    weight_bits: int
    bias_bits: int
    shares_scale: bool
    reads: "Quantizer | Pixels"

    def _set_up(self, reads: "Quantizer | Pixels") -> None:
        self.weight_bits = self.bias_bits = FLOAT_BITS
        self.shares_scale = False
        self.scale = nn.Parameter(torch.ones(len(self.weight)))
        # Not a child: two layers may read the same integers.
        object.__setattr__(self, "reads", reads)

    @property
    def activation_bits(self) -> int:
        """Width of the integers that it reads."""
        return self.reads.bits

    @torch.no_grad()
    def fit(self, clip: bool = True) -> None:
        """Set the scales by least squares."""
        if self.weight_bits != FLOAT_BITS:
            rows = self.weight.reshape(1, -1) if self.shares_scale else self.weight
            self.scale.copy_(fitted_scales(rows, self.weight_bits, clip))

    def free_scales(self) -> Tensor:
        """Return the scales before they are put on the layer's grid, with a gradient, `[out_chs]`.

        A layer that shares its scale has the mean everywhere.
        """
        scale = self.scale.mean().expand_as(self.scale) if self.shares_scale else self.scale
        return scale.clamp_min(1e-8)

    def stored_scales(self) -> Tensor:
        """Return the places of the scales in the layer's grid, int64 `[out_chs]`."""
        return nearest_scales(self.free_scales().detach())

    def scales(self) -> Tensor:
        """Return the scales, of the grid, with a gradient, `[out_chs]`."""
        scale = self.free_scales()
        return through(scale, scale_grid(scale.detach().max())[self.stored_scales()])

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the integers of the weights as floats, of the weight's shape."""
        scale = self.scales().view(-1, *[1] * (self.weight.ndim - 1))
        return weight_codes(self.weight / scale, self.weight_bits) * (self.weight != 0)

    @torch.no_grad()
    def bias_codes(self) -> tuple[Tensor, Tensor]:
        """Return the integers of the biases, `[out_chs]`, and their unit, 0-d."""
        unit = bias_unit(self.bias, self.bias_bits)
        top = 2 ** (self.bias_bits - 1) - 1
        return (self.bias / unit).round().clamp(-top, top), unit

    def rounded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias as training uses them, with gradients."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.weight_bits != FLOAT_BITS:
            weight = fake_quantize_weight(weight, self.scales(), self.weight_bits)
        if self.bias_bits != FLOAT_BITS:
            codes, unit = self.bias_codes()
            bias = through(bias, codes * unit)
        return weight, bias

    def sums(self) -> Sums:
        """Return the layer in integers, as it is now. All widths must be set."""
        reads = self.reads
        if isinstance(reads, Pixels):
            step, middle = PIXEL_UNIT, MIDDLE
        else:
            grid = reads.grid()
            step, middle = grid.step, (grid.zero,)
        zeros = torch.tensor(middle, dtype=torch.float64, device=self.weight.device)
        largest = self.free_scales().detach().max().item()
        scale = scale_factors(largest, self.stored_scales()) * step
        codes, unit = self.bias_codes()
        bias = torch.floor(codes.double() * unit.double() / scale + 0.5)
        shape: tuple[int, ...] = ()
        if isinstance(self, nn.Conv2d):
            shape = (self.stride[0], int(self.padding[0]), self.groups)
        return Sums(self.codes(), bias, scale, zeros, reads.bits, *shape)


class QuantizedConv2d(_Layer, nn.Conv2d):
    """A convolution with integer weights and biases.

    Args:
        conv: the folded convolution.
        reads: rounds its inputs.
    """

    def __init__(self, conv: nn.Conv2d, reads: "Quantizer | Pixels") -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size,  # type: ignore[arg-type]
            conv.stride, conv.padding, groups=conv.groups,  # type: ignore[arg-type]
        )  # fmt: skip
        self._set_up(reads)

    def forward(self, x: Tensor) -> Tensor:
        """Return float outputs of rounded inputs."""
        weight, bias = self.rounded()
        return F.conv2d(x, weight, bias, self.stride, self.padding, groups=self.groups)


class QuantizedLinear(_Layer, nn.Linear):
    """A linear layer with integer weights and biases. Arguments as for `QuantizedConv2d`."""

    def __init__(self, linear: nn.Linear, reads: "Quantizer | Pixels") -> None:
        super().__init__(linear.in_features, linear.out_features)
        self._set_up(reads)

    def forward(self, x: Tensor) -> Tensor:
        """Return float outputs of rounded inputs."""
        return F.linear(x, *self.rounded())


Quantized = QuantizedConv2d | QuantizedLinear


class Pixels(nn.Module):
    """The image as integers: pixels of 8 bits."""

    bits = IMAGE_BITS
    step = PIXEL_UNIT

    def forward(self, x: Tensor) -> Tensor:
        """Return what a normalised image is in pixels, less the middle, times the unit."""
        return self.centred(x) * PIXEL_UNIT

    def centred(self, x: Tensor) -> Tensor:
        """Return the pixels of a normalised image less the middle one, as floats."""
        mean, std, middle = (x.new_tensor(each).view(3, 1, 1) for each in (MEAN, STD, MIDDLE))
        return torch.round((x * std + mean) * 255) - middle


class Quantizer(nn.Module):
    """Rounds the inputs of a layer, after HardSwish where the layer before has one.

    Args:
        hard_swish: apply HardSwish first.

    Attributes:
        tap: function of the quantizer and of what it is about to round, for those who look in. In a
            network of floats it replaces that value by its result.
    """

    zero: Tensor

    def __init__(self, hard_swish: bool) -> None:
        super().__init__()
        self.hard_swish = hard_swish
        self.bits = self.pre_bits = FLOAT_BITS
        self.step = nn.Parameter(torch.ones(()))
        self.register_buffer("zero", torch.zeros(()))
        self.tap: Callable[[Quantizer, Tensor], Tensor] | None = None

    def grid(self) -> Grid:
        """Return the integers of this moment."""
        step = max(self.step.item(), SMALLEST_STEP)
        if self.hard_swish:
            return hard_swish_grid(step, self.bits, self.pre_bits)
        return Grid(step, int(self.zero.item()), self.bits)

    @torch.no_grad()
    def fit(self, x: Tensor, clip: bool = True) -> None:
        """Set step and zero by least squares over values that it would round."""
        if self.bits == FLOAT_BITS:
            return
        step, zero = fitted_step(x, self.bits, self.hard_swish, clip)
        self.step.fill_(step)
        self.zero.fill_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded inputs as floats."""
        if self.bits == FLOAT_BITS:
            y = F.hardswish(x) if self.hard_swish else x
            return y if self.tap is None else self.tap(self, y)
        if self.tap is not None:
            self.tap(self, F.hardswish(x) if self.hard_swish else x)
        return FakeQuantize.apply(x, self.step, self.grid(), self.pre_bits)
