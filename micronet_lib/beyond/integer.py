"""A network in integers, run from its file with numpy: no tensor library, no floats in between.

It shares only `description` with the rest of the library, so that it can judge it. The floats of a
file (scales, steps, units) become integers in `Layer` and `multiplier`, whatever the image. Then
there are sums of products with an integer start, in accumulators whose width is proven and watched;
products of 16 bits with 15 bits and shifts, which bring a sum to another unit; HardSwish, gates,
means and sums of the stream. Halves are rounded up.

Activations are unsigned, `[channels, height, width, images]`: the values of one channel lie side by
side, so that numpy works on many at once. Chapter `11_beyond`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from micronet_lib.beyond.description import IMAGE_BITS, Grid, LayerShape, Packed, PackedLayer

Array = NDArray[np.integer]

MIDDLE = (129, 124, 112)
"""The pixel that stands for 0, for each colour: what padding reads."""
PIXEL_UNIT = 2.0**-6
STREAM_BITS = 16
GATE_BITS = 10
GATE_UNIT = 2.0**-6
LOGIT_UNIT = 2.0**-10
MULTIPLIER_BITS = 15
OCTAVE = (1.0, 0.8408964152537145, 0.7071067811865476, 0.5946035575013605)
SCALES = np.array([OCTAVE[k % 4] * 2.0 ** -(k // 4) for k in range(32)])
"""2^(-k/4): scales by their place, in units of the largest."""
_LEVELS = np.arange(-(2 ** (GATE_BITS - 1)), 2 ** (GATE_BITS - 1)) * GATE_UNIT
SIGMOID = np.rint(2**15 / (1 + np.exp(-_LEVELS))).astype(np.int32)
"""The sigmoid of every gate integer, from the smallest, in units of 2^-15."""


# ------------------------------------------------------------------------------ single operations


def multiplier(factor: float) -> tuple[int, int]:
    """Return an integer of 15 bits and a shift; divided by `2^shift` it is nearest to a factor."""
    mantissa, exponent = np.frexp(factor)
    whole, shift = round(float(mantissa) * 2**MULTIPLIER_BITS), MULTIPLIER_BITS - int(exponent)
    if whole == 2**MULTIPLIER_BITS:
        whole, shift = whole // 2, shift - 1
    if shift < 0:
        return 2**MULTIPLIER_BITS, 0  # whatever is not 0 becomes larger than any result may be
    if shift > 2 * MULTIPLIER_BITS:
        return 0, 0  # no integer of 16 bits reaches one half
    return whole, shift


def halved(values: Array, shift: int) -> Array:
    """Return `values / 2^shift`, rounded."""
    return (values + ((1 << shift) >> 1)) >> shift


def rescaled(values: Array, factor: tuple[int, int]) -> Array:
    """Return integers of 16 bits in another unit: a product and a shift."""
    whole, shift = factor
    return halved(values * np.int32(whole), shift)


def saturated(values: Array, bits: int) -> Array:
    """Return integers clipped to the range of signed integers of that width."""
    return np.clip(values, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def hard_swish(values: Array, grid: Grid, pre_bits: int) -> Array:
    """Return HardSwish of integers of which `grid.three` stands for 3, on the grid."""
    up = np.clip(values + grid.three, 0, 2**pre_bits - 1)
    product = (up - grid.three) * np.minimum(up, 2 * grid.three)
    return np.clip(halved(product, grid.shift) + grid.zero, 0, 2**grid.bits - 1)


def pooled(stream: Array) -> Array:
    """Return the rounded means over positions, `[channels, 1, 1, images]`."""
    positions = stream.shape[1] * stream.shape[2]
    total = stream.sum((1, 2), dtype=np.int64, keepdims=True)
    return ((2 * total + positions) // (2 * positions)).astype(np.int32)


def gated(values: Array, logits: Array) -> Array:
    """Return values times the sigmoid of their channel's gate integer."""
    return halved(values * SIGMOID[logits + 2 ** (GATE_BITS - 1)], 15)


def padded(x: Array, zeros: Array) -> Array:
    """Return activations with one more position on each side, which stands for 0."""
    chs, height, width, images = x.shape
    out = np.empty((chs, height + 2, width + 2, images), x.dtype)
    out[:] = zeros.reshape(-1, 1, 1, 1)
    out[:, 1:-1, 1:-1] = x
    return out


# ---------------------------------------------------------------------------------------- a layer


@dataclass
class Accumulator:
    """Sums from `low` to `high`, proven for any part of the terms and any inputs.

    `smallest` and `largest` are those that were seen.
    """

    low: int
    high: int
    smallest: int = 0
    largest: int = 0

    @property
    def bits(self) -> int:
        """Width that holds every sum, sign included."""
        return 1 + max((-self.low - 1).bit_length() if self.low else 0, self.high.bit_length())


