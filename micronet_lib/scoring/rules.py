"""The price of an operation: rule sets that give the same network different scores.

- `first`, `revised`, `published`: three states of the authors' own counter [kim2020], which gave
  one network 0.0049, 0.0051 and 0.0054;
- `official`: the conventions of the challenge's counting tool [micronet_counting] and the
  organisers' rulings [micronet_leaderboard]. `official_quirk` adds a slip of their EfficientNet
  example.

Where the organisers have no price, `official` follows their pattern. A comparison is one operation
of the multiplications' width, like their ReLU: `n - 1` for the largest of `n` values. So is a
transcendental function, a division or a change of sign. Copies are free. A permutation costs a
product with a sparse matrix of ones, and that matrix is stored.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Literal, cast, get_args

from micronet_lib.errors import InputError, Registry, check_choice
from micronet_lib.scoring.operations import Operation, Work

FULL_BITS = 32
FREEBIE_BITS = 16

Quantity = Literal["mult", "add", "param", "mask"]
Accumulator = Literal["fp32", "integer", "adder_tree"]


@dataclass(frozen=True)
class Item:
    """One line of the bill: `count` multiplications, additions, parameters or mask positions.

    `bits` is the charged width, a mean where an adder tree mixes widths.
    """

    layer: str
    kind: str
    quantity: Quantity
    count: float
    bits: float


class UnpricedError(InputError):
    """A rule set has no price for an operation."""


class RuleSet(ABC):
    """Prices for operations.

    Attributes:
        name: on the command line and in records.
    """

    name: str

    @abstractmethod
    def price(self, operation: Operation) -> Iterable[Item]:
        """Return what one operation costs."""

    def read(self, operations: Iterable[Operation]) -> Iterable[Operation]:
        """Return the operations as this rule set counts them."""
        return operations


@dataclass(frozen=True)
class AuthorsRules(RuleSet):
    """The authors' counter in its three states; weights and multiplications at 16 bits.

    Attributes:
        biases: charge one bias for each filter, from batch norm or from the layer. Their counter
            does so without looking; a layer that has neither, as no MicroNet has, is charged none.
        mask: charge one bit for each position of every weight tensor, dense ones too.

    Gate products and residual additions are never charged. The classifier's bias is stored but not
    added, and its zero entries are not stored.
    """

    name: str
    biases: bool
    mask: bool

    def price(self, operation: Operation) -> Iterable[Item]:
        """Return what one operation costs."""
        op, outputs = operation, operation.num_outputs
        mults: float = 0
        adds: float = 0
        biases = op.bias + op.folded_bias
        if op.kind == "linear":
            mults, adds = op.macs, op.macs * (op.fan_in - 1) / op.fan_in
            biases = op.bias_nonzeros + op.folded_bias
        elif op.kind == "conv":
            mults = op.macs
            is_biased = biases if self.biases else op.bias
            adds = op.macs if is_biased else op.macs * (op.fan_in - 1) / op.fan_in
        elif op.kind == "hard_swish":
            mults, adds = 4 * outputs, outputs
        elif op.kind == "relu6":
            mults = 2 * outputs
        elif op.kind == "sigmoid":
            mults, adds = 2 * outputs, outputs
        elif op.kind == "pool":
            mults, adds = outputs, op.reads
        elif op.kind == "product":
            mults = outputs
        elif op.kind == "shift":
            adds = outputs
        elif op.kind not in ("gate", "residual"):
            raise UnpricedError(
                f"the authors' counter has no price for {op.kind}, in {op.name}: give --rules "
                "official"
            )
        params = 0 if op.shared else op.nonzeros
        params += biases if self.biases and not op.bias_shared else 0
        yield Item(op.name, op.kind, "mult", mults, FREEBIE_BITS)
        yield Item(op.name, op.kind, "add", adds, FULL_BITS)
        yield Item(op.name, op.kind, "param", params, FREEBIE_BITS)
        yield Item(op.name, op.kind, "mask", op.num_weights * (self.mask and not op.shared), 1)


@dataclass(frozen=True)
class Precision:
    """Bit widths of a quantised network. A multiplication is charged the width of its wider input.

    Attributes:
        scale_bits: one scale for each filter, stored and multiplied in after accumulation.
        other_bits: multiplications in activations, gates and pooling.
        image_bits: the input of the first convolution.
    """

    weight_bits: int
    activation_bits: int
    bias_bits: int = 16
    scale_bits: int = 16
    other_bits: int = 16
    image_bits: int = 8


_FREEBIE = Precision(FREEBIE_BITS, FREEBIE_BITS, image_bits=FREEBIE_BITS)


@dataclass(frozen=True)
class OfficialRules(RuleSet):
    """The challenge's counting tool: 16 bits for free ("freebie") for an unquantised network.

    Batch norm is merged where possible, which leaves one bias for each filter. Additions count 32
    bits unless an integer accumulator is really used. As in the tool, a dot product has one
    addition less than its non-zero weights, so a filter of zeros without a bias is credited one.

    An operation with its own widths is charged those; a layer below 16 bits also pays a scale for
    each filter. The rest of such a network counts 16 bits too, but this is no freebie: it has to
    run in half precision.

    Attributes:
        precision: widths of a quantised network, which has no freebie; None: not quantised.
        accumulator: width of the additions inside a quantised dot product: `fp32`; `integer`, wide
            enough for the exact sum; `adder_tree`, one more bit at each level. The widths of sums
            that a layer proves count with `integer`, and bound those of `adder_tree`.
    """

    name: str = "official"
    precision: Precision | None = None
    accumulator: Accumulator = "fp32"

    def read(self, operations: Iterable[Operation]) -> Iterable[Operation]:
        """Return the operations.

        Raises:
            UnpricedError: narrow sums, but the network is not quantised.
        """
        operations = tuple(operations)
        proven = any(op.accumulator_bits for op in operations)
        if self.accumulator != "fp32" and self.precision is None and not proven:
            raise UnpricedError(
                f"{self.name} is for a network in integers, whose layers say how wide sums are"
            )
        return operations

    def price(self, operation: Operation) -> Iterable[Item]:
        """Return what one operation costs."""
        op, outputs = operation, operation.num_outputs
        if op.kind in ("conv", "linear", "matmul"):
            yield from self._dot_products(op)
            return
        other = (self.precision or _FREEBIE).other_bits
        mults, adds = (each * outputs for each in _PER_OUTPUT[op.kind])
        if op.kind == "max":
            mults += op.reads - outputs
        elif op.kind in ("pool", "sum"):
            adds += op.reads - outputs
        yield Item(op.name, op.kind, "mult", mults, op.activation_bits or other)
        yield Item(op.name, op.kind, "add", adds, self._sum_bits(op))
        yield from self._storage(op, op.weight_bits or other)

    def _dot_products(self, op: Operation) -> Iterable[Item]:
        p, outputs, biases = self.precision or _FREEBIE, op.num_outputs, op.bias + op.folded_bias
        input_bits = op.activation_bits or (p.image_bits if op.is_first else p.activation_bits)
        weight_bits = op.weight_bits or p.weight_bits
        if op.kind == "matmul":
            weight_bits = input_bits
        if op.work is None:
            add_bits = self._add_bits(op, weight_bits + input_bits, terms=op.macs / outputs)
            yield Item(op.name, op.kind, "mult", op.macs, max(weight_bits, input_bits))
            yield Item(op.name, op.kind, "add", op.macs - outputs, add_bits)
        else:
            yield from self._work(op, op.work)
        if biases:
            yield Item(op.name, op.kind, "add", outputs, self._sum_bits(op))
        if self.precision or min(weight_bits, input_bits) < FREEBIE_BITS:
            stored = p.scale_bits if op.scale_bits is None else op.scale_bits
            scales = 0 if op.shared or not stored else op.out_chs
            yield Item(op.name, op.kind, "mult", outputs, p.scale_bits)
            yield Item(op.name, op.kind, "param", scales, stored)
        yield from self._storage(op, weight_bits)
        bias_bits = op.bias_bits or p.bias_bits
        yield Item(op.name, op.kind, "param", 0 if op.bias_shared else biases, bias_bits)
        if op.constant_bits and not op.shared:
            yield Item(op.name, op.kind, "param", op.constant_bits / FULL_BITS, FULL_BITS)

    def _work(self, op: Operation, work: Work) -> Iterable[Item]:
        """Return the multiplications and additions of a layer with exact savings."""
        positions = op.num_outputs / op.out_chs
        for bits, count in work.mult_widths.items():
            yield Item(op.name, op.kind, "mult", count * positions, bits)
        if self.accumulator == "adder_tree":
            for bits, count in work.add_widths.items():
                yield Item(op.name, op.kind, "add", count * positions, min(bits, FULL_BITS))
        else:
            yield Item(op.name, op.kind, "add", work.num_adds * positions, self._sum_bits(op))

    def _storage(self, op: Operation, bits: int) -> Iterable[Item]:
        if not op.shared:
            yield Item(op.name, op.kind, "param", op.nonzeros, bits)
            yield Item(op.name, op.kind, "mask", op.num_weights if op.sparsity else 0, 1)

    def _sum_bits(self, op: Operation) -> int:
        """Return the width of an operation's sums: 32, unless it proves less and that counts."""
        if self.accumulator == "fp32" or op.accumulator_bits is None:
            return FULL_BITS
        return min(FULL_BITS, op.accumulator_bits)

    def _add_bits(self, op: Operation, product_bits: int, terms: float) -> float:
        if self.accumulator == "fp32" or terms <= 1:
            return FULL_BITS
        if self.accumulator == "adder_tree":
            return min(self._sum_bits(op), _mean_tree_bits(product_bits, terms))
        if op.accumulator_bits is not None:
            return self._sum_bits(op)
        # Wide enough for the fullest filter; products of activations have no zeros that are known.
        most = op.most_nonzeros or op.fan_in
        return min(FULL_BITS, product_bits + ceil(log2(most)))


