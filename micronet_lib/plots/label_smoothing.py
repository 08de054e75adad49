"""Figures and tables of chapter `03_label_smoothing`, except its matrices."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from micronet_lib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    YELLOW,
    figure,
    footer,
    not_run,
    note,
    panel_of,
    yours,
)

__all__ = ["als_gain", "smoothing_forms", "smoothing_sweep", "target_bars"]

_COLOURS = {
    "none": GREY,
    "uniform": GREEN,
    "paper": BLUE,
    "released": ORANGE,
    "released, pruning": YELLOW,
    "slide": PURPLE,
}


_TITLES = {"none": "hard", "uniform": "uniform smoothing", "paper": "adaptive smoothing"}


def target_bars(targets: pd.DataFrame, source: str) -> Figure:
    """Draw the targets of one class as bars, one panel for each form, with the value at each bar.

    All bars but those of the first row are on one scale. The first row's are cut off, as they are
    many times longer.

    Args:
        targets: one row per class, its name as the index, the true class first; one column per
            form: the target's entries, not negative. A row of `NaN` is a gap.
    """
    fig, axes = figure(height=0.22 * len(targets) + 0.9, columns=len(targets.columns))
    end = 1.55 * targets.iloc[1:].max(axis=None)
    names = [str(name).replace("_", " ") for name in targets.index]
    for ax, form in zip(axes, targets, strict=True):
        colour = _COLOURS[str(form)]
        values = targets[form].to_numpy()
        ax.barh(range(len(values)), np.minimum(values, end), color=colour, height=0.7)
        for place, value in enumerate(values):
            if np.isnan(value):
                continue
            if value > end:  # a white gap says that the bar goes on
                ax.plot([0.55 * end, 0.6 * end], [place + 0.5, place - 0.5], color="white", lw=3)
                style = {"color": "white", "weight": "bold", "ha": "right"}
                note(ax, f"{value:.3g}", (end, place), (-4, 0), va="center", **style)
            else:
                text = f"{value:.4f}" if value else "0"
                note(ax, text, (value, place), (3, 0), va="center")
        ax.set(title=_TITLES.get(str(form), str(form)), xlim=(0, end), xticks=[])
        ax.set_yticks(range(len(values)), names if ax is axes[0] else [])
        ax.set_ylim(len(values) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.spines["bottom"].set_visible(False)
        ax.grid(visible=False)
    return footer(fig, source)


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
    fig, (left, right) = figure(height=3.4, columns=2)
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


def smoothing_sweep(
    measured: Mapping[str, pd.DataFrame],
    gain: pd.DataFrame,
    source: str,
    mine: pd.DataFrame | None = None,
) -> Figure:
    """Draw the paper's gains, and the measured forms, each panel on a scale of its own.

    Args:
        measured: title of the panel -> a table of the sweep `label_smoothing`: point, n, top1,
            top1_std.
        gain: from `als_gain`.
        mine: from `records.mine` of the sweep: the reader's own runs, a marker more in the panel
            of their profile, or in the first one that is measured.
    """
    fig, (left, *others) = figure(height=3.0, columns=1 + len(measured))
    bars = left.barh(gain["i"], gain["gain"], color=BLUE, height=0.7)
    left.bar_label(bars, fmt="%+.2f", fontsize=8, padding=2)
    left.invert_yaxis()
    left.set(title="paper, 600 epochs", xlabel="+ ALS over + ORN (points)", ylabel="ratio i")
    left.set_xlim(0, 1.25 * gain["gain"].max())
    for ax, title in zip(others, measured, strict=True):
        ax.set(title=title)
    panel = panel_of(mine, others) if mine is not None and mine["n"].any() else None
    for ax, table in zip(others, measured.values(), strict=True):
        if not table["n"].any() and ax is not panel:
            not_run(ax)
            continue
        for place, row in enumerate(table.to_dict("records")):
            if row["n"]:
                spread = 100 * row["top1_std"] if row["n"] > 1 else None
                colour = _COLOURS[row["point"]]
                ax.errorbar(100 * row["top1"], place, xerr=spread, fmt="o", capsize=3, color=colour)
            else:
                at = ax.get_yaxis_transform()
                ax.text(0.5, place, "not run", transform=at, size=8, ha="center", va="center")
        ax.set_yticks(range(len(table)), table["point"])
        ax.set(xlabel="top-1 (%)", ylim=(len(table) - 0.5, -0.5))
    if mine is not None and panel is not None:
        places = {name: place for place, name in enumerate(mine["point"])}
        yours(panel, mine, 100 * mine["top1"], mine["point"].map(places))
    for ax in (left, *others):
        ax.grid(axis="y", visible=False)
    return footer(fig, source)
