"""A MicroNet in integers: trained with rounded numbers, run with nothing but integers.

Batch norm is folded first. In training mode every layer reads rounded inputs and rounded weights,
as floats with gradients. In evaluation mode the network computes what an integer machine computes,
see `arithmetic` (chapter `11_beyond`).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from micronet_lib.architecture.layers import check_plain_weights
from micronet_lib.architecture.micronet import MBConv, MicroNet
from micronet_lib.architecture.network import Network, NetworkSpec, build, evaluated, register
from micronet_lib.beyond.arithmetic import (
    GATE_BITS,
    GATE_UNIT,
    LOGIT_UNIT,
    STREAM_BITS,
    Sums,
    gated,
    hard_swish,
    on_grid,
    pooled,
    saturated,
)
from micronet_lib.beyond.counting import counted
from micronet_lib.beyond.layers import (
    MEAN,
    MIDDLE,
    PIXEL_UNIT,
    STD,
    Pixels,
    Quantized,
    QuantizedConv2d,
    QuantizedLinear,
    Quantizer,
)
from micronet_lib.beyond.quantizers import FLOAT_BITS, MAX_BITS, check_bits
from micronet_lib.errors import InputError

NAME = "integer_micronet"


@dataclass(frozen=True)
class Widths:
    """Bit widths of a network in integers.

    Attributes:
        weights: layer -> bits of its weights.
        inputs: quantizer -> bits of the activations that it rounds.
        biases: layer -> bits of its biases.
        pre: bits of the integer `y + 3` before HardSwish.
        shared_scales: one scale for all filters of a layer.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, int] = field(default_factory=dict)
    biases: Mapping[str, int] = field(default_factory=dict)
    pre: int = 12
    shared_scales: bool = False


class Gate(nn.Module):
    """Squeeze-and-excitation in integers, see `architecture.micronet.SqueezeExcite`."""

    def __init__(self, block: MBConv) -> None:
        super().__init__()
        assert block.se is not None
        self.quant_reduce, self.quant_expand = Quantizer(False), Quantizer(True)
        self.conv_reduce = QuantizedConv2d(block.se.conv_reduce, self.quant_reduce)
        self.conv_expand = QuantizedConv2d(block.se.conv_expand, self.quant_expand)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gates in (0, 1), `[N, C, 1, 1]`."""
        hidden = self.conv_reduce(self.quant_reduce(x.mean((2, 3), keepdim=True)))
        return self.conv_expand(self.quant_expand(hidden)).sigmoid()


class Block(nn.Module):
    """An MBConv block in integers. Its input stays as it is for the identity shortcut."""

    def __init__(self, block: MBConv, first: bool) -> None:
        super().__init__()
        config = block.config
        self.config = config
        # The stem leaves its HardSwish to the first block.
        self.quant_input = Quantizer(first)
        self.quant_dw, self.quant_project = Quantizer(True), Quantizer(True)
        self.conv_expand = QuantizedConv2d(block.conv_expand, self.quant_input)
        self.conv_dw = QuantizedConv2d(block.conv_dw, self.quant_dw)
        self.conv_project = QuantizedConv2d(block.conv_project, self.quant_project)
        self.se = Gate(block) if block.se is not None else None
        self.conv_shortcut: QuantizedConv2d | None = None
        if block.conv_shortcut is not None:
            self.conv_shortcut = QuantizedConv2d(block.conv_shortcut, self.quant_input)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_chs, H, W] -> [N, out_chs, H / stride, W / stride]`, floats."""
        rounded = self.quant_input(x)
        out = self.conv_dw(self.quant_dw(self.conv_expand(rounded)))
        out = self.conv_project(self.quant_project(out))
        if self.se is not None:
            out = out * self.se(out)
        if self.config.stride == 2:
            return out
        return out + (x if self.conv_shortcut is None else self.conv_shortcut(rounded))


