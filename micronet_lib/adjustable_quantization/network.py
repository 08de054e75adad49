"""A MicroNet in integers whose channels have ranges and bit widths of their own.

It is a `beyond.network.IntegerMicroNet` with the layers and quantizers of `layers`, made of a
network of floats by the change `Adjust` (chapter `09_adjustable_quantization`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from micronet_lib.adjustable_quantization.layers import (
    AdjustableConv2d,
    AdjustableLinear,
    ChannelQuantizer,
)
from micronet_lib.adjustable_quantization.price import Ranges, Steer, counted, reading_positions
from micronet_lib.adjustable_quantization.ranges import MAX_BITS, MIN_BITS
from micronet_lib.architecture.network import Network, NetworkSpec, register
from micronet_lib.beyond.changes import held_zeros
from micronet_lib.beyond.layers import Pixels, QuantizedConv2d, QuantizedLinear, Quantizer
from micronet_lib.beyond.network import IntegerMicroNet, in_integers
from micronet_lib.errors import InputError, is_integer, is_number
from micronet_lib.hooks import Hook
from micronet_lib.scoring.bill import score_network

NAME = "adjustable_micronet"


@dataclass(frozen=True)
class Adjust:
    """The change of a recipe that rounds every channel in a learned range with a learned width.

    For MicroNets without gates that nothing uses, see `beyond.network.in_integers`.

    Attributes:
        weight_bits: width of every filter at the start.
        activation_bits: width of every channel of activations at the start.
        target: score, by the official rules, to which training steers the widths; None leaves the
            widths as they are and learns ranges only.
        strength: of the steering, in the unit of the loss: what the loss changes by if the score
            changes by the whole target.
        share: of the gradient of the wider one of two widths that goes to the activation.
        bound_gradient: whether a clipped number's bound gets a gradient, see `ranges.adjusted`.
        bias_bits: of biases.
        num_images: training images for the ranges of activations.
        target_share: in place of `target`, a fraction of the score before training.

    Raises:
        InputError: a number outside its range, or two targets.
    """

    weight_bits: int = MAX_BITS
    activation_bits: int = MAX_BITS
    target: float | None = None
    strength: float = 1.0
    share: float = 0.7
    bound_gradient: bool = False
    bias_bits: int = 12
    num_images: int = 512
    target_share: float | None = None

    def __post_init__(self) -> None:
        of_channels = (MIN_BITS, MAX_BITS)
        widths = {"weight_bits": of_channels, "activation_bits": of_channels, "bias_bits": (2, 16)}
        for name, (low, high) in widths.items():
            bits = getattr(self, name)
            if not is_integer(bits):
                raise InputError(f"{name} is {bits!r}; give a whole number of bits")
            if not low <= bits <= high:
                raise InputError(f"{name} is {bits}; give {low} to {high} bits")
        if not is_integer(self.num_images, 1):
            raise InputError(
                f"num_images is {self.num_images!r}; ranges need a whole number of images, 1 or "
                "more"
            )
        target, part, strength = self.target, self.target_share, self.strength
        for name, fits, what in (
            ("target", target is None or (is_number(target) and 0 < target < math.inf),
             "a score above 0"),
            ("target_share", part is None or (is_number(part) and 0 < part <= 1),
             "a fraction in (0, 1]"),
            ("strength", is_number(strength) and 0 <= strength < math.inf,
             "a finite number from 0"),
            ("share", is_number(self.share) and 0 <= self.share <= 1, "a fraction in [0, 1]"),
        ):  # fmt: skip
            if not fits:
                raise InputError(f"{name} is {getattr(self, name)!r}; give {what}")
        if target is not None and part is not None:
            raise InputError(f"target is {target} and target_share is {part}; give one of them")

    def apply(self, network: Network, images: Tensor) -> "AdjustableMicroNet":
        """Return the network in integers, batch norm folded, with ranges from these images.

        Raises:
            InputError: a network that cannot be put in integers, or is quantised already; no
                images.
        """
        if not network.foldable:
            raise InputError(
                f"{type(network).__name__} is quantised already: adjust a network of floats"
            )
        floats = in_integers(network).eval()
        floats.calibrate(images)  # the unit of its stream; nothing is rounded yet
        made = AdjustableMicroNet(floats.spec.options["network"], asdict(self))
        made.load_state_dict(floats.state_dict(), strict=False)
        made.observe(floats, images)
        if self.target_share is not None:
            target = self.target_share * score_network(made, "official").score
            steered = replace(self, target=target, target_share=None)
            state = made.state_dict()
            made = AdjustableMicroNet(floats.spec.options["network"], asdict(steered))
            made.load_state_dict(state)
        return made.train(network.training)

    def hooks(self, network: Network) -> Sequence[Hook]:
        """Return the hooks that hold pruned weights and ranges, and steer to the target."""
        assert isinstance(network, AdjustableMicroNet)
        hooks: list[Hook] = [Ranges(network), *held_zeros(network)]
        target = self.target if self.target_share is None else network.settings.target
        if target is not None:
            hooks.append(Steer(network, target, self.strength, self.share))
        return hooks


class AdjustableMicroNet(IntegerMicroNet):
    """A MicroNet with folded batch norm, learned ranges and learned widths.

    In training mode it computes with rounded floats, otherwise with integers.

    Args:
        network: spec of the MicroNet, as a mapping of `name` and `options`.
        settings: a mapping of the fields of `Adjust`.

    Raises:
        InputError: another kind of network, or a setting outside its range.
    """

    def __init__(self, network: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        made = Adjust(**settings)
        super().__init__(network)
        inputs = {id(layer.reads): layer.weight.shape[1] * getattr(layer, "groups", 1)
                  for layer in self.layers.values()}  # fmt: skip
        replaced: dict[int, ChannelQuantizer] = {}
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Quantizer):
                    new = ChannelQuantizer(child, inputs[id(child)], made)
                    replaced[id(child)] = new
                    setattr(parent, name, new)
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, QuantizedConv2d | QuantizedLinear):
                    kind: Any = AdjustableConv2d
                    if isinstance(child, QuantizedLinear):
                        kind = AdjustableLinear
                    reads = replaced.get(id(child.reads), child.reads)
                    setattr(parent, name, kind(child, reads, made))
        self.settings = made
        self.spec = NetworkSpec(NAME, {"network": dict(network), "settings": dict(settings)})

    @property
    def layers(self) -> dict[str, Any]:
        """Every adjustable convolution and linear layer by name."""
        return dict(super().layers)

    @property
    def quantizers(self) -> dict[str, Any]:
        """Every `ChannelQuantizer` by name."""
        return dict(super().quantizers)

    @torch.no_grad()
    def observe(self, floats: IntegerMicroNet, images: Tensor) -> None:
        """Set every range: of a filter from its largest weight, of a channel from these images.

        Args:
            floats: the same network in floats.
            images: normalised, `[N, 3, H, W]`.

        Raises:
            InputError: no images.
        """
        if not len(images):
            raise InputError("no images to calibrate with")
        for layer in self.layers.values():
            layer.width.copy_(2 * layer.weight.abs().flatten(1).amax(1).clamp_min(1e-6))
        names = {id(quantizer): name for name, quantizer in floats.quantizers.items()}
        own: Any = self.quantizers

        def watch(quantizer: Quantizer, y: Tensor) -> Tensor:
            values = y.transpose(0, 1).flatten(1)
            found = own[names[id(quantizer)]]
            found.low.copy_(values.amin(1).clamp(max=0))
            found.width.copy_((values.amax(1) - found.low).clamp_min(1e-3))
            return y

        with floats.tapped(watch):
            floats._float_forward(images)

    def rounded_floats(self, x: Tensor) -> Tensor:
        """Return the logits as training computes them, whatever the mode."""
        return self._float_forward(x)

    @torch.no_grad()
    def mean_bits(self) -> tuple[float, float]:
        """Return the mean width of weights that are not zero, and of rounded activations.

        An activation counts once for every layer that reads it, without the image.
        """
        stored, read, places = [0.0, 0.0], [0.0, 0.0], reading_positions(self)
        for name, layer in self.layers.items():
            rows = (layer.codes() != 0).flatten(1).sum(1)
            stored[0] += (rows * layer.filter_bits()).sum().item()
            stored[1] += rows.sum().item()
            if not isinstance(layer.reads, Pixels):
                bits = layer.input_bits()
                read[0] += places[name] * bits.sum().item()
                read[1] += places[name] * bits.numel()
        return stored[0] / max(1.0, stored[1]), read[0] / read[1]

    def counted(self, shifted: bool = False) -> nn.Module:
        """Return a MicroNet of integers that says what its operations cost, see `price.counted`."""
        return counted(self, shifted)


@register(NAME)
def _build(network: Mapping[str, Any], settings: Mapping[str, Any]) -> AdjustableMicroNet:
    """Build a network of adjustable channels from its spec."""
    return AdjustableMicroNet(network, settings)
