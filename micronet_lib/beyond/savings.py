"""Exact savings: an integer matrix-vector product with fewer and narrower operations (chapter 11).

Both savings follow from the stored weights alone, so they cost no storage. The result is the same
integer.

- Equal magnitudes. A row adds the inputs of one `|weight|` first, with their signs, and multiplies
  the sum once. Magnitude 1 needs no multiplication.
- Shared sums. A pair `x_i + x_j` or `x_i - x_j` that several rows need is added once. The rows may
  use it with different factors and signs. The most frequent pair is taken first, and then pairs
  with that sum, until no pair occurs twice.

`compile_rows` turns a matrix into a `Program`, `run` executes it, `costs` charges it. What `costs`
charges are the operations of `execute`, each on the range of values that it can have.

Widths. Inputs are unsigned. A sum is as wide as its range needs: unsigned if no weight in it is
negative, else in two's complement. A multiplication is charged the wider of weight and sum, as in
`scoring.rules`. A sum of n > 1 inputs of a bits has at most `a + 1 + ceil(log2(n - 1))` bits, the
sign included. That is never more than `n * a`, so one multiplication of a sum is never dearer than
n multiplications, and no group has to stay as it was.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from micronet_lib.errors import InputError

MAX_BITS = 32

# A value and the sign, 1 or -1, with which it enters the next sum.
_Signed = tuple[Any, int]


class SharedSum(NamedTuple):
    """The sum `left + sign * right` of two earlier signals, with `left < right`."""

    left: int
    right: int
    sign: int


class Group(NamedTuple):
    """Signals of one row with equal magnitude: `magnitude * sum(sign * signal)`.

    `terms` are `(signal, sign)` in the order of the signals.
    """

    magnitude: int
    terms: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Program:
    """The additions and multiplications that compute an integer matrix-vector product.

    Signals `0` to `num_inputs - 1` are the inputs, signal `num_inputs + k` is shared sum `k`.

    Attributes:
        num_inputs: columns of the matrix.
        shared: sums of two signals that are made once, in order of execution.
        rows: for each output its groups, in order of magnitude; empty for a row of zeros.
    """

    num_inputs: int
    shared: tuple[SharedSum, ...]
    rows: tuple[tuple[Group, ...], ...]


@dataclass(frozen=True)
class Costs:
    """Operations of one output position, without the addition of a bias.

    Attributes:
        mult_widths: number of multiplications of each width in bits.
        add_widths: number of additions whose result needs that width. So many bits charges an adder
            tree in which each adder has its own width.
        low: for each row the smallest value of its accumulator, in any order of summation.
        high: for each row the largest value, likewise.
        accumulator_bits: width that holds every sum of the matrix, shared ones and bias included.
            An integer accumulator of one width for all additions has this one.
    """

    mult_widths: Mapping[int, int]
    add_widths: Mapping[int, int]
    low: tuple[int, ...]
    high: tuple[int, ...]
    accumulator_bits: int

    @property
    def num_mults(self) -> int:
        """Number of multiplications."""
        return sum(self.mult_widths.values())

    @property
    def num_adds(self) -> int:
        """Number of additions and subtractions."""
        return sum(self.add_widths.values())

    @property
    def mult_bits(self) -> int:
        """Multiplications, each times its width."""
        return sum(bits * count for bits, count in self.mult_widths.items())

    @property
    def add_bits(self) -> int:
        """Additions, each times the width of its result."""
        return sum(bits * count for bits, count in self.add_widths.items())


# ------------------------------------------------------------------------------------- compilation


def compile_rows(weight: ArrayLike, share: bool = True) -> Program:
    """Return the program of a matrix. It is the same at every call.

    Args:
        weight: integers `[n_out, n_in]`: a pointwise convolution, a linear layer, or the flattened
            filters of another convolution.
        share: look for shared sums. False for a depthwise convolution, whose rows read different
            channels and so have no input in common.

    Raises:
        InputError: not a matrix, or not of integers.
    """
    matrix = _integer_matrix(weight)
    num_outputs, num_inputs = matrix.shape
    rows, cols = np.nonzero(matrix)
    values = matrix[rows, cols]
    names, owner = np.unique(np.stack([rows, np.abs(values)]), axis=1, return_inverse=True)
    groups: list[dict[int, int]] = [{} for _ in range(names.shape[1])]
    signs = np.sign(values)
    for group, col, sign in zip(owner.ravel().tolist(), cols.tolist(), signs.tolist(), strict=True):
        groups[group][col] = sign
    shared: list[SharedSum] = []
    if share and groups:
        table = np.zeros((len(groups), num_inputs), np.float32)
        table[owner.ravel(), cols] = signs
        shared = _share(groups, table)
    found: list[list[Group]] = [[] for _ in range(num_outputs)]
    for (row, magnitude), terms in zip(names.T.tolist(), groups, strict=True):
        found[row].append(Group(magnitude, tuple(terms.items())))
    return Program(num_inputs, tuple(shared), tuple(map(tuple, found)))


def _integer_matrix(weight: ArrayLike) -> NDArray[np.int64]:
    matrix = np.asarray(weight)
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.integer):
        raise InputError(f"give a matrix of integers, not {matrix.dtype} {list(matrix.shape)}")
    return matrix.astype(np.int64)


def _share(groups: list[dict[int, int]], table: NDArray[np.float32]) -> list[SharedSum]:
    """Replace pairs of signals in the groups by shared sums, and return these.

    A pair never becomes more frequent: a new sum takes two signals out of some groups. So a count
    on the heap is at most too high, and is corrected when it comes to the top.

    Args:
        groups: for each group of a row the sign of each signal. Changed in place.
        table: the same signs, `[groups, inputs]`, 0 where an input is not in the group.
    """
    num_inputs = table.shape[1]
    # Bit g of plus[i] says that group g adds signal i, bit g of minus[i] that it subtracts it.
    plus, minus = [0] * num_inputs, [0] * num_inputs
    for group, terms in enumerate(groups):
        for signal, sign in terms.items():
            (plus if sign > 0 else minus)[signal] |= 1 << group
    heap = _frequent_pairs(table)
    heapify(heap)
    shared: list[SharedSum] = []
    while heap:
        count, left, right, sign = heappop(heap)
        with_right, against_right = (plus, minus) if sign > 0 else (minus, plus)
        adds = plus[left] & with_right[right]
        subtracts = minus[left] & against_right[right]
        now = (adds | subtracts).bit_count()
        if now < -count:
            if now > 1:
                heappush(heap, (-now, left, right, sign))
            continue
        new = len(plus)
        shared.append(SharedSum(left, right, sign))
        plus[left] ^= adds
        with_right[right] ^= adds
        minus[left] ^= subtracts
        against_right[right] ^= subtracts
        plus.append(adds)
        minus.append(subtracts)
        partners: Counter[tuple[int, int]] = Counter()
        for own, members in ((1, adds), (-1, subtracts)):
            for group in _bits(members):
                terms = groups[group]
                del terms[left], terms[right]
                partners.update((signal, own * other) for signal, other in terms.items())
                terms[new] = own
        for (signal, relative), often in partners.items():
            if often > 1:
                heappush(heap, (-often, signal, new, relative))
    return shared


def _frequent_pairs(table: NDArray[np.float32]) -> list[tuple[int, int, int, int]]:
    """Return `(-count, left, right, sign)` of the pairs of inputs in more than one group."""
    found: list[tuple[int, int, int, int]] = []
    present = np.abs(table)
    block = 256  # bounds the memory for many inputs
    for start in range(0, table.shape[1], block):
        stop = start + block
        both = present[:, start:stop].T @ present
        difference = table[:, start:stop].T @ table
        for sign in (-1, 1):
            counts = ((both + sign * difference) / 2).astype(np.int64)
            left, right = np.nonzero(np.triu(counts, start + 1) > 1)
            often = counts[left, right]
            found += zip(
                (-often).tolist(),
                (left + start).tolist(),
                right.tolist(),
                [sign] * len(left),
                strict=True,
            )
    return found


def _bits(members: int) -> list[int]:
    """Return the positions of the bits that are 1, in order."""
    found = []
    while members:
        lowest = members & -members
        found.append(lowest.bit_length() - 1)
        members ^= lowest
    return found


# --------------------------------------------------------------------------------------- execution


def run(program: Program, inputs: ArrayLike) -> NDArray[np.int64]:
    """Return the product of the program's matrix with integers, `[n_out, ...]`, by `execute`.

    Args:
        program: from `compile_rows`.
        inputs: integers `[n_in, ...]`.

    Raises:
        InputError: inputs of another number, or no integers.
    """
    values = np.asarray(inputs)
    if values.shape[:1] != (program.num_inputs,) or not np.issubdtype(values.dtype, np.integer):
        raise InputError(
            f"give {program.num_inputs} integers along the first axis, not "
            f"{values.dtype} {list(values.shape)}"
        )
    outputs = np.zeros((len(program.rows), *values.shape[1:]), np.int64)
    for row, value in enumerate(execute(program, list(values.astype(np.int64)))):
        if value is not None:
            outputs[row] = value
    return outputs


def execute(program: Program, inputs: Sequence[Any]) -> list[Any]:
    """Return the outputs of a program for numbers of any type, None for a row of zeros.

    The terms of a group are added as a balanced tree, then the products of a row likewise. Nothing
    else is computed: `+` and `-` of two numbers, `*` with a stored weight, and `<<` with free
    shifts. A row of negative weights of which none needs a multiplication has nothing to subtract
    from, so it multiplies its first group too.

    Args:
        program: from `compile_rows`.
        inputs: one number, or array of numbers, for each column of the matrix.
    """
    signals = list(inputs)
    for left, right, sign in program.shared:
        signals.append(_add((signals[left], 1), (signals[right], sign))[0])
    outputs: list[Any] = []
    for groups in program.rows:
        outputs.append(_row(program, groups, signals) if groups else None)
    return outputs


def _row(program: Program, groups: Sequence[Group], signals: Sequence[Any]) -> Any:
    sums = [_tree([(signals[signal], sign) for signal, sign in group.terms]) for group in groups]
    multiplied = [magnitude > 1 for magnitude, _ in groups]
    if not any(multiplied) and all(sign < 0 for _, sign in sums):
        multiplied[0] = True  # nothing to subtract from: the factor brings the sign
    products: list[_Signed] = []
    for (magnitude, _), (value, sign), needed in zip(groups, sums, multiplied, strict=True):
        if needed:
            products.append((value * (sign * magnitude), 1))
        elif magnitude > 1:
            products.append((value << magnitude.bit_length() - 1, sign))
        else:
            products.append((value, sign))
    return _tree(products)[0]


def _tree(terms: list[_Signed]) -> _Signed:
    """Return the sum of neighbours, then of neighbouring sums, until one is left."""
    while len(terms) > 1:
        rest = terms[len(terms) // 2 * 2 :]
        pairs = zip(terms[::2], terms[1::2], strict=False)
        terms = [_add(left, right) for left, right in pairs] + rest
    return terms[0]


def _add(left: _Signed, right: _Signed) -> _Signed:
    """Return a sum by one addition or subtraction. It is negative only if both terms are."""
    (a, sign), (b, other) = left, right
    if sign == other:
        return a + b, sign
    return (a - b, 1) if sign > 0 else (b - a, 1)


# ------------------------------------------------------------------------------------------- costs


def costs(
    program: Program, weight_bits: int, activation_bits: int, start: ArrayLike | None = None
) -> Costs:
    """Return what a program costs: the operations of `execute`, each with its proven width.

    Multiplications and additions are never more than those of `plain_costs`, and the widths of the
    multiplications never add up to more. The accumulator is as wide as there, with one exception:
    of inputs of one bit, a shared sum can need one bit more than its negative, which a row holds.
    `add_bits` is usually less, but nothing guarantees it for every small matrix.

    Args:
        program: from `compile_rows`.
        weight_bits: width of the weights. Their magnitudes must fit, the sign apart.
        activation_bits: width of the inputs, unsigned: from 0 to `2 ** activation_bits - 1`.
        start: integers `[n_out]`, such as a bias, that enter the accumulators; by default 0.

    Raises:
        InputError: a width outside [1, 32], weights that do not fit, or `start` that is not one
            integer for each row.
    """
    magnitudes = [group.magnitude for row in program.rows for group in row]
    _check_bits(weight_bits, activation_bits, max(magnitudes, default=0))
    meter = _Meter(weight_bits)
    one = _Range(0, 2**activation_bits - 1, meter)
    outputs = execute(program, [one] * program.num_inputs)
    return meter.costs(outputs, start)


def plain_costs(
    weight: ArrayLike, weight_bits: int, activation_bits: int, start: ArrayLike | None = None
) -> Costs:
    """Return what a matrix costs without savings: one multiplication for each non-zero weight.

    Products of a row are added as a balanced tree in the order of the columns.

    Args:
        weight: integers `[n_out, n_in]`.
        weight_bits: as in `costs`.
        activation_bits: as in `costs`.
        start: as in `costs`.

    Raises:
        InputError: as in `compile_rows` and `costs`.
    """
    rows = _integer_matrix(weight).tolist()
    _check_bits(weight_bits, activation_bits, max((abs(v) for row in rows for v in row), default=0))
    meter = _Meter(weight_bits)
    one = _Range(0, 2**activation_bits - 1, meter)
    products = [[(one * value, 1) for value in row if value] for row in rows]
    return meter.costs([_tree(row)[0] if row else None for row in products], start)


def _check_bits(weight_bits: int, activation_bits: int, largest: int) -> None:
    for name, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        if not 1 <= bits <= MAX_BITS:
            raise InputError(f"{name} is {bits}; give a width from 1 to {MAX_BITS}")
    if largest.bit_length() > weight_bits:
        raise InputError(f"a weight of magnitude {largest} does not fit into {weight_bits} bits")


def _width(low: int, high: int) -> int:
    """Return the bits of every integer from low to high: unsigned, or two's complement."""
    if low >= 0:
        return high.bit_length()
    return 1 + max(high.bit_length(), (-low - 1).bit_length())


