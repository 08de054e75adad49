"""Figures and tables of chapter `11_beyond`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from micronet_lib.architecture.layers import named_kind
from micronet_lib.plots import style
from micronet_lib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    component,
    figure,
    footer,
    note,
)
from micronet_lib.plots.tables import show_table
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE

__all__ = [
    "beyond_board",
    "bit_worth",
    "kind_bill",
    "measured_table",
    "plan_prices",
    "published_scores",
    "recorded_bill",
    "rounding_staircase",
    "score_bills",
    "thinned_top1",
    "width_maps",
    "zeros_and_bits",
]

_NAMES = {
    "riair": "RIAIR",
    "kaist_v1": "this entry",
    "osi": "OSI AI",
    "msunet_v3": "MSUNet v3",
    "msunet_v2": "v2",
    "msunet_v1": "v1",
    "woody": "Woody",
    "hhi_mal": "HHI-MAL",
    "mb_pm": "MB-PM",
}
_SHIFTS = {"kaist_v1": (-8, 9), "osi": (3, -12), "riair": (-14, 7)}
_TOP = 80.9
_COUNTS = {"score_first": "first", "score_revised": "revised", "score_final": "final"}
# Where the names of rungs stand whose points lie close together.
_RUNGS = {
    "allocated_31": ((-6, 9), "center"),
    "allocated_33": ((4, 9), "left"),
    "distilled": ((6, 0), "left"),
    "adaptive": ((-6, -3), "right"),
    "rounded": ((6, -3), "left"),
}


def published_scores(paper: pd.DataFrame) -> pd.DataFrame:
    """Return the scores that the authors printed for their two networks, count by count.

    Args:
        paper: transcribed numbers of `06_scoring`: point, metric, value.

    Returns:
        Columns point, count, score, top1_percent.
    """
    rows = paper[paper["source"] == "micronet_code"]
    top1 = rows[rows["metric"] == "top1_percent"].set_index("point")["value"]
    counts = rows[rows["metric"].isin(list(_COUNTS))]
    return pd.DataFrame(
        {
            "point": counts["point"],
            "count": counts["metric"].map(_COUNTS),
            "score": counts["value"],
            "top1_percent": counts["point"].map(top1),
        }
    ).reset_index(drop=True)


def beyond_board(
    board: pd.DataFrame, published: pd.DataFrame, ladder: pd.DataFrame, source: str
) -> Figure:
    """Draw the challenge's board, the entry's printed scores, and our networks.

    Args:
        board: from `board_entries`, its `point` renamed to `entry`.
        published: from `published_scores`.
        ladder: measured table of the sweep `beyond`; rungs without a record are not drawn.
    """
    fig, (ax,) = figure(height=3.7)
    run = ladder[ladder["n"] > 0]
    right = 100 * run["top1"]
    lowest = min([79.45, *(right - 0.15)])
    ax.axhspan(lowest, 80, color="#f4e3e3", lw=0)
    ax.text(0.047, 79.97, "target missed below 80 %", ha="right", va="top", size=8)
    shown = board[board["top1_percent"] < _TOP]
    ax.scatter(shown["score"], shown["top1_percent"], color=GREY, label="the board", zorder=3)
    for row in shown.itertuples():
        if row.entry in _NAMES:
            shift = _SHIFTS.get(row.entry, (4, 4))
            note(ax, _NAMES[row.entry], (row.score, row.top1_percent), shift, size=7.5)
    for _, counts in published.groupby("point"):
        at = counts["score"], counts["top1_percent"]
        label = "this entry, as its authors counted it"
        once = label if counts["point"].iloc[0] == published["point"].iloc[0] else None
        ax.plot(*at, color=BLUE, marker="o", ms=4.5, lw=0.8, label=once, zorder=4)
    if run.empty:
        ax.plot([], [], color=ORANGE, marker="D", ls="", label="this chapter: not run")
    else:
        spread = 100 * run["top1_std"].fillna(0)
        ax.errorbar(
            run["official.score"], right, yerr=spread, color=ORANGE, marker="D", ls="",
            label="this chapter", zorder=5,
        )  # fmt: skip
        for row in run.itertuples():
            at = row[1 + run.columns.get_loc("official.score")], 100 * row.top1
            shift, side = _RUNGS.get(row.point, ((-4, -12), "center"))
            note(ax, row.point.replace("_", " "), at, shift, size=7.5, color=ORANGE, ha=side)
    ax.set(xlabel="score (log scale, lower is better)", xscale="log", ylabel="top-1 (%)")
    ax.set(xlim=(0.0022, 0.05), ylim=(lowest, _TOP))
    ticks = (0.003, 0.004, 0.006, 0.01, 0.02, 0.04)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.legend(loc="upper right", fontsize=8)
    return footer(fig, source)


# ------------------------------------------------------------------------------------------- bills

_QUANTITIES = {
    "param": ("weights, biases, scales", BLUE),
    "mask": ("masks", SKY),
    "mult": ("multiplications", GREEN),
    "add": ("additions", ORANGE),
}
_ELEMENTWISE = "gates, sums"
_KINDS = {
    **{kind: label for kind, (label, _) in style.KIND_STYLES.items() if kind != "other"},
    "hard_swish": "HardSwish",
    **dict.fromkeys(("product", "relu6", "shift"), "HardSwish"),
}


_ORDER = [*dict.fromkeys(_KINDS.values()), _ELEMENTWISE]


def _label(kind: str) -> str:
    return _KINDS.get(kind, _ELEMENTWISE)


def _as_bill(kinds: pd.Series, quantities: pd.Series, scores: pd.Series) -> pd.DataFrame:
    rows = pd.DataFrame({"kind": kinds, "quantity": quantities, "score": scores})
    table = rows.pivot_table(index="kind", columns="quantity", values="score", aggfunc="sum")
    table = table.reindex(index=[kind for kind in _ORDER if kind in table.index])
    return table.reindex(columns=list(_QUANTITIES)).fillna(0.0).rename_axis(columns=None)


def kind_bill(items: pd.DataFrame) -> pd.DataFrame:
    """Return the score of each kind of layer by what is charged.

    Args:
        items: `records.bill` or `Score.table()`: layer, kind (of the operation), quantity,
            param_storage and math_ops.

    Returns:
        A row for each kind of layer, columns param, mask, mult, add.
    """
    kinds = items["layer"].map(named_kind)
    kinds = kinds.where(kinds != "other", items["kind"]).map(_label)
    scores = items["param_storage"] / PARAM_BASE + items["math_ops"] / OPS_BASE
    return _as_bill(kinds, items["quantity"], scores)


def recorded_bill(costs: Mapping[str, Any]) -> pd.DataFrame:
    """Return the same of a record's `bill`: `<kind>.<quantity>` -> score."""
    names = pd.Series(list(costs)).str.split(".", expand=True)
    return _as_bill(names[0].map(_label), names[1], pd.Series(map(float, costs.values())))


