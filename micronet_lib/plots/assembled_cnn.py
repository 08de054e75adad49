"""Figures of chapter `10_assembled_cnn`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from micronet_lib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    figure,
    footer,
    not_run,
    note,
    yours,
)

__all__ = [
    "assembled_ladder",
    "corruption_pictures",
    "gains_by_kind",
    "measured_speed",
    "printed_steps",
    "rates_by_kind",
    "retrieved",
    "robustness",
    "rungs_beside",
    "speed_and_work",
]

# Of the networks in one figure; their numbers have no common factor, so pairs repeat late.
_COLOURS, _MARKERS = (GREY, BLUE, GREEN, ORANGE, RED), "osD^v<>"


def assembled_ladder(rungs: pd.DataFrame, source: str) -> Figure:
    """Draw top-1 and mCE of a ladder of networks, one rung after the other.

    Args:
        rungs: columns point, top1_percent and mce_percent.
    """
    fig, axes = figure(height=2.9, columns=2)
    sides = (("top1_percent", "top-1 (%)", BLUE), ("mce_percent", "mCE (%)", ORANGE))
    for ax, (column, label, colour) in zip(axes, sides, strict=True):
        ax.plot(rungs["point"], rungs[column], "o-", color=colour, ms=4)
        ax.set(ylabel=label)
        ax.tick_params(axis="x", labelsize=7.5)
    return footer(fig, source)


def _rungs(paper: pd.DataFrame, ladder: str) -> pd.DataFrame:
    """Return the printed rows of a ladder with what their locators say of them."""
    rows = paper[paper["point"].str.fullmatch(rf"{ladder}\d+")]
    wide = rows.pivot_table(index="point", columns="metric", values="value", sort=False)
    said = rows.drop_duplicates("point").set_index("point")["locator"].str.partition(": ")[2]
    parts = said.str.partition(", ")
    wide.insert(0, "network", parts[0])
    wide.insert(1, "regularizers", parts[2].replace("", "-"))
    return wide.reset_index().rename(columns={"point": "rung"})


def rungs_beside(
    paper: pd.DataFrame, measured: pd.DataFrame, aside: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the printed rows of a ladder, their steps, and the points of the same names.

    Args:
        paper: transcribed numbers of the chapter, with their locators.
        measured: the table of a sweep; what has no record, or no point, has no number.
        aside: rungs that the next one does not stand on.

    Returns:
        Columns rung, network, regularizers, printed (%), its step (the difference to the rung
        below), mCE (the same, where it is printed), here (%) and n.
    """
    ladder = str(measured["point"].iloc[0])[0]
    top1 = measured.get("top1", pd.Series(np.nan, measured.index)).astype(float)
    ours = pd.DataFrame({"rung": measured["point"], "here (%)": 100 * top1, "n": measured["n"]})
    rows = _rungs(paper, ladder).rename(columns={"top1_percent": "printed (%)"})
    on = ~rows["rung"].isin(aside)

    def step(numbers: pd.Series) -> pd.Series:
        return numbers[on].diff().reindex(rows.index).fillna(numbers.diff())

    rows["its step"] = step(rows["printed (%)"])
    shown = ["rung", "network", "regularizers", "printed (%)", "its step"]
    if "mce_percent" in rows:
        rows["mCE"] = step(rows["mce_percent"])
        shown.append("mCE")
    return rows[shown].merge(ours, on="rung", how="left").fillna({"n": 0})