def _mean_tree_bits(product_bits: int, terms: float) -> float:
    """Return the mean input width of a balanced adder tree whose sums grow a bit at each level."""
    total, left, width = 0.0, terms, product_bits
    while left > 1:
        pairs = min(left / 2, left - 1)
        total += pairs * width
        left -= pairs
        width += 1
    return total / (terms - 1)


_PER_OUTPUT: dict[str, tuple[int, int]] = {
    # Multiplications, additions. Comparisons, transcendental functions and divisions are charged as
    # multiplications, like the organisers' ReLU and sigmoid.
    "batch_norm": (1, 1),
    "pool": (1, 0),  # and an addition for every further input of the window
    "sum": (0, 0),  # likewise
    "max": (0, 0),  # and a comparison for every further input
    "bilinear": (4, 3),
    "hard_swish": (4, 1),
    "hard_sigmoid": (3, 1),
    "swish": (3, 1),
    "sigmoid": (2, 1),
    "relu": (1, 0),
    "relu6": (2, 0),
    "leaky_relu": (2, 0),
    "compare": (1, 0),
    "unary": (1, 0),
    "gate": (1, 0),
    "residual": (0, 1),
    "product": (1, 0),
    "shift": (0, 1),
    "permutation": (1, 0),
    "constant": (0, 0),
}


