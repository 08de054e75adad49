"""Widths, zeros and channels chosen together, by what they cost and what they hurt.

Every choice changes the score and, as `sensitivity` predicts, the divergence from the network
before. One price, in nats for the whole score, decides them all: take what costs more than it is
worth.

- a width for the inputs of each layer, and one for its weights;
- a zero for every weight whose loss is less than its cost;
- a hidden channel goes, replaced by its mean, if all its weights and products cost more.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.beyond.layers import Pixels, Quantized, Quantizer
from micronet_lib.beyond.network import Block, IntegerMicroNet, Widths
from micronet_lib.beyond.quantizers import bias_unit, fitted_scales, weight_codes
from micronet_lib.beyond.sensitivity import ACTIVATION_WIDTHS, Sensitivity
from micronet_lib.errors import InputError
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE, score_network

WEIGHT_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
BIAS_WIDTHS = (5, 6, 7, 8, 9, 10)
LOWEST_PRICE, HIGHEST_PRICE = 5.0, 2000.0
PRICE_TOLERANCE = 0.01
ADD_BITS = 32
"""Additions are charged in full: the default reading."""


@dataclass(eq=False)
class Allocation:
    """A plan.

    Attributes:
        widths: of every layer and quantizer.
        kept: layer -> which weights stay, of the weight's shape.
        removed: block -> hidden channels that go.
        predicted: what each part costs, in nats: `weights`, `activations`, `zeros`, `channels`.
    """

    widths: Widths
    kept: dict[str, Tensor] = field(default_factory=dict)
    removed: dict[int, Tensor] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Choice:
    """One layer at one width: its loss, the weights that stay and their cost each."""

    bits: int
    rounding: float
    zeros: float
    kept: Tensor
    unit: float
    rounding_weight: float

    def total(self, price: float) -> float:
        harm = self.rounding_weight * self.rounding + self.zeros
        return harm + price * self.unit * int(self.kept.sum())


class Allocator:
    """Chooses by one price. The tables of errors are made once for all prices.

    Args:
        network: in floats, the one whose sensitivities were measured.
        sensitivity: of it.
        positions: layer -> outputs of one filter, see `output_positions`.
        pre_bits: of the integer before HardSwish.
        rounding_weight: what a nat of rounded weights counts against one of zeros. Training repairs
            rounding better.
        remove_channels: whether hidden channels may go.
    """

    def __init__(
        self,
        network: IntegerMicroNet,
        sensitivity: Sensitivity,
        positions: Mapping[str, int],
        pre_bits: int = 10,
        rounding_weight: float = 1.0,
        remove_channels: bool = True,
    ) -> None:
        self.remove_channels = remove_channels
        self.network, self.sensitivity, self.positions = network, sensitivity, positions
        self.pre_bits, self.rounding_weight = pre_bits, rounding_weight
        self._errors: dict[tuple[str, int], Tensor] = {}
        self._products: dict[tuple[str, int], float] = {}
        for name, layer in network.layers.items():
            for bits in WEIGHT_WIDTHS:
                self._round(name, layer, bits)

    @torch.no_grad()
    def _round(self, name: str, layer: Quantized, bits: int) -> None:
        weight = layer.weight.detach()
        scales = fitted_scales(weight, bits).view(-1, *[1] * (weight.ndim - 1))
        codes = weight_codes(weight / scales, bits) * (weight != 0)
        fisher = self.sensitivity.weights[name]
        self._errors[name, bits] = 0.5 * fisher * (codes * scales - weight).square()
        # Equal weights of a row share a product, and ones need none.
        sizes = codes.abs().flatten(1).long()
        top = 2 ** (bits - 1)
        counts = sizes.new_zeros(len(sizes), top + 1)
        counts.scatter_add_(1, sizes, torch.ones_like(sizes))
        products = int((counts[:, 2:] > 0).sum())
        self._products[name, bits] = products / max(1, int((sizes > 0).sum()))

    def unit(self, name: str, bits: int, activation_bits: int) -> float:
        """Return the score that one stored weight of a layer costs."""
        product = (max(bits, activation_bits) + 2) / 32 * self._products[name, bits]
        return bits / 32 / PARAM_BASE + self.positions[name] * (ADD_BITS / 32 + product) / OPS_BASE

    def at(self, price: float) -> Allocation:
        """Return the plan at a price, in nats for a score of 1.

        Raises:
            InputError: a price that is not positive and finite.
        """
        if not 0 < price < math.inf:
            raise InputError(f"the price is {price}; give a positive number of nats per score")
        alive = {name: layer.weight != 0 for name, layer in self.network.layers.items()}
        chosen, inputs = self._choose(price, alive)
        removed: dict[int, Tensor] = {}
        lost = 0.0
        if self.remove_channels:
            removed, lost = self._remove(price, chosen, alive)
            chosen, inputs = self._choose(price, alive)
        rounding = self.sensitivity.rounding
        return Allocation(
            Widths(
                {name: choice.bits for name, choice in chosen.items()},
                inputs,
                {name: self._bias_bits(name, price) for name in chosen},
                self.pre_bits,
            ),
            {name: choice.kept for name, choice in chosen.items()},
            removed,
            {
                "weights": sum(choice.rounding for choice in chosen.values()),
                "activations": sum(rounding[name][bits] for name, bits in inputs.items()),
                "zeros": sum(choice.zeros for choice in chosen.values()),
                "channels": lost,
            },
        )

    def _groups(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each quantizer with the layers that read it; "" for the image."""
        names = {quantizer: name for name, quantizer in self.network.quantizers.items()}
        groups: dict[str, list[str]] = {}
        for name, layer in self.network.layers.items():
            reads = layer.reads
            key = names[reads] if isinstance(reads, Quantizer) else ""
            groups.setdefault(key, []).append(name)
        yield from groups.items()

    def _choose(
        self, price: float, alive: Mapping[str, Tensor]
    ) -> tuple[dict[str, _Choice], dict[str, int]]:
        chosen: dict[str, _Choice] = {}
        inputs: dict[str, int] = {}
        for quantizer, layers in self._groups():
            best, smallest = None, math.inf
            for activation_bits in ACTIVATION_WIDTHS if quantizer else (Pixels.bits,):
                loss = 0.0
                if quantizer:
                    loss = self.sensitivity.rounding[quantizer][activation_bits]
                own = {name: self._layer(name, activation_bits, price, alive) for name in layers}
                loss += sum(choice.total(price) for choice in own.values())
                if loss < smallest:
                    best, smallest = (own, activation_bits), loss
            assert best is not None
            chosen |= best[0]
            if quantizer:
                inputs[quantizer] = best[1]
        return {name: chosen[name] for name in self.network.layers}, inputs

    def _layer(
        self, name: str, activation_bits: int, price: float, alive: Mapping[str, Tensor]
    ) -> _Choice:
        weight = self.network.layers[name].weight.detach()
        loss = 0.5 * self.sensitivity.weights[name] * weight.square()
        found = []
        for bits in WEIGHT_WIDTHS:
            unit = self.unit(name, bits, activation_bits)
            kept = alive[name] & (loss > price * unit)
            rounding = (self._errors[name, bits] * kept).sum().item()
            zeros = (loss * (alive[name] & ~kept)).sum().item()
            found.append(_Choice(bits, rounding, zeros, kept, unit, self.rounding_weight))
        return min(found, key=lambda choice: choice.total(price))

    def _remove(
        self, price: float, chosen: Mapping[str, _Choice], alive: dict[str, Tensor]
    ) -> tuple[dict[int, Tensor], float]:
        """Choose the hidden channels that go, and remove their weights from `alive`."""
        removed: dict[int, Tensor] = {}
        lost = 0.0
        for index in range(len(self.network.blocks)):
            names = [f"blocks.{index}.conv_{each}" for each in ("expand", "dw", "project")]
            expand, dw, project = (chosen[name] for name in names)
            cost = (
                expand.kept.flatten(1).sum(1) * expand.unit
                + dw.kept.flatten(1).sum(1) * dw.unit
                + project.kept.flatten(1).sum(0) * project.unit
            )
            # HardSwish twice, scales and biases twice, and three masks.
            positions = self.positions[names[0]] + self.positions[names[1]]
            swishes = positions * (1 + (3 * self.pre_bits + 16) / 32) / OPS_BASE
            masks = expand.kept[0].numel() + dw.kept[0].numel() + len(project.kept)
            loss = self.sensitivity.channels[index]
            gone = loss < price * (cost + swishes + (2 * 13 + masks) / 32 / PARAM_BASE)
            if gone.all():
                gone[loss.argmax()] = False
            removed[index] = gone.nonzero()[:, 0]
            lost += loss[gone].sum().item()
            alive[names[0]][gone] = False
            alive[names[1]][gone] = False
            alive[names[2]][:, gone] = False
        return removed, lost

    def _bias_bits(self, name: str, price: float) -> int:
        bias, fisher = self.network.layers[name].bias.detach(), self.sensitivity.biases[name]

        def loss(bits: int) -> float:
            unit = bias_unit(bias, bits)
            harm = 0.5 * (fisher * ((bias / unit).round() * unit - bias).square()).sum().item()
            return harm + price * len(bias) * bits / 32 / PARAM_BASE

        return min(BIAS_WIDTHS, key=loss)


