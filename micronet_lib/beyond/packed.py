"""The file of a network in integers, every number packed at its width (chapter 11_beyond).

`data/README.md` describes the format byte by byte. A file has

1. a magic word, the version of the format and a header in JSON: shapes, widths, what it is;
2. each layer: mask, weights, scales, biases, and the units of scales and biases;
3. each quantizer: the grid that activations are rounded to;
4. a sha256 of all before it.

This module needs numpy only. `conversion` makes such a file of a network, `integer` runs it.
"""

import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from micronet_lib.errors import InputError

SUFFIX = ".mnet"
MAGIC = b"MNET"
VERSION = 1
IMAGE_BITS = 8
SCALE_BITS = 5
WIDTHS = {"weights": (1, 12), "biases": (2, 16), "inputs": (2, 12), "pre": (4, 12)}
"""The narrowest and widest integers of each kind."""
MAX_CHS = 4096
_START = struct.Struct("<4sHH")
_DIGEST_SIZE = hashlib.sha256().digest_size

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
class PackedGrid:
    """The integers that activations are rounded to, from 0 to `2^bits - 1`.

    Attributes:
        bits: of an integer.
        zero: the integer that stands for 0.
        step: value of one unit, a float32; after HardSwish it follows from the next two.
        three: for HardSwish, the integer that stands for 3; 0 otherwise.
        shift: for HardSwish, bits by which the product is shifted.
    """

    bits: int
    zero: int
    step: float
    three: int = 0
    shift: int = 0


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
    grids: Mapping[str, PackedGrid]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, LayerShape]:
        """The shape of every layer by name."""
        return layer_shapes(self.stem_chs, self.blocks, self.num_classes)


def hard_swish_step(three: int, shift: int) -> float:
    """Return the step of HardSwish's result that these two integers have."""
    return 1.5 * 2.0**shift / three**2


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


# ------------------------------------------------------------------------------------ one stream

# A part of the file, its integers, and their width.
_Field = tuple[str, Any, int]


def _float_bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _layer_fields(layer: PackedLayer) -> list[_Field]:
    kept = layer.codes != 0
    masked = not kept.all()
    codes = layer.codes[kept]
    half = 2 ** (layer.bits - 1)
    return [
        ("flags", [masked], 1),
        ("masks", kept.ravel() if masked else [], 1),
        ("weights", np.where(codes > 0, codes - 1, codes) + half, layer.bits),
        ("scales", layer.places, SCALE_BITS),
        ("units", [_float_bits(layer.scale)], 32),
        ("biases", layer.bias + 2 ** (layer.bias_bits - 1), layer.bias_bits),
        ("units", [_float_bits(layer.unit)], 32),
    ]


def _grid_fields(grid: PackedGrid) -> list[_Field]:
    zero = ("quantizers", [grid.zero], 16)
    if grid.three:
        return [("quantizers", [grid.three], 16), ("quantizers", [grid.shift], 8), zero]
    return [("quantizers", [_float_bits(grid.step)], 32), zero]


def _records(network: Packed) -> Iterator[list[_Field]]:
    """Yield the fields of each layer and each quantizer. Each begins with a byte of its own."""
    yield from map(_layer_fields, network.layers.values())
    yield from map(_grid_fields, network.grids.values())


def _to_bytes(fields: list[_Field]) -> bytes:
    """Return integers one after the other, the least significant bit of each first."""
    bits = [
        ((np.asarray(values, np.int64).reshape(-1, 1) >> np.arange(width)) & 1).ravel()
        for _, values, width in fields
    ]
    return np.packbits(np.concatenate(bits).astype(np.uint8), bitorder="little").tobytes()


class _Bits:
    """Reads integers from bytes, the least significant bit of each first."""

    def __init__(self, content: bytes) -> None:
        self.bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
        self.at = 0

    def take(self, count: int, width: int) -> Integers:
        end = self.at + count * width
        if end > len(self.bits):
            raise InputError("it ends too early")
        found = self.bits[self.at : end].reshape(count, width).astype(np.int64)
        self.at = end
        return found @ (1 << np.arange(width, dtype=np.int64))

    def integer(self, width: int) -> int:
        return int(self.take(1, width)[0])

    def number(self) -> float:
        return float(self.take(1, 32).astype(np.uint32).view(np.float32)[0])

    def next_byte(self) -> None:
        """Go to the start of a byte, over bits that must be 0."""
        if self.take(-self.at % 8, 1).any():
            raise InputError("bits that stand for nothing are set")

    def layer(self, shape: tuple[int, ...], bits: int, bias_bits: int) -> PackedLayer:
        size, half = math.prod(shape), 2 ** (bits - 1)
        kept = self.take(size, 1) == 1 if self.integer(1) else np.ones(size, bool)
        stored = self.take(int(kept.sum()), bits) - half
        codes = np.zeros(size, np.int64)
        codes[kept] = np.where(stored >= 0, stored + 1, stored)
        places, scale = self.take(shape[0], SCALE_BITS), self.number()
        bias = self.take(shape[0], bias_bits) - 2 ** (bias_bits - 1)
        unit = self.number()
        self.next_byte()
        return PackedLayer(codes.reshape(shape), bits, places, scale, bias, bias_bits, unit)

    def grid(self, bits: int, hard_swish: bool) -> PackedGrid:
        if not hard_swish:
            step = self.number()
            return PackedGrid(bits, self.integer(16), step)
        three, shift, zero = self.integer(16), self.integer(8), self.integer(16)
        step = hard_swish_step(three, shift) if three else math.nan
        return PackedGrid(bits, zero, step, three, shift)