def score_bills(bills: Mapping[str, pd.DataFrame], source: str) -> Figure:
    """Draw bills below each other on one scale: kinds of layer, and what is charged.

    Args:
        bills: title -> from `kind_bill` or `recorded_bill`.
    """
    kinds = [kind for kind in _ORDER if any(kind in bill.index for bill in bills.values())]
    fig, axes = figure(height=0.26 * len(kinds) + 1.3, columns=len(bills))
    largest = max(bill.sum(axis=1).max() for bill in bills.values())
    for ax, (title, bill) in zip(axes, bills.items(), strict=True):
        bill = 1e3 * bill.reindex(kinds).fillna(0)
        left = pd.Series(0.0, index=kinds)
        for key, (label, colour) in _QUANTITIES.items():
            ax.barh(kinds, bill[key], left=left, color=colour, label=label, height=0.75)
            left += bill[key]
        ax.invert_yaxis()
        ax.set(title=f"{title}: {bill.to_numpy().sum() / 1e3:.5f}", xlabel="score, thousandths")
        ax.set_xlim(0, 1.05e3 * largest)
        ax.grid(axis="y", visible=False)
        if ax is not axes[0]:
            ax.set_yticklabels([])
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8
    )
    return footer(fig, source)


def bit_worth(items: pd.DataFrame) -> pd.DataFrame:
    """Return what each quantity of a bill costs, and what one bit of it is worth.

    Args:
        items: `records.bill` or `Score.table()`: quantity, count, bits, param_storage, math_ops.

    Returns:
        Columns what, count, bits (a mean), score, one_bit: the score of one bit more or less.
    """
    rows = []
    for key, (label, _) in _QUANTITIES.items():
        own = items[items["quantity"] == key]
        count, base = own["count"].sum(), PARAM_BASE if key in ("param", "mask") else OPS_BASE
        bits = (own["count"] * own["bits"]).sum() / max(1, count)
        rows.append((label, count, bits, count * bits / 32 / base, count / 32 / base))
    return pd.DataFrame(rows, columns=["what", "count", "bits", "score", "one_bit"])