def output_positions(network: IntegerMicroNet) -> dict[str, int]:
    """Return layer -> positions of its output for an image of CIFAR."""
    side = 32
    found = {"stem.conv": side**2, "head.classifier": 1}
    for index, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        name = f"blocks.{index}"
        found[f"{name}.conv_expand"] = side**2
        side //= block.config.stride
        for each in ("conv_dw", "conv_project", "conv_shortcut"):
            found[f"{name}.{each}"] = side**2
        for each in ("conv_reduce", "conv_expand"):
            found[f"{name}.se.{each}"] = 1
    return found


@torch.no_grad()
def apply_allocation(network: IntegerMicroNet, sensitivity: Sensitivity, plan: Allocation) -> None:
    """Set the zeros of a plan in place, and put the means of removed channels into biases.

    The widths are not set, so that the network can be trimmed first.

    Raises:
        InputError: a network that is rounded already.
    """
    if network.is_rounded:
        raise InputError("zeros are planned for a network in floats, and this one is rounded")
    for index, channels in plan.removed.items():
        block = network.blocks[index]
        assert isinstance(block, Block)
        weight = block.conv_project.weight[:, channels, 0, 0]
        block.conv_project.bias += weight @ sensitivity.means[index][channels]
    for name, kept in plan.kept.items():
        layer = network.layers[name]
        layer.weight *= kept


