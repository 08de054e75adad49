"""What a network in integers is: its numbers, without a tensor library, and which are possible.

`packed` writes such a description as a file and reads it, `conversion` makes it of a network and a
network of it, `integer` runs it. This module needs numpy only. Chapter `11_beyond`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from micronet_lib.errors import InputError

IMAGE_BITS = 8
SCALE_BITS = 5
WIDTHS = {"weights": (1, 12), "biases": (2, 16), "inputs": (2, 12), "pre": (4, 12)}
"""The narrowest and widest integers of each kind."""
MAX_CHS = 4096

Integers = NDArray[np.int64]


class BlockShape(NamedTuple):
    """Widths of one MBConv block. `se_chs` 0: no gate. `shortcut`: it has a convolution."""

    in_chs: int
    hidden_chs: int
    out_chs: int
    stride: int
    se_chs: int
    shortcut: bool


class LayerShape(NamedTuple):
    """Place of a layer in the network.

    Attributes:
        weight: `(out_chs, in_chs / groups, side, side)`; no sides for the classifier.
        reads: the quantizer of its inputs; "" for the image.
        stride: of a convolution.
    """

    weight: tuple[int, ...]
    reads: str
    stride: int = 1

    @property
    def side(self) -> int:
        """Side of the kernel."""
        return self.weight[2] if len(self.weight) == 4 else 1


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """The integers of one layer.

    Attributes:
        codes: weights in units of their scale, of the shape of the weight; 0 is a masked one.
        bits: of a weight that is not 0: -2^(bits-1) to -1, and 1 to 2^(bits-1).
        places: `[out_chs]`; the scale of filter i is `scale * 2^(-places[i] / 4)`.
        scale: the largest scale, a float32.
        bias: `[out_chs]`, in units of `unit`.
        bias_bits: of a bias, sign included.
        unit: of the biases, a float32.
    """

    codes: Integers
    bits: int
    places: Integers
    scale: float
    bias: Integers
    bias_bits: int
    unit: float


@dataclass(frozen=True)
class Grid:
    """The integers that activations are rounded to. A number is `(integer - zero) * step`.

    Attributes:
        step: size of one unit; after HardSwish it follows from `three` and `shift`.
        zero: the integer that stands for 0.
        bits: of the integers.
        three: for HardSwish, the integer that stands for 3; 0 otherwise.
        shift: for HardSwish, bits by which the product is shifted.
    """

    step: float
    zero: int
    bits: int
    three: int = 0
    shift: int = 0

    @property
    def low(self) -> int:
        """The smallest integer, counted from zero."""
        return -self.zero

    @property
    def high(self) -> int:
        """The largest integer, counted from zero."""
        return 2**self.bits - 1 - self.zero


@dataclass(frozen=True)
class Packed:
    """A network in integers.

    Attributes:
        stem_chs: channels after the first convolution.
        blocks: in order.
        num_classes: rows of the classifier.
        pre_bits: of the integer `y + 3` before HardSwish.
        point: bits of the stream between blocks after the binary point.
        layers: by name, in the order of `layer_shapes`.
        grids: quantizers by name, in the order of `grid_names`.
        about: what the network is, plain JSON.
    """

    stem_chs: int
    blocks: tuple[BlockShape, ...]
    num_classes: int
    pre_bits: int
    point: int
    layers: Mapping[str, PackedLayer]
    grids: Mapping[str, Grid]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, LayerShape]:
        """The shape of every layer by name."""
        return layer_shapes(self.stem_chs, self.blocks, self.num_classes)


def hard_swish_step(three: int, shift: int) -> float:
    """Return the step of HardSwish's result that these two integers have."""
    return 1.5 * 2.0**shift / three**2


def hard_swish_zero(step: float) -> int:
    """Return the integer that stands for 0 on the grid of HardSwish's result with that step."""
    return math.floor(0.375 / step + 0.5)


def layer_shapes(
    stem_chs: int, blocks: tuple[BlockShape, ...], num_classes: int
) -> dict[str, LayerShape]:
    """Return name -> shape of every layer, in the order of the file and of execution."""
    shapes = {"stem.conv": LayerShape((stem_chs, 3, 3, 3), "")}
    for index, block in enumerate(blocks):
        name, (in_chs, hidden, out_chs, stride, se_chs, shortcut) = f"blocks.{index}", block
        into = f"{name}.quant_input"
        shapes |= {
            f"{name}.conv_expand": LayerShape((hidden, in_chs, 1, 1), into),
            f"{name}.conv_dw": LayerShape((hidden, 1, 3, 3), f"{name}.quant_dw", stride),
            f"{name}.conv_project": LayerShape((out_chs, hidden, 1, 1), f"{name}.quant_project"),
        }
        if se_chs:
            gate = f"{name}.se"
            shapes |= {
                f"{gate}.conv_reduce": LayerShape((se_chs, out_chs, 1, 1), f"{gate}.quant_reduce"),
                f"{gate}.conv_expand": LayerShape((out_chs, se_chs, 1, 1), f"{gate}.quant_expand"),
            }
        if shortcut:
            shapes[f"{name}.conv_shortcut"] = LayerShape((out_chs, in_chs, 1, 1), into)
    shapes["head.classifier"] = LayerShape((num_classes, blocks[-1].out_chs), "head.quant")
    return shapes


