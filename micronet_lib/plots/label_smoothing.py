"""Figures and tables of chapter `03_label_smoothing`, except its matrices."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from micronet_lib.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, YELLOW, figure, footer, note

__all__ = ["als_gain", "smoothing_forms", "smoothing_sweep"]

_COLOURS = {
    "none": GREY,
    "uniform": GREEN,
    "paper": BLUE,
    "released": ORANGE,
    "released, pruning": YELLOW,
    "slide": PURPLE,
}


def smoothing_forms(
    targets: pd.DataFrame, entropy: pd.DataFrame, published: pd.DataFrame, source: str
) -> Figure:
    """Draw one class's target under each form, and the entropy of u by temperature.

    Args:
        targets: one row per other class, most similar first, one column per form: the target's
            entries. All must be positive.
        entropy: columns temperature, cosine and absolute: mean entropy of u in nats.
        published: columns form, temperature, entropy: published settings.
    """
    fig, (left, right) = figure(height=3.7, columns=2)
    ranks = np.arange(1, len(targets) + 1)
    for form in targets:
        left.plot(ranks, targets[form], ".-", ms=3, lw=1, color=_COLOURS[str(form)], label=form)
    left.set(xlabel="other classes, most similar first", ylabel="entry of the target", yscale="log")
    left.legend()
    for column, label, style in (("cosine", "cos", "-"), ("absolute", "|cos|", "--")):
        right.plot(entropy["temperature"], entropy[column], style, color="#222222", label=label)
    even = np.log(len(targets))
    right.axhline(even, color=GREEN, lw=1)
    note(right, "uniform", (entropy["temperature"].min(), even), (0, -11))
    for row in published.to_dict("records"):
        at = row["temperature"], row["entropy"]
        right.plot(*at, "o", color=_COLOURS[row["form"]])
        note(right, row["form"], at, (6, -11))
    right.set(xlabel="temperature T", ylabel="entropy of u (nats)", xscale="log")
    right.legend(loc="lower right")
    return footer(fig, source)


def als_gain(paper: pd.DataFrame) -> pd.DataFrame:
    """Return the gain of adaptive label smoothing in the paper's Table 3, in points of top-1.

    Args:
        paper: the chapter's transcribed numbers: point, metric, value.

    Returns:
        Columns i (expansion ratio), orn and als (top-1 in percent), gain.
    """
    rows = paper[paper["point"].str.startswith("ratio_")]
    wide = rows.pivot_table(index="point", columns="metric", values="value", sort=False)
    orn, als = wide["top1_orn_percent"], wide["top1_als_percent"]
    ratios = wide.index.str.removeprefix("ratio_")
    columns = {"i": ratios, "orn": orn, "als": als, "gain": als - orn}
    return pd.DataFrame({name: list(values) for name, values in columns.items()})


def smoothing_sweep(measured: pd.DataFrame, gain: pd.DataFrame, source: str) -> Figure:
    """Draw the measured forms, and separately the paper's numbers, on another scale.

    Args:
        measured: a table of the sweep `label_smoothing`: point, n, top1, top1_std.
        gain: from `als_gain`.
    """
    fig, (left, right) = figure(height=3.5, columns=2)
    for place, row in enumerate(measured.to_dict("records")):
        if row["n"]:
            spread = 100 * row["top1_std"] if row["n"] > 1 else None
            colour = _COLOURS[row["point"]]
            left.errorbar(place, 100 * row["top1"], spread, fmt="o", capsize=4, color=colour)
        else:
            style: dict[str, Any] = {"rotation": 90, "va": "center", "ha": "center", "size": 8}
            middle = left.get_xaxis_transform()
            left.text(place, 0.5, "not run", transform=middle, color=GREY, **style)
    if not measured["n"].any():
        left.set_yticks([])
    left.set_xticks(range(len(measured)), measured["point"])
    left.set(title="measured, few epochs", xlim=(-0.6, len(measured) - 0.4), ylabel="top-1 (%)")
    bars = right.bar(gain["i"], gain["gain"], color=BLUE, width=0.7)
    right.bar_label(bars, fmt="%+.2f", fontsize=8)
    right.set_title("paper, Table 3: + ALS over + ORN")
    right.set(xlabel="expansion ratio i", ylabel="points of top-1")
    for ax in (left, right):
        ax.grid(axis="x", visible=False)
    return footer(fig, source)
