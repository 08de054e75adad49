"""The MicroNet Challenge's score of a network, and its bill line by line.

`score = param_storage / 36.5e6 + math_ops / 10.49e9`, both in 32-bit units [kim2020, equation 1].
The reference network is WRN-28-10. `scoring.operations` lists the executed operations,
`scoring.rules` prices them. Chapter `06_scoring`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import pandas as pd
from torch import nn

from micronet_lib.errors import InputError
from micronet_lib.scoring.operations import Operation, record_operations
from micronet_lib.scoring.rules import FULL_BITS, RULE_SETS, Item, Quantity, RuleSet

PARAM_BASE = 36.5e6
OPS_BASE = 10.49e9


@dataclass(frozen=True)
class Score:
    """A network's bill under one rule set.

    Attributes:
        num_adds: additions for one image, unweighted; a mean over images with several exits.
        num_mults: multiplications for one image, likewise.
        num_params: stored values, unweighted, without masked values.
        mask_params: the sparsity masks, in 32-bit parameters.
        param_storage: stored values and masks, weighted, in 32-bit parameters.
        math_ops: multiplications and additions, weighted, in 32-bit operations.
        score: sum of both, each relative to the reference network; lower is better.
        macs: multiply-accumulates of one image with non-zero weights; part of the multiplications
            and additions.
        dense_macs: the same with every weight.
        items: the bill, line by line.
    """

    rules: str
    num_adds: float
    num_mults: float
    num_params: float
    mask_params: float
    param_storage: float
    math_ops: float
    score: float
    macs: float
    dense_macs: float
    items: tuple[Item, ...] = field(repr=False)

    def metrics(self) -> dict[str, float]:
        """Return the totals of the bill, for records and `--json`."""
        values = {name: getattr(self, name) for name in SCORE_METRICS}
        return {name: int(v) if float(v).is_integer() else v for name, v in values.items()}

    def table(self) -> pd.DataFrame:
        """Return one row for each item, with `param_storage` and `math_ops` weighted to 32 bits."""
        columns = [each.name for each in fields(Item)]
        table = pd.DataFrame([asdict(item) for item in self.items if item.count], columns=columns)
        weighted = table["count"] * table["bits"] / FULL_BITS
        stored = table["quantity"].isin(["param", "mask"])
        table["param_storage"] = weighted.where(stored, 0.0)
        table["math_ops"] = weighted.where(~stored, 0.0)
        table["score"] = table["param_storage"] / PARAM_BASE + table["math_ops"] / OPS_BASE
        return table


SCORE_METRICS = (
    *("num_adds", "num_mults", "num_params", "mask_params"),
    *("param_storage", "math_ops", "score"),
)


def score_operations(
    operations: Iterable[Operation], rules: RuleSet, exit_rates: Sequence[float] | None = None
) -> Score:
    """Return the bill of one image's operations under the rules.

    `exit_rates` are measured: the fraction of images that leave at each exit. An operation costs
    the share of images that still reach it; storage is charged in full. None: all images reach the
    last exit.

    Raises:
        InputError: an operation without a price, or rates that do not fit the exits.
    """
    operations = tuple(operations)
    shares = _shares(max((op.exit for op in operations), default=0) + 1, exit_rates)
    items = []
    for op in rules.read(operations):
        for item in rules.price(op):
            share = shares[op.exit] if item.quantity in ("mult", "add") else 1
            items.append(replace(item, count=item.count * share))

    def total(*quantities: Quantity, weighted: bool = False) -> float:
        return sum(
            item.count * (item.bits / FULL_BITS if weighted else 1)
            for item in items
            if item.quantity in quantities
        )

    param_storage = total("param", "mask", weighted=True)
    math_ops = total("mult", "add", weighted=True)
    return Score(
        rules=rules.name,
        num_adds=total("add"),
        num_mults=total("mult"),
        num_params=total("param"),
        mask_params=total("mask", weighted=True),
        param_storage=param_storage,
        math_ops=math_ops,
        score=param_storage / PARAM_BASE + math_ops / OPS_BASE,
        macs=sum(op.macs * shares[op.exit] for op in operations),
        dense_macs=sum(op.dense_macs * shares[op.exit] for op in operations),
        items=tuple(items),
    )


def _shares(num_exits: int, exit_rates: Sequence[float] | None) -> list[float]:
    """Return the fraction of images that reach each exit."""
    if exit_rates is None:
        return [1] * num_exits
    if len(exit_rates) != num_exits or min(exit_rates) < 0 or abs(sum(exit_rates) - 1) > 1e-6:
        raise InputError(
            f"exit_rates {list(exit_rates)}: give the fraction of images of each of {num_exits} "
            "exits, 1 in all"
        )
    return [1 - sum(exit_rates[:exit_]) for exit_ in range(num_exits)]


def score_network(
    model: nn.Module,
    rules: str | RuleSet = "published",
    input_shape: tuple[int, ...] = (3, 32, 32),
) -> Score:
    """Score any network for one image of `input_shape` `(C, H, W)`.

    Of a `Network` with several exits, every image reaches the last one; see `score_operations`.

    Raises:
        InputError: unknown rule set, or an operation without a price.
    """
    chosen = RULE_SETS[rules] if isinstance(rules, str) else rules
    return score_operations(record_operations(model, input_shape), chosen)
