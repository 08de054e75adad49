"""Figures and tables of chapter `05_pruning`."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from micronet_lib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    figure,
    footer,
    not_run,
    note,
    yours,
)

__all__ = [
    "density_by_kind",
    "images_seen",
    "mask_rounds",
    "printed_curve",
    "pruned_files",
    "pruning_curve",
    "rounds_table",
    "runs_beside_files",
    "short_rounds",
    "sparsity_rounds",
    "table_5",
    "weight_histograms",
    "zeros_by_kind",
]

_GONE = "#e0e0e0"
_COLOURS = {
    **{"linear": BLUE, "exponential": ORANGE, "one_shot": GREEN, "README": PURPLE},
    **{"no_srip": PURPLE, "teacher": SKY},
}


def weight_histograms(panels: Mapping[str, tuple[np.ndarray, float]], source: str) -> Figure:
    """Draw the weights of a network that are not zero, and those that the next round will take.

    Args:
        panels: title -> weights, and the threshold of the next round; 0 for none.
    """
    fig, axes = figure(height=2.9, columns=len(panels))
    reach = max(float(np.quantile(np.abs(weights), 0.995)) for weights, _ in panels.values())
    edges = np.linspace(-reach, reach, 82)
    for ax, (title, (weights, threshold)) in zip(axes, panels.items(), strict=True):
        left = weights[weights != 0]
        # Bars end at the threshold, so that no bar is of both kinds.
        cuts = np.unique(np.concatenate([edges, [-threshold, threshold]]))
        heights, _ = np.histogram(left, cuts, density=True)
        goes = np.abs(cuts[:-1] + cuts[1:]) / 2 < threshold
        ax.bar(cuts[:-1], heights, np.diff(cuts), align="edge", color=np.where(goes, ORANGE, BLUE))
        if threshold:
            for border in (-threshold, threshold):
                ax.axvline(border, color="#222222", lw=1, ls="--")
        gone = np.mean(weights == 0)
        note(ax, f"{gone:.0%} are 0" if gone else "none is 0", (0.03, 0.9), (0, 0),
             xycoords="axes fraction")  # fmt: skip
        ax.set(title=title, xlabel="weight", yticks=[])
        ax.margins(y=0.2)
        ax.grid(visible=False)
    names = {BLUE: "stays", ORANGE: "goes in the next round"}
    handles = [Patch(color=colour, label=name) for colour, name in names.items()]
    fig.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=8.5)
    return footer(fig, source)


def mask_rounds(masks: Mapping[str, np.ndarray], layer: str, source: str) -> Figure:
    """Draw one layer's mask after every round: weights stored, pruned now, pruned before.

    Args:
        masks: title of the panel -> boolean matrix `[out_chs, fan_in]` of each round, true where a
            weight is stored.
        layer: its name.
    """
    fig, axes = figure(height=2.7, columns=len(masks))
    before = np.ones_like(next(iter(masks.values())), dtype=bool)
    for ax, (title, mask) in zip(axes, masks.items(), strict=True):
        state = np.where(mask, 2, np.where(before, 1, 0))
        ax.imshow(state, cmap=ListedColormap([_GONE, ORANGE, BLUE]), vmin=0, vmax=2, aspect="auto")
        ax.set_title(title)
        ax.set_xlabel("fan-in", size=8.5)
        ax.grid(visible=False)
        ax.tick_params(labelsize=8)
        before = mask
    axes[0].set_ylabel(f"{layer}\noutput channel", size=8.5)
    for ax in axes[1:]:
        ax.set_yticklabels([])
    names = {BLUE: "kept", ORANGE: "pruned in this round", _GONE: "pruned before"}
    handles = [Patch(color=colour, label=name) for colour, name in names.items()]
    fig.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8.5)
    return footer(fig, source)


def zeros_by_kind(
    paper: pd.DataFrame, sizes: pd.DataFrame, points: Sequence[str] = ("v1_pr_60",)
) -> pd.DataFrame:
    """Return the zeros counted in published files, as a share of each kind's weights.

    Args:
        paper: the chapter's transcribed numbers: point, metric, value.
        sizes: `pruning.density.density_table(model, "kind")` of that architecture, pruned or not.
        points: files of this architecture.

    Returns:
        Columns network, kind, num_weights, num_zeros, sparsity; the last row of each is `all`.
    """
    found = []
    for point in points:
        counted = paper[paper["point"] == point].set_index("metric")["value"]
        zeros = counted.reindex("zeros_" + sizes["kind"]).to_numpy()
        rows = sizes[["kind", "num_weights"]].assign(network=point, num_zeros=zeros)
        found.append(rows.assign(sparsity=rows["num_zeros"] / rows["num_weights"]))
    columns = ["network", "kind", "num_weights", "num_zeros", "sparsity"]
    return pd.concat(found, ignore_index=True)[columns]


def density_by_kind(zeros: pd.DataFrame, source: str) -> Figure:
    """Draw the density of each kind of layer, network by network.

    Args:
        zeros: columns network, kind, sparsity, from `zeros_by_kind`; the kind `all` is a line.
    """
    fig, (ax,) = figure(height=2.9)
    kinds = [kind for kind in zeros["kind"].unique() if kind != "all"]
    networks = list(zeros["network"].unique())
    width = 0.8 / len(networks)
    for place, (network, colour) in enumerate(zip(networks, _NETWORKS, strict=False)):
        rows = zeros[zeros["network"] == network].set_index("kind")["sparsity"]
        at = np.arange(len(kinds)) + (place - (len(networks) - 1) / 2) * width
        bars = ax.bar(at, 100 * rows.reindex(kinds), width, color=colour, label=network)
        ax.bar_label(bars, fmt="%.0f", fontsize=7.5)
        if "all" in rows:
            ax.axhline(100 * rows["all"], color=colour, lw=1, ls="--")
    ax.set_xticks(range(len(kinds)), kinds)
    ax.set(ylabel="pruned (%)", ylim=(0, max(100 * zeros["sparsity"].max() * 1.2, 1)))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=len(networks), loc="upper right", fontsize=8.5)
    return footer(fig, source)


_NETWORKS = (BLUE, GREEN, ORANGE, PURPLE)


def sparsity_rounds(schedules: Mapping[str, Sequence[float]], source: str) -> Figure:
    """Draw the sparsity after each round, and the share of the remaining weights it prunes.

    Args:
        schedules: name -> sparsity after each round.
    """
    fig, (left, right) = figure(height=3.2, columns=2)
    for name, sparsities in schedules.items():
        gone = np.array([0.0, *sparsities])
        taken = np.diff(gone) / (1 - gone[:-1])
        style: dict[str, Any] = {"color": _COLOURS[name], "label": name, "ms": 4, "lw": 1.3}
        left.plot(100 * gone, "o-", **style)
        right.plot(range(1, len(gone)), 100 * taken, "o-", **style)
    rounds = range(max(map(len, schedules.values())) + 1)
    left.set(xlabel="round", xticks=rounds, ylabel="pruned in all (%)", ylim=(0, None))
    right.set(xlabel="round", xticks=rounds, ylabel="pruned of what was left (%)", ylim=(0, None))
    left.legend(fontsize=8.5)
    return footer(fig, source)


def printed_curve(paper: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's Table 5: columns sparsity (a fraction), top1_percent, score, drop.

    `drop` is in points of top-1 below the dense network.

    Args:
        paper: the chapter's transcribed numbers: point, metric, value.
    """
    rows = paper[paper["point"].str.startswith("prune_")]
    wide = rows.pivot_table(index="point", columns="metric", values="value", sort=False)
    wide["sparsity"] = wide.index.str.removeprefix("prune_").astype(float) / 100
    table = wide[["sparsity", "top1_percent", "score"]].reset_index(drop=True)
    table["drop"] = table["top1_percent"].iloc[0] - table["top1_percent"]
    return table.rename_axis(columns=None)


