"""Figures of chapter `06_scoring`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from micronet_lib.plots import style
from micronet_lib.plots.style import BLUE, GREEN, GREY, ORANGE, SKY, figure, footer, note
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE

__all__ = [
    "bit_widths",
    "board_entries",
    "board_points",
    "history_table",
    "layer_bill",
    "leaderboard",
    "rebuilt_entries",
    "score_history",
    "score_mosaic",
]

# A column of less than this share of a mosaic has its name at an angle.
NARROW = 0.06

_GROUPS = {**style.KIND_STYLES, "hard_swish": ("HardSwish", SKY)}


def _groups(items: pd.DataFrame) -> pd.Series:
    """Return the part of the network of each row, for colours and legends."""
    activations = (items["layer_kind"] == "other") & (items["kind"] == "hard_swish")
    return items["layer_kind"].mask(activations, "hard_swish")


def _place(layer: str) -> str:
    """Return the place on the horizontal axis: stem, number of the block, or head."""
    parts = layer.split(".")
    return parts[1] if parts[0] == "blocks" else parts[0]


def layer_bill(items: pd.DataFrame, source: str) -> Figure:
    """Draw operations and storage of a network, block by block.

    Args:
        items: `records.bill`: layer, layer_kind, kind (of the operation), param_storage, math_ops
            (both weighted to 32 bits).
    """
    items = items.assign(place=items["layer"].map(_place), group=_groups(items))
    places = list(dict.fromkeys(items["place"]))
    fig, axes = figure(height=4.6, rows=2)
    panels = (
        ("math_ops", 1e6, "operations (millions)"),
        ("param_storage", 1e3, "parameters (thousands)"),
    )
    for ax, (column, scale, label) in zip(axes, panels, strict=True):
        table = items.pivot_table(index="place", columns="group", values=column, aggfunc="sum")
        shown = [group for group in _GROUPS if group in table]
        table = table.reindex(index=places, columns=shown).fillna(0) / scale
        bottom = pd.Series(0.0, index=places)
        for key in shown:
            name, colour = _GROUPS[key]
            ax.bar(places, table[key], bottom=bottom, color=colour, label=name, width=0.82)
            bottom += table[key]
        ax.set_ylabel(label)
        ax.grid(axis="x", visible=False)
    axes[1].set_xlabel("block")
    axes[0].legend(ncols=4, fontsize=8, loc="upper right")
    return footer(fig, source)


def score_mosaic(items: pd.DataFrame, source: str) -> Figure:
    """Draw a score as an area: a column for each kind of layer, storage below operations.

    Args:
        items: `records.bill`, see `layer_bill`.
    """
    names = _groups(items).map(lambda group: _GROUPS[group][0])
    sums = items.groupby(names)[["param_storage", "math_ops"]].sum()
    parts = pd.DataFrame(
        {"storage": sums["param_storage"] / PARAM_BASE, "operations": sums["math_ops"] / OPS_BASE}
    )
    total = parts.sum(axis=1).sort_values(ascending=False)
    widths = total / total.sum()
    fig, (ax,) = figure(height=3.4)
    left = widths.cumsum() - widths
    lower = (parts["storage"] / parts.sum(axis=1))[total.index]
    box: dict[str, Any] = {"align": "edge", "edgecolor": "white", "lw": 1.5}
    ax.bar(left, lower, widths, color=BLUE, label="stored numbers and masks", **box)
    ax.bar(left, 1 - lower, widths, lower, color=ORANGE, label="operations", **box)
    for name, share in widths.items():
        middle = left[name] + share / 2
        if share >= NARROW:
            ax.text(middle, 1.02, f"{name}\n{share:.0%}", size=8.5, ha="center")
        elif share >= 0.005:
            ax.text(middle - 0.006, 1.02, f"{name} {share:.0%}", size=8, rotation=55)
    storage = parts["storage"].sum() / parts.to_numpy().sum()
    title = (
        f"score {parts.to_numpy().sum():.6f}: storage {storage:.0%}, operations {1 - storage:.0%}"
    )
    ax.set(xlim=(0, 1.03), ylim=(0, 1.3))
    ax.set_axis_off()
    ax.set_title(title)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)
    return footer(fig, source)


_STATES = {"first": "first count", "revised": "+ biases", "published": "+ masks (0.0054)"}
_SAVINGS = {
    "dead_gates": "- dead gates",
    "dead_channels": "- dead channels",
    "sixth": "- the sixth",
}


def history_table(published: pd.DataFrame, savings: pd.DataFrame, network: str) -> pd.DataFrame:
    """Return one published file under successive counts, then with its free savings.

    Args:
        published: measured table of the sweep `published`.
        savings: measured table of `free_savings`, points `<network>-<step>`.
        network: for example `v1_pr_60`.

    Returns:
        Columns step, param_storage, math_ops, score.
    """
    columns = ["param_storage", "math_ops", "score"]
    rows = published.set_index("point").loc[network]
    lines = [[text, *(rows[f"{state}.{c}"] for c in columns)] for state, text in _STATES.items()]
    steps = savings.set_index("point")
    for step, text in _SAVINGS.items():
        lines.append([text, *(steps.loc[f"{network}-{step}", f"published.{c}"] for c in columns)])
    return pd.DataFrame(lines, columns=["step", *columns])


# The source of the scores on the board, and what is printed about an entry.
_BOARD = "micronet_leaderboard"
_OF_ENTRY = ("score", "top1_percent", "param_storage_millions", "math_ops_millions")


def board_entries(paper: pd.DataFrame) -> pd.DataFrame:
    """Return the entries of the challenge's CIFAR-100 board, and what is printed about each.

    The score is the board's [micronet_leaderboard]. Accuracy, storage and operations are what an
    entry's own repository says, so the sources differ from row to row.

    Args:
        paper: transcribed numbers of `06_scoring`: point, metric, value, source.

    Returns:
        Columns point, score, top1_percent, param_storage_millions, math_ops_millions; `NaN` where
        nothing is printed.

    Raises:
        ValueError: two sources have the same number of an entry.
    """
    scores = paper[(paper["source"] == _BOARD) & (paper["metric"] == "score")]
    own = paper[paper["point"].isin(scores["point"]) & (paper["metric"] != "score")]
    wide = pd.concat([scores, own]).pivot(index="point", columns="metric", values="value")
    table = wide.reindex(index=list(scores["point"]), columns=list(_OF_ENTRY))
    return table.rename_axis(index="point", columns=None).reset_index()


def board_points(published: pd.DataFrame, savings: pd.DataFrame) -> pd.DataFrame:
    """Return our measurements of the networks of the challenge, before and after savings.

    Args:
        published: measured table of the sweep `published`.
        savings: measured table of `free_savings`, points `<network>-<step>`.

    Returns:
        Columns label, score, top1_percent.
    """
    lines = []
    for network in dict.fromkeys(savings["point"].str.rpartition("-")[0]):
        entered = published.set_index("point").loc[network]
        trimmed = savings.set_index("point").loc[f"{network}-sixth"]
        lines.append((network, entered["published.score"], 100 * entered["top1"]))
        lines.append((f"{network}, trimmed", trimmed["published.score"], 100 * trimmed["top1"]))
    return pd.DataFrame(lines, columns=["label", "score", "top1_percent"])


def score_history(steps: pd.DataFrame, source: str) -> Figure:
    """Draw successive scores of one file: both terms of the score as stacked bars.

    Args:
        steps: rows with `step`, `param_storage` and `math_ops`, in order.
    """
    fig, (ax,) = figure(height=0.4 * len(steps) + 1.1)
    storage, operations = steps["param_storage"] / PARAM_BASE, steps["math_ops"] / OPS_BASE
    ax.barh(steps["step"], storage, color=BLUE, label="storage / 36.5 M")
    ax.barh(steps["step"], operations, left=storage, color=ORANGE, label="operations / 10.49 G")
    for row, value in enumerate(storage + operations):
        ax.text(value, row, f"  {value:.6f}", va="center")
    ax.invert_yaxis()
    ax.set(xlabel="score", xlim=(0, (storage + operations).max() * 1.16))
    ax.grid(axis="y", visible=False)
    fig.legend(loc="outside upper center", ncols=2)
    return footer(fig, source)


def bit_widths(prices: pd.DataFrame, reference: float, source: str) -> Figure:
    """Draw the official score at fewer bits. It is a price; no accuracy is claimed.

    Args:
        prices: rows with `point` (`<widths>-<accumulator>`) and `official.score`.
        reference: official score of the unquantised network, drawn as a line.
    """
    fig, (ax,) = figure(height=3.1)
    names = prices["point"].str.split("-", expand=True)
    table = prices.assign(widths=names[0], accumulator=names[1]).pivot_table(
        index="widths", columns="accumulator", values="official.score", sort=False
    )
    groups = zip(table.columns, (-0.27, 0, 0.27), (BLUE, ORANGE, GREEN), strict=True)
    for accumulator, shift, colour in groups:
        x, label = np.arange(len(table)) + shift, accumulator.replace("_", " ")
        bars = ax.bar(x, table[accumulator], 0.25, color=colour, label=label)
        ax.bar_label(bars, fmt="%.4f", fontsize=7.5)
    ax.axhline(reference, color=GREY, ls="--", lw=1)
    ax.text(-0.4, reference, "unquantised", va="bottom", fontsize=8)
    ax.set_xticks(range(len(table)), table.index)
    ax.set(ylabel="official score", ylim=(0, reference * 1.12))
    ax.grid(axis="x", visible=False)
    fig.legend(title="accumulator", ncols=3, loc="outside upper center")
    return footer(fig, source)


ENTRIES = {
    "riair": "RIAIR",
    "kaist_v1": "KAIST, network 1",
    "kaist_v2": "KAIST, network 2",
    "osi": "OSI AI",
    "msunet_v3": "MSUNet v3",
    "msunet_v2": "MSUNet v2",
    "msunet_v1": "MSUNet v1",
    "woody": "Woody",
    "hhi_mal": "HHI-MAL",
    "mb_pm": "MB-PM",
    "proxylessnas_ttq": "ProxylessNAS-TTQ",
}
"""Entry of the CIFAR-100 board -> its name."""

# Technique -> chapter, entries of the CIFAR-100 board that rest on it, and the score of a record.
_TECHNIQUES = {
    "early_exit": ("early exit", "07", ("osi",), "official.expected_score"),
    "ternary": (
        "ternary, binary",
        "08",
        ("msunet_v3", "hhi_mal", "mb_pm", "proxylessnas_ttq"),
        "official.score",
    ),
    "adjustable_quantization": ("learned bits", "09", (), "official.score"),
}
_WITHOUT = ("rounded", "uniform")
# Texas-EIC entered the ImageNet task, whose scores are relative to another network.
_OTHER_TASK = {"adjustable_quantization": "Texas-EIC: {score} on ImageNet, another scale"}


# Where the names of points stand that lie close together, in points of type.
_BESIDE = {
    **{"kaist_v1": (7, 1), "v1_pr_60": (80, 1), "osi": (7, -3)},
    **{"kaist_v2": (2, -11), "v2_pr_60": (75, -11)},
}


def rebuilt_entries(
    board: pd.DataFrame, measured: Mapping[str, pd.DataFrame], imagenet: Mapping[str, float]
) -> pd.DataFrame:
    """Return the board's entries by technique, and what this book measured of each technique.

    Args:
        board: from `board_entries`, its `point` renamed to `entry`.
        measured: sweep -> its measured table; means over the seeds. Left out is what lacks the
            technique: networks that are only rounded, without training, and bits that are the same
            everywhere.
        imagenet: sweep -> score of the ImageNet entry with that technique.

    Returns:
        Columns sweep, technique, label, kind (`board`, `measured`, `imagenet` or `not run`), score,
        top1_percent.
    """
    entries = board.set_index("entry")
    rows = list[dict[str, Any]]()
    for sweep, (technique, chapter, names, column) in _TECHNIQUES.items():
        row = {"sweep": sweep, "technique": f"{technique}\n(chapter {chapter})"}
        for name in names:
            printed = entries.loc[name, ["score", "top1_percent"]].to_dict()
            rows.append({**row, "label": name, "kind": "board", **printed})
        if sweep in imagenet:
            other = {"label": _OTHER_TASK[sweep].format(score=imagenet[sweep])}
            rows.append({**row, "kind": "imagenet", "score": imagenet[sweep], **other})
        table = measured[sweep]
        run = table[(table["n"] > 0) & ~table["point"].str.startswith(_WITHOUT)]
        for point, score, top1 in zip(run["point"], run[column], run["top1"], strict=True):
            found = {"label": point, "score": score, "top1_percent": 100 * top1}
            rows.append({**row, "kind": "measured", **found})
        if run.empty:
            rows.append({**row, "label": "not run", "kind": "not run"})
    return pd.DataFrame(rows)


def leaderboard(
    board: pd.DataFrame, ours: pd.DataFrame, rebuilt: pd.DataFrame, source: str
) -> Figure:
    """Draw the challenge's final CIFAR-100 leaderboard with our measured points.

    Below it is a row for each technique of other entries that this book rebuilds. An ImageNet
    entry is named there and not drawn: its score is relative to another network.

    Args:
        board: from `board_entries`, its `point` renamed to `entry`.
        ours: rows with `label`, `score`, `top1_percent`, measured.
        rebuilt: from `rebuilt_entries`.
    """
    fig, (ax, below) = figure(height=6.4, rows=2)
    fig.axes[0].get_gridspec().set_height_ratios([3, 2])  # type: ignore[union-attr]
    ax.axhspan(board["top1_percent"].min() - 1, 80, color="#f4e3e3", lw=0)
    ax.text(board["score"].max(), 79.985, "target missed below 80 %", ha="right", va="top", size=8)
    ax.scatter(board["score"], board["top1_percent"], color=GREY, label="leaderboard", zorder=3)
    for row in board.itertuples():
        shift = _BESIDE.get(row.entry, (4, 4))
        note(ax, ENTRIES.get(row.entry, row.entry), (row.score, row.top1_percent), shift, size=7.5)
    at = ours["score"], ours["top1_percent"]
    ax.scatter(*at, color=ORANGE, marker="D", label="measured", zorder=4)
    for row in ours.itertuples():
        shift = _BESIDE.get(row.label, (-7, -3))
        side = "right" if shift[0] < 0 else "left"
        at = row.score, row.top1_percent
        note(ax, row.label, at, shift, size=7.5, color=ORANGE, ha=side)
    ax.set(ylabel="top-1 (%)", ylim=(79.95, 80.75))  # one entry lies far above; the caption says so
    ax.legend(loc="upper right")
    _draw_rebuilt(below, rebuilt)
    drawn = rebuilt[rebuilt["kind"].isin(["board", "measured"])]["score"]
    scores = pd.concat([board["score"], ours["score"], drawn])
    for each in (ax, below):
        each.set(xscale="log", xlim=(0.85 * scores.min(), 1.6 * scores.max()))
    below.set_xlabel("score (log scale, lower is better)")
    return footer(fig, source)


def _draw_rebuilt(ax: Axes, rebuilt: pd.DataFrame) -> None:
    """Draw a row for each technique: entries of the board above its line, our networks on it."""
    names = list(dict.fromkeys(rebuilt["technique"]))
    for y, (_, rows) in enumerate(rebuilt.groupby("technique", sort=False)):
        kinds = dict(list(rows.groupby("kind")))
        if "board" in kinds:
            entries = kinds["board"].sort_values("score")
            ax.scatter(entries["score"], [y - 0.18] * len(entries), color=GREY, zorder=3)
            for row in entries.itertuples():
                text = f"{ENTRIES.get(row.label, row.label)}\n{row.top1_percent:.2f} %"
                note(ax, text, (row.score, y - 0.18), (0, 5), size=7, ha="center")
        if "imagenet" in kinds:
            text = kinds["imagenet"]["label"].iloc[0]
            ax.text(0.98, y - 0.3, text, size=7.5, ha="right", transform=ax.get_yaxis_transform())
        if "measured" not in kinds:
            ax.text(0.02, y + 0.2, "not run", size=8, color=ORANGE,
                    transform=ax.get_yaxis_transform())  # fmt: skip
            continue
        own = kinds["measured"]
        reached = own["top1_percent"] >= 80
        for part, face in ((own[reached], ORANGE), (own[~reached], "white")):
            at = part["score"], [y + 0.18] * len(part)
            ax.scatter(*at, marker="D", facecolor=face, edgecolor=ORANGE, zorder=4)
        found = own["top1_percent"]
        ends = dict.fromkeys((f"{found.min():.1f}", f"{found.max():.1f}"))
        text = f"{' to '.join(ends)} %"
        note(ax, text, (own["score"].max(), y + 0.18), (9, -3), size=7.5, color=ORANGE)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.75)
    ax.grid(axis="y", visible=False)
