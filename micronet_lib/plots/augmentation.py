"""Figures of chapter `04_augmentation`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from micronet_lib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    WIDTH,
    figure,
    footer,
    panel_of,
    yours,
)

__all__ = [
    "augmentation_sweep",
    "box_weights",
    "image_grid",
    "policy_statistics",
    "search_trials",
    "stage_steps",
    "stage_table",
]

_DARK = "#222222"
_KINDS = {
    "none": ("as they are", _DARK),
    "searched": ("searched", BLUE),
    "shuffled": ("searched, operations\nshuffled", PURPLE),
    "published": ("published", GREEN),
    "random": ("random", ORANGE),
}
# What each stage of [kim2020, Tables 2 to 4] is called there.
_STAGES = {
    "vanilla": "top1_vanilla_percent",
    "no_bias_decay": "top1_no_bias_decay_percent",
    "orn": "top1_orn_percent",
    "als": "top1_als_percent",
    "fast_autoaugment": "top1_fast_autoaugment_percent",
    "cutmix": "top1_cutmix_percent",
}


def image_grid(
    rows: Mapping[str, Sequence[Any]],
    columns: Sequence[str],
    source: str,
    *,
    boxes: Mapping[tuple[int, int], Sequence[int]] | None = None,
    gap_after: Sequence[int] = (),
) -> Figure:
    """Draw images in rows and columns, every pixel a square.

    Args:
        rows: label -> one picture per column, each `[3, H, W]` in 0 to 255, or None for an empty
            place.
        columns: headings of the columns.
        boxes: (row, column) -> left, top, right, bottom of a frame to draw, the last two excluded.
        gap_after: columns that are followed by a wider gap.
    """
    pictures = [[None if p is None else np.asarray(p) for p in row] for row in rows.values()]
    height, width = next(p.shape[1:] for row in pictures for p in row if p is not None)
    wide = np.cumsum([0] + [place in gap_after for place in range(len(columns) - 1)])
    x = [place * (width + 2) + 6 * int(more) for place, more in enumerate(wide)]
    y = [place * (height + 2) for place in range(len(rows))]
    sheet = np.full((y[-1] + height, x[-1] + width, 3), 255, np.uint8)
    longest = max(len(line) for label in rows for line in label.splitlines())
    inches = WIDTH - 0.25 - 0.075 * longest  # what the row labels leave for the pictures
    fig, (ax,) = figure(height=inches * sheet.shape[0] / sheet.shape[1] + 0.55)
    for line, above in zip(pictures, y, strict=True):
        for picture, start in zip(line, x, strict=True):
            if picture is not None:
                sheet[above : above + height, start : start + width] = picture.transpose(1, 2, 0)
    ax.imshow(sheet, interpolation="nearest")
    for (row, column), (left, top, right, bottom) in (boxes or {}).items():
        corner = (x[column] + left - 0.5, y[row] + top - 0.5)
        frame = Rectangle(corner, right - left, bottom - top, fill=False, ec="white", lw=2)
        ax.add_patch(frame)
        ax.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, ec=_DARK, lw=0.8))
    ax.set_yticks([top + height / 2 for top in y], list(rows), size=8.5)
    ax.set_xticks([left + width / 2 for left in x], list(columns), size=8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return footer(fig, source)


def policy_statistics(statistics: pd.DataFrame, source: str) -> Figure:
    """Draw share and strength of each operation in policies; grey lines are uniform draws.

    Args:
        statistics: rows kind (`published`, `searched`), operation, share (of all steps),
            probability and level (means over those steps).
    """
    fig, axes = figure(height=3.7, columns=3)
    order, kinds = statistics["operation"].unique(), statistics["kind"].unique()
    columns = {
        "share": ("share of all steps (%)", 100, 100 / len(order)),
        "probability": ("mean probability", 1, 0.5),
        "level": ("mean level", 1, 0.5),
    }
    for ax, (column, (title, scale, uniform)) in zip(axes, columns.items(), strict=True):
        ax.axvline(uniform, color=GREY, lw=1.2, ls="--")
        for kind in kinds:
            rows = statistics[statistics["kind"] == kind].set_index("operation").reindex(order)
            label, colour = _KINDS[kind]
            marker = "o" if kind == "published" else "D"
            style: dict[str, Any] = {"color": colour, "label": label, "clip_on": False}
            ax.plot(scale * rows[column], range(len(order)), marker, **style)
        ax.set_yticks(range(len(order)), order if ax is axes[0] else [])
        ax.invert_yaxis()
        ax.set(title=title, xlim=(0, None if column == "share" else 1))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(kinds))
    return footer(fig, source)


def box_weights(draws: pd.DataFrame, source: str) -> Figure:
    """Draw the mixing weight before and after CutMix's box is clipped at the border.

    Args:
        draws: one row per draw: before (from Beta), after (area outside the box).
    """
    fig, (scatter, histogram) = figure(height=2.9, columns=2)
    few = draws.head(2000)
    scatter.plot(few["before"], few["after"], ".", ms=3, color=BLUE, alpha=0.5)
    scatter.plot([0, 1], [0, 1], color=_DARK, lw=1)
    label: dict[str, Any] = {"size": 8.5, "ha": "center", "va": "top", "color": _DARK}
    scatter.text(0.62, 0.6, "box not cut", rotation=38, **label)
    scatter.set(xlabel="weight as drawn", ylabel="weight that the box leaves")
    bins = list(np.linspace(0, 1, 26))
    for column, colour, name in (
        ("before", GREY, "as drawn, Beta(1, 1)"),
        ("after", BLUE, "that the box leaves"),
    ):
        histogram.hist(draws[column], bins, density=True, histtype="step", color=colour, lw=2)
        histogram.axvline(draws[column].mean(), color=colour, ls="--", lw=1)
        histogram.plot([], [], color=colour, lw=2, label=name)
    histogram.set(xlabel="weight of the image's own target", ylabel="density")
    histogram.legend(loc="upper left")
    return footer(fig, source)


def search_trials(trials: pd.DataFrame, controls: pd.DataFrame, source: str) -> Figure:
    """Draw the trials of a search, and the loss of its result on unseen images.

    Args:
        trials: fold, trial (number), loss, plain (loss without any policy), startup (number of
            random trials).
        controls: fold, policies, loss; policies are `none`, `searched`, `shuffled`, `random`,
            `published`.
    """
    fig, (left, right) = figure(height=3.2, columns=2, widths=(1.25, 1))
    colours = (BLUE, ORANGE, GREEN, PURPLE, GREY)
    for (fold, rows), colour in zip(trials.groupby("fold"), colours, strict=False):
        best = rows["loss"].cummin()
        left.plot(rows["trial"], rows["loss"], ".", ms=4, color=colour, label=f"fold {fold}")
        left.plot(rows["trial"], best, color=colour, lw=1.5)
        left.axhline(rows["plain"].iloc[0], color=colour, lw=1, ls="--")
    left.axvspan(-1, trials["startup"].iloc[0] - 0.5, color="#eeeeee", lw=0)
    left.text(0, 0.99, "random", transform=left.get_xaxis_transform(), size=8, va="top")
    left.set(xlabel="trial", ylabel="mean cross-entropy on the fold")
    fig.legend(loc="outside upper left", markerscale=2, ncols=5)
    kinds = [kind for kind in _KINDS if kind in set(controls["policies"])]
    for place, kind in enumerate(kinds):
        losses = controls[controls["policies"] == kind]["loss"]
        right.plot(losses, [place] * len(losses), "o", color=_KINDS[kind][1])
    right.set_yticks(range(len(kinds)), [_KINDS[kind][0] for kind in kinds])
    right.set(xlabel="mean cross-entropy on validation images", ylim=(len(kinds) - 0.5, -0.5))
    return footer(fig, source)


def augmentation_sweep(
    measured: pd.DataFrame, source: str, mine: pd.DataFrame | None = None
) -> Figure:
    """Draw test accuracy by augmentation, mean and spread; beside it the training loss.

    Args:
        measured: a table of the sweep `augmentation`: point, top1, top1_std, train_loss.
        mine: from `records.mine` of that sweep: the reader's own runs, a marker more.
    """
    fig, (left, right) = figure(height=3.2, columns=2)
    points = measured["point"]
    _points(left, points, 100 * measured["top1"], 100 * measured["top1_std"], BLUE)
    left.set_xlabel("top-1 (%)")
    losses = measured.get("train_loss", pd.Series(np.nan, measured.index))  # no run, no such metric
    _points(right, points, losses, None, ORANGE)
    right.set(xlabel="training loss, last epoch", yticklabels=[])
    if mine is not None:
        at = mine["point"].map({name: place for place, name in enumerate(points)})
        yours(left, mine, 100 * mine["top1"], at)
        yours(right, mine, mine.get("train_loss", at), at, legend=False)
    return footer(fig, source)


def stage_table(measured: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Return the stages at the entry's expansion ratio, the paper's and ours.

    Args:
        measured: from `records.measured` of the sweep `stages`, points `3.0-<stage>`.
        paper: transcribed numbers of all chapters, concatenated.

    Returns:
        Columns stage, paper (percent), paper_step (points over the stage before), n, top1, spread
        (percent). `NaN` where nothing is known.
    """
    rows = measured.set_index("point")
    printed = paper[paper["point"].isin(["3.0", "ratio_3.0"])]
    values = printed.drop_duplicates("metric").set_index("metric")["value"]
    table = pd.DataFrame({"stage": list(_STAGES)})
    table["paper"] = [values.get(metric, np.nan) for metric in _STAGES.values()]
    points = [f"3.0-{stage}" for stage in _STAGES]
    table["n"] = rows["n"].reindex(points).fillna(0).astype(int).to_numpy()
    for column, name in (("top1", "top1"), ("spread", "top1_std")):
        table[column] = 100 * rows[name].reindex(points).to_numpy()
    table.insert(2, "paper_step", table["paper"].diff())
    return table


