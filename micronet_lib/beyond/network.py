"""A MicroNet in integers: trained with rounded numbers, run with nothing but integers.

Batch norm is folded first. In training mode every layer reads rounded inputs and rounded weights,
as floats with gradients. In evaluation mode the network computes what an integer machine computes,
see `arithmetic` (chapter `11_beyond`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from micronet_lib.architecture.micronet import MBConv, MicroNet
from micronet_lib.architecture.network import Network, NetworkSpec, build, register
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
    scale_factors,
)
from micronet_lib.beyond.counting import counted
from micronet_lib.beyond.quantizers import (
    FLOAT_BITS,
    FakeQuantize,
    Grid,
    bias_unit,
    check_bits,
    fake_quantize_weight,
    fitted_scales,
    fitted_step,
    hard_swish_grid,
    nearest_scales,
    scale_grid,
    through,
    weight_codes,
)
from micronet_lib.errors import InputError

NAME = "integer_micronet"
IMAGE_BITS = 8
PIXEL_UNIT = 2.0**-6
SMALLEST_STEP = 2.0**-26
"""Of activations; exact in float32, so that a file can store it."""

# As `lab.data.images.normalize` does it: the network reads normalised images.
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)
MIDDLE = tuple(round(255 * mean) for mean in MEAN)
"""The pixel that stands for 0, for each colour: what padding reads."""


@dataclass(frozen=True)
class Widths:
    """Bit widths of a network in integers.

    Attributes:
        weights: layer -> bits of its weights.
        inputs: quantizer -> bits of the activations that it rounds.
        biases: layer -> bits of its biases.
        pre: bits of the integer `y + 3` before HardSwish.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, int] = field(default_factory=dict)
    biases: Mapping[str, int] = field(default_factory=dict)
    pre: int = 12


class _Layer(nn.Module):
    """What the quantised convolution and the quantised linear layer share."""

    weight: Any
    bias: Any
    scale: nn.Parameter
    weight_bits: int
    bias_bits: int
    scale_bits: int
    reads: "Quantizer | Pixels"

    def _set_up(self, reads: "Quantizer | Pixels") -> None:
        self.weight_bits = self.bias_bits = FLOAT_BITS
        self.scale = nn.Parameter(torch.ones(len(self.weight)))
        # Not a child: two layers may read the same integers.
        object.__setattr__(self, "reads", reads)

    @property
    def activation_bits(self) -> int:
        """Width of the integers that it reads."""
        return self.reads.bits

    def fit(self, clip: bool = True) -> None:
        """Set the scales by least squares."""
        if self.weight_bits != FLOAT_BITS:
            self.scale.data.copy_(fitted_scales(self.weight.detach(), self.weight_bits, clip))

    def stored_scales(self) -> Tensor:
        """Return the places of the scales in the layer's grid, int64 `[out_chs]`."""
        return nearest_scales(self.scale.detach().clamp_min(1e-8))

    def scales(self) -> Tensor:
        """Return the scales, of the grid, with a gradient, `[out_chs]`."""
        scale = self.scale.clamp_min(1e-8)
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
            step, zeros = PIXEL_UNIT, torch.tensor(MIDDLE, dtype=torch.float64)
        else:
            grid = reads.grid()
            step, zeros = grid.step, torch.tensor([grid.zero], dtype=torch.float64)
        largest = self.scale.detach().clamp_min(1e-8).max().item()
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
        step, zero = fitted_step(_some(x), self.bits, self.hard_swish, clip)
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


