"""The bill of a network as an area that one can walk into. Chapter `06_scoring`."""

import re
from collections.abc import Mapping

import pandas as pd
from IPython.display import HTML

from micronet_lib.errors import InputError
from micronet_lib.plots.style import component
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE

__all__ = ["bill_area"]

_QUANTITIES = ("param", "mask", "mult", "add")


def bill_area(bills: Mapping[str, tuple[pd.DataFrame, str]], name: str) -> HTML:
    """Return the bills of networks as areas: parts, their layers, what is charged for each.

    It needs no network connection and no other file.

    Args:
        bills: network -> its items and their source. Items are `records.bill` or `Score.table()`:
            layer, quantity, param_storage and math_ops.
        name: id of the element on the page, the same in every run.

    Raises:
        InputError: no network.
    """
    if not bills:
        raise InputError("the area needs the bill of at least one network")
    networks = [
        {"label": label, "source": source, "parts": _parts(items)}
        for label, (items, source) in bills.items()
    ]
    return component("scoring_area.html", "bill-area", name, {"networks": networks})


def _parts(items: pd.DataFrame) -> list[list]:
    """Return `[part, [[layer, param, mask, mult, add], ...]]` in order, in billionths of score."""
    scores = items["param_storage"] / PARAM_BASE + items["math_ops"] / OPS_BASE
    table = scores.groupby([items["layer"], items["quantity"]], sort=False).sum().unstack()
    table = (1e9 * table.reindex(columns=list(_QUANTITIES)).fillna(0)).round().astype(int)
    parts: dict[str, list[list]] = {}
    for layer in items["layer"].unique():
        found = re.match(r"blocks\.(\d+)\.(.+)|([^.]+)\.?(.*)", layer)
        assert found is not None
        part = f"block {found[1]}" if found[1] else found[3]
        name = (found[2] or found[4] or part).removesuffix(".hard_swish")
        parts.setdefault(part, []).append([name, *table.loc[layer].tolist()])
    return [[part, layers] for part, layers in parts.items()]
