"""Fake quantisation: numbers rounded as an integer network rounds them, with useful gradients.

Rounding has a derivative of zero almost everywhere. The straight-through estimator takes the
derivative of the clipped number instead [bengio2013]. The size of a rounding step is learned like a
weight [esser2020].

- Weights are integers without zero times a scale for each filter: `b` bits hold -2^(b-1) to -1 and
  1 to 2^(b-1). Zeros are in the mask. The scale is one of 32: a float of the layer times
  2^(-k/4).
- Activations are integers of `b` bits times a step; the integer `zero` stands for 0, which padding
  needs.
- HardSwish is computed on integers: `y` is rounded to a multiple of 3 / c, so that 3 and 6 are
  integers too, and the product of two integers is shifted by k bits. The step of the result is
  therefore 1.5 * 2^k / c^2.
"""

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from micronet_lib.beyond.description import SCALE_BITS, Grid, hard_swish_step, hard_swish_zero
from micronet_lib.errors import InputError

FLOAT_BITS = 32
"""The width that means: not quantised."""
MAX_BITS = 12
"""Widest integers: products of two must be exact in float32."""
OCTAVE = 4
"""Scales are a quarter of an octave apart."""
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2,
         0.16, 0.13, 0.1)  # fmt: skip
"""Fractions of the largest magnitude that are tried as the largest integer."""
NUM_TO_FIT = 40_000
"""Values whose rounding errors choose the step of a quantizer."""
COMPILE_FROM = 2**15
"""Smaller tensors are faster without compiled code."""


def check_bits(name: str, bits: int, low: int = 1, high: int = MAX_BITS) -> None:
    """Check a width.

    Raises:
        InputError: it is neither in `[low, high]` nor `FLOAT_BITS`.
    """
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise InputError(f"{name} is {bits!r}; give a whole number of bits")
    if not (low <= bits <= high or bits == FLOAT_BITS):
        raise InputError(
            f"{name} is {bits}; give {low} to {high} bits, or {FLOAT_BITS} for no quantisation"
        )


def through(value: Tensor, rounded: Tensor) -> Tensor:
    """Return `rounded` with the gradient of `value`, the straight-through estimator."""
    return value + (rounded - value).detach()


# ------------------------------------------------------------------------------------- weights


def weight_codes(ratios: Tensor, bits: int) -> Tensor:
    """Return weights in units of their scale as integers of that width, of the same shape.

    No integer is zero, so `bits` 1 leaves the signs.
    """
    sizes = ratios.abs().round().clamp(1, 2 ** (bits - 1))
    return torch.where(ratios < 0, -sizes, sizes)


def scale_grid(largest: Tensor) -> Tensor:
    """Return the 32 scales that a layer can store, from the largest down."""
    steps = torch.arange(2**SCALE_BITS, device=largest.device, dtype=torch.float64)
    return (largest.double() * torch.exp2(-steps / OCTAVE)).to(largest.dtype)


def nearest_scales(scales: Tensor) -> Tensor:
    """Return the place in `scale_grid(scales.max())` of each scale, int64 `[out_chs]`."""
    below = torch.log2(scales.max() / scales) * OCTAVE
    return below.round().clamp(0, 2**SCALE_BITS - 1).long()


@torch.no_grad()
def fitted_scales(weight: Tensor, bits: int, clip: bool = True) -> Tensor:
    """Return for every filter the scale of the grid with the smallest squared error, `[out_chs]`.

    Args:
        weight: `[out_chs, ...]`; zeros stay zero.
        bits: of an integer.
        clip: whether the largest weights may be cut off. Without it the scale of a filter follows
            from its largest weight.
    """
    rows = weight.flatten(1)
    kept = rows != 0
    largest = rows.abs().amax(1).clamp_min(1e-8)
    exact = largest / 2 ** (bits - 1)
    if not clip:
        grid = scale_grid(exact.max())
        # The next scale above: nothing is cut off.
        return grid[(grid[None] >= exact[:, None] * (1 - 1e-6)).sum(1).clamp_min(1) - 1]
    free = _best(rows, kept, bits, [exact * ratio for ratio in (1.1, *CLIPS)])
    return _best(rows, kept, bits, [each.expand(len(rows)) for each in scale_grid(free.max())])


def _best(rows: Tensor, kept: Tensor, bits: int, candidates: list[Tensor]) -> Tensor:
    best, smallest = candidates[0].clone(), torch.full_like(candidates[0], math.inf)
    for scale in candidates:
        restored = weight_codes(rows / scale[:, None], bits) * scale[:, None]
        error = ((restored - rows) * kept).square().sum(1)
        better = error < smallest
        smallest[better] = error[better]
        best[better] = scale[better]
    return best