# -------------------------------------------------------------------------- rounding and choosing


def rounding_staircase(table: pd.DataFrame, source: str) -> Figure:
    """Draw rounding and the derivative that training uses instead of its own.

    Args:
        table: columns x, rounded, clipped, slope (of `clipped`).
    """
    fig, (left, right) = figure(height=2.7, columns=2)
    left.plot(table["x"], table["clipped"], color=GREY, ls="--", label="clipped")
    left.plot(table["x"], table["rounded"], color=BLUE, drawstyle="steps-mid", label="rounded")
    left.set(xlabel="activation / step", ylabel="value", title="what goes forward")
    right.plot(table["x"], 0 * table["x"], color=BLUE, label="of the rounded value")
    right.plot(table["x"], table["slope"], color=ORANGE, ls="--", label="of the clipped value")
    right.set(xlabel="activation / step", ylabel="derivative", ylim=(-0.15, 1.45))
    right.set_title("what goes back")
    for ax in (left, right):
        ax.legend(fontsize=8, loc="upper left")
    return footer(fig, source)


_LOSSES = {"weights": BLUE, "activations": SKY, "zeros": ORANGE, "channels": PURPLE}


def plan_prices(plans: pd.DataFrame, source: str) -> Figure:
    """Draw the score that a price leads to, and the loss that it predicts.

    Args:
        plans: columns price, score, found, and predicted nats of weights, activations, zeros,
            channels.
    """
    fig, (left, right) = figure(height=2.9, columns=2)
    left.plot(plans["price"], 1e3 * plans["score"], color=BLUE, marker="o")
    left.set(ylabel="score, thousandths", ylim=(0, None))
    parts = plans[list(_LOSSES)]
    for name, colour in _LOSSES.items():
        right.plot(plans["price"], parts[name].where(parts[name] > 0), color=colour, label=name)
    total: Any = {"color": "black", "lw": 2.2}
    right.plot(plans["price"], parts.sum(axis=1), label="predicted in all", **total)
    right.plot(plans["price"], plans["found"], marker="o", ls="--", label="found", **total)
    right.set(ylabel="loss (nats)", yscale="log", ylim=(None, 30 * plans["found"].max()))
    right.legend(fontsize=7.5, ncols=2, loc="upper left")
    for ax in (left, right):
        ax.set(xscale="log", xlabel="price (nats for a score of 1)")
    return footer(fig, source)


_ROWS = {
    "conv": "stem",
    "conv_expand": "expand",
    "conv_dw": "depthwise",
    "conv_project": "project",
    "se.conv_reduce": "squeeze",
    "se.conv_expand": "excite",
    "conv_shortcut": "shortcut",
    "classifier": "classifier",
}


def _place(layer: str) -> tuple[str, str]:
    """Return row and column of a layer in `width_maps`."""
    first, *rest = layer.split(".")
    if first == "blocks":
        return _ROWS[".".join(rest[1:])], rest[0]
    return _ROWS[rest[-1]], first