def stage_steps(
    tables: Mapping[str, pd.DataFrame], source: str, mine: pd.DataFrame | None = None
) -> Figure:
    """Draw the stages in order: the paper's 600 epochs, then ours, each on an axis of its own.

    Args:
        tables: title of the panel, which ends in a profile -> table from `stage_table`, with the
            same stages.
        mine: from `records.mine` of the sweep: the reader's own runs, a marker more in the panel
            of their profile, or in the first one.
    """
    fig, (left, *others) = figure(height=3.4, columns=1 + len(tables))
    first = next(iter(tables.values()))
    labels = [("+ " if place else "") + name for place, name in enumerate(first["stage"])]
    _points(left, labels, first["paper"], None, GREY)
    left.set(title="paper, 600 epochs", xlabel="top-1 (%)")
    for ax, (title, table) in zip(others, tables.items(), strict=True):
        _points(ax, labels, table["top1"], table["spread"], BLUE)
        ax.set(title=title, xlabel="top-1 (%)", yticklabels=[])
    if mine is not None:
        rows = {f"3.0-{stage}": place for place, stage in enumerate(_STAGES)}
        panel = panel_of(mine, [left, *others])
        yours(panel, mine, 100 * mine["top1"], mine["point"].map(rows))
    return footer(fig, source)


def _points(
    ax: Axes, labels: Sequence[str], values: pd.Series, spread: pd.Series | None, colour: str
) -> None:
    """Draw one dot per row with its spread, from top to bottom; `not run` without a value."""
    for place, value in enumerate(values):
        if np.isnan(value):
            style: dict[str, Any] = {"color": GREY, "size": 8, "ha": "center", "va": "center"}
            style |= {"transform": ax.get_yaxis_transform(), "backgroundcolor": "white"}
            ax.text(0.5, place, "not run", **style)
            continue
        bar = None if spread is None or np.isnan(spread.iloc[place]) else spread.iloc[place]
        ax.errorbar(value, place, xerr=bar, fmt="o", capsize=3, color=colour)
    ax.set_yticks(range(len(values)), list(labels))
    ax.set_ylim(len(values) - 0.5, -0.5)
    if values.isna().all():
        ax.set_xticks([])