# --------------------------------------------------------------------------------- the whole file


def write_packed(network: Packed) -> bytes:
    """Return the bytes of a network's file.

    Raises:
        InputError: a number that the format cannot hold.
    """
    check_packed(network)
    header = _header(network)
    content = _START.pack(MAGIC, VERSION, len(header)) + header
    content += b"".join(map(_to_bytes, _records(network)))
    return content + hashlib.sha256(content).digest()


def _header(network: Packed) -> bytes:
    layers, grids = network.layers.values(), network.grids.values()
    entries = {
        "about": dict(network.about),
        "stem": network.stem_chs,
        "blocks": [[int(value) for value in block] for block in network.blocks],
        "classes": network.num_classes,
        "point": network.point,
        "pre": network.pre_bits,
        "weights": [layer.bits for layer in layers],
        "biases": [layer.bias_bits for layer in layers],
        "inputs": [grid.bits for grid in grids],
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    if len(text) >= 2**16:
        raise InputError("the header is longer than 65 535 bytes: say less about the network")
    return text


def read_packed(content: bytes, name: str) -> Packed:
    """Return the network of a file.

    Args:
        content: all bytes.
        name: of the file, for messages.

    Raises:
        InputError: another kind of file, a newer format, a damaged or truncated file, or numbers
            that no network has.
    """
    if content[: len(MAGIC)] != MAGIC:
        raise InputError(f"{name} is no packed network: those begin with {MAGIC.decode()}")
    if len(content) < _START.size + _DIGEST_SIZE:
        raise InputError(f"{name} is truncated: copy it again")
    _, version, size = _START.unpack_from(content)
    if version > VERSION:
        raise InputError(
            f"{name} has format {version}, and this library reads up to {VERSION}: use a newer one"
        )
    body, digest = content[:-_DIGEST_SIZE], content[-_DIGEST_SIZE:]
    if hashlib.sha256(body).digest() != digest:
        raise InputError(f"{name} is damaged or truncated, its digest is another: copy it again")
    try:
        found = _parsed(body[_START.size :], size)
        check_packed(found)
    except InputError as error:
        raise InputError(f"{name} holds no network that can run: {error}") from error
    return found


def load_packed(path: Path) -> Packed:
    """Read the file of a network.

    Raises:
        InputError: no such file, unreadable, or as for `read_packed`.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"no network at {path}; `micronet export` writes one") from error
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): make it readable") from error
    return read_packed(content, str(path))


def _parsed(content: bytes, header_size: int) -> Packed:
    try:
        header = json.loads(content[:header_size])
        about, stem_chs, num_classes = (header[key] for key in ("about", "stem", "classes"))
        point, pre_bits = header["point"], header["pre"]
        blocks = tuple(BlockShape(*row) for row in header["blocks"])
        weights, biases, inputs = (header[key] for key in ("weights", "biases", "inputs"))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("its header lacks an entry or is no JSON") from error
    _check_shapes(stem_chs, blocks, num_classes)
    blocks = tuple(block._replace(shortcut=bool(block.shortcut)) for block in blocks)
    shapes, names = layer_shapes(stem_chs, blocks, num_classes), grid_names(blocks)
    _check_widths("weights", weights, list(shapes))
    _check_widths("biases", biases, list(shapes))
    _check_widths("inputs", inputs, list(names))
    bits = _Bits(content[header_size:])
    layers = {
        name: bits.layer(shape.weight, own, bias_bits)
        for (name, shape), own, bias_bits in zip(shapes.items(), weights, biases, strict=True)
    }
    grids = {
        name: bits.grid(own, hard_swish)
        for (name, hard_swish), own in zip(names.items(), inputs, strict=True)
    }
    if bits.at != len(bits.bits):
        raise InputError("there is more behind its end")
    return Packed(stem_chs, blocks, num_classes, pre_bits, point, layers, grids, about)


# ------------------------------------------------------------------------------------------ checks


def check_packed(network: Packed) -> None:
    """Check that the numbers of a network are possible ones.

    Raises:
        InputError: the first number that is not, and where it is.
    """
    _check_shapes(network.stem_chs, network.blocks, network.num_classes)
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


def _check_shapes(stem_chs: Any, blocks: tuple[BlockShape, ...], num_classes: Any) -> None:
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


def _check_widths(kind: str, given: Any, names: list[str]) -> None:
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
    _check_number(f"the scale of {name}", layer.scale)
    _check_number(f"the unit of {name}", layer.unit)


def _check_grid(name: str, grid: PackedGrid, hard_swish: bool, pre_bits: int) -> None:
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
    if grid.step != step or grid.zero != math.floor(0.375 / step + 0.5):
        raise InputError(f"step and zero of {name} are not those of its HardSwish")


# ------------------------------------------------------------------------------------------- sizes


def packed_sizes(network: Packed) -> dict[str, float]:
    """Return the bytes of each part of a network's file: `masks`, `weights`, `biases` and so on.

    `padding` fills the last byte of each layer, `header` includes the start of the file, `units`
    are the floats of the layers, `flags` say which layers have a mask.
    """
    sizes: Counter[str] = Counter()
    for fields in _records(network):
        for part, values, width in fields:
            sizes[part] += len(values) * width
        sizes["padding"] += -sum(len(values) * width for _, values, width in fields) % 8
    outside = {"header": _START.size + len(_header(network)), "digest": _DIGEST_SIZE}
    return {**{part: bits / 8 for part, bits in sizes.items()}, **outside}