def pruned_files(published: pd.DataFrame) -> pd.DataFrame:
    """Return the measurements of published files: columns file, n, sparsity, top1, score.

    Args:
        published: a table of the sweep `published`; its points end in the percentage pruned.
    """
    share = published["point"].str.rpartition("_")[2].astype(float) / 100
    columns = {"point": "file", "published.score": "score"}
    table = published.assign(sparsity=share).rename(columns=columns)
    return table[["file", "n", "sparsity", "top1", "score"]]


def runs_beside_files(
    runs: pd.DataFrame, files: pd.DataFrame, beside: Mapping[str, str]
) -> pd.DataFrame:
    """Return runs with published files among them, for differences by seed.

    A file is one network. It is repeated for every seed of the point that it stands beside, so that
    an interval has the spread of our runs in it and none of the file's.

    Args:
        runs: from `records.runs`.
        files: from `pruned_files`.
        beside: file -> point of `runs`.
    """
    found = files.dropna(subset=["top1"]).set_index("file")["top1"]
    rows = [
        runs[runs["point"] == point][["seed"]].assign(point=file, top1=found.get(file, np.nan))
        for file, point in beside.items()
    ]
    return pd.concat([runs, *rows], ignore_index=True)


def short_rounds(
    measured: pd.DataFrame, files: pd.DataFrame, source: str, mine: pd.DataFrame | None = None
) -> Figure:
    """Draw accuracy against sparsity: short rounds of several ways, and the published files.

    Args:
        measured: a table of the sweep `rounds`, points `<way>-<round>`.
        files: from `pruned_files`, of the network that the rounds start from.
        mine: from `records.mine` of that sweep: the reader's own runs, a marker more.
    """
    fig, (ax,) = figure(height=3.2)
    found = files[files["n"] > 0]
    start = found.nsmallest(1, "sparsity")
    measured = measured.assign(way=measured["point"].str.rpartition("-")[0])
    run = measured[measured["n"] > 0]
    for way, rows in run.groupby("way", sort=False):
        colour, n = _COLOURS[way], "/".join(str(n) for n in sorted(set(rows["n"])))
        x, y = (100 * np.array([*start[c], *rows[c]]) for c in ("sparsity", "top1"))
        ax.plot(x, y, "s-", ms=5, lw=1.3, color=colour, label=f"{way}, n={n}")
        spread = 100 * np.array([*0 * start["top1"], *rows["top1_std"].fillna(0)])
        ax.fill_between(x, y - spread, y + spread, color=colour, alpha=0.2, lw=0)
    style: dict[str, Any] = {"marker": "D", "ms": 7, "lw": 1, "ls": ":", "color": GREY}
    at = [100 * found[column].to_numpy() for column in ("sparsity", "top1")]
    ax.plot(*at, mfc="white", label="published files", **style)
    for x, y, name in zip(*at, found["file"], strict=True):
        note(ax, name, (x, y), (7, 5))
    ax.axhline(80, color="#222222", lw=0.8, ls="--")
    if mine is not None:
        yours(ax, mine, 100 * mine["sparsity"], 100 * mine["top1"], legend=False)
    missing = measured["way"].drop_duplicates()
    missing = missing[~missing.isin(run["way"])]
    if len(missing):
        ax.plot([], [], " ", label=f"not run: {', '.join(missing)}")
    ax.set(xlabel="pruned (%)", ylabel="top-1 (%)", xlim=(None, 66))
    ax.legend(fontsize=8.5)
    return footer(fig, source)


