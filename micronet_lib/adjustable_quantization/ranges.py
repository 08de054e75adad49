"""Numbers rounded in a range and with a bit width that are both learned [texas_eic].

A channel has a range `[m, m + T]`, from calibration, and three numbers that training moves: `alpha`
scales its width, `beta` shifts its lower end, and `bit_scale` is its bit width in units of 8 bits:

    low = m + beta * T        width = alpha * T        bits = clip(round(8 * bit_scale), 2, 8)
    step = width / (2^bits - 1)          zero = round(low / step)
    x -> step * clip(round(x / step), zero, zero + 2^bits - 1)

Rounding passes gradients straight through. What clipping does with them is a convention, see
`adjusted`.
"""

from typing import Any

import torch
from torch import Tensor

from micronet_lib.beyond.quantizers import through

MIN_BITS, MAX_BITS = 2, 8
SCALES = (0.5, 1.3)
"""Ends of `alpha`."""
SHIFTS = (-0.2, 0.4)
"""Ends of `beta`."""


def learned_bits(bit_scale: Tensor) -> Tensor:
    """Return whole bit widths from `MIN_BITS` to `MAX_BITS`, of the same shape.

    The gradient is that of `8 * bit_scale`, also where the width is clipped. In [texas_eic] a width
    beyond an end has no gradient and stays there; here it can come back.
    """
    bits = MAX_BITS * bit_scale
    return through(bits, bits.detach().round().clamp(MIN_BITS, MAX_BITS))


def zero_code(low: Tensor, step: Tensor, top: Tensor) -> Tensor:
    """Return the smallest integer of a range, `round(low / step)`, of the same shape.

    Unlike in [texas_eic] the range always holds the integer 0, which padding and pruned weights
    need.
    """
    return torch.minimum((low / step).round(), low.new_zeros(())).maximum(-top)


class _Adjusted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, low: Tensor, top: Tensor, zero: Tensor, bounds: bool
    ) -> Tensor:
        ctx.save_for_backward(x, step, low, top, zero)
        ctx.bounds = bounds
        return (x / step).round_().clamp_(zero, zero + top).mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step, low, top, zero = ctx.saved_tensors
        ratio = x / step
        rounded = ratio.round()
        codes = rounded.clamp(zero, zero + top)
        inside = rounded == codes
        to_x = grad * inside
        # Of step * code: code, and straight through round(x / step), or round(low / step) outside.
        to_step = grad * (codes - torch.where(inside, ratio, low / step))
        to_top = None
        if ctx.bounds:
            to_top = (grad * (rounded > zero + top)).sum_to_size(step.shape) * step
        to_low = (grad - to_x).sum_to_size(low.shape)
        return to_x, to_step.sum_to_size(step.shape), to_low, to_top, None, None


def adjusted(
    x: Tensor,
    step: Tensor,
    low: Tensor,
    top: Tensor,
    zero: Tensor | None = None,
    bound_gradient: bool = False,
) -> Tensor:
    """Return rounded numbers of the shape of `x`.

    The gradient passes to `x` inside the range and not outside. Outside, a number is an end of the
    range and its gradient goes to the range: to `low`, and to `step`.

    The upper end is `low + top * step`. In [texas_eic] no gradient passes to the bound `top` of the
    clipping, so that a bit width, from which step and top follow, is told that with more bits a
    clipped number becomes smaller. In truth the end of the range stays where it is.
    `bound_gradient` passes that gradient too.

    A range that does not hold 0 is moved until it does, see `zero_code`. Its integers are then
    others, but gradients to `low` and `step` stay those of the range that was asked for: a number
    that is clipped to 0 still moves `low`. That is a convention, like the straight-through one.

    Args:
        x: of any shape.
        step: above 0, broadcast against `x` as the next three.
        low: lower end of the range.
        top: `2^bits - 1`.
        zero: the smallest integer; by default `zero_code`.
        bound_gradient: whether the bound gets a gradient.
    """
    if zero is None:
        zero = zero_code(low, step, top).detach()
    made: Tensor = _Adjusted.apply(x, step, low, top, zero, bound_gradient)
    return made
