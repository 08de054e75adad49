"""Exact savings: the same integers, no operation that is not charged, every value within its width.

The operations are checked twice. `Form` is a number that knows the coefficients of all inputs, so
that the widths that `costs` proves by ranges are found by another way. `Tallied` only counts.
"""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from micronet_lib.beyond.savings import (
    Group,
    Program,
    SharedSum,
    compile_rows,
    costs,
    execute,
    plain_costs,
    run,
)
from micronet_lib.errors import InputError


def drawn(seed: int, shape: tuple[int, int], bits: int, density: float) -> np.ndarray:
    """Rounded normal weights of at most `2 ** (bits - 1)`, none of them 0 where kept."""
    generator = np.random.default_rng(seed)
    top = 2 ** (bits - 1)
    values = generator.normal(size=shape)
    sizes = np.clip(np.round(np.abs(values) * top / 2.5), 1, top).astype(np.int64)
    return np.where(values < 0, -sizes, sizes) * (generator.random(shape) < density)


@st.composite
def matrices(draw) -> tuple[np.ndarray, int]:
    """A matrix, often with related rows, and the width of its weights."""
    shape = (draw(st.integers(0, 9)), draw(st.integers(0, 12)))
    bits = draw(st.integers(1, 6))
    weight = drawn(
        draw(st.integers(0, 2**32 - 1)), shape, bits, draw(st.sampled_from([0.2, 0.6, 1]))
    )
    if len(weight) > 2 and draw(st.booleans()):
        weight[1], weight[2] = weight[0], -weight[0]
    return weight, bits


def signed_or_not(low: int, high: int) -> int:
    """The width of a range, by trial."""
    width = 0
    while not (low >= 0 and high < 2**width) and not (
        width and -(2 ** (width - 1)) <= low and high < 2 ** (width - 1)
    ):
        width += 1
    return width


class Form:
    """A linear form of the inputs. Writes each operation and its form into the log."""

    def __init__(self, coefs, log):
        self.coefs, self.log = coefs, log

    def noted(self, kind, coefs):
        self.log.append((kind, coefs))
        return Form(coefs, self.log)

    def __add__(self, other):
        return self.noted("add", self.coefs + other.coefs)

    def __sub__(self, other):
        return self.noted("add", self.coefs - other.coefs)

    def __mul__(self, factor):
        self.log.append((factor, self.coefs))
        return Form(self.coefs * factor, self.log)

    def __lshift__(self, bits):
        return self.noted("shift", self.coefs * 2**bits)


def forms(program):
    """The outputs as linear forms, and the log."""
    log = []
    unit = np.eye(program.num_inputs, dtype=np.int64)
    return execute(program, [Form(row, log) for row in unit]), log


def reach(coefs, activation_bits):
    """The smallest and the largest value of a form."""
    top = 2**activation_bits - 1
    return top * int(coefs[coefs < 0].sum()), top * int(coefs[coefs > 0].sum())


def counted(widths):
    found = {}
    for width in sorted(widths):
        found[width] = found.get(width, 0) + 1
    return found


# ------------------------------------------------------------------------------------------ by hand

WEIGHT = np.array(
    [
        [3, -3, 0, 1, 0],
        [-2, 2, 2, 0, 0],
        [1, -1, -1, 0, 6],
        [0, 0, 0, -1, -1],
        [0, 0, 0, 0, 0],
    ]
)
# x0 - x1 is in three rows (5), and (x0 - x1) - x2 in two of these (6).
PROGRAM = Program(
    num_inputs=5,
    shared=(SharedSum(0, 1, -1), SharedSum(2, 5, -1)),
    rows=(
        (Group(1, ((3, 1),)), Group(3, ((5, 1),))),
        (Group(2, ((6, 1),)),),
        (Group(1, ((6, -1),)), Group(6, ((4, 1),))),
        (Group(1, ((3, -1), (4, -1))),),
        (),
    ),
)


