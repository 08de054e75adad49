"""The price of a network in integers where a judge reads the rules less kindly (chapter 11).

Each reading changes one thing that is charged and leaves the rest. The network is the same in all
of them, so nothing but its price changes.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from micronet_lib.beyond.counting import counted, work_of
from micronet_lib.beyond.network import IntegerMicroNet
from micronet_lib.scoring.bill import score_operations
from micronet_lib.scoring.operations import Operation, record_operations
from micronet_lib.scoring.rules import RULE_SETS, OfficialRules, Precision

HALF, FULL = 16, 32
_LAYERS = ("conv", "linear")

Operations = Iterable[Operation]


class _Reading(NamedTuple):
    """What is disputed, in words and as a change of the operations or of the rules."""

    point: str
    charged: str
    harsher: str
    change: Callable[[IntegerMicroNet, Operations], Operations] | None = None
    precision: Precision | None = None


def _is_hard_swish(op: Operation) -> bool:
    return any(part.startswith("act") for part in op.name.split("."))


def _signed_codes(network: IntegerMicroNet, operations: Operations) -> Operations:
    """Charge one bit more for every weight, also where it is multiplied."""
    sums = network.sums()
    for op in operations:
        if op.kind in _LAYERS and op.weight_bits:
            bits = op.weight_bits + 1
            work = work_of(sums[op.name], bits) if op.work else None
            yield replace(op, weight_bits=bits, work=work)
        else:
            yield op


def _without_savings(network: IntegerMicroNet, _: Operations) -> Operations:
    return record_operations(counted(network, savings=False))


def _whole_scales(_: IntegerMicroNet, operations: Operations) -> Operations:
    for op in operations:
        yield replace(op, scale_bits=HALF) if op.kind in _LAYERS else op


def _full_hard_swish(_: IntegerMicroNet, operations: Operations) -> Operations:
    for op in operations:
        yield replace(op, activation_bits=FULL) if _is_hard_swish(op) else op


def _four_products(_: IntegerMicroNet, operations: Operations) -> Operations:
    for op in operations:
        yield op
        if _is_hard_swish(op) and op.kind == "relu6":
            yield replace(op, kind="product")


def _counted_conversions(_: IntegerMicroNet, operations: Operations) -> Operations:
    """Charge a shift and two comparisons wherever a layer's sum becomes an integer again."""
    for op in operations:
        yield op
        if op.kind in _LAYERS:
            plain = Operation(op.name, "compare", op.out_shape, activation_bits=HALF)
            yield from (plain, plain, replace(plain, kind="unary"))


_READINGS = (
    _Reading(
        "scale multiplication",
        "16 bits, after a shift to 16",
        "32 bits, as the sum has",
        precision=Precision(HALF, HALF, scale_bits=FULL),
    ),
    _Reading(
        "HardSwish's width",
        "that of the integer before it",
        "32 bits",
        _full_hard_swish,
    ),
    _Reading(
        "HardSwish's products",
        "3: the division is in its step",
        "4",
        _four_products,
    ),
    _Reading(
        "conversions",
        "free: a shift and a clip",
        "3 operations of 16 bits per output",
        _counted_conversions,
    ),
    _Reading(
        "codes without a zero",
        "b bits",
        "b + 1 bits, as signed numbers",
        _signed_codes,
    ),
    _Reading(
        "scales of filters",
        "5 bits: a place in a table",
        "16 bits each",
        _whole_scales,
    ),
    _Reading(
        "exact savings",
        "what the program executes",
        "a product and a sum per weight",
        _without_savings,
    ),
    _Reading(
        "gates, pooling, residual stream",
        "16 bits, as their integers have",
        "32 bits",
        precision=Precision(HALF, HALF, other_bits=FULL),
    ),
)


def harsher_readings(network: IntegerMicroNet) -> pd.DataFrame:
    """Return the score of a network under one harsher reading of the rules at a time, then all.

    Every reading charges additions 32 bits, as the headline score does, so the width of
    accumulators is not among them.

    Args:
        network: with all widths set.

    Returns:
        Columns point, charged, harsher, score, more (than the headline score). The first row is the
        score as reported, the last one all harsher readings at once.

    Raises:
        InputError: a network in floats.
    """
    operations = record_operations(network)
    rules = RULE_SETS["official"]
    headline = score_operations(operations, rules).score
    rows = [("as reported", "", "", headline)]
    # Savings first: that change lists the operations anew.
    everything: Operations = _without_savings(network, operations)
    for reading in _READINGS:
        changed: Operations = operations
        if reading.change is not None:
            changed = reading.change(network, operations)
            if reading.change is not _without_savings:
                everything = list(reading.change(network, everything))
        harsher = OfficialRules(precision=reading.precision) if reading.precision else rules
        score = score_operations(changed, harsher).score
        rows.append((reading.point, reading.charged, reading.harsher, score))
    widest = OfficialRules(precision=Precision(HALF, HALF, scale_bits=FULL, other_bits=FULL))
    rows.append(("all of them", "", "", score_operations(everything, widest).score))
    found = pd.DataFrame(rows, columns=["point", "charged", "harsher", "score"])
    return found.assign(more=found["score"] - headline)