class Stem(nn.Module):
    """The first convolution, on pixels. Its HardSwish is part of the next quantizer."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.pixels = Pixels()
        self.conv = QuantizedConv2d(conv, self.pixels)

    def forward(self, x: Tensor) -> Tensor:
        """Return what HardSwish will read, floats."""
        return self.conv(self.pixels(x))


class Head(nn.Module):
    """Pooling and classifier in integers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.quant = Quantizer(False)
        self.classifier = QuantizedLinear(linear, self.quant)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, floats."""
        return self.classifier(self.quant(x.mean((2, 3))))


class IntegerMicroNet(Network):
    """A MicroNet with folded batch norm whose widths are set layer by layer.

    With every width at 32 bits it is the folded network in floats.

    Args:
        network: spec of the MicroNet, as a mapping of `name` and `options`.
        widths: a mapping of the fields of `Widths`.

    Raises:
        InputError: another kind of network, gates that are dropped, an unknown layer or width.
    """

    foldable = False
    capturable = False  # every pass reads steps and scales as Python numbers
    stream_bits_after_point: Tensor

    def __init__(self, network: Mapping[str, Any], widths: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        plain = build(NetworkSpec(**network))
        _check_kind(plain)
        assert isinstance(plain, MicroNet)
        self.architecture = plain.architecture
        self.stem = Stem(plain.stem.conv)
        self.blocks = nn.Sequential(
            *(Block(block, not i) for i, block in enumerate(_blocks(plain)))
        )
        self.head = Head(plain.head.classifier)
        self.register_buffer("stream_bits_after_point", torch.zeros(()))
        self.widths = Widths()
        self._plain = {"name": plain.spec.name, "options": dict(plain.spec.options)}
        self._sums: tuple[int, dict[str, Sums]] | None = None
        self.set_widths(Widths(**(widths or {})))

    @property
    def classifier(self) -> nn.Linear:
        """The linear layer of the head."""
        return self.head.classifier

    @property
    def layers(self) -> dict[str, Quantized]:
        """Every convolution and the classifier by name, in the order of their execution."""
        return {n: m for n, m in self.named_modules() if isinstance(m, Quantized)}

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """Every quantizer by name."""
        return {n: m for n, m in self.named_modules() if isinstance(m, Quantizer)}

    def set_widths(self, widths: Widths) -> None:
        """Set the widths of layers and quantizers, and the spec. Unnamed ones stay floats.

        Raises:
            InputError: a name or a width that does not exist.
        """
        layers, quantizers = self.layers, self.quantizers
        for name in widths.weights.keys() | widths.biases.keys():
            if name not in layers:
                raise InputError(f"widths: this network has no layer {name!r}")
        for name in widths.inputs:
            if name not in quantizers:
                raise InputError(f"widths: this network has no quantizer {name!r}")
        check_bits("bits before HardSwish", widths.pre, 4)
        if widths.pre == FLOAT_BITS:
            raise InputError(f"bits before HardSwish are integers: give 4 to {MAX_BITS}")
        for name, bits in widths.weights.items():
            check_bits(f"weight bits of {name}", bits)
        for name, bits in widths.biases.items():
            check_bits(f"bias bits of {name}", bits, 2, 16)
        for name, bits in widths.inputs.items():
            check_bits(f"bits of {name}", bits, 2)
            if quantizers[name].hard_swish and FLOAT_BITS != bits > widths.pre:
                raise InputError(
                    f"{name} has {bits} bits after HardSwish and only {widths.pre} before"
                )
        for name, layer in layers.items():
            layer.weight_bits = widths.weights.get(name, FLOAT_BITS)
            layer.bias_bits = widths.biases.get(name, FLOAT_BITS)
            layer.shares_scale = widths.shared_scales
        for name, quantizer in quantizers.items():
            quantizer.bits = widths.inputs.get(name, FLOAT_BITS)
            quantizer.pre_bits = widths.pre
        self.widths = widths
        plain = {key: dict(value) if isinstance(value, Mapping) else value
                 for key, value in vars(widths).items()}  # fmt: skip
        self.spec = NetworkSpec(NAME, {"network": self._plain, "widths": plain})
        self._sums = None

    @property
    def is_rounded(self) -> bool:
        """Whether some width is set."""
        return any((self.widths.weights, self.widths.inputs, self.widths.biases))

    @property
    def in_floats(self) -> bool:
        """Whether some layer or quantizer is not quantised, so that there is no integer network."""
        widths = [bits for layer in self.layers.values()
                  for bits in (layer.weight_bits, layer.bias_bits)]  # fmt: skip
        return FLOAT_BITS in (*widths, *(each.bits for each in self.quantizers.values()))

    @contextmanager
    def tapped(self, tap: Callable[[Quantizer, Tensor], Tensor]) -> Iterator[None]:
        """Let a function look into every quantizer, see `Quantizer.tap`."""
        for quantizer in self.quantizers.values():
            quantizer.tap = tap
        try:
            yield
        finally:
            for quantizer in self.quantizers.values():
                quantizer.tap = None

    @torch.no_grad()
    def calibrate(self, images: Tensor, clip: bool = True) -> None:
        """Set scales, steps and the unit of the stream from normalised images `[N, 3, H, W]`.

        Layer by layer: each quantizer is fitted to what the rounded layers before it produce.
        """
        if not len(images):
            raise InputError("no images to calibrate with")
        for layer in self.layers.values():
            layer.fit(clip)
        largest = [0.0]

        def watch(_: nn.Module, __: Any, out: Tensor) -> None:
            largest.append(out.abs().max().item())

        def fit(quantizer: Quantizer, x: Tensor) -> Tensor:
            quantizer.fit(x, clip)
            return x

        handles = [m.register_forward_hook(watch) for m in self.modules() if isinstance(m, Block)]
        handles += [
            block.conv_project.register_forward_hook(watch) for block in self.quantized_blocks()
        ]
        try:
            with self.tapped(fit):
                self._float_forward(images.contiguous(memory_format=torch.channels_last))
        finally:
            for handle in handles:
                handle.remove()
        # Twice the largest value seen, in 16 bits.
        room = math.ceil(math.log2(2 * max(1e-3, *largest)))
        self.stream_bits_after_point.fill_(STREAM_BITS - 1 - room)

    def quantized_blocks(self) -> list[Block]:
        """Return its blocks, in order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of normalised images: of floats in training, of integers otherwise."""
        if self.training or self.in_floats:
            return self._float_forward(x)
        return self._integer_forward(x)

    @property
    def parts(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Its blocks, the first with the stem, and its head; between them is the stream."""
        if not (self.training or self.in_floats):
            made = self._integer_parts
        else:
            made = {f"blocks.{i}": block for i, block in enumerate(self.blocks)}
            made |= {"blocks.0": nn.Sequential(self.stem, self.blocks[0]), "head": self.head}
        return {name: partial(_exactly, part) for name, part in made.items()}

    def counted(self) -> nn.Module:
        """Return a MicroNet of integers that says what its operations cost.

        Raises:
            InputError: a layer or quantizer is still in floats.
        """
        if self.in_floats:
            raise InputError("this network is in floats: set all widths to price it")
        return counted(self)

    def _float_forward(self, x: Tensor) -> Tensor:
        return _exactly(lambda image: self.head(self.blocks(self.stem(image))), x.float())

    # ------------------------------------------------------------------------------- in integers

    def train(self, mode: bool = True) -> Self:
        """Set the mode. The sums are then made anew."""
        # A fused optimiser step leaves the versions of the weights that it changes as they were.
        self._sums = None
        return super().train(mode)

    def sums(self) -> "dict[str, Sums]":
        """Return layer -> what the integer network needs of it, made anew after a change."""
        tensors = [*self.parameters(), *self.buffers()]
        version = hash(tuple((id(each), each._version) for each in tensors))
        if self._sums is None or self._sums[0] != version:
            with torch.autocast(self.classifier.weight.device.type, enabled=False):
                made = {name: layer.sums() for name, layer in self.layers.items()}
            self._sums = version, made
        return self._sums[1]

    @torch.no_grad()
    def _integer_forward(self, x: Tensor) -> Tensor:
        for part in self._integer_parts.values():
            x = _exactly(part, x)
        return x

    @property
    def _integer_parts(self) -> dict[str, Callable[[Tensor], Tensor]]:
        sums = self.sums()  # once: asking whether something changed takes a look at every tensor
        parts = range(len(self.blocks))
        made = {f"blocks.{i}": partial(self._integer_block, sums, i) for i in parts}
        return {**made, "head": partial(self._integer_head, sums)}

    @property
    def _point(self) -> float:
        """The unit of the stream, a power of two, by which an integer times it is exact."""
        return 2.0 ** -int(self.stream_bits_after_point.item())

    def _integer_block(self, sums: Mapping[str, Sums], index: int, x: Tensor) -> Tensor:
        """Return the stream after a block, integers times its unit; the first block has the stem.

        The stem's HardSwish ends on the first block's grid, so there is no stream before it.
        """
        point, block = self._point, self.quantized_blocks()[index]
        name = f"blocks.{index}"
        if index:
            stream = x / point
            codes = on_grid(stream, point, block.quant_input.grid())
        else:
            centred = self.stem.pixels.centred(x)
            stream = codes = _swished(sums["stem.conv"], centred, block.quant_input)
        out = _swished(sums[f"{name}.conv_expand"], codes, block.quant_dw)
        out = _swished(sums[f"{name}.conv_dw"], out, block.quant_project)
        out = sums[f"{name}.conv_project"].outputs(out, point, STREAM_BITS)
        if block.se is not None:
            means = on_grid(pooled(out), point, block.se.quant_reduce.grid())
            means = _swished(sums[f"{name}.se.conv_reduce"], means, block.se.quant_expand)
            logits = sums[f"{name}.se.conv_expand"].outputs(means, GATE_UNIT, GATE_BITS)
            out = gated(out, logits)
        if block.config.stride == 1:
            if block.conv_shortcut is not None:
                stream = sums[f"{name}.conv_shortcut"].outputs(codes, point, STREAM_BITS)
            out = saturated(out + stream, STREAM_BITS)
        return out * point

    def _integer_head(self, sums: Mapping[str, Sums], x: Tensor) -> Tensor:
        point = self._point
        codes = on_grid(pooled(x / point), point, self.head.quant.grid())[:, :, 0, 0]
        found = sums["head.classifier"].outputs(codes, LOGIT_UNIT, STREAM_BITS)
        return found * LOGIT_UNIT