def test_a_program_by_hand():
    assert compile_rows(WEIGHT) == PROGRAM
    assert run(PROGRAM, [1, 10, 100, 1000, 10000]).tolist() == [973, 218, 59891, -11000, 0]


def test_the_costs_by_hand():
    """Inputs of 4 bits, 0 to 15."""
    found = costs(PROGRAM, weight_bits=4, activation_bits=4, start=[-100, 0, 7, 0, -3])
    # 3 * [-15, 15], 2 * [-15, 30], 6 * [0, 15], -1 * [0, 30]
    assert found.mult_widths == {4: 1, 5: 2, 6: 1}
    # x0 - x1; x2 - (x0 - x1); x3 + 3 (x0 - x1) in [-45, 60]; 6 x4 - ... in [-30, 105]; x3 + x4
    assert found.add_widths == {5: 2, 6: 1, 7: 1, 8: 1}
    assert (found.num_mults, found.mult_bits, found.num_adds, found.add_bits) == (4, 20, 5, 31)
    assert found.low == (-145, -30, -30, -30, -3)
    assert found.high == (60, 60, 112, 0, 0)
    assert found.accumulator_bits == 9

    plain = plain_costs(WEIGHT, weight_bits=4, activation_bits=4)
    assert plain.mult_widths == {4: 12}
    assert plain.num_adds == 2 + 2 + 3 + 1
    assert (plain.low[0], plain.high[0], plain.accumulator_bits) == (-45, 60, 8)


def test_only_equal_magnitudes_without_sharing():
    program = compile_rows(WEIGHT, share=False)
    assert program.shared == ()
    assert program.rows[1] == (Group(2, ((0, -1), (1, 1), (2, 1))),)
    assert costs(program, 4, 4).num_adds == plain_costs(WEIGHT, 4, 4).num_adds


def test_a_sum_of_unlike_signs_needs_its_sign_bit():
    """x0 + x1 + x2 - x3 lies in [-15, 45]: 7 bits, where 4 + log2(4) would be 6."""
    assert costs(compile_rows([[3, 3, 3, -3]]), 3, 4).mult_widths == {7: 1}
    assert costs(compile_rows([[3, 3, 3, 3]]), 3, 4).mult_widths == {6: 1}
    assert costs(compile_rows([[-3, -3, -3, -3]]), 3, 4).mult_widths == {6: 1}


# ------------------------------------------------------------------------------------- any matrices


