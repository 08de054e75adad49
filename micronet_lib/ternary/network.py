"""Any registered network with ternary layers, and the change of a recipe that makes it.

The layers of the network stay what they are. The weight of a ternary one is computed from a latent
weight by a parametrization, so that training, masks, counting and export see what the layer
computes with.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from micronet_lib.architecture.layers import (
    KINDS,
    layer_kind,
    plain_weight,
    weight_parameters,
)
from micronet_lib.architecture.network import Network, NetworkSpec, build, register
from micronet_lib.errors import InputError, check_choice
from micronet_lib.hooks import Hook
from micronet_lib.pruning.masks import HeldMasks
from micronet_lib.scoring.operations import Operation, Work
from micronet_lib.ternary.packed import PackedTernary, pack_ternary
from micronet_lib.ternary.schemes import (
    HIGHEST,
    SCHEMES,
    SMALLEST,
    TRAINED_SCALES,
    check_setting,
    deviation_signs,
    entropy_signs,
    mean_scales,
    shape_scales,
    sparse_signs,
    ternary_weight,
    threshold_signs,
)

NAME = "ternary"
SCALE_BITS = 16
FIRST_CENTROID = 0.45
SMALLEST_CENTROID = 0.675


@dataclass(frozen=True)
class Ternarize:
    """The change of a recipe that gives layers weights of three values.

    Attributes:
        scheme: a name of `schemes.SCHEMES`.
        threshold: of `ttq`, a fraction of the largest magnitude.
        sparsity: of `ttq`, a fixed fraction of zeros in place of the threshold; None for none.
        deviations: of `fixed`, standard deviations from the mean.
        strength: of `entropy`, what a bit counts against distance, for the largest layer. A smaller
            layer counts it less, in proportion.
        keep: layers that stay as they are: `first`, `classifier`, or kinds of `layers.KINDS`.
        hold_zeros: weights that are 0 before the change stay 0.

    Raises:
        InputError: a number outside its range, an unknown name, or no tuple of names.
    """

    scheme: str = "ttq"
    threshold: float = 0.05
    sparsity: float | None = None
    deviations: float = 0.67449
    strength: float = 0.15
    keep: tuple[str, ...] = ("first", "classifier", "depthwise")
    hold_zeros: bool = True
    num_images: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_choice("ternary scheme", self.scheme, SCHEMES)
        if not isinstance(self.keep, tuple):
            raise InputError(f"ternary keep is {self.keep!r}; give a tuple of names, () for none")
        for name in self.keep:
            check_choice("layer to keep", name, ("first", "classifier", *KINDS))
        for name in HIGHEST:
            if name != "sparsity" or self.sparsity is not None:
                check_setting(name, getattr(self, name))

    def apply(self, network: Network, images: Tensor | None = None) -> "TernaryNetwork":
        """Return the network around the given one, which is changed in place.

        Raises:
            InputError: no layer is left to change, or the network is quantised already.
        """
        return TernaryNetwork(network, self)

    def hooks(self, network: Network) -> Sequence[Hook]:
        """Return the hooks that keep the scales positive, and zeros if `hold_zeros`."""
        hooks: list[Hook] = []
        if self.scheme in TRAINED_SCALES:
            hooks.append(PositiveScales(network))
        latent = weight_parameters(network)
        if self.hold_zeros and not all(weight.all() for weight in latent.values()):
            hooks.append(HeldMasks(network, {name: w != 0 for name, w in latent.items()}))
        return hooks


class Ternary(nn.Module):
    """The parametrization of one weight: latent floats in, `+Wp`, 0 and `-Wn` out.

    Args:
        weight: latent, to start the scales from.
        settings: of the whole network.
        size: weights of the layer, relative to the largest layer.
    """

    scales: Tensor

    def __init__(self, weight: Tensor, settings: Ternarize, size: float) -> None:
        super().__init__()
        self.settings, self.size = settings, size
        self.is_trained = settings.scheme in TRAINED_SCALES
        fixed = weight.detach()
        if settings.scheme == "entropy":
            ends = torch.stack([fixed.max(), -fixed.min()])
            scales = (FIRST_CENTROID * ends).clamp_min(self.smallest(fixed))
        elif settings.scheme == "binary":
            # Pruned weights stay 0, so they are no part of the mean.
            mean = fixed.abs().sum() / fixed.count_nonzero().clamp_min(1)
            scales = mean.clamp_min(SMALLEST).expand(2).clone()
        else:
            scales = mean_scales(fixed, self.signs(fixed))
        if self.is_trained:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales)

    def signs(self, weight: Tensor) -> Tensor:
        """Return the bins of latent weights: 1, 0 and -1, of the same shape."""
        settings, fixed = self.settings, weight.detach()
        if settings.scheme == "fixed":
            signs = deviation_signs(fixed, settings.deviations)
            # A mean beside 0 may lie so far from it that zeros leave the middle bin.
            return signs * (fixed != 0) if settings.hold_zeros else signs
        if settings.scheme == "entropy":
            return entropy_signs(fixed, self.scales.detach(), settings.strength * self.size)
        if settings.scheme == "binary":
            return fixed.sign()  # a held zero stays 0
        if settings.sparsity is not None:
            return sparse_signs(fixed, settings.sparsity)
        return threshold_signs(fixed, settings.threshold)

    def smallest(self, weight: Tensor) -> Tensor:
        """Return the smallest scale, 0-d. Centroids may not fall into the bin of zeros."""
        if self.settings.scheme == "entropy":
            return (SMALLEST_CENTROID * weight.detach().std()).clamp_min(SMALLEST)
        return weight.new_full((), SMALLEST)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the layer computes with."""
        signs = self.signs(weight)
        scales = shape_scales(signs) if self.settings.scheme == "fixed" else self.scales
        return ternary_weight(weight, signs, scales, self.is_trained)