def images_seen(runs: pd.DataFrame, printed: pd.DataFrame, source: str) -> Figure:
    """Draw accuracy against the images seen since random weights, on a logarithmic axis.

    Args:
        runs: our points with a record: label, images, top1 and top1_std (fractions), n. Points of
            one label are joined in the order of their images.
        printed: the paper's: images and top1_percent, the dense training first, then the rounds.
    """
    fig, (ax,) = figure(height=3.2)
    colours = cycle((ORANGE, BLUE, GREEN, PURPLE, SKY))
    for (label, rows), colour in zip(runs.groupby("label", sort=False), colours, strict=False):
        rows = rows.sort_values("images")
        spread = 100 * rows["top1_std"].fillna(0)
        n = "/".join(str(n) for n in sorted(set(rows["n"])))
        style: dict[str, Any] = {"fmt": "s-", "ms": 5, "lw": 1.3, "capsize": 3, "color": colour}
        ax.errorbar(rows["images"], 100 * rows["top1"], spread, label=f"{label}, n={n}", **style)
    paper: dict[str, Any] = {"marker": "o", "ms": 5, "lw": 1, "color": GREY, "mfc": "white"}
    ax.plot(printed["images"], printed["top1_percent"], label="paper, Table 5", **paper)
    first = printed.iloc[0]
    note(ax, f"{first['images'] / 1e6:.0f} M", (first["images"], first["top1_percent"]), (-8, -14))
    ax.axhline(80, color="#222222", lw=0.8, ls="--")
    ax.set(xscale="log", xlabel="images seen since random weights", ylabel="top-1 (%)")
    ax.set(ylim=(0, 90))
    ax.legend(fontsize=8.5)
    return footer(fig, source)