def _some(x: Tensor, number: int = 40_000) -> Tensor:
    """Return about that many of the values, evenly spread."""
    flat = x.detach().flatten()
    return flat[:: max(1, flat.numel() // number)]


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
        for name, layer in layers.items():
            layer.weight_bits = widths.weights.get(name, FLOAT_BITS)
            layer.bias_bits = widths.biases.get(name, FLOAT_BITS)
            check_bits(f"weight bits of {name}", layer.weight_bits)
            check_bits(f"bias bits of {name}", layer.bias_bits, 2, 16)
        check_bits("bits before HardSwish", widths.pre, 4)
        for name, quantizer in quantizers.items():
            quantizer.bits = widths.inputs.get(name, FLOAT_BITS)
            quantizer.pre_bits = widths.pre
            check_bits(f"bits of {name}", quantizer.bits, 2)
            if quantizer.hard_swish and FLOAT_BITS != quantizer.bits > widths.pre:
                raise InputError(
                    f"{name} has {quantizer.bits} bits after HardSwish and only {widths.pre} before"
                )
        self.widths = widths
        plain = {key: dict(value) if isinstance(value, Mapping) else value
                 for key, value in vars(widths).items()}  # fmt: skip
        self.spec = NetworkSpec(NAME, {"network": self._plain, "widths": plain})
        self._sums = None

    @property
    def in_floats(self) -> bool:
        """Whether some layer or quantizer is not quantised, so that there is no integer network."""
        widths = [bits for layer in self.layers.values()
                  for bits in (layer.weight_bits, layer.bias_bits)]  # fmt: skip
        return FLOAT_BITS in (*widths, *(each.bits for each in self.quantizers.values()))

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
        handles += [block.conv_project.register_forward_hook(watch) for block in self._blocks()]
        for quantizer in self.quantizers.values():
            quantizer.tap = fit
        self._float_forward(images.contiguous(memory_format=torch.channels_last))
        for quantizer in self.quantizers.values():
            quantizer.tap = None
        for handle in handles:
            handle.remove()
        # Twice the largest value seen, in 16 bits.
        room = math.ceil(math.log2(2 * max(1e-3, *largest)))
        self.stream_bits_after_point.fill_(STREAM_BITS - 1 - room)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of normalised images: of floats in training, of integers otherwise."""
        if self.training or self.in_floats:
            return self._float_forward(x)
        return self._integer_forward(x)

    def counted(self) -> nn.Module:
        """Return a MicroNet of integers that says what its operations cost.

        Raises:
            InputError: a layer or quantizer is still in floats.
        """
        if self.in_floats:
            raise InputError("this network is in floats: set all widths to price it")
        return counted(self)

    def _float_forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))

    # ------------------------------------------------------------------------------- in integers

    def sums(self) -> "dict[str, Sums]":
        """Return layer -> what the integer network needs of it, made anew after a change."""
        tensors = [*self.parameters(), *self.buffers()]
        version = hash(tuple((id(each), each._version) for each in tensors))
        if self._sums is None or self._sums[0] != version:
            made = {name: layer.sums() for name, layer in self.layers.items()}
            self._sums = version, made
        return self._sums[1]

    @torch.no_grad()
    def _integer_forward(self, x: Tensor) -> Tensor:
        sums = self.sums()
        point = 2.0 ** -int(self.stream_bits_after_point.item())

        def swished(name: str, codes: Tensor, after: Quantizer) -> Tensor:
            grid = after.grid()
            found = sums[name].outputs(codes, 3 / grid.three)
            return hard_swish(found, grid, after.pre_bits)

        blocks = self._blocks()
        codes = swished("stem.conv", self.stem.pixels.centred(x), blocks[0].quant_input)
        stream = codes
        for index, block in enumerate(blocks):
            name = f"blocks.{index}"
            if index:
                codes = on_grid(stream, point, block.quant_input.grid())
            out = swished(f"{name}.conv_expand", codes, block.quant_dw)
            out = swished(f"{name}.conv_dw", out, block.quant_project)
            out = sums[f"{name}.conv_project"].outputs(out, point, STREAM_BITS)
            if block.se is not None:
                means = on_grid(pooled(out), point, block.se.quant_reduce.grid())
                means = swished(f"{name}.se.conv_reduce", means, block.se.quant_expand)
                logits = sums[f"{name}.se.conv_expand"].outputs(means, GATE_UNIT, GATE_BITS)
                out = gated(out, logits)
            if block.config.stride == 1:
                if block.conv_shortcut is not None:
                    stream = sums[f"{name}.conv_shortcut"].outputs(codes, point, STREAM_BITS)
                out = saturated(out + stream, STREAM_BITS)
            stream = out
        codes = on_grid(pooled(stream), point, self.head.quant.grid())[:, :, 0, 0]
        return sums["head.classifier"].outputs(codes, LOGIT_UNIT, STREAM_BITS) * LOGIT_UNIT


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
    if isinstance(network, IntegerMicroNet):
        return network
    _check_kind(network)
    assert isinstance(network, MicroNet)
    made = IntegerMicroNet({"name": network.spec.name, "options": network.spec.options})
    model = network.eval()
    pairs = [(made.stem.conv, model.stem.conv, model.stem.bn)]
    for ours, block in zip(made._blocks(), _blocks(model), strict=True):
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
    return made.train(network.training)


def _absorb_normalisation(conv: QuantizedConv2d) -> None:
    """Let the stem read pixels less the middle one, times their unit, instead of normal images."""
    mean, std, middle = (
        torch.tensor(each, dtype=torch.float64).view(1, 3, 1, 1) for each in (MEAN, STD, MIDDLE)
    )
    weight = conv.weight.double() / std
    conv.bias += (weight * (middle / 255 - mean)).sum((1, 2, 3)).to(conv.bias.dtype)
    conv.weight.copy_((weight / (255 * PIXEL_UNIT)).to(conv.weight.dtype))
