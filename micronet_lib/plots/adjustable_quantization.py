"""Figures of chapter `09_adjustable_quantization`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from micronet_lib.plots.style import BLUE, GREY, ORANGE, figure, footer, not_run, note, yours

__all__ = ["adjusted_ranges", "learned_and_uniform", "widths_of_channels"]

_COLOURS = {"uniform": GREY, "learned": BLUE, "rounded": ORANGE}
# Where the name of a point stands: two ways of a score lie above each other.
_SHIFTS = {
    "uniform": ((0, -13), "center"),
    "learned": ((6, -8), "left"),
    "rounded": ((6, 3), "left"),
}


def adjusted_ranges(curves: pd.DataFrame, source: str) -> Figure:
    """Draw what a channel's numbers become, for some ranges and widths.

    Args:
        curves: columns title, x and rounded; the rows of a title are a panel.
    """
    groups = list(curves.groupby("title", sort=False))
    fig, axes = figure(height=2.6, columns=len(groups))
    for ax, (title, rows) in zip(axes, groups, strict=True):
        ax.plot(rows["x"], rows["x"], color=GREY, lw=0.8)
        ax.step(rows["x"], rows["rounded"], color=BLUE, where="mid")
        ax.set(title=title, xlabel="number")
    axes[0].set(ylabel="what it becomes")
    return footer(fig, source)


def widths_of_channels(
    histograms: Mapping[str, Mapping[str, Sequence[int]]], source: str
) -> Figure:
    """Draw how many channels have which width.

    Args:
        histograms: title -> `histogram` of a record: numbers of channels by width, from 0 up, for
            weights and activations. Empty: not run.
    """
    fig, axes = figure(height=2.6, columns=max(1, len(histograms)))
    if not histograms:
        not_run(axes[0])
    for ax, (title, found) in zip(axes, histograms.items(), strict=False):
        for shift, side, colour in ((-0.2, "weights", BLUE), (0.2, "activations", ORANGE)):
            share = np.array(found[side]) / max(1, sum(found[side]))
            ax.bar(np.arange(len(share)) + shift, 100 * share, 0.4, color=colour, label=side)
        ax.set(title=title, xlabel="bits", xlim=(1.3, 8.7))
    if histograms:
        axes[0].set(ylabel="channels (%)")
        handles = axes[0].get_legend_handles_labels()[0]
        fig.legend(handles=handles, fontsize=8, loc="outside upper left", ncols=2)
    return footer(fig, source)


def learned_and_uniform(
    measured: pd.DataFrame, source: str, mine: pd.DataFrame | None = None
) -> Figure:
    """Draw accuracy against score, widths that were learned beside widths that are all the same.

    A grey line joins the two ways of a width. A bar is the spread of a point with several runs.

    Args:
        measured: a table of the sweep; points without a record are not drawn.
        mine: from `records.mine` of that sweep: the reader's own runs, a marker more.
    """
    fig, (ax,) = figure(height=3.8)
    run = measured[measured["n"] > 0]
    if mine is not None:
        yours(ax, mine, mine["official.score"], 100 * mine["top1"], legend=run.empty)
    if run.empty:
        not_run(ax)
        return footer(fig, source)
    kinds = run["point"].str.partition("_")[0]
    at = run.set_index("point")[["official.score", "top1"]]
    for point in at.index[at.index.str.startswith("learned")]:
        same = point.replace("learned", "uniform").removesuffix("_bounds")
        if same in at.index:
            ends = at.loc[[same, point]]
            ax.plot(ends["official.score"], 100 * ends["top1"], color=GREY, lw=0.8, zorder=0)
    for kind, rows in run.groupby(kinds, sort=False):
        where = rows["official.score"], 100 * rows["top1"]
        ax.scatter(*where, color=_COLOURS[str(kind)], label=kind)
        ax.errorbar(*where, 100 * rows["top1_std"], fmt="none", color=_COLOURS[str(kind)])
        for point, score, top1 in zip(rows["point"], *where, strict=True):
            shift, side = _SHIFTS[str(kind)]
            if point.endswith("bounds"):
                shift, side = (-6, -3), "right"  # its point covers that of the way without
            note(ax, point.replace("_", " "), (score, top1), shift, ha=side)
    ax.axhline(80, color="black", lw=0.9, ls=":")
    ax.margins(x=0.15, y=0.15)
    ax.set(xlabel="score", ylabel="top-1 (%)")
    fig.legend(fontsize=8, loc="outside upper left", ncols=4)
    return footer(fig, source)