def _swished(sums: Sums, codes: Tensor, after: Quantizer) -> Tensor:
    """Return what HardSwish makes of a layer's sums, on the next quantizer's grid."""
    grid = after.grid()
    return hard_swish(sums.outputs(codes, 3 / grid.three), grid, after.pre_bits)


def _exactly(part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return what a part makes of `x` outside of autocast.

    bfloat16 has fewer digits than the integers that it would stand for.
    """
    with torch.autocast(x.device.type, enabled=False):
        return part(x)


def _blocks(model: MicroNet) -> list[MBConv]:
    return [block for block in model.blocks if isinstance(block, MBConv)]


def _check_kind(network: Network) -> None:
    """Check that a network can be put in integers.

    Raises:
        InputError: why not.
    """
    if not isinstance(network, MicroNet):
        raise InputError(
            f"only a MicroNet can be put in integers, and this is a {type(network).__name__}"
        )
    check_plain_weights(network)
    first = network.architecture.blocks[0]
    for config in network.architecture.blocks:
        if config.se_chs and not config.se_applied:
            raise InputError(
                "this network computes gates and drops them: remove them first (dead_gates)"
            )
        if config.activation != "hard_swish":
            raise InputError(f"activation {config.activation} cannot be put in integers")
    if first.stride == 1 and not first.pointwise_shortcut:
        raise InputError(
            "the first block must change the width or the size: its input is kept as rounded"
        )


@register(NAME)
def _build(network: Mapping[str, Any], widths: Mapping[str, Any] | None = None) -> IntegerMicroNet:
    """Build a network in integers from its spec."""
    return IntegerMicroNet(network, widths)


@torch.no_grad()
def in_integers(network: Network) -> IntegerMicroNet:
    """Return a MicroNet with folded batch norm, ready for `set_widths` and `calibrate`.

    Raises:
        InputError: a network that cannot be put in integers.
    """
    if type(network) is IntegerMicroNet:  # channels with widths of their own are another network
        return network
    _check_kind(network)
    assert isinstance(network, MicroNet)
    made = IntegerMicroNet({"name": network.spec.name, "options": network.spec.options})
    with evaluated(network):
        _take_over(made, network)
    return made.train(network.training)


def _take_over(made: IntegerMicroNet, model: MicroNet) -> None:
    """Copy the weights, with batch norm folded, of a network in evaluation mode."""
    pairs = [(made.stem.conv, model.stem.conv, model.stem.bn)]
    for ours, block in zip(made.quantized_blocks(), _blocks(model), strict=True):
        pairs += [
            (ours.conv_expand, block.conv_expand, block.bn_expand),
            (ours.conv_dw, block.conv_dw, block.bn_dw),
            (ours.conv_project, block.conv_project, block.bn_project),
        ]
        if ours.conv_shortcut is not None:
            assert block.conv_shortcut is not None
            assert block.bn_shortcut is not None
            pairs.append((ours.conv_shortcut, block.conv_shortcut, block.bn_shortcut))
        if ours.se is not None and block.se is not None:
            for mine, theirs in (
                (ours.se.conv_reduce, block.se.conv_reduce),
                (ours.se.conv_expand, block.se.conv_expand),
            ):
                mine.weight.copy_(theirs.weight)
                assert theirs.bias is not None
                mine.bias.copy_(theirs.bias)
    for mine, conv, norm in pairs:
        folded = fuse_conv_bn_eval(conv, norm)
        mine.weight.copy_(folded.weight)
        assert folded.bias is not None
        mine.bias.copy_(folded.bias)
    _absorb_normalisation(made.stem.conv)
    made.head.classifier.weight.copy_(model.head.classifier.weight)
    made.head.classifier.bias.copy_(model.head.classifier.bias)


def _absorb_normalisation(conv: QuantizedConv2d) -> None:
    """Let the stem read pixels less the middle one, times their unit, instead of normal images."""
    mean, std, middle = (
        torch.tensor(each, dtype=torch.float64).view(1, 3, 1, 1) for each in (MEAN, STD, MIDDLE)
    )
    weight = conv.weight.double() / std
    conv.bias += (weight * (middle / 255 - mean)).sum((1, 2, 3)).to(conv.bias.dtype)
    conv.weight.copy_((weight / (255 * PIXEL_UNIT)).to(conv.weight.dtype))