def width_maps(widths: pd.DataFrame, source: str) -> Figure:
    """Draw the bits of every layer's weights and inputs, block by block.

    Args:
        widths: columns layer, weights, inputs, in the order of execution.
    """
    places = widths["layer"].map(_place)
    columns = list(dict.fromkeys(column for _, column in places))
    rows = [row for row in _ROWS.values() if row in {row for row, _ in places}]
    fig, axes = figure(height=0.36 * len(rows) + 1.5, rows=2)
    for ax, name in zip(axes, ("weights", "inputs"), strict=True):
        table = np.full((len(rows), len(columns)), np.nan)
        for (row, column), bits in zip(places, widths[name], strict=True):
            table[rows.index(row), columns.index(column)] = bits
            ax.text(columns.index(column), rows.index(row), f"{bits:.0f}", ha="center",
                    va="center", size=7.5, color="white" if bits > 5 else "black")  # fmt: skip
        picture = ax.imshow(table, cmap="viridis_r", vmin=1, vmax=8, aspect="auto")
        ax.set_xticks(range(len(columns)), columns, fontsize=8)
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_title(f"bits of {name}", loc="left")
    fig.colorbar(picture, ax=axes, shrink=0.6, label="bits")
    axes[1].set_xlabel("block")
    return footer(fig, source)


# ------------------------------------------------------------------------------------------ tables


def measured_table(
    rows: pd.DataFrame, columns: Mapping[str, str], formats: Mapping[str, str], source: str
) -> HTML:
    """Return a table of records with its source below, or one line if nothing of it was run.

    Args:
        rows: measured points, with `n`.
        columns: column -> heading, those that are shown.
        formats: heading -> format string.
    """
    line = f'<p class="provenance">{source}</p>'
    if not (rows["n"] > 0).any():
        return HTML(line)
    table = show_table(rows[list(columns)].rename(columns=dict(columns)), formats)
    return HTML(f"{table.to_html()}\n{line}")


def thinned_top1(grid: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracies of the sweep `zeros_and_bits`, a row for each sparsity.

    Args:
        grid: its measured table, points `<sparsity>-<bits>`.

    Returns:
        Columns zeros, a column for each width, n.
    """
    names = grid["point"].str.split("-", expand=True)
    cells = grid.assign(zeros=names[0].astype(float), bits=names[1].astype(int))
    table = cells.pivot(index="zeros", columns="bits", values="top1")
    table.columns = [f"{bits} bits" for bits in table.columns]
    return table.assign(n=cells.groupby("zeros")["n"].max()).reset_index()


# ------------------------------------------------------------------------------------- two sliders


def zeros_and_bits(
    grid: pd.DataFrame,
    bills: Mapping[str, Mapping[str, Any]],
    winner: tuple[str, float],
    name: str,
    source: str,
) -> HTML:
    """Return two sliders, zeros and bits, that redraw accuracy, score and bill.

    Args:
        grid: measured table of the sweep `zeros_and_bits`, points `<sparsity>-<bits>`. Points
            without a record say so.
        bills: point -> the `bill` of its record.
        winner: label and score of the network to compare with.
        name: id of the element on the page, the same in every run.
    """
    run = grid[grid["n"] > 0]
    if run.empty:
        return HTML('<p class="provenance">two sliders: not run</p>')
    names = grid["point"].str.split("-", expand=True)
    points, kinds = {}, dict[str, None]()
    for row in run.to_dict("records"):
        bill = recorded_bill(bills[row["point"]])
        kinds |= dict.fromkeys(bill.index)
        storage = bill["param"] + bill["mask"]
        parts = zip(storage, bill["mult"], bill["add"], strict=True)
        points[row["point"]] = {
            "top1": round(row["top1"], 6),
            "score": round(row["official.score"], 8),
            "bill": {
                kind: [round(float(each), 9) for each in part]
                for kind, part in zip(bill.index, parts, strict=True)
            },
        }
    data = {
        "sparsities": sorted(set(names[0])),
        "bits": sorted({int(bits) for bits in names[1]}),
        "points": points,
        "kinds": [kind for kind in _ORDER if kind in kinds],
        "winner": {"label": winner[0], "score": winner[1]},
        "source": source,
    }  # fmt: skip
    return component("zeros_and_bits.html", "zeros-and-bits", name, data)