def rounds_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Return the table of a sweep of pruning rounds for a page.

    Args:
        measured: a table of `pipeline`, `prune_schedule` or `rewind`; points without a record have
            n 0 and NaN. A measured dense network has sparsity 0.

    Returns:
        Columns point, n, sparsity, top1, spread (standard deviation over the n runs), loss, and, if
        the sweep has them, ece, srip (the penalty), score and official_score.
    """
    sparsity = measured["sparsity"].mask(measured["n"].gt(0) & measured["sparsity"].isna(), 0.0)
    names = {"ece": "ece", "srip_penalty": "srip", "published.score": "score"}
    names |= {"official.score": "official_score"}
    table = measured.assign(sparsity=sparsity, spread=measured["top1_std"])
    shown = [name for name in names if name in measured]
    columns = ["point", "n", "sparsity", "top1", "spread", "loss", *shown]
    return table[columns].rename(columns=names)


def table_5(printed: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's Table 5 beside our own rounds on the full schedule.

    Args:
        printed: from `printed_curve`.
        full: from `rounds_table` of the sweep `pipeline`; a round that was not run is NaN.

    Returns:
        Columns sparsity, paper (percent), paper's score, ours, spread, n, our score, official
        score.
    """
    names = {"top1": "ours", "spread": "spread", "n": "n", "score": "our score"}
    names |= {"official_score": "official score"}
    ours = full.set_axis((100 * full["sparsity"]).round(), axis=0)
    ours = ours.loc[ours.index.notna(), list(names)].rename(columns=names)
    of_paper = printed[["sparsity", "top1_percent", "score"]]
    of_paper = of_paper.rename(columns={"top1_percent": "paper (%)", "score": "paper's score"})
    rows = (100 * printed["sparsity"]).round()
    return of_paper.join(ours.reindex(rows).set_axis(printed.index, axis=0))


def pruning_curve(
    printed: pd.DataFrame,
    files: pd.DataFrame,
    full: pd.DataFrame,
    quick: pd.DataFrame,
    source: str,
    mine: pd.DataFrame | None = None,
) -> Figure:
    """Draw accuracy against sparsity and score; short runs separately, on their own scale.

    Args:
        printed: from `printed_curve`.
        files: from `pruned_files`.
        full: from `rounds_table` of the sweep `pipeline` on the paper's schedule.
        quick: the same for short runs, which are not comparable with the paper.
        mine: from `records.mine` of that sweep: the reader's own runs, a marker more. Those far
            below the paper's numbers are among the short runs.
    """
    fig, (left, middle, right) = figure(height=3.1, columns=3)
    found = files[files["n"] > 0]
    for ax, column, factor in ((left, "sparsity", 100), (middle, "score", 1)):
        style: dict[str, Any] = {"marker": "o", "ms": 4, "lw": 1, "color": GREY, "mfc": "white"}
        ax.plot(factor * printed[column], printed["top1_percent"], label="paper, Table 5", **style)
        for version, colour in (("v1", BLUE), ("v2", GREEN)):
            rows = found[found["file"].str.startswith(version)]
            label = f"{version} files, measured"
            ax.plot(factor * rows[column], 100 * rows["top1"], "D", ms=6, color=colour, label=label)
        ax.axhline(80, color="#222222", lw=0.8, ls="--")
        _measured(ax, factor * full[column], full, "ours, full")
    left.set(title="by sparsity", xlabel="pruned (%)", ylabel="top-1 (%)")
    middle.set(title="by score", xlabel="score")
    _measured(right, 100 * quick["sparsity"], quick, "ours, quick")
    right.set(title="ours, quick: few epochs", xlabel="pruned (%)")
    if mine is not None:
        gone, top1 = 100 * mine["sparsity"].fillna(0), 100 * mine["top1"]
        if top1.min() > printed["top1_percent"].min() - 5:
            yours(left, mine, gone, top1, legend=False)
            yours(middle, mine, mine["published.score"], top1, legend=False)
        else:
            yours(right, mine, gone, top1)
    handles = left.get_legend_handles_labels()
    fig.legend(*handles, loc="outside upper center", ncols=4, fontsize=8)
    if not quick["n"].any() and not right.lines:
        not_run(right)
    return footer(fig, source)


def _measured(ax: Axes, at: pd.Series, rows: pd.DataFrame, label: str) -> None:
    """Draw mean and spread of the existing runs."""
    run = rows["n"] > 0
    if run.any():
        spread = 100 * rows["spread"][run].fillna(0)
        top1 = 100 * rows["top1"][run]
        ax.errorbar(at[run], top1, spread, fmt="s-", ms=5, capsize=3, color=ORANGE, label=label)
