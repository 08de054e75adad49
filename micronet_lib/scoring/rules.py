"""What an operation costs: the rule sets by which the same network got different scores.

- `first`, `revised`, `published`: three states of the winners' own counter [kim2020], which gave
  one network 0.0049, 0.0051 and 0.0054;
- `official`: the conventions of the challenge's counting tool and the organisers' rulings
  [gale2020]. `official_quirk` adds a slip of the organisers' EfficientNet example.

`scoring.operations` lists what a network executes; `scoring.bill` adds up.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Literal, Protocol, cast, get_args

from micronet_lib.errors import InputError, unknown
from micronet_lib.scoring.operations import Operation

FULL_BITS = 32
FREEBIE_BITS = 16

Quantity = Literal["mult", "add", "param", "mask"]
Accumulator = Literal["fp32", "integer", "adder_tree"]


@dataclass(frozen=True)
class Item:
    """One line of the bill: `count` multiplications, additions, parameters or mask positions.

    `bits` is the width each is charged at; it is a mean where an adder tree mixes widths.
    """

    layer: str
    kind: str
    quantity: Quantity
    count: float
    bits: float


class RuleSet(Protocol):
    """Prices for operations."""

    @property
    def name(self) -> str:
        """The name on the command line and in records."""

    def price(self, operation: Operation) -> Iterable[Item]:
        """What one operation costs."""


@dataclass(frozen=True)
class WinnersRules:
    """The winners' counter in its three states; weights and multiplications at 16 bits.

    Attributes:
        biases: charge one bias a filter, whether it comes from batch norm or from the layer.
        mask: charge one bit a position of every weight tensor, dense ones too.

    Never charged: gate products and residual additions. The classifier's bias is stored but not
    added, and an entry of it that is zero is not stored.
    """

    name: str
    biases: bool
    mask: bool

    def price(self, operation: Operation) -> Iterable[Item]:
        """What one operation costs."""
        op, outputs = operation, operation.num_outputs
        mults: float = 0
        adds: float = 0
        params = 0
        if op.kind in ("conv", "linear"):
            mults = op.macs
            params = op.nonzeros
            if op.kind == "linear":
                adds = op.macs * (op.fan_in - 1) / op.fan_in
                params += op.bias_nonzeros if self.biases else 0
            elif self.biases:
                adds = op.macs
                params += op.out_chs
            else:
                adds = op.macs * (op.fan_in - (0 if op.bias else 1)) / op.fan_in
        elif op.kind == "hard_swish":
            mults, adds = 4 * outputs, outputs
        elif op.kind == "relu6":
            mults = 2 * outputs
        elif op.kind == "sigmoid":
            mults, adds = 2 * outputs, outputs
        elif op.kind == "pool":
            mults, adds = outputs, op.window * outputs
        elif op.kind == "product":
            mults = outputs
        elif op.kind == "shift":
            adds = outputs
        elif op.kind not in ("gate", "residual"):
            raise unknown("operation for the winners' counter", op.kind, _WINNERS_KINDS)
        yield Item(op.name, op.kind, "mult", mults, FREEBIE_BITS)
        yield Item(op.name, op.kind, "add", adds, FULL_BITS)
        yield Item(op.name, op.kind, "param", params, FREEBIE_BITS)
        yield Item(op.name, op.kind, "mask", op.num_weights if self.mask else 0, 1)


_WINNERS_KINDS = (
    *("conv", "linear", "hard_swish", "relu6", "sigmoid"),
    *("pool", "product", "shift", "gate", "residual"),
)


@dataclass(frozen=True)
class Precision:
    """Bit widths of a quantised network. Multiplications are charged the wider input's width.

    Attributes:
        scale_bits: one scale a filter, stored and multiplied in after accumulation.
        other_bits: multiplications in activations, gates and pooling.
        image_bits: the input of the first convolution.
    """

    weight_bits: int
    activation_bits: int
    bias_bits: int = 16
    scale_bits: int = 16
    other_bits: int = 16
    image_bits: int = 8


@dataclass(frozen=True)
class OfficialRules:
    """The challenge's counting tool: freebie 16 bits for an unquantised network.

    Batch norm is merged; what stays of it is one bias a filter. Additions count 32 bits unless an
    integer accumulator is really used.

    Attributes:
        precision: widths of a quantised network, which has no freebie; `None`: not quantised.
        accumulator: width of the additions inside a quantised dot product: `fp32`; `integer`, wide
            enough for the exact sum; `adder_tree`, growing by a bit a level.
        residual_on_expanded: reproduces a quirk of the organisers' EfficientNet example, which
            charges a residual addition on the block's expanded channels.
    """

    name: str = "official"
    precision: Precision | None = None
    accumulator: Accumulator = "fp32"
    residual_on_expanded: bool = False

    def price(self, operation: Operation) -> Iterable[Item]:
        """What one operation costs."""
        op = operation
        if op.kind in ("conv", "linear"):
            yield from self._weighted(op)
            return
        mults, adds, params = _POINTWISE[op.kind]
        outputs = op.num_outputs
        if op.kind == "residual" and self.residual_on_expanded:
            outputs = outputs // op.out_shape[0] * op.expanded_chs
        other = self.precision.other_bits if self.precision else FREEBIE_BITS
        adds_per_output = op.window - 1 if op.kind == "pool" else adds
        yield Item(op.name, op.kind, "mult", mults * outputs, other)
        yield Item(op.name, op.kind, "add", adds_per_output * outputs, FULL_BITS)
        yield Item(op.name, op.kind, "param", params * op.out_shape[0], other)

    def _weighted(self, op: Operation) -> Iterable[Item]:
        outputs, biases, p = op.num_outputs, op.bias + op.folded_bias, self.precision
        weight_bits = p.weight_bits if p else FREEBIE_BITS
        input_bits = (p.image_bits if op.is_first else p.activation_bits) if p else FREEBIE_BITS
        add_bits = self._add_bits(weight_bits + input_bits, terms=op.macs / outputs)
        yield Item(op.name, op.kind, "mult", op.macs, max(weight_bits, input_bits))
        yield Item(op.name, op.kind, "add", op.macs - outputs, add_bits)
        if biases:
            yield Item(op.name, op.kind, "add", outputs, FULL_BITS)
        if p:
            yield Item(op.name, op.kind, "mult", outputs, p.scale_bits)
            yield Item(op.name, op.kind, "param", op.out_chs, p.scale_bits)
        yield Item(op.name, op.kind, "param", op.nonzeros, weight_bits)
        yield Item(op.name, op.kind, "mask", op.num_weights if op.sparsity else 0, 1)
        yield Item(op.name, op.kind, "param", biases, p.bias_bits if p else FREEBIE_BITS)

    def _add_bits(self, product_bits: int, terms: float) -> float:
        if not self.precision or self.accumulator == "fp32" or terms <= 1:
            return FULL_BITS
        levels = ceil(log2(terms))
        if self.accumulator == "integer":
            return min(FULL_BITS, product_bits + levels)
        return min(FULL_BITS, _mean_tree_bits(product_bits, terms))


def _mean_tree_bits(product_bits: int, terms: float) -> float:
    """Mean input width of the additions in a balanced tree whose sums grow a bit a level."""
    total, left, width = 0.0, terms, product_bits
    while left > 1:
        pairs = min(left / 2, left - 1)
        total += pairs * width
        left -= pairs
        width += 1
    return total / (terms - 1)


_POINTWISE: dict[str, tuple[int, int, int]] = {
    # Per output element: multiplications, additions; per channel: parameters.
    "batch_norm": (1, 1, 2),
    "hard_swish": (4, 1, 0),
    "swish": (3, 1, 0),
    "relu": (1, 0, 0),
    "relu6": (2, 0, 0),
    "sigmoid": (2, 1, 0),
    "pool": (1, 0, 0),
    "gate": (1, 0, 0),
    "residual": (0, 1, 0),
    "product": (1, 0, 0),
    "shift": (0, 1, 0),
}


RULE_SETS: dict[str, RuleSet] = {
    rules.name: rules
    for rules in (
        WinnersRules("first", biases=False, mask=False),
        WinnersRules("revised", biases=True, mask=False),
        WinnersRules("published", biases=True, mask=True),
        OfficialRules(),
        OfficialRules("official_quirk", residual_on_expanded=True),
    )
}
"""Every rule set that has a name; `OfficialRules` takes bit widths and an accumulator besides."""


def get_rules(name: str) -> RuleSet:
    """The rule set of that name.

    Raises:
        InputError: for a name that is not in `RULE_SETS`.
    """
    if name not in RULE_SETS:
        raise unknown("rule set", name, RULE_SETS)
    return RULE_SETS[name]


def rules_of(
    name: str, weight_bits: int = 0, activation_bits: int = 0, accumulator: str = "fp32"
) -> RuleSet:
    """The rule set of that name, at the given widths if there are any.

    Raises:
        InputError: unknown name or accumulator, widths out of 1 to 32, one width without the other,
            or widths for a rule set that knows none.
    """
    rules = get_rules(name)
    if accumulator not in get_args(Accumulator):
        raise unknown("accumulator", accumulator, get_args(Accumulator))
    if not weight_bits and not activation_bits:
        if accumulator != "fp32":
            raise InputError(f"accumulator {accumulator!r} needs weight and activation bits")
        return rules
    if not isinstance(rules, OfficialRules):
        raise InputError(f"rule set {name!r} has no bit widths; use official")
    if not (1 <= weight_bits <= FULL_BITS and 1 <= activation_bits <= FULL_BITS):
        raise InputError("weight and activation bits are given together, each from 1 to 32")
    precision = Precision(weight_bits, activation_bits)
    return replace(rules, precision=precision, accumulator=cast(Accumulator, accumulator))