class PositiveScales(Hook):
    """Keep trained scales above 0, or a bin would change sides.

    Args:
        network: with ternary layers.
    """

    def __init__(self, network: nn.Module) -> None:
        self._found = [
            (ternary_of(layer), layer.parametrizations.weight.original)
            for layer in ternary_layers(network).values()
        ]

    @torch.no_grad()
    def after_step(self) -> None:
        """Raise scales that the optimiser has pushed below the smallest."""
        for ternary, latent in self._found:
            ternary.scales.copy_(torch.maximum(ternary.scales, ternary.smallest(latent)))


def ternary_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers with a ternary weight by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if parametrize.is_parametrized(module, "weight") and isinstance(ternary_of(module), Ternary)
    }


def ternary_of(layer: Any) -> Any:
    """Return the parametrization of a layer's weight."""
    return layer.parametrizations.weight[0]


class WithTernaryLayers(Network, ABC):
    """A network some of whose layers have weights of three values.

    Batch norm stays: its factor for each filter cannot be folded into three values a layer.
    """

    foldable = False
    network: Network

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer."""
        return self.network.classifier

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.network(x)

    def exits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of every exit."""
        return self.network.exits(x)

    @property
    @abstractmethod
    def layers(self) -> dict[str, Any]:
        """The ternary layers, under their names in the network inside."""

    @torch.no_grad()
    def plain(self) -> Network:
        """Return the network inside, built anew with ternary weights as plain parameters."""
        made = build(self.network.spec).to(self.classifier.weight)
        state = {f"{name}.weight": layer.weight for name, layer in self.layers.items()}
        state |= self.network.state_dict()
        made.load_state_dict({name: state[name] for name in made.state_dict()})
        return made.train(self.training)

    def packed(self) -> dict[str, PackedTernary]:
        """Return every ternary weight as two bitmasks and two scales, by the layer's name."""
        return {name: pack_ternary(layer.weight) for name, layer in self.layers.items()}

    def counted(self) -> Network:
        """Return the network whose operations are charged, see `charge`."""
        made = self.plain()
        found = dict(made.named_modules())
        for name in self.layers:
            charge(found[name])
        return made


