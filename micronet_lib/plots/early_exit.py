"""Figures, tables and the explorable part of chapter `07_early_exit`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from micronet_lib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    component,
    figure,
    footer,
    not_run,
    note,
    yours,
)

__all__ = [
    "exit_choices",
    "exit_curves",
    "exit_explorer",
    "exit_picture",
    "exit_tradeoff",
    "osi_tradeoff",
    "part_costs",
    "reliability",
    "threshold_choice",
]

_COLOURS = {
    "block_3": BLUE, "block_6": GREEN, "block_10": PURPLE, "block_6_joint": ORANGE,
}  # fmt: skip
_HEAD = "exit_head"


def _label(point: str) -> str:
    return point.replace("_", " ").replace("joint", "(joint)")


# ---------------------------------------------------------------------------------- lead picture


def part_costs(items: pd.DataFrame) -> pd.DataFrame:
    """Return the operations of every part of a network with an exit, in the order of execution.

    Args:
        items: `Score.table()` of an `ExitNetwork`: layer, math_ops.

    Returns:
        Columns part (`stem`, `blocks.0`, ..., `exit_head`, ..., `head`) and math_ops.
    """
    names = items["layer"].str.removeprefix("trunk.")
    parts = names.str.extract(r"^(blocks\.\d+|[^.]+)")[0]
    costs = items.groupby(parts, sort=False)["math_ops"].sum()
    return costs.rename_axis("part").reset_index()


def exit_picture(costs: pd.DataFrame, after: str, images: Sequence[Any], source: str) -> Figure:
    """Draw a network as a row of boxes as wide as they cost, and images that run through it.

    Args:
        costs: from `part_costs`.
        after: the part that the exit head follows.
        images: pictures `[H, W, 3]`, from below; the last one leaves.
    """
    fig, (ax,) = figure(height=2.9)
    trunk = costs[costs["part"] != _HEAD].reset_index(drop=True)
    widths = trunk["math_ops"] / trunk["math_ops"].sum()
    ends = widths.cumsum()
    leaves = ends[trunk["part"] == after].item()
    for name, width, end in zip(trunk["part"], widths, ends, strict=True):
        colour = BLUE if end <= leaves + 1e-9 else GREY
        ax.add_patch(Rectangle((end - width, 0), width, 0.6, fc=colour, ec="white", alpha=0.75))
        text = name.removeprefix("blocks.")
        if width > 0.011 * len(text):
            ax.text(end - width / 2, 0.3, text, ha="center", va="center", color="white", size=8)
    head = costs.loc[costs["part"] == _HEAD, "math_ops"].sum() / trunk["math_ops"].sum()
    top = 1.15 + 0.75 * (len(images) - 1)
    ax.add_patch(Rectangle((leaves, top - 0.3), max(head, 0.004), 0.6, fc=ORANGE, ec=ORANGE))
    note(ax, "exit head", (leaves, top + 0.3), (0, 3), color=ORANGE, ha="center")
    for lane, picture in enumerate(images):
        y = 1.15 + 0.75 * lane
        last = lane == len(images) - 1
        end, colour = (leaves, ORANGE) if last else (1.0, BLUE)
        _thumbnail(ax, picture, y)
        ax.plot([0, end], [y, y], color=colour, lw=2.5)
        at = (end + (head if last else 0) + 0.012, y)
        ax.annotate(
            "sure: answers here" if last else "answers at the end", at, (8, 0), color=colour,
            textcoords="offset points", va="center", size=8,
            arrowprops={"arrowstyle": "<|-", "color": colour},
        )  # fmt: skip
    ax.axvline(leaves, ymin=0.02, color=ORANGE, lw=0.8, ls=":")
    ax.set(xlim=(-0.11, 1.24), ylim=(-0.1, top + 0.75), yticks=[])
    ax.set_xticks([0, round(leaves, 2), 1], ["0", f"{leaves:.0%}", "100 %"])
    ax.set_xlabel("operations of the network without an exit")
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    return footer(fig, source)


def _thumbnail(ax: Axes, picture: Any, y: float) -> None:
    inset = ax.inset_axes((-0.1, y - 0.34, 0.08, 0.68), transform=ax.transData)
    inset.imshow(np.asarray(picture))
    inset.set_axis_off()


# -------------------------------------------------------------------------------------- trade-off


def threshold_choice(table: pd.DataFrame, threshold: float, source: str) -> Figure:
    """Draw held-out images from the surest to the least sure, and where the threshold falls.

    Args:
        table: a row for each image, by falling confidence: confidence, agrees, changed (the share
            of all images that have left with another answer up to here).
        threshold: the one that was chosen.
    """
    fig, (left, right) = figure(height=2.7, columns=2)
    order = np.arange(1, len(table) + 1)
    for agrees, colour, label in ((True, BLUE, "the same answer"), (False, ORANGE, "another one")):
        own = (table["agrees"] == agrees).to_numpy()
        at = order[own], table["confidence"][own]
        left.plot(*at, color=colour, marker="o", ms=4, ls="", label=label)
    left.axhline(threshold, color="black", lw=0.9, ls="--")
    left.set(xlabel="images, the surest first", ylabel="confidence", ylim=(0, 1.02))
    left.legend(fontsize=8, loc="lower left", title="at the last exit", title_fontsize=8)
    right.plot(order, 100 * table["changed"], color=ORANGE, drawstyle="steps-post")
    leaving = int((table["confidence"] > threshold).sum())
    right.axvline(leaving + 0.5, color="black", lw=0.9, ls="--")
    right.set(xlabel="images that leave", ylabel="changed answers, % of all")
    return footer(fig, source)


def reliability(table: pd.DataFrame, source: str) -> Figure:
    """Draw how often classifiers are right by how sure they are, in ten bins.

    Args:
        table: a row for each image: kind (of classifier), confidence (0 to 1), right (boolean).
    """
    fig, (ax,) = figure(height=2.9)
    ax.plot([0, 100], [0, 100], color="black", lw=0.9, ls="--")
    for colour, (kind, own) in zip((BLUE, ORANGE), table.groupby("kind", sort=False), strict=True):
        bins = own.groupby((10 * own["confidence"]).clip(upper=9).astype(int))
        means = 100 * bins[["confidence", "right"]].mean()
        ax.plot(means["confidence"], means["right"], color=colour, marker="o", ms=5, label=kind)
    ax.set(xlabel="mean confidence, %", ylabel="right, %", xlim=(0, 100), ylim=(0, 100))
    ax.legend(fontsize=8, loc="upper left")
    return footer(fig, source)


def exit_curves(found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return exit rate, accuracy and score of every exit at every threshold.

    Args:
        found: point -> the arrays of its record.

    Returns:
        Columns point, calibrated, threshold, exit_rate, top1, score (official rules).
    """
    columns = ["point", "calibrated", "threshold", "exit_rate", "top1", "score"]
    tables = [pd.DataFrame(columns=columns)]
    for point, arrays in found.items():
        curves, (none, everybody) = arrays["exit_curves"], arrays["exit_scores"]["official"]
        for prefix in ("", "calibrated."):
            rate = np.asarray(curves[f"{prefix}exit_rate"])
            rows = {
                "point": point,
                "calibrated": bool(prefix),
                "threshold": curves["thresholds"],
                "exit_rate": rate,
                "top1": curves[f"{prefix}top1"],
                "score": none + rate * (everybody - none),
            }
            tables.append(pd.DataFrame(rows))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def exit_choices(found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return what is chosen on held-out images if more or fewer may change their answer.

    Args:
        found: point -> the arrays of its record.

    Returns:
        Columns point, may_change, exit_rate, top1, calibrated.exit_rate, calibrated.top1.
    """
    columns = ["may_change", "exit_rate", "top1", "calibrated.exit_rate", "calibrated.top1"]
    tables = [
        pd.DataFrame({name: arrays["exit_choices"][name] for name in columns}).assign(point=point)
        for point, arrays in found.items()
    ]
    empty = pd.DataFrame(columns=["point", *columns])
    return pd.concat(tables, ignore_index=True)[["point", *columns]] if tables else empty


def osi_tradeoff(paper: pd.DataFrame) -> pd.DataFrame:
    """Return OSI AI's published trade-off, a row for each block and threshold.

    Args:
        paper: transcribed numbers of `07_early_exit`.

    Returns:
        Columns block, threshold, exit_rate and top1 (fractions), score, path (fraction of the
        operations), alone (accuracy of the exit by itself).
    """
    rows = paper[paper["point"].str.match(r"osi_block_\d+-")]
    wide = rows.pivot_table(index="point", columns="metric", values="value", sort=False)
    names = wide.index.str.extract(r"osi_block_(\d+)-(.*)")
    of_block = paper[paper["point"].str.fullmatch(r"osi_block_\d+")]
    each = of_block.pivot_table(index="point", columns="metric", values="value")
    each = each.loc["osi_block_" + names[0]]
    return pd.DataFrame(
        {
            "block": names[0].astype(int).to_numpy(),
            "threshold": names[1].astype(float).to_numpy(),
            "exit_rate": wide["exit_rate_percent"].to_numpy() / 100,
            "top1": wide["top1_percent"].to_numpy() / 100,
            "score": wide["score"].to_numpy(),
            "path": each["path_ops_percent"].to_numpy() / 100,
            "alone": each["exit_top1_percent"].to_numpy() / 100,
        }
    )


def exit_tradeoff(
    curves: pd.DataFrame,
    measured: pd.DataFrame,
    osi: pd.DataFrame,
    source: str,
    mine: pd.DataFrame | None = None,
) -> Figure:
    """Draw threshold against exit rate, exit rate against accuracy, and score against accuracy.

    Args:
        curves: from `exit_curves`.
        measured: table of the sweep `early_exit`, for the chosen thresholds.
        osi: from `osi_tradeoff`.
        mine: from `records.mine` of that sweep: the reader's own runs, a marker more.
    """
    fig, axes = figure(height=3.2, columns=3)
    rates, answers, scores = axes
    if mine is not None:
        left, top1 = 100 * mine["exit_rate"], 100 * mine["top1"]
        yours(rates, mine, mine["threshold"], left, legend=False)
        yours(answers, mine, left, top1, legend=False)
        yours(scores, mine, 1e3 * mine["official.expected_score"], top1, legend=False)
    plain = curves[~curves["calibrated"].astype(bool)]
    for point, own in plain.groupby("point", sort=False):
        style: dict[str, Any] = {"color": _COLOURS.get(str(point), GREY), "lw": 1.6}
        rates.plot(own["threshold"], 100 * own["exit_rate"], label=_label(str(point)), **style)
        answers.plot(100 * own["exit_rate"], 100 * own["top1"], **style)
        scores.plot(1e3 * own["score"], 100 * own["top1"], **style)
    run = measured[measured["n"] > 0]
    for row in run.to_dict("records"):
        mark: dict[str, Any] = {"color": _COLOURS.get(row["point"], GREY), "marker": "o", "ms": 6}
        rates.plot(row["threshold"], 100 * row["exit_rate"], **mark)
        answers.plot(100 * row["exit_rate"], 100 * row["top1"], **mark)
        scores.plot(1e3 * row["official.expected_score"], 100 * row["top1"], **mark)
    for _, own in osi.groupby("block"):
        at = 100 * own["exit_rate"], 100 * own["top1"]
        answers.plot(*at, color="black", marker="x", ms=5, lw=0.8)
        note(answers, str(own["block"].iloc[0]), (at[0].iloc[0], at[1].iloc[0]), (3, -9), size=7)
    answers.plot([], [], color="black", marker="x", lw=0.8, label="OSI AI, by block")
    if run.empty:
        for ax in (rates, scores):
            not_run(ax)
    else:
        trunk = 1e3 * run["official.trunk_score"].iloc[0]
        chosen = 1e3 * run["official.expected_score"]
        scores.axvline(trunk, color="black", lw=0.9, ls="--")
        scores.set_xlim(0.96 * min(trunk, *chosen), 1.03 * max(trunk, *chosen))
        note(scores, "no exit", (trunk, 77.2), (-3, 0), ha="right", size=7.5)
        rates.legend(fontsize=7.5)
    answers.legend(fontsize=7.5, loc="lower left")
    rates.set(xlabel="threshold", ylabel="images that leave (%)", xlim=(0, 1), ylim=(-3, 103))
    answers.set(xlabel="images that leave (%)", ylabel="top-1 (%)", ylim=(77, 80.9), xlim=(-2, 60))
    scores.set(xlabel="score, thousandths", ylabel="top-1 (%)", ylim=(77, 80.9))
    for ax in (answers, scores):
        ax.axhline(80, color="black", lw=0.9, ls=":")
    return footer(fig, source)


# -------------------------------------------------------------------------------------- explorable


def exit_explorer(
    curves: pd.DataFrame, trunks: Mapping[str, float], name: str, source: str
) -> HTML:
    """Return a slider, the threshold, that redraws exit rate, accuracy and score.

    Args:
        curves: from `exit_curves`.
        trunks: point -> score of its network without the exit.
        name: id of the element on the page, the same in every run.
    """
    if curves.empty:
        return HTML('<p class="provenance">the slider: not run</p>')
    points = {}
    for point, own in curves.groupby("point", sort=False):
        ways = {
            "calibrated" if is_calibrated else "plain": [
                [round(float(each), 7) for each in row]
                for row in part[["threshold", "exit_rate", "top1", "score"]].to_numpy(float)
            ]
            for is_calibrated, part in own.groupby("calibrated")
        }
        points[point] = {"label": _label(str(point)), "trunk": trunks[str(point)], **ways}
    data = {"points": points, "source": source}
    return component("exit_threshold.html", "exit-threshold", name, data)