def grid_names(blocks: tuple[BlockShape, ...]) -> dict[str, bool]:
    """Return name -> whether HardSwish comes before it, of every quantizer, in order."""
    names: dict[str, bool] = {}
    for index, block in enumerate(blocks):
        name = f"blocks.{index}"
        # The stem leaves its HardSwish to the first block.
        names[f"{name}.quant_input"] = not index
        names[f"{name}.quant_dw"] = names[f"{name}.quant_project"] = True
        if block.se_chs:
            names[f"{name}.se.quant_reduce"], names[f"{name}.se.quant_expand"] = False, True
    return {**names, "head.quant": False}


# ------------------------------------------------------------------------------------------ checks


def check_packed(network: Packed) -> None:
    """Check that the numbers of a network are possible ones.

    Raises:
        InputError: the first number that is not, and where it is.
    """
    check_shapes(network.stem_chs, network.blocks, network.num_classes)
    _check_integer("the binary point", network.point, -32, 32)
    _check_width("pre", "the integer before HardSwish", network.pre_bits)
    if not isinstance(network.about, Mapping):
        raise InputError("what it says about itself is no mapping")
    shapes = network.shapes
    names = grid_names(network.blocks)
    if list(network.layers) != list(shapes) or list(network.grids) != list(names):
        raise InputError("its layers or quantizers are not those of its blocks")
    for name, shape in shapes.items():
        _check_layer(name, network.layers[name], shape.weight)
    for name, hard_swish in names.items():
        _check_grid(name, network.grids[name], hard_swish, network.pre_bits)


def check_shapes(stem_chs: Any, blocks: tuple[BlockShape, ...], num_classes: Any) -> None:
    """Check the numbers of channels and blocks.

    Raises:
        InputError: no network has them.
    """
    _check_integer("the channels of the stem", stem_chs, 1, MAX_CHS)
    _check_integer("the number of classes", num_classes, 1, MAX_CHS)
    if not blocks:
        raise InputError("it has no blocks")
    before = stem_chs
    for index, block in enumerate(blocks):
        name = f"blocks.{index}"
        for chs in block[:3]:
            _check_integer(f"a number of channels in {name}", chs, 1, MAX_CHS)
        _check_integer(f"the stride of {name}", block.stride, 1, 2)
        _check_integer(f"the channels of the gate of {name}", block.se_chs, 0, MAX_CHS)
        if block.in_chs != before:
            raise InputError(f"{name} reads {block.in_chs} channels where there are {before}")
        before = block.out_chs
        if block.shortcut not in (0, 1) or (block.shortcut and block.stride == 2):
            raise InputError(f"{name} has a shortcut that cannot be")
        as_it_is = block.stride == 1 and not block.shortcut
        if as_it_is and (not index or block.in_chs != block.out_chs):
            raise InputError(f"{name} needs a convolution in its shortcut")


def _check_integer(what: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{what} is {value!r} and not a whole number from {low} to {high}")


def _check_width(kind: str, name: str, bits: Any) -> None:
    _check_integer(f"the width of {name} ({kind})", bits, *WIDTHS[kind])


def check_widths(kind: str, given: Any, names: list[str]) -> None:
    """Check that there is a possible width for each name.

    Raises:
        InputError: there is not.
    """
    if not isinstance(given, list) or len(given) != len(names):
        raise InputError(f"it has no width ({kind}) for each of {len(names)} names")
    for name, bits in zip(names, given, strict=True):
        _check_width(kind, name, bits)


def _check_range(what: str, values: Integers, low: int, high: int) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{what} are no integers")
    if values.size and not (low <= values.min() and values.max() <= high):
        raise InputError(f"{what} are not all from {low} to {high}")


def _check_number(what: str, value: float) -> None:
    with np.errstate(over="ignore"):
        same = float(np.float32(value)) == value
    if not (same and 0 < value < math.inf):
        raise InputError(f"{what} is {value!r} and not a positive float32")


def _check_layer(name: str, layer: PackedLayer, shape: tuple[int, ...]) -> None:
    _check_width("weights", name, layer.bits)
    _check_width("biases", name, layer.bias_bits)
    own = (layer.codes.shape, layer.places.shape, layer.bias.shape)
    if own != (shape, shape[:1], shape[:1]):
        raise InputError(f"the weights, scales or biases of {name} are not as many as they must be")
    half, top = 2 ** (layer.bits - 1), 2 ** (layer.bias_bits - 1) - 1
    _check_range(f"the weights of {name}", layer.codes, -half, half)
    _check_range(f"the scales of {name}", layer.places, 0, 2**SCALE_BITS - 1)
    _check_range(f"the biases of {name}", layer.bias, -top, top)
    if layer.places.min() > 0:
        raise InputError(f"no filter of {name} has the largest scale, which is the layer's")
    if layer.bias.any() and np.abs(layer.bias).max() < top:
        raise InputError(f"no bias of {name} is the largest, which gives them their unit")
    _check_number(f"the scale of {name}", layer.scale)
    _check_number(f"the unit of {name}", layer.unit)


def _check_grid(name: str, grid: Grid, hard_swish: bool, pre_bits: int) -> None:
    _check_width("inputs", name, grid.bits)
    _check_integer(f"the zero of {name}", grid.zero, 0, 2**grid.bits - 1)
    if not hard_swish:
        _check_number(f"the step of {name}", grid.step)
        if grid.three or grid.shift:
            raise InputError(f"{name} has no HardSwish before it")
        return
    if grid.bits > pre_bits:
        raise InputError(f"{name} is wider after HardSwish than before")
    _check_integer(f"the three of {name}", grid.three, 1, 2**12)
    _check_integer(f"the shift of {name}", grid.shift, 0, 30)
    step = hard_swish_step(grid.three, grid.shift)
    if grid.step != step or grid.zero != hard_swish_zero(step):
        raise InputError(f"step and zero of {name} are not those of its HardSwish")
