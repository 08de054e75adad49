"""Ternary tensors as they are stored and executed: two bitmasks and two scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor

from micronet_lib.errors import InputError


@dataclass(frozen=True)
class PackedTernary:
    """A ternary tensor.

    Attributes:
        shape: of the tensor.
        plus: the bitmask of `+Wp`, 8 positions a byte, the first in the highest bit.
        minus: that of `-Wn`.
        positive: `Wp`; 0 if no weight has it.
        negative: `Wn`, likewise.
    """

    shape: tuple[int, ...]
    plus: bytes
    minus: bytes
    positive: float
    negative: float

    def mask(self, bits: bytes) -> np.ndarray:
        """Return a bitmask as booleans of the tensor's shape."""
        number = int(np.prod(self.shape))
        found = np.unpackbits(np.frombuffer(bits, np.uint8), count=number)
        return found.astype(bool).reshape(self.shape)


def pack_ternary(weight: Tensor) -> PackedTernary:
    """Return a ternary tensor as two bitmasks and two scales.

    Raises:
        InputError: more than one positive or negative value, or NaN.
    """
    fixed = weight.detach().cpu()
    values = fixed.unique()
    if values.isnan().any():
        raise InputError("a tensor with NaN cannot be packed")
    sides = {"positive": values[values > 0], "negative": values[values < 0]}
    for side, found in sides.items():
        if len(found) > 1:
            raise InputError(
                f"the tensor has {len(found)} {side} values, and a ternary one has one: ternarise "
                "it first"
            )
    sizes = {side: abs(found.item()) if len(found) else 0.0 for side, found in sides.items()}
    plus, minus = (np.packbits(mask.numpy()).tobytes() for mask in (fixed > 0, fixed < 0))
    return PackedTernary(tuple(fixed.shape), plus, minus, **sizes)


def unpack_ternary(packed: PackedTernary, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the tensor, equal to the one that was packed.

    Raises:
        InputError: bitmasks of another length than the shape asks for, or that overlap.
    """
    length = -(-int(np.prod(packed.shape)) // 8)
    if not len(packed.plus) == len(packed.minus) == length:
        raise InputError(
            f"bitmasks of {len(packed.plus)} and {len(packed.minus)} bytes; shape "
            f"{list(packed.shape)} needs {length}"
        )
    plus, minus = (torch.from_numpy(packed.mask(each)) for each in (packed.plus, packed.minus))
    if (plus & minus).any():
        raise InputError("a position is in both bitmasks")
    return packed.positive * plus.to(dtype) - packed.negative * minus.to(dtype)


def sparse_binary(inputs: Sequence[Any], packed: PackedTernary) -> list[Any]:
    """Return the products of a ternary matrix and a vector, with two multiplications each.

        y_j = Wp * (sum of x_i with +Wp in row j) - Wn * (sum of x_i with -Wn in row j)

    A row without one of the two needs one multiplication, a row of zeros none.

    Args:
        inputs: `fan_in` numbers, or tensors of equal shape, such as all images and positions.
        packed: of shape `[out, fan_in]`, or `[out, ...]` with rows of `fan_in`.

    Raises:
        InputError: another number of inputs.
    """
    masks = [packed.mask(bits) for bits in (packed.plus, packed.minus)]
    plus, minus = (mask.reshape(len(mask), -1) for mask in masks)
    if len(inputs) != plus.shape[1]:
        raise InputError(f"{len(inputs)} inputs; a row of this matrix has {plus.shape[1]}")
    return [_product(inputs, packed, *rows) for rows in zip(plus, minus, strict=True)]


def _product(inputs: Sequence[Any], packed: PackedTernary, up: np.ndarray, down: np.ndarray) -> Any:
    added, subtracted = ([inputs[i] for i in range(len(inputs)) if row[i]] for row in (up, down))
    if added and subtracted:
        return packed.positive * reduce(add, added) - packed.negative * reduce(add, subtracted)
    if added:
        return packed.positive * reduce(add, added)
    return -packed.negative * reduce(add, subtracted) if subtracted else 0 * inputs[0]
