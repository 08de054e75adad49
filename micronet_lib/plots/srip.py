"""Figures of chapter `02_srip`: circle, penalty, effect, gain. `srip_spectra` has the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from micronet_lib.architecture.layers import POINTWISE
from micronet_lib.plots.srip_spectra import ratio_axis
from micronet_lib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    KIND_STYLES,
    ORANGE,
    SKY,
    figure,
    footer,
    panel_of,
    yours,
)

__all__ = ["srip_descent", "srip_ellipse", "srip_floor", "srip_placement", "srip_starts"]


def srip_ellipse(path: np.ndarray, shown: Sequence[int], source: str) -> Figure:
    """Draw what a matrix makes of the unit circle, at some steps, and its singular values at all.

    Args:
        path: the matrix before every step, `[steps, 2, 2]`.
        shown: steps at which the circle is drawn.
    """
    fig, axes = figure(height=2.5, columns=len(shown) + 1)
    angles = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angles), np.sin(angles)])  # [2, 181]
    reach = 1.1 * max(1.0, np.linalg.svd(path[list(shown)], compute_uv=False).max())
    for ax, step in zip(axes, shown, strict=False):
        left, values, _ = np.linalg.svd(path[step])
        ax.plot(*circle, color=GREY, lw=1, ls="--")
        ax.plot(*(path[step] @ circle), color="#222222", lw=1.2)
        evenly = circle[:, :-1:9]  # 20 inputs, the same angle apart
        x, y = path[step] @ evenly
        ax.scatter(x, y, c=angles[:-1:9], cmap="twilight", s=22, zorder=3)
        for axis, value, colour in zip(left.T, values, (BLUE, ORANGE), strict=True):
            ax.plot(*np.stack([0 * axis, value * axis], axis=1), color=colour, lw=2)
        ax.set(title=f"after {step} steps" if step else "before", aspect="equal")
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
        ax.set_xlabel(" and ".join(f"{value:.2f}" for value in values))
        ax.spines[:].set_visible(False)
    last = axes[-1]
    last.axhline(1, color=GREY, lw=1, ls="--")
    for values, colour in zip(np.linalg.svd(path, compute_uv=False).T, (BLUE, ORANGE), strict=True):
        last.plot(values, color=colour, lw=1.5)
    for step in shown:
        last.axvline(step, color="#e6e6e6", lw=1.5, zorder=0)
    last.set(title="singular values", xlabel="steps", ylim=(0, None))
    last.grid(axis="x", visible=False)
    return footer(fig, source)


def srip_floor(norms: pd.DataFrame, layers: pd.DataFrame) -> Figure:
    """Draw the exact norm and the one-step estimate over the shape of the matrix.

    Args:
        norms: definition (`paper`, `released`), ratio (fan_in / out_chs), exact, mean and std (of
            the estimate over its start vectors), one row per definition and ratio.
        layers: a network's matrices: kind, out_chs, fan_in, marked along the lower edge.
    """
    fig, axes = figure(height=3.5, columns=2)
    titles = {"paper": "paper: W W' - I", "released": "released: W' W - I"}
    for ax, (definition, title) in zip(axes, titles.items(), strict=True):
        rows = norms[norms["definition"] == definition].sort_values("ratio")
        ax.plot(rows["ratio"], rows["exact"], color=BLUE, lw=2, label="exact norm")
        ax.plot(rows["ratio"], rows["mean"], color=ORANGE, label="one step: mean, spread")
        low, high = rows["mean"] - rows["std"], rows["mean"] + rows["std"]
        ax.fill_between(rows["ratio"], low, high, color=ORANGE, alpha=0.25, lw=0)
        for kind in POINTWISE:
            own = layers[layers["kind"] == kind]
            if len(own):
                label, colour = KIND_STYLES[kind]
                ratio, y = own["fan_in"] / own["out_chs"], np.full(len(own), -0.06)
                ax.scatter(ratio, y, marker="|", color=colour, s=60, label=label)
        ax.set(title=title, ylim=(-0.12, 1.15))
        ratio_axis(ax)
    axes[0].set_ylabel("distance from orthogonal")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def srip_descent(paths: pd.DataFrame, rests: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the effect of the penalty alone: every singular value of a matrix, step by step.

    Args:
        paths: start (`fresh`, `warm`), shape (a name of `rests`), step, index, value.
        rests: shape -> predicted resting places of the values, left to right.
    """
    starts = list(dict.fromkeys(paths["start"]))
    fig, axes = figure(height=4.6, columns=len(rests), rows=len(starts))
    panels = [(start, shape) for start in starts for shape in rests]
    for ax, (start, shape) in zip(axes, panels, strict=True):
        own = paths[(paths["start"] == start) & (paths["shape"] == shape)]
        lines = own.pivot_table(index="step", columns="index", values="value")
        for column in lines:
            tall = lines[column].iloc[0] > 1
            ax.plot(lines.index, lines[column], color=BLUE if tall else GREEN, lw=1)
        for rest in rests[shape]:
            ax.axhline(rest, color=ORANGE, ls="--", lw=1, zorder=3)
        ax.set(title=f"{shape}, {start} start", ylim=(0.45, 1.5))
        ax.set(xlabel="steps", ylabel="singular value")
        ax.label_outer()
    return fig