@torch.no_grad()
def trimmed(network: IntegerMicroNet) -> IntegerMicroNet:
    """Return a network in floats without the hidden channels that no projection reads.

    Raises:
        InputError: a network that is rounded already.
    """
    if network.is_rounded:
        raise InputError("only a network in floats is trimmed; this one is rounded")
    live = [
        block.conv_project.weight.abs().flatten(1).sum(0) > 0
        for block in network.blocks
        if isinstance(block, Block)
    ]
    architecture = network.architecture
    configs = tuple(
        replace(config, hidden_chs=max(1, int(mask.sum())))
        for config, mask in zip(architecture.blocks, live, strict=True)
    )
    smaller = MicroNet(replace(architecture, cut_blocks=configs))
    made = IntegerMicroNet({"name": smaller.spec.name, "options": smaller.spec.options})
    state = network.state_dict()
    for index, mask in enumerate(live):
        if not mask.any():
            mask[0] = True
        for name in ("conv_expand", "conv_dw"):
            for part in ("weight", "bias", "scale"):
                key = f"blocks.{index}.{name}.{part}"
                state[key] = state[key][mask]
        key = f"blocks.{index}.conv_project.weight"
        state[key] = state[key][:, mask]
    made.load_state_dict(state)
    return made.train(network.training)


def allocated(
    network: IntegerMicroNet, allocator: Allocator, price: float, images: Tensor
) -> IntegerMicroNet:
    """Return the network that a price leads to: pruned, trimmed, rounded and calibrated.

    Args:
        network: in floats; it is not changed.
        allocator: made of it.
        price: in nats for a score of 1.
        images: normalised, to calibrate with.
    """
    plan = allocator.at(price)
    made = copy.deepcopy(network)
    apply_allocation(made, allocator.sensitivity, plan)
    made = trimmed(made)
    made.set_widths(plan.widths)
    made.calibrate(images)
    return made


def cheapest_price(
    network: IntegerMicroNet, allocator: Allocator, score: float, images: Tensor
) -> float:
    """Return the lowest price whose network scores no more, by halving intervals.

    Raises:
        InputError: no price reaches the score.
    """
    low, high = math.log(LOWEST_PRICE), math.log(HIGHEST_PRICE)

    def found(price: float) -> float:
        made = allocated(network, allocator, price, images)
        return score_network(made, "official").score

    if found(HIGHEST_PRICE) > score:
        raise InputError(f"no allocation reaches a score of {score}; give a higher one")
    while high - low > PRICE_TOLERANCE:
        middle = (low + high) / 2
        if found(math.exp(middle)) > score:
            low = middle
        else:
            high = middle
    return math.exp(high)