class Layer:
    """A convolution or the classifier as loops over its weights.

    Its inputs have `bits`, units of `step`, and `zeros`: the integer that stands for an input of 0,
    for each channel or for all.
    """

    def __init__(
        self, stored: PackedLayer, shape: LayerShape, step: float, zeros: Array, bits: int
    ) -> None:
        self.shape, self.zeros = shape, zeros
        codes = stored.codes.reshape(len(stored.codes), -1, shape.side, shape.side)
        self.scale = stored.scale * SCALES[stored.places] * step
        bias = np.floor(stored.bias * stored.unit / self.scale + 0.5).astype(np.int64)
        # Inputs count from their smallest value: what stands for 0 is taken off in advance.
        rows, top = codes.reshape(len(codes), -1), 2**bits - 1
        self.start = bias - (codes * zeros.reshape(-1, 1, 1)).reshape(rows.shape).sum(1)
        # A partial sum holds the start or not yet, and any of the terms.
        low = np.minimum(self.start, 0) + np.minimum(rows, 0).sum(1) * top
        high = np.maximum(self.start, 0) + np.maximum(rows, 0).sum(1) * top
        self.reach = [Accumulator(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True)]
        self.sums = Accumulator(int(low.min()), int(high.max()))
        self.dtype = np.int32 if self.sums.bits < 32 else np.int64
        depthwise = shape.weight[1] == 1 and shape.side == 3
        self.terms = [
            [
                (self.dtype(filter_[place]), row if depthwise else place[0], *place[1:])
                for place in map(tuple, np.argwhere(filter_).tolist())
            ]
            for row, filter_ in enumerate(codes)
        ]

    def __call__(self, x: Array, unit: float, then: Callable[[Array], Array]) -> Array:
        """Return `then` of every channel of outputs of that unit, int32 like the activations `x`.

        Raises:
            OverflowError: a sum outside its proven range.
        """
        down = max(0, self.sums.bits - STREAM_BITS)
        stride, (_, height, width, images) = self.shape.stride, x.shape
        x = x.astype(self.dtype, copy=False)
        if self.shape.side == 3:
            x = padded(x, self.zeros.astype(self.dtype))
        out = np.empty(
            (len(self.terms), -(-height // stride), -(-width // stride), images), np.int32
        )
        total, product = (np.empty(out.shape[1:], self.dtype) for _ in range(2))
        for row, terms in enumerate(self.terms):
            total.fill(self.start[row])
            for weight, channel, i, j in terms:
                np.multiply(
                    x[channel, i : i + height : stride, j : j + width : stride], weight, product
                )
                np.add(total, product, total)
            self.watch(row, total)
            first = halved(total, down).astype(np.int32, copy=False)
            factor = multiplier(float(self.scale[row] / unit * 2.0**down))
            out[row] = then(rescaled(first, factor))
        return out

    def watch(self, row: int, total: Array) -> None:
        """Note the ends of what was seen, and compare them with what is proven."""
        proven, smallest, largest = self.reach[row], int(total.min()), int(total.max())
        if smallest < proven.low or largest > proven.high:
            raise OverflowError(
                f"sums from {smallest} to {largest}, proven {proven.low} to {proven.high}"
            )
        self.sums.smallest = min(self.sums.smallest, smallest)
        self.sums.largest = max(self.sums.largest, largest)


# -------------------------------------------------------------------------------------- a network


class Machine:
    """A network of a file, from `packed.load_packed`, that runs."""

    def __init__(self, network: Packed) -> None:
        self.network = network
        self.layers: dict[str, Layer] = {}
        for name, stored in network.layers.items():
            shape = network.shapes[name]
            if shape.reads:
                grid = network.grids[shape.reads]
                own = grid.step, np.array([grid.zero]), grid.bits
            else:
                own = PIXEL_UNIT, np.array(MIDDLE), IMAGE_BITS
            self.layers[name] = Layer(stored, shape, *own)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the logits of images `[N, 3, H, W]` in units of 2^-10, `[N, num_classes]`."""
        x = np.ascontiguousarray(images.transpose(1, 2, 3, 0), np.int32)
        codes = stream = self.swished("stem.conv", x, "blocks.0.quant_input")
        for index, block in enumerate(self.network.blocks):
            name = f"blocks.{index}"
            if index:
                codes = self.on_grid(stream, f"{name}.quant_input")
            out = self.swished(f"{name}.conv_expand", codes, f"{name}.quant_dw")
            out = self.swished(f"{name}.conv_dw", out, f"{name}.quant_project")
            out = self.linear(f"{name}.conv_project", out)
            if block.se_chs:
                means = self.on_grid(pooled(out), f"{name}.se.quant_reduce")
                means = self.swished(f"{name}.se.conv_reduce", means, f"{name}.se.quant_expand")
                gates = self.linear(f"{name}.se.conv_expand", means, GATE_UNIT, GATE_BITS)
                out = gated(out, gates)
            if block.stride == 1:
                if block.shortcut:
                    stream = self.linear(f"{name}.conv_shortcut", codes)
                out = saturated(out + stream, STREAM_BITS)
            stream = out
        means = self.on_grid(pooled(stream), "head.quant")
        return self.linear("head.classifier", means, LOGIT_UNIT)[:, 0, 0].T.astype(np.int64)

    def swished(self, name: str, x: Array, grid_name: str) -> Array:
        """Return HardSwish of a layer, on a grid."""
        grid, pre_bits = self.network.grids[grid_name], self.network.pre_bits
        return self.layers[name](x, 3 / grid.three, lambda y: hard_swish(y, grid, pre_bits))

    def linear(self, name: str, x: Array, unit: float = 0.0, bits: int = STREAM_BITS) -> Array:
        """Return the outputs of a layer as integers of that width and unit, else of the stream."""
        unit = unit or 2.0**-self.network.point
        return self.layers[name](x, unit, lambda y: saturated(y, bits))

    def on_grid(self, stream: Array, grid_name: str) -> Array:
        """Return integers of the stream on a grid."""
        grid = self.network.grids[grid_name]
        values = rescaled(stream, multiplier(2.0**-self.network.point / grid.step))
        return np.clip(values + grid.zero, 0, 2**grid.bits - 1)