class TernaryNetwork(WithTernaryLayers):
    """A network with ternary layers that training moves.

    Args:
        network: any registered network; changed in place.
        settings: the scheme, and which layers stay as they are.

    Raises:
        InputError: no layer is left to change, or the network is quantised already.
    """

    def __init__(self, network: Network, settings: Ternarize) -> None:
        super().__init__()
        if not network.foldable:
            raise InputError(
                f"{type(network).__name__} is quantised already: make a network of floats ternary"
            )
        chosen = _chosen(network, settings.keep)
        largest = max(weight.numel() for _, weight in chosen)
        for layer, weight in chosen:
            ternary = Ternary(weight, settings, weight.numel() / largest)
            parametrize.register_parametrization(layer, "weight", ternary)
        self.network = network
        self.spec = NetworkSpec(
            NAME,
            {
                "network": {"name": network.spec.name, "options": dict(network.spec.options)},
                "settings": {**asdict(settings), "keep": list(settings.keep)},
            },
        )

    @property
    def layers(self) -> dict[str, Any]:
        """The ternary layers, under their names in the network inside."""
        return ternary_layers(self.network)


def charge(layer: Any) -> None:
    """Let a layer say what its ternary weights cost.

    A weight that is not zero stores one bit, its sign, beside the mask. With the scales of the
    following batch norm, an output is

        y_j = s_j * (sum of x_i with +Wp - Wn / Wp * (sum of x_i with -Wn)) + b_j

    so a layer stores one ratio of 16 bits, and an output costs one multiplication by it, one by
    `s_j`, which the rules charge for every layer of few bits, and an addition less than it has
    weights. If `Wp = Wn` there is no ratio.

    Args:
        layer: whose weight has at most one positive and one negative value.
    """
    packed = pack_ternary(layer.weight)
    rows = layer.weight.detach().flatten(1)
    num_adds = int((rows.count_nonzero(1) - 1).clamp_min(0).sum())
    has_ratio = packed.positive != packed.negative
    num_mults = int((rows < 0).any(1).sum()) if has_ratio else 0
    layer.weight_bits = 1
    layer.work = Work({SCALE_BITS: num_mults}, {32: num_adds})
    layer.constant_bits = SCALE_BITS if has_ratio else 0


def narrow_sums(operations: Iterable[Operation], bits: int) -> tuple[Operation, ...]:
    """Return operations whose dot products add up in that many bits.

    `official_integer` then charges additions so. The organisers did not accept it without a kernel
    that really adds up so (chapter 08).
    """
    return tuple(replace(op, accumulator_bits=bits) if op.fan_in else op for op in operations)


def _chosen(network: Network, keep: Iterable[str]) -> list[tuple[nn.Module, nn.Parameter]]:
    """Return the layers to make ternary, with their weights, in network order.

    Raises:
        InputError: no layer is left, or a weight is computed from other tensors.
    """
    kept, chosen, is_first = set(keep), [], True
    for path, layer in network.named_modules():
        kind = layer_kind(path, layer)
        if kind is None:
            continue
        names = {kind, *(["first"] if is_first else [])}
        names |= {"classifier"} if layer is network.classifier else set()
        is_first = False
        if not names & kept:
            chosen.append((layer, plain_weight(layer, path)))
    if not chosen:
        raise InputError(
            f"ternary keep {', '.join(sorted(kept))} leaves no layer of this network to change"
        )
    return chosen


@register(NAME)
def _build(network: Mapping[str, Any], settings: Mapping[str, Any]) -> TernaryNetwork:
    """Build a network with ternary layers from its spec."""
    made = Ternarize(**{**settings, "keep": tuple(settings["keep"])})
    return TernaryNetwork(build(NetworkSpec(**network)), made)


def assigned(network: TernaryNetwork) -> dict[str, Tensor]:
    """Return the bins of every ternary weight, 1, 0 and -1, by the layer's name."""
    return {
        name: ternary_of(layer).signs(layer.parametrizations.weight.original)
        for name, layer in network.layers.items()
    }