class QuirkRules(OfficialRules):
    """The official rules with a quirk of the organisers' EfficientNet example.

    It charges a residual addition on the block's expanded channels, those of the latest depthwise
    convolution. Before the first one, and in a network without any, additions keep their shape.
    """

    def read(self, operations: Iterable[Operation]) -> Iterable[Operation]:
        """Return the operations with widened residual additions."""
        expanded_chs: int | None = None
        for op in operations:
            if op.kind == "conv" and op.weight_shape[1] == 1 and not op.is_first:
                expanded_chs = op.out_chs
            if op.kind == "residual" and expanded_chs is not None:
                op = replace(op, out_shape=(expanded_chs, *op.out_shape[1:]))
            yield op


RULE_SETS: Registry[RuleSet] = Registry(
    "rule set",
    {
        rules.name: rules
        for rules in (
            AuthorsRules("first", biases=False, mask=False),
            AuthorsRules("revised", biases=True, mask=False),
            AuthorsRules("published", biases=True, mask=True),
            OfficialRules(),
            OfficialRules("official_integer", accumulator="integer"),
            OfficialRules("official_adder_tree", accumulator="adder_tree"),
            QuirkRules("official_quirk"),
        )
    },
)
"""Every named rule set. `OfficialRules` also takes bit widths and an accumulator."""


def rules_of(
    name: str, weight_bits: int = 0, activation_bits: int = 0, accumulator: str = "fp32"
) -> RuleSet:
    """Return the rule set of that name, at the given bit widths if there are any.

    Raises:
        InputError: unknown name or accumulator, widths outside [1, 32], one width without the
            other, or widths for a rule set that has none.
    """
    rules = RULE_SETS[name]
    check_choice("accumulator", accumulator, get_args(Accumulator))
    if not weight_bits and not activation_bits:
        if accumulator != "fp32":
            raise InputError(f"accumulator {accumulator!r} needs weight and activation bits")
        return rules
    if not isinstance(rules, OfficialRules):
        raise InputError(f"rule set {name!r} has no bit widths; use official")
    if not (1 <= weight_bits <= FULL_BITS and 1 <= activation_bits <= FULL_BITS):
        raise InputError("weight and activation bits are given together, each from 1 to 32")
    precision = Precision(weight_bits, activation_bits)
    chosen = rules.accumulator if accumulator == "fp32" else cast(Accumulator, accumulator)
    return replace(rules, precision=precision, accumulator=chosen)