def fake_quantize_weight(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Return rounded weights of the same shape; zeros stay zero.

    The gradient passes to the weight unchanged, also where it is clipped. To the scale it passes as
    in [esser2020], without its factor for the number of weights.

    Args:
        weight: `[out_chs, ...]`.
        scales: `[out_chs]`, positive.
        bits: of an integer.
    """
    scale = scales.view(-1, *[1] * (weight.ndim - 1))
    fixed = weight.detach()
    top = 2 ** (bits - 1)
    clipped = (fixed / scale).clamp(-top, top)
    codes = through(clipped, weight_codes((fixed / scale).detach(), bits))
    return (codes * scale + (weight - fixed)) * (fixed != 0)


def bias_unit(bias: Tensor, bits: int) -> Tensor:
    """Return the unit of a layer's biases, 0-d: the largest of them is the largest integer.

    If all are below 1e-8, the unit is so large that every one is 0.
    """
    largest = bias.detach().abs().max()
    return torch.where(largest < 1e-8, 1e-7, largest / (2 ** (bits - 1) - 1))


# --------------------------------------------------------------------------------- activations


def hard_swish_grid(step: float, bits: int, pre_bits: int) -> Grid:
    """Return the grid near a step on which HardSwish is a product of integers and a shift.

    The step of a grid, in float64 or float32, has that grid again: so a file can store the integers
    instead of a step.

    Args:
        step: of the result, above 0.
        bits: of the result.
        pre_bits: of the integer that stands for `y + 3`. It must reach as far as the result.
    """
    smallest = 0.375 / (2**bits - 1)  # below it 0 would be no integer
    wanted = max(step, smallest)
    shift = _product_shift(wanted, bits, pre_bits)
    three = _three(wanted, shift)
    if not _is_stable(three, shift, bits, pre_bits):
        around = [
            (max(1, _three(wanted, octave) + more), octave)
            for octave in (shift - 1, shift, shift + 1)
            for more in (-2, -1, 0, 1, 2)
        ]
        three, shift = min(
            (pair for pair in around if _is_stable(*pair, bits, pre_bits)),
            key=lambda pair: abs(math.log(hard_swish_step(*pair) / wanted)),
        )
    found = hard_swish_step(three, shift)
    return Grid(found, hard_swish_zero(found), bits, three, shift)


def _three(step: float, shift: int) -> int:
    return max(1, round(math.sqrt(1.5 * 2.0**shift / step)))


def _is_stable(three: int, shift: int, bits: int, pre_bits: int) -> bool:
    """Return whether a grid holds 0, and its step, also in float32, asks for that grid's shift."""
    step = hard_swish_step(three, shift)
    steps = (step, float(np.float32(step)))
    return hard_swish_zero(step) < 2**bits and all(
        _product_shift(each, bits, pre_bits) == shift for each in steps
    )


def _product_shift(step: float, bits: int, pre_bits: int) -> int:
    """Return the bits by which HardSwish's product is shifted: as fine as the width allows."""
    # y reaches as far as h(y), which is y itself from 3 on.
    reach = max(3.0, step * (2**bits - 1) - 0.375)
    largest = (2**pre_bits - 1) / (1 + reach / 3)
    return max(0, math.floor(math.log2(max(1.0, largest) ** 2 * step / 1.5)))


def rounded_hard_swish(x: Tensor, grid: Grid, pre_bits: int) -> Tensor:
    """Return HardSwish of x on the grid, as the integer network computes it, of the same shape."""
    return _run("hard_swish", x, *_hard_swish_arguments(grid, pre_bits))


def _hard_swish_arguments(grid: Grid, pre_bits: int) -> tuple[float, ...]:
    return (
        *(grid.three / 3, float(grid.three), 2.0**pre_bits - 1, 2.0**-grid.shift),
        *(float(grid.low), float(grid.high), grid.step),
    )


def _hard_swish(
    x: Tensor, per_unit: float, three: float, top: float, shifted: float, *ends: float
) -> Tensor:
    low, high, step = ends
    up = (torch.round(x * per_unit) + three).clamp(0.0, top)
    product = (up - three) * up.clamp(max=2 * three)
    return torch.floor(product * shifted + 0.5).clamp(low, high) * step


def _hard_swish_gradient(
    x: Tensor, grad: Tensor, per_step: float, low: float, high: float
) -> tuple[Tensor, Tensor]:
    value = x * (x + 3).clamp(0.0, 6.0) * (per_step / 6)
    clipped = value.clamp(low, high)
    inside = clipped == value
    slope = torch.where(x >= 3.0, 1.0, torch.where(x <= -3.0, 0.0, (2 * x + 3) / 6))
    to_step = grad * (torch.round(clipped) - torch.where(inside, value, 0.0))
    return torch.where(inside, grad * slope, 0.0), to_step.sum()


def _linear(x: Tensor, per_step: float, low: float, high: float, step: float) -> Tensor:
    return torch.round(x * per_step).clamp(low, high) * step


def _linear_gradient(
    x: Tensor, grad: Tensor, per_step: float, low: float, high: float
) -> tuple[Tensor, Tensor]:
    value = x * per_step
    clipped = value.clamp(low, high)
    inside = clipped == value
    to_step = grad * (torch.round(clipped) - torch.where(inside, value, 0.0))
    return torch.where(inside, grad, 0.0), to_step.sum()


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "hard_swish": _hard_swish,
    "hard_swish_gradient": _hard_swish_gradient,
    "linear": _linear,
    "linear_gradient": _linear_gradient,
}


