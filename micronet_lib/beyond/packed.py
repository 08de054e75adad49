"""The file of a network in integers, every number packed at its width (chapter 11_beyond).

`data/README.md` describes the format byte by byte. A file has

1. a magic word, the version of the format and a header in JSON: shapes, widths, what it is;
2. each layer: mask, weights, scales, biases, and the units of scales and biases;
3. each quantizer: the grid that activations are rounded to;
4. a sha256 of all before it.

This module needs numpy only.
"""

import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from micronet_lib.beyond.description import (
    SCALE_BITS,
    BlockShape,
    Grid,
    Integers,
    Packed,
    PackedLayer,
    check_packed,
    check_shapes,
    check_widths,
    grid_names,
    hard_swish_step,
    layer_shapes,
)
from micronet_lib.errors import InputError

SUFFIX = ".mnet"
MAGIC = b"MNET"
VERSION = 1
_START = struct.Struct("<4sHH")
_DIGEST_SIZE = hashlib.sha256().digest_size


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


def _grid_fields(grid: Grid) -> list[_Field]:
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

    def grid(self, bits: int, hard_swish: bool) -> Grid:
        if not hard_swish:
            step = self.number()
            return Grid(step, self.integer(16), bits)
        three, shift, zero = self.integer(16), self.integer(8), self.integer(16)
        step = hard_swish_step(three, shift) if three else math.nan
        return Grid(step, zero, bits, three, shift)


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
    if not 1 <= version <= VERSION:
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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("its header lacks an entry or is no JSON") from error
    check_shapes(stem_chs, blocks, num_classes)
    blocks = tuple(block._replace(shortcut=bool(block.shortcut)) for block in blocks)
    shapes, names = layer_shapes(stem_chs, blocks, num_classes), grid_names(blocks)
    check_widths("weights", weights, list(shapes))
    check_widths("biases", biases, list(shapes))
    check_widths("inputs", inputs, list(names))
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
