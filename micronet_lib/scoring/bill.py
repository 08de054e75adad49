"""The MicroNet Challenge's score of a network, and its bill line by line.

`score = param_storage / 36.5e6 + math_ops / 10.49e9`, both in 32-bit units [kim2020, equation 1].
The reference is WRN-28-10. `micronet_lib.scoring.operations` lists what the network executes,
`micronet_lib.scoring.rules` prices it. Chapter `06_scoring` walks through both.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import pandas as pd
from torch import nn

from micronet_lib.scoring.operations import Operation, record_operations
from micronet_lib.scoring.rules import FULL_BITS, Item, Quantity, RuleSet, get_rules

PARAM_BASE = 36.5e6
OPS_BASE = 10.49e9


@dataclass(frozen=True)
class Score:
    """A network's bill under one rule set.

    Attributes:
        num_adds: additions of one image, unweighted.
        num_mults: multiplications of one image, unweighted.
        num_params: stored values, unweighted; a value that is masked out is not stored.
        mask_params: the sparsity masks, in 32-bit parameters.
        param_storage: stored values and masks, weighted, in 32-bit parameters.
        math_ops: multiplications and additions, weighted, in 32-bit operations.
        score: the challenge's sum of both against its reference; lower is better.
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
    items: tuple[Item, ...] = field(repr=False)

    def metrics(self) -> dict[str, float]:
        """The totals, for records and `--json`."""
        values = {name: getattr(self, name) for name in SCORE_METRICS}
        return {name: int(v) if float(v).is_integer() else v for name, v in values.items()}

    def table(self) -> pd.DataFrame:
        """The bill: a row an item, with `param_storage` and `math_ops` weighted to 32 bits."""
        table = pd.DataFrame([asdict(item) for item in self.items if item.count])
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


def score_operations(operations: Iterable[Operation], rules: RuleSet) -> Score:
    """Add up what the operations cost under the rules."""
    items = tuple(item for operation in operations for item in rules.price(operation))

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
        items=items,
    )


def score_network(
    model: nn.Module, rules: str | RuleSet = "published", input_shape: tuple[int, ...] = (3, 32, 32)
) -> Score:
    """Score any network of the book for one image of `input_shape` `(C, H, W)`.

    Raises:
        InputError: unknown rule set, or an operation that no rule covers.
    """
    chosen = get_rules(rules) if isinstance(rules, str) else rules
    return score_operations(record_operations(model, input_shape), chosen)
