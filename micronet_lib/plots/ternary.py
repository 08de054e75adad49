"""Figures of chapter `08_ternary`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from micronet_lib.plots.style import BLUE, GREY, ORANGE, figure, footer, not_run, note, yours

__all__ = ["latent_bins", "ternary_readings", "three_bins"]

_SIDES = {"minus": ("-Wn", ORANGE), "zero": ("0", GREY), "plus": ("+Wp", BLUE)}


def three_bins(weights: pd.DataFrame, scales: tuple[float, float], source: str) -> Figure:
    """Draw weights as they are sorted into three bins, and as the layer computes with them.

    Args:
        weights: columns weight and sign (1, 0 or -1), a row for each weight.
        scales: `Wp` and `Wn`.
    """
    fig, (left, right) = figure(height=2.9, columns=2)
    edges = np.linspace(weights["weight"].min(), weights["weight"].max(), 61)
    values = dict(zip(_SIDES, (-scales[1], 0.0, scales[0]), strict=True))
    for sign, (side, (label, colour)) in zip((-1, 0, 1), _SIDES.items(), strict=True):
        chosen = weights.loc[weights["sign"] == sign, "weight"]
        left.hist(chosen, edges.tolist(), color=colour, label=label)
        right.bar(values[side], len(chosen), width=(edges[-1] - edges[0]) / 40, color=colour)
        text = f"{label}\n{len(chosen) / len(weights):.0%}"
        note(right, text, (values[side], len(chosen)), (0, 3), ha="center")
    left.set(title="latent weights, sorted", xlabel="weight", ylabel="number of weights")
    right.set(title="what the layer computes with", xlabel="weight", xlim=left.get_xlim())
    right.margins(y=0.3)
    left.legend(fontsize=8)
    return footer(fig, source)


def latent_bins(histograms: Mapping[str, Mapping[str, Any]], source: str) -> Figure:
    """Draw the latent weights of one layer after training, scheme by scheme.

    Args:
        histograms: title -> `histogram["after"]` of a record: numbers of weights from -1 to 1 in
            units of the largest magnitude before, for minus, zero and plus; `scales`. Empty: not
            run.
    """
    fig, axes = figure(height=2.6, columns=max(1, len(histograms)))
    if not histograms:
        not_run(axes[0])
    for ax, (title, found) in zip(axes, histograms.items(), strict=False):
        bottom = np.zeros(len(found["zero"]))
        at = (np.arange(len(bottom)) + 0.5) / len(bottom) * 2 - 1
        for side, (label, colour) in _SIDES.items():
            ax.bar(at, found[side], 2 / len(bottom), bottom, color=colour, label=label)
            bottom += found[side]
        for scale in found["scales"]:
            ax.axvline(scale, color="#222222", lw=1, ls="--")
        # The weights at exactly 0 stand in one bar and would hide the others.
        ax.set_ylim(0, 1.15 * np.sort(bottom)[-2])
        ax.set(title=title, xlabel="latent weight", xlim=(-0.8, 0.8))
        ax.tick_params(labelsize=7.5)
    if histograms:
        handles = axes[0].get_legend_handles_labels()
        fig.legend(*handles, loc="outside upper center", ncols=3, fontsize=8)
    return footer(fig, source)


def ternary_readings(
    measured: pd.DataFrame, source: str, mine: pd.DataFrame | None = None
) -> Figure:
    """Draw accuracy against score, with additions at 32 bits and at 16.

    A bar is the spread of a point with several runs.

    Args:
        measured: a table of the sweep `ternary`; points without a record are not drawn.
        mine: from `records.mine` of that sweep: the reader's own runs, a marker more.
    """
    fig, (ax,) = figure(height=3.2)
    run = measured[measured["n"] > 0]
    if mine is not None:
        yours(ax, mine, mine["official.score"], 100 * mine["top1"], legend=run.empty)
    if run.empty:
        not_run(ax)
        return footer(fig, source)
    right, wide, narrow = 100 * run["top1"], run["official.score"], run["narrow_sums.score"]
    ax.hlines(right, narrow, wide, color=GREY, lw=0.8)
    ax.scatter(wide, right, color=BLUE, label="additions at 32 bits", zorder=3)
    ax.scatter(narrow, right, edgecolor=BLUE, color="white", label="at 16 bits", zorder=3)
    ax.errorbar(wide, right, 100 * run["top1_std"], fmt="none", color=BLUE)
    for point, score, top1 in zip(run["point"], wide, right, strict=True):
        shift, side = ((0, 6), "center") if point == "ttq_75" else ((6, -3), "left")
        note(ax, point, (score, top1), shift, ha=side)
    ax.margins(x=0.15, y=0.12)
    ax.set(xlabel="score", ylabel="top-1 (%)", ylim=(-4, None))
    fig.legend(fontsize=8, loc="outside upper left", ncols=3)
    return footer(fig, source)