def printed_steps(paper: pd.DataFrame, steps: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Return what each technique costs and gains, as differences of two printed rows.

    Args:
        paper: from `records.paper_wide` of the chapter.
        steps: technique -> the rows without and with it.

    Returns:
        Columns technique, rows, epochs (of both rows), images/s (change of the speed, a fraction),
        top-1 and mCE (both in points).
    """
    wide, lines = paper.set_index("point"), []
    for technique, (without, by) in steps.items():
        before, after = wide.loc[without], wide.loc[by]
        epochs = dict.fromkeys(f"{row['epochs']:.0f}" for row in (before, after))
        lines.append(
            {
                "technique": technique,
                "rows": f"{without} to {by}",
                "epochs": " to ".join(epochs),
                "images/s": after["throughput"] / before["throughput"] - 1,
                "top-1": after["top1_percent"] - before["top1_percent"],
                "mCE": after["mce_percent"] - before["mce_percent"],
            }
        )
    return pd.DataFrame(lines)


# Where the names of networks stand whose points lie close together.
_NAMES = {
    "R50": ((-5, 3), "right"),
    "R50D": ((-5, -6), "right"),
    "R50D+SK": ((5, 4), "left"),
    "R50D+SK+BL": ((-5, -9), "right"),
    "R50D+SK+BL+AA": ((5, -9), "left"),
}


def speed_and_work(table: pd.DataFrame, source: str) -> Figure:
    """Draw images per second against multiply-accumulates, both on logarithmic axes.

    Args:
        table: columns point, macs_billions and throughput.
    """
    fig, (ax,) = figure(height=3.4)
    efficient = table["point"].str.startswith("efficientnet")
    groups = ((efficient, GREY, "EfficientNet"), (~efficient, BLUE, "ResNet"))
    for chosen, colour, label in groups:
        rows = table[chosen]
        ax.scatter(rows["macs_billions"], rows["throughput"], color=colour, label=label, s=18)
        for row in rows.itertuples():
            text = str(row.point).replace("efficientnet_", "").partition("@")[0]
            shift, side = _NAMES.get(text, ((5, 3), "left"))
            at = (row.macs_billions, row.throughput)
            note(ax, text, at, shift, size=7, color=colour, ha=side)
    ax.set(xlabel="billions of MACs", ylabel="images/s", xscale="log", yscale="log")
    ticks: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500)
    ax.set_xticks(ticks[:6], map(str, ticks[:6]))
    ax.set_yticks(ticks[3:], map(str, ticks[3:]))
    ax.minorticks_off()
    ax.margins(x=0.12, y=0.1)
    ax.legend(fontsize=8)
    return footer(fig, source)


def corruption_pictures(
    images: Mapping[str, Sequence[np.ndarray]], source: str, columns: int = 8
) -> Figure:
    """Draw images in rows, one title each.

    Args:
        images: title -> pictures uint8 `[H, W, 3]`, shown side by side.
        columns: titles in a row.
    """
    rows = -(-len(images) // columns)
    fig, axes = figure(height=1.05 * rows + 0.3, columns=columns, rows=rows)
    for ax in axes:
        ax.set_axis_off()
    for ax, (title, pictures) in zip(axes, images.items(), strict=False):
        ax.imshow(np.concatenate(list(pictures), axis=1), interpolation="nearest")
        ax.set_title(title.replace("_", " "), fontsize=7.5)
    return footer(fig, source)


# The same for speeds on a CPU. Elsewhere a name stands on the right.
_BESIDE = {
    "R50": ((-5, 3), "right"),
    "R50D+SE": ((-5, -7), "right"),
    "R101": ((5, -5), "left"),
    "R50D+SK+BL": ((-5, -8), "right"),
    "R50D+SK+BL+AA": ((-5, -8), "right"),
    "R152D+SK+BL+AA": ((-5, -8), "right"),
    "SE-MobileNet-V1 (r=2)": ((5, -9), "left"),
}


def measured_speed(assembled: pd.DataFrame, pruned: pd.DataFrame, source: str) -> Figure:
    """Draw images per second against multiply-accumulates, of large networks and of pruned ones.

    A line on the right is the speed of a network without zeros, times all work over the work that
    is left: what it would be if zeros cost nothing.

    Args:
        assembled: columns network, macs and images_per_s.
        pruned: the same and nonzero_macs, each network without zeros before its pruned forms, which
            have the same macs; it may be empty.
    """
    fig, (left, right) = figure(height=3.4, columns=2, widths=(1.6, 1))
    left.scatter(assembled["macs"] / 1e9, assembled["images_per_s"], color=BLUE, s=18)
    for row in assembled.itertuples():
        shift, side = _BESIDE.get(str(row.network), ((5, 0), "left"))
        note(left, str(row.network), (row.macs / 1e9, row.images_per_s), shift, size=7, ha=side)
    left.set(xlabel="billions of MACs", ylabel="images/s", xscale="log", yscale="log")
    left.set_xticks((0.5, 1, 2, 5, 10), ("0.5", "1", "2", "5", "10"))
    left.set_yticks((2, 5, 10, 20, 50, 100), ("2", "5", "10", "20", "50", "100"))
    left.minorticks_off()
    left.set_title("rebuilt, 224 or 256 px", fontsize=8.5)
    left.margins(x=0.45, y=0.15)
    right.set_title("pruned, 32 px", fontsize=8.5)
    if pruned.empty:
        not_run(right)
        return footer(fig, source)
    for number, (_, rows) in enumerate(pruned.groupby("macs", sort=False)):
        work, speed = rows["nonzero_macs"] / 1e6, rows["images_per_s"]
        free = speed.iloc[0] * work.iloc[0] / work
        names = ("_", "_") if number else ("measured", "if zeros were free")
        right.scatter(work, speed, color=GREY if number else BLUE, s=18, label=names[0])
        right.plot(work, free, ":" if number else "-", color=ORANGE, label=names[1])
        # Networks of about one size lie close together: the names of others stand above them.
        turn, below = (60, "bottom") if number else (-60, "top")
        for name, x, y in zip(rows["network"], work, speed, strict=True):
            note(right, name, (x, y), (-3, 6 if number else -9), size=7, rotation=turn,
                 ha="left", va=below)  # fmt: skip
    right.set(xlabel="millions of MACs that are not by 0", ylim=(0, None))
    right.margins(x=0.2)
    right.legend(fontsize=8)
    return footer(fig, source)


def retrieved(rows: Sequence[Sequence[np.ndarray]], right: np.ndarray, source: str) -> Figure:
    """Draw queries, and what was found for each: a green frame for its own class, else a red one.

    Args:
        rows: pictures uint8 `[H, W, 3]`, a query and then its nearest.
        right: whether each of the nearest is of the query's class, bool `[queries, nearest]`.
    """
    fig, axes = figure(height=0.85 * len(rows) + 0.3, columns=len(rows[0]), rows=len(rows))
    cells = [(number, place) for number, row in enumerate(rows) for place in range(len(row))]
    for ax, (number, place) in zip(axes, cells, strict=True):
        ax.imshow(rows[number][place], interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        colour = GREY if not place else GREEN if right[number][place - 1] else RED
        for side in ax.spines.values():
            side.set(visible=True, color=colour, linewidth=2.5)
        if not number:
            ax.set_title(f"nearest {place}" if place else "query", fontsize=7.5)
    return footer(fig, source)


def robustness(measured: pd.DataFrame, source: str, mine: pd.DataFrame | None = None) -> Figure:
    """Draw accuracy on corrupted images against accuracy on clean ones.

    Args:
        measured: a table of the sweep `corruptions`; points without a record are not drawn.
        mine: from `records.mine` of that sweep: the reader's own runs, a marker more.
    """
    fig, (ax,) = figure(height=3.0)
    if mine is not None:
        yours(ax, mine, 100 * mine["top1"], 100 * mine["corrupted_top1"])
    run = measured[measured["n"] > 0]
    if run.empty:
        not_run(ax)
        return footer(fig, source)
    ax.scatter(100 * run["top1"], 100 * run["corrupted_top1"], color=BLUE)
    for row in run.itertuples():
        note(ax, str(row.point), (100 * row.top1, 100 * row.corrupted_top1), (5, -3))
    ax.margins(x=0.15)
    ax.set(xlabel="top-1 of clean images (%)", ylabel="of corrupted images (%)")
    return footer(fig, source)


def gains_by_kind(
    rates: Mapping[str, Mapping[str, float]], against: Mapping[str, str]
) -> dict[str, list[tuple[str, float]]]:
    """Return the difference between networks under each kind of change.

    Args:
        rates: network -> kind -> fraction of wrong answers.
        against: network -> the network that it is compared with.

    Returns:
        network -> (kind, points of accuracy), from the largest loss to the largest gain.
    """
    return {
        network: sorted(
            ((kind, 100 * (rates[other][kind] - rate)) for kind, rate in rates[network].items()),
            key=lambda each: each[1],
        )
        for network, other in against.items()
    }


def rates_by_kind(rates: Mapping[str, Mapping[str, float]], what: str, source: str) -> Figure:
    """Draw a rate of each network, a row for each kind of change to the images.

    Args:
        rates: network -> kind -> fraction. The rows are sorted by the first network's.
        what: the label of the axis, without its unit.
    """
    kinds = next(iter(rates.values()), {})
    names = sorted(kinds, key=lambda name: kinds[name])
    fig, (ax,) = figure(height=1.3 + 0.23 * max(10, len(names)))
    if not rates:
        not_run(ax)
        return footer(fig, source)
    for number, (network, own) in enumerate(rates.items()):
        ax.plot(
            [100 * own[name] for name in names],
            range(len(names)),
            label=network,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            alpha=0.8,
            linestyle="",
        )
    ax.set(yticks=range(len(names)), xlabel=f"{what} (%)", xlim=(0, None))
    ax.set_yticklabels([name.replace("_", " ") for name in names])
    ax.legend(loc="lower right")
    return footer(fig, source)