@settings(deadline=None, max_examples=150)
@given(matrices(), st.booleans(), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_result_is_exact(matrix, share, activation_bits, seed):
    weight, _ = matrix
    program = compile_rows(weight, share)
    inputs = np.random.default_rng(seed).integers(0, 2**activation_bits, (weight.shape[1], 2, 3))
    outputs = run(program, inputs)
    assert outputs.dtype == np.int64
    assert np.array_equal(outputs, np.einsum("oi,ihw->ohw", weight, inputs))
    assert np.array_equal(run(program, inputs[:, 0, 0]), weight @ inputs[:, 0, 0])


class Tallied:
    """An integer that counts operations."""

    adds = mults = 0

    def __init__(self, value):
        self.value = value

    def __add__(self, other):
        Tallied.adds += 1
        return Tallied(self.value + other.value)

    def __sub__(self, other):
        Tallied.adds += 1
        return Tallied(self.value - other.value)

    def __mul__(self, factor):
        Tallied.mults += 1
        return Tallied(self.value * factor)


@settings(deadline=None, max_examples=100)
@given(matrices(), st.booleans())
def test_what_is_executed_is_what_is_charged_and_what_the_program_says(matrix, share):
    weight, bits = matrix
    program = compile_rows(weight, share)
    Tallied.adds = Tallied.mults = 0
    outputs = execute(program, [Tallied(3 * i + 1) for i in range(weight.shape[1])])
    expected = weight @ (3 * np.arange(weight.shape[1]) + 1)
    assert [each.value if each else 0 for each in outputs] == expected.tolist()

    found = costs(program, bits, 4)
    assert (Tallied.adds, Tallied.mults) == (found.num_adds, found.num_mults)
    groups = [group for row in program.rows for group in row]
    terms = [max(0, sum(len(group.terms) for group in row) - 1) for row in program.rows]
    assert found.num_adds == len(program.shared) + sum(terms)
    only_negative = [
        row and all(g.magnitude == 1 and all(s < 0 for _, s in g.terms) for g in row)
        for row in program.rows
    ]
    assert found.num_mults == sum(g.magnitude > 1 for g in groups) + sum(map(bool, only_negative))


@settings(deadline=None, max_examples=150)
@given(matrices(), st.booleans(), st.integers(1, 8))
def test_every_value_fits_its_width_and_no_width_is_wider(matrix, share, activation_bits):
    """The coefficients of a value say for which inputs it is largest; these inputs are tried."""
    weight, bits = matrix
    program = compile_rows(weight, share)
    outputs, log = forms(program)
    for row, output in zip(weight, outputs, strict=True):
        assert output.coefs.tolist() == row.tolist() if output else not row.any()
    found = costs(program, bits, activation_bits)
    ranges = [reach(coefs, activation_bits) for kind, coefs in log if kind == "add"]
    assert found.add_widths == counted(signed_or_not(*each) for each in ranges)
    mults = [(kind, coefs) for kind, coefs in log if kind not in ("add", "shift")]
    widths = [signed_or_not(*reach(coefs, activation_bits)) for _, coefs in mults]
    assert found.mult_widths == counted(max(bits, width) for width in widths)
    assert all(factor in weight for factor, _ in mults)

    top = 2**activation_bits - 1
    extremes = [np.zeros(weight.shape[1]), np.full(weight.shape[1], top)]
    extremes += [top * (side * coefs > 0) for _, coefs in log for side in (-1, 1)]
    values = np.array(extremes).astype(np.int64).T
    for coefs in [coefs for kind, coefs in log if kind == "add"]:
        bounds = coefs @ values
        assert signed_or_not(int(bounds.min()), int(bounds.max())) <= found.accumulator_bits
    for row, output in enumerate(weight @ values):
        assert (output.min(), output.max()) == (found.low[row], found.high[row])


@settings(deadline=None, max_examples=100)
@given(matrices(), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_row_stays_within_its_bounds_in_any_order(matrix, activation_bits, seed):
    weight, bits = matrix
    generator = np.random.default_rng(seed)
    start = generator.integers(-500, 500, len(weight))
    found = costs(compile_rows(weight), bits, activation_bits, start)
    top = 2**activation_bits - 1
    for row, first, low, high in zip(weight, start, found.low, found.high, strict=True):
        for active in (row > 0, row < 0, row != 0, generator.random(len(row)) < 0.5):
            terms = generator.permutation(np.append(row * active * top, first))
            sums = np.append(0, np.cumsum(terms))
            assert low <= sums.min()
            assert sums.max() <= high
        assert low == top * row[row < 0].sum() + min(0, first)
        assert high == top * row[row > 0].sum() + max(0, first)
        assert signed_or_not(low, high) <= found.accumulator_bits


@settings(deadline=None, max_examples=200)
@given(matrices(), st.booleans(), st.integers(1, 8))
def test_never_dearer_than_plain(matrix, share, activation_bits):
    weight, bits = matrix
    found = costs(compile_rows(weight, share), bits, activation_bits)
    plain = plain_costs(weight, bits, activation_bits)
    nonzeros = np.count_nonzero(weight, axis=1)
    assert plain.num_adds == sum(max(0, n - 1) for n in nonzeros)
    total = int(nonzeros.sum())
    assert plain.mult_widths == ({max(bits, activation_bits): total} if total else {})
    assert found.num_adds <= plain.num_adds
    assert found.num_mults <= plain.num_mults
    assert found.mult_bits <= plain.mult_bits
    assert (found.low, found.high) == (plain.low, plain.high)
    wider = found.accumulator_bits - plain.accumulator_bits
    assert wider == 0 or (activation_bits == wider == 1)


def test_of_one_bit_inputs_a_shared_sum_can_be_wider_than_the_rows():
    """x2 - (x0 - x1) in [-1, 2] is made, its negative in [-2, 1] is what both rows hold."""
    weight = [[1, -1, -1], [1, -1, -1]]
    assert compile_rows(weight).shared == (SharedSum(0, 1, -1), SharedSum(2, 3, -1))
    assert costs(compile_rows(weight), 1, 1).accumulator_bits == 3
    assert plain_costs(weight, 1, 1).accumulator_bits == 2


@pytest.mark.parametrize("activation_bits", range(1, 9))
def test_a_grouped_multiplication_is_never_dearer_than_its_terms(activation_bits):
    """The bound of the module's docstring, for every mixture of signs."""
    for n in range(1, 70):
        for minus in range(n + 1):
            weight = [[3] * (n - minus) + [-3] * minus]
            (width,) = costs(compile_rows(weight), 2, activation_bits).mult_widths
            assert width <= max(2, activation_bits) * n
            if n > 1:
                assert width <= max(2, activation_bits + 1 + (n - 2).bit_length())


# ------------------------------------------------------------------------------------ shared sums


def greedy(weight):
    """The shared sums by recounting all pairs before each choice."""
    num_inputs = weight.shape[1]
    groups = [
        {i: int(np.sign(v)) for i, v in enumerate(row) if abs(v) == size}
        for row in weight.tolist()
        for size in {abs(v) for v in row if v}
    ]
    shared = []
    while True:
        pairs = {}
        for group in groups:
            names = sorted(group)
            for at, left in enumerate(names):
                for right in names[at + 1 :]:
                    key = (left, right, group[left] * group[right])
                    pairs[key] = pairs.get(key, 0) + 1
        often = [(-count, key) for key, count in pairs.items() if count > 1]
        if not often:
            return shared, sum(map(len, groups))
        left, right, sign = min(often)[1]
        for group in groups:
            if left in group and right in group and group[left] * group[right] == sign:
                group[num_inputs + len(shared)] = group.pop(left)
                del group[right]
        shared.append((left, right, sign))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_most_frequent_pair_comes_first(bits, seed):
    weight = drawn(seed, (30, 10), bits, 0.7)
    program = compile_rows(weight)
    shared, num_terms = greedy(weight)
    assert list(map(tuple, program.shared)) == shared
    assert len(shared) > 3
    assert sum(len(group.terms) for row in program.rows for group in row) == num_terms


def test_many_inputs_are_counted_in_blocks():
    weight = np.zeros((3, 700), np.int64)
    weight[:, [3, 255, 256, 511, 512, 699]] = 5
    program = compile_rows(weight)
    assert program.shared == tuple(SharedSum(*each, 1) for each in PAIRS)
    assert [len(group.terms) for (group,) in program.rows] == [1, 1, 1]
    assert costs(program, 3, 4).num_adds == 5


# Six equal inputs, the smallest names first: pairs, then pairs of pairs.
PAIRS = [(3, 255), (256, 511), (512, 699), (700, 701), (702, 703)]


def test_rows_that_differ_by_a_factor_and_sign_share_everything():
    row = np.array([1, -1, 1, 0, 1, -1])
    program = compile_rows(np.stack([row, -3 * row, 5 * row, row]))
    assert [len(each) for each in program.rows] == [1, 1, 1, 1]
    found = costs(program, 3, 4)
    assert (found.num_adds, found.num_mults) == (4, 2)


def test_a_program_depends_on_the_integers_only():
    weight = drawn(3, (20, 30), 4, 0.5)
    program = compile_rows(weight)
    others = [weight.astype(np.int8), np.asfortranarray(weight), weight.tolist()]
    assert all(compile_rows(each) == program for each in others)
    assert program.shared
    assert all(
        left < right < 30 + at and abs(sign) == 1
        for at, (left, right, sign) in enumerate(program.shared)
    )


def test_a_realistic_layer_is_exact_and_cheaper():
    weight = drawn(0, (106, 318), 4, 0.4)
    program, plain = compile_rows(weight), plain_costs(weight, 4, 4)
    inputs = np.random.default_rng(1).integers(0, 16, (318, 7))
    assert np.array_equal(run(program, inputs), weight @ inputs)
    found = costs(program, 4, 4)
    assert found.num_adds < 0.8 * plain.num_adds
    assert found.mult_bits < 0.2 * plain.mult_bits
    assert found.add_bits < plain.add_bits


# ------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_without_weights_nothing_is_done(shape):
    weight = np.zeros(shape, np.int64)
    program = compile_rows(weight)
    assert program == Program(shape[1], (), ((),) * shape[0])
    assert run(program, np.ones((shape[1], 2), np.int64)).tolist() == [[0, 0]] * shape[0]
    for found in (costs(program, 4, 4), plain_costs(weight, 4, 4)):
        assert (found.num_adds, found.num_mults, found.accumulator_bits) == (0, 0, 0)
        assert found.low == found.high == (0,) * shape[0]


def test_one_column_and_single_weights():
    weight = np.array([[1], [-1], [0], [-7]])
    program = compile_rows(weight)
    assert run(program, [[2, 0]]).tolist() == [[2, 0], [-2, 0], [0, 0], [-14, 0]]
    found = costs(program, 3, 4)
    assert (found.num_adds, found.mult_widths) == (0, {4: 2})  # with -1 and -7
    assert found.accumulator_bits == 8


def test_weights_of_one_bit_need_no_multiplication():
    weight = drawn(0, (12, 20), 1, 0.8)
    assert set(np.abs(weight).ravel()) == {0, 1}
    assert costs(compile_rows(weight), 1, 4).num_mults == 0


def test_the_most_negative_weight_of_a_small_type():
    weight = np.array([[-128, 127], [-128, -128]], np.int8)
    inputs = np.array([200, 255], np.uint8)
    assert run(compile_rows(weight), inputs).tolist() == [6785, -58240]
    assert costs(compile_rows(weight), 8, 8).low == plain_costs(weight, 8, 8).low


@pytest.mark.parametrize("weight", [[1, 2], [[1.0, 2.0]], [[[1]]], [[True]], 3])
def test_no_matrix_of_integers(weight):
    for refused in (lambda: compile_rows(weight), lambda: plain_costs(weight, 4, 4)):
        with pytest.raises(InputError, match="give a matrix of integers"):
            refused()


@pytest.mark.parametrize("inputs", [[1, 2], np.ones((3, 2)), 1, [[1, 2, 3]]])
def test_inputs_that_do_not_fit(inputs):
    with pytest.raises(InputError, match="give 3 integers along the first axis"):
        run(compile_rows([[1, 2, 3]]), inputs)


def test_widths_that_do_not_fit():
    for weight in ([[4, 0]], [[-4, 1]]):
        program = compile_rows(weight)
        costs(program, 3, 1)
        for cost in (
            lambda *bits, program=program: costs(program, *bits),
            lambda *bits, weight=weight: plain_costs(weight, *bits),
        ):
            with pytest.raises(InputError, match="magnitude 4 does not fit into 2 bits"):
                cost(2, 8)
            with pytest.raises(InputError, match="weight_bits is 33"):
                cost(33, 8)
            with pytest.raises(InputError, match="activation_bits is 0"):
                cost(8, 0)


@pytest.mark.parametrize("start", [[1], [1, 2, 3], [0.5, 1.5], 7])
def test_a_start_value_that_does_not_fit(start):
    with pytest.raises(InputError, match="give start as one integer for each of 2 rows"):
        costs(compile_rows([[1], [2]]), 4, 4, start)