def srip_starts(draws: pd.DataFrame, warm: pd.DataFrame, exact: float) -> Figure:
    """Compare a fresh start vector at each step with a warm one: estimate and gradient.

    Args:
        draws: one row per fresh draw: value, cosine (of its gradient with the exact norm's) and
            running (that of the mean of all gradients so far).
        warm: one row per step: value, cosine.
        exact: the mean of the exact norms.
    """
    fig, (left, right) = figure(height=3.4, columns=2)
    steps, kept = np.arange(1, len(draws) + 1), np.arange(1, len(warm) + 1)
    left.axhline(exact, color="#222222", lw=1, label="exact")
    left.plot(steps, draws["value"], ".", color=SKY, label="fresh, each draw")
    left.axhline(draws["value"].mean(), color=BLUE, ls="--", label="fresh, mean")
    left.plot(kept, warm["value"], color=ORANGE, lw=2, label="warm")
    left.set(title="penalty", xlabel="step, or draws averaged")
    right.axhline(1, color="#222222", lw=1)
    right.plot(steps, draws["cosine"], ".", color=SKY)
    right.plot(steps, draws["running"], color=BLUE, ls="--")
    right.plot(kept, warm["cosine"], color=ORANGE, lw=2)
    right.set_title("cosine of the gradient with the exact one's")
    right.set(xlabel="step, or draws averaged", ylim=(0, 1.05))
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return fig


def srip_placement(
    gains: Mapping[str, pd.DataFrame],
    paper: pd.DataFrame,
    source: str,
    mine: pd.DataFrame | None = None,
) -> Figure:
    """Draw the gain over no SRIP by placement: the paper's 600 epochs, then ours, axis by axis.

    Args:
        gains: title of the panel -> table from `records.gain` over the point `none`, in points of
            top-1, with the same points. A point all of whose runs failed says so.
        paper: transcribed numbers with `gain_percent` by point.
        mine: from `records.mine` of the sweep: the reader's own runs, a marker more in the panel
            of their profile, or in the paper's. They are gains too, so the point `none` is needed.
    """
    fig, (left, *others) = figure(height=2.7, columns=1 + len(gains))
    points = next(iter(gains.values()))["point"]
    place = np.arange(len(points))
    printed = paper[paper["metric"] == "gain_percent"].set_index("point")["value"]
    left.bar(place, printed.reindex(points), 0.6, color=GREY)
    left.set(title="paper, 600 epochs", ylabel="gain in top-1 (points)")
    for ax, (title, table) in zip(others, gains.items(), strict=True):
        ax.bar(place, table["gain"], 0.6, color=BLUE)
        ax.set_title(title)
        run = table["gain"].notna().to_numpy()
        known = table["high"].notna().to_numpy()  # a single run has no interval
        margin = (table["high"] - table["gain"])[known]
        style: dict[str, Any] = {"fmt": "none", "ecolor": "#222222", "capsize": 3}
        ax.errorbar(place[known], table["gain"][known], margin, **style)
        diverged = table.attrs.get("diverged", {})
        for x in place[~run]:
            said = "diverged" if points.iloc[x] in diverged else "not run"
            # Clear of the line at 0.
            where: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points"}
            ax.annotate(said, (x, 0), **where, ha="center", va="bottom", size=8, rotation=90)
        if not run.any():
            ax.set(yticks=[], ylim=(-1, 2))
    if mine is not None:
        top1 = mine.set_index("point")["top1"]
        own = 100 * mine["point"].map(top1 - top1["none"])
        at = mine["point"].map(dict(zip(points, place, strict=True)))
        yours(panel_of(mine, [left, *others]), mine, at, own)
    for ax in (left, *others):
        ax.axhline(0, color="#222222", lw=0.8)
        ax.set_xticks(place, points, rotation=25, ha="right")
        ax.set_xlim(-0.5, len(points) - 0.5)
        ax.tick_params(axis="x", labelsize=8.5)
        ax.grid(axis="x", visible=False)
    return footer(fig, source)