@cache
def _compiled(name: str) -> Callable[..., Any]:
    """Return one loop over memory instead of one for each operation, where PyTorch can make it."""
    plain = _ELEMENTWISE[name]
    # PyTorch's cache of graphs does not know the instruction set of a loop. Read on another CPU, or
    # under another ATEN_CPU_CAPABILITY, the loop computes wrong numbers and raises nothing.
    fused = torch.compile(plain, dynamic=True, options={"fx_graph_cache": False})

    def run(*args: Any) -> Any:
        nonlocal fused
        try:
            return fused(*args)
        except Exception as error:  # whatever a missing or broken compiler raises
            if fused is plain:
                raise
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"no compiled code here, slower without it: {reason}", stacklevel=2)
            fused = plain
            return plain(*args)

    return run


def _run(name: str, x: Tensor, *args: Any) -> Any:
    return (_compiled(name) if x.numel() >= COMPILE_FROM else _ELEMENTWISE[name])(x, *args)


def _flat(x: Tensor) -> Tensor:
    """Return a 1-d view of the memory of a dense tensor."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).reshape(-1)
    return x.reshape(-1)


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """Return the tensor whose `_flat` that is."""
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        n, c, h, w = like.shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)
    return flat.view(like.shape)


class FakeQuantize(torch.autograd.Function):
    """Round activations, after HardSwish or not, with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, grid: Grid, pre_bits: int) -> Tensor:
        """Return rounded activations of the shape of `x`.

        Args:
            ctx: of autograd.
            x: before HardSwish if the grid has a `three`.
            step: the learned step, 0-d, from which the grid was made; it gets a gradient.
            grid: of the result.
            pre_bits: of the integer that stands for `y + 3`, for HardSwish.
        """
        dense = x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else False
        x = x if dense else x.contiguous()
        ctx.save_for_backward(x)
        ctx.grid = grid
        if grid.three:
            return _shaped(rounded_hard_swish(_flat(x), grid, pre_bits), x)
        ends = (float(grid.low), float(grid.high))
        return _shaped(_run("linear", _flat(x), 1 / grid.step, *ends, grid.step), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients to `x` and `step`."""
        (x,) = ctx.saved_tensors
        grid: Grid = ctx.grid
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
        name = "hard_swish_gradient" if grid.three else "linear_gradient"
        ends = (float(grid.low), float(grid.high))
        to_x, to_step = _run(name, _flat(x), _flat(grad), 1 / grid.step, *ends)
        return _shaped(to_x, x), to_step, None, None


@torch.no_grad()
def fitted_step(
    values: Tensor, bits: int, hard_swish: bool, clip: bool = True
) -> tuple[float, int]:
    """Return the step with the smallest squared error, and the integer that stands for 0.

    The error is of values at `NUM_TO_FIT` random places, the same in every call; the range is of
    all values.

    Args:
        values: any shape.
        bits: of the integers.
        hard_swish: whether they are of HardSwish, whose smallest value is -3/8.
        clip: whether extreme values may be cut off.
    """
    flat = values.detach().flatten().float()
    low, high = -min(0.0, flat.min().item()), max(1e-6, flat.max().item())
    if len(flat) > NUM_TO_FIT:
        # Places at equal distances would meet the same columns of every map.
        drawn = torch.Generator().manual_seed(0)
        flat = flat[torch.randint(len(flat), (NUM_TO_FIT,), generator=drawn).to(flat.device)]
    low = 0.375 if hard_swish else low
    best, smallest = (1.0, 0), math.inf
    for ratio in CLIPS if clip else CLIPS[:1]:
        below = low if hard_swish else low * ratio
        step = (below + high * ratio) / (2**bits - 1)
        zero = math.floor(below / step + 0.5)
        rounded = (flat / step).round().clamp(-zero, 2**bits - 1 - zero) * step
        error = (rounded - flat).square().mean().item()
        if error < smallest:
            best, smallest = (step, zero), error
    return best