@dataclass
class _Meter:
    """Counts operations by width."""

    weight_bits: int
    mults: Counter[int] = field(default_factory=Counter)
    adds: Counter[int] = field(default_factory=Counter)

    def costs(self, outputs: Sequence["_Range | None"], start: ArrayLike | None) -> Costs:
        """Return the counts, with the bounds of the rows."""
        first = np.zeros(len(outputs), np.int64) if start is None else np.asarray(start)
        if first.shape != (len(outputs),) or not np.issubdtype(first.dtype, np.integer):
            raise InputError(
                f"give start as one integer for each of {len(outputs)} rows, not "
                f"{first.dtype} {list(first.shape)}"
            )
        low, high = [], []
        for output, value in zip(outputs, first.tolist(), strict=True):
            # A partial sum may hold the start value or not yet.
            low.append(min(0, value) + (output.low if output else 0))
            high.append(max(0, value) + (output.high if output else 0))
        widths = [*self.adds, *map(_width, low, high)]
        return Costs(
            mult_widths=dict(sorted(self.mults.items())),
            add_widths=dict(sorted(self.adds.items())),
            low=tuple(low),
            high=tuple(high),
            accumulator_bits=max(widths, default=0),
        )


@dataclass(slots=True)
class _Range:
    """All values that a number can have. Operations on it are counted.

    In a row each input is in one term only, so a sum reaches both ends of its range.
    """

    low: int
    high: int
    meter: _Meter

    def __add__(self, other: "_Range") -> "_Range":
        return self._sum(self.low + other.low, self.high + other.high)

    def __sub__(self, other: "_Range") -> "_Range":
        return self._sum(self.low - other.high, self.high - other.low)

    def _sum(self, low: int, high: int) -> "_Range":
        self.meter.adds[_width(low, high)] += 1
        return _Range(low, high, self.meter)

    def __mul__(self, factor: int) -> "_Range":
        self.meter.mults[max(self.meter.weight_bits, _width(self.low, self.high))] += 1
        return self._scaled(factor)

    def __lshift__(self, bits: int) -> "_Range":
        return self._scaled(2**bits)

    def _scaled(self, factor: int) -> "_Range":
        low, high = sorted((self.low * factor, self.high * factor))
        return _Range(low, high, self.meter)
