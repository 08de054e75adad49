"""Figures of chapter `01_architecture`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from micronet_lib.plots import style
from micronet_lib.plots.style import BLUE, GREEN, GREY, ORANGE, SKY, YELLOW, figure, footer, note

__all__ = [
    "activations",
    "block_kinds",
    "expand_ratio",
    "expand_ratio_table",
    "expand_ratio_top1",
    "feature_maps",
    "network",
    "weights_by_layer",
]

_DARK, _PALE = "#222222", "#dddddd"
_ROW: dict[str, Any] = {"ncols": 4, "columnspacing": 1.2, "handletextpad": 0.5}

# From large pictures to small ones the tone gets darker.
_RESOLUTIONS = {32: "#a6cee3", 16: "#4a98c9", 8: "#1764ab", 4: "#08306b"}
_SHORTCUTS = {"identity": ("o", GREEN), "pointwise": ("D", YELLOW), "none": ("X", ORANGE)}
_REST = "batch norm, biases"


def feature_maps(
    image: NDArray[np.uint8],
    stages: Mapping[str, NDArray[Any]],
    guesses: Mapping[str, float],
    source: str,
) -> Figure:
    """Draw an image, every feature map at some places of a network, and its best guesses.

    Args:
        image: `[3, H, W]` in 0 to 255.
        stages: title -> feature maps `[C, H, W]`; each map has its own scale from dark to bright.
        guesses: class -> share, the best first.
    """
    fig, axes = figure(height=4.9, columns=3, rows=-(-(len(stages) + 2) // 3))
    first, *middle = axes
    first.imshow(image.transpose(1, 2, 0), interpolation="nearest")
    first.set_title(f"the picture: {image.shape[1]} x {image.shape[2]}, 3 colours")
    for ax, (title, maps) in zip(middle, stages.items(), strict=False):
        ax.imshow(_side_by_side(maps), interpolation="nearest", cmap="viridis")
        ax.set_title(f"{title}: {len(maps)} of {maps.shape[1]} x {maps.shape[2]}")
    for ax in axes:
        ax.set_axis_off()
    last = axes[len(stages) + 1]
    bars = last.barh(range(len(guesses)), list(guesses.values()), 0.75, color=SKY)
    names = [f"{name} {share:.0%}" for name, share in guesses.items()]
    for bar, text in zip(bars, names, strict=True):
        last.text(0.02, bar.get_y() + bar.get_height() / 2, text, va="center", color=_DARK)
    last.invert_yaxis()
    last.set(xlim=(0, 1), title="the answer, in shares")
    return footer(fig, source)


def _side_by_side(maps: NDArray[Any]) -> NDArray[np.float64]:
    """Return maps `[C, H, W]`, each scaled to [0, 1], as one picture with gaps of `NaN`."""
    count, height, width = maps.shape
    columns = int(np.ceil(count**0.5))
    gap = max(1, height // 8)
    shape = (-(-count // columns) * (height + gap) - gap, columns * (width + gap) - gap)
    canvas = np.full(shape, np.nan)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    scaled = (maps - low) / np.maximum(high - low, 1)
    for place, each in enumerate(scaled):
        row, column = divmod(place, columns)
        top, left = row * (height + gap), column * (width + gap)
        canvas[top : top + height, left : left + width] = each
    return canvas


def block_kinds(blocks: pd.DataFrame) -> Figure:
    """Draw the inside of blocks: each tensor is a bar whose length is its number of channels.

    Args:
        blocks: one drawing per row: block, in_chs, hidden_chs, out_chs, stride, se_chs, resolution
            (of the output), shortcut (`identity`, `pointwise` or `none`).
    """
    fig, axes = figure(height=3.9, columns=len(blocks))
    edge = blocks["hidden_chs"].max() / 2
    for ax, block in zip(axes, blocks.to_dict("records"), strict=True):
        _draw_block(ax, block, left=-1.2 * edge)
        kind = block["shortcut"].replace("none", "no")
        ax.set(xlim=(-1.4 * edge, 1.7 * edge), ylim=(5.4, -0.4))
        ax.set_title(f"block {block['block']}: {kind} shortcut")
        ax.set_axis_off()
    return fig


def _draw_block(ax: Axes, block: dict[str, Any], left: float) -> None:
    small, large = block["resolution"], block["resolution"] * block["stride"]
    joined = block["shortcut"] != "none"
    ending = " ".join(["× gate"] * bool(block["se_chs"]) + ["+ shortcut"] * joined)
    tensors = [
        (block["in_chs"], large, "1×1 expand"),
        (block["hidden_chs"], large, "3×3 depthwise" + ", stride 2" * (large > small)),
        (block["hidden_chs"], small, "1×1 project"),
        (block["out_chs"], small, ending),
        (block["out_chs"], small, ""),
    ]
    for row, (chs, size, step) in enumerate(tensors if ending else tensors[:-1]):
        y = 1.25 * row
        ax.barh(y, chs, 0.6, left=-chs / 2, color=_RESOLUTIONS[size])
        ink = _DARK if size == max(_RESOLUTIONS) else "white"
        ax.text(0, y, f"{chs}", ha="center", va="center", color=ink, size=9)
        ax.text(chs / 2, y, f" {size}×{size}", va="center", color="#555555", size=8)
        ax.text(0, y + 0.63, step, ha="center", va="center", size=8.5)
    if joined:
        _, colour = _SHORTCUTS[block["shortcut"]]
        ax.plot([-block["in_chs"] / 2, left, left], [0, 0, 5], color=colour, lw=2)
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (-block["out_chs"] / 2, 5), (left, 5), arrowprops=arrow)
    if block["shortcut"] == "pointwise":
        ax.text(left, 2.5, "1×1", size=8.5, ha="center", va="center", backgroundcolor="white")


# The last digit that the paper's Table 2 prints.
_LAST_DIGIT = {"param_storage_millions": 0.01, "math_ops_millions": 1.0, "score": 0.0001}


def activations(curves: pd.DataFrame) -> Figure:
    """Draw HardSwish beside Swish: the functions, their difference, their slopes.

    Args:
        curves: x, swish, hard_swish, swish_slope, hard_swish_slope, one row per x.
    """
    fig, (values, gap, slopes) = figure(height=2.9, columns=3)
    x = curves["x"]
    for ax, suffix in ((values, ""), (slopes, "_slope")):
        ax.plot(x, curves[f"swish{suffix}"], color=ORANGE, lw=2, ls="--", label="Swish")
        ax.plot(x, curves[f"hard_swish{suffix}"], color=BLUE, lw=2, label="HardSwish")
    values.legend(loc="upper left")
    values.set_title("function")
    slopes.set_title("slope")
    difference = curves["hard_swish"] - curves["swish"]
    gap.plot(x, difference, color=_DARK, lw=2)
    largest = difference[difference.abs() > difference.abs().max() * (1 - 1e-6)].index
    gap.plot(x[largest], difference[largest], "o", color=ORANGE)
    for index in largest:
        text = f"{difference[index]:.4f}\nat {x[index]:.0f}".replace("-", "−")
        note(gap, text, (x[index], difference[index]), (0, 5), ha="center")
    gap.set_title("HardSwish − Swish")
    gap.margins(y=0.25)
    for ax in (values, gap, slopes):
        ax.set_xlabel("x")
    return fig


def network(blocks: pd.DataFrame) -> Figure:
    """Draw a network: its widths to scale, then the shares of weights and multiplications.

    Args:
        blocks: one row per block: in_chs, hidden_chs, out_chs, resolution (of the output), shortcut
            (`identity`, `pointwise` or `none`), weights and macs (numbers of each).
    """
    fig, (shape, share) = figure(height=5.2, rows=2)
    x = np.arange(len(blocks))
    colours = blocks["resolution"].map(_RESOLUTIONS)
    shape.bar(x, blocks["hidden_chs"], 0.86, -blocks["hidden_chs"] / 2, color=colours, alpha=0.45)
    shape.bar(x, blocks["out_chs"], 0.86, -blocks["out_chs"] / 2, color=colours)
    for index, block in enumerate(blocks.to_dict("records")):
        hidden, out = block["hidden_chs"], block["out_chs"]
        ink = _DARK if block["resolution"] == max(_RESOLUTIONS) else "white"
        shape.text(index, hidden / 2 + 4, hidden, ha="center", va="bottom", size=8)
        shape.text(index, 0, out, ha="center", va="center", size=8, color=ink)
    floor = -blocks["hidden_chs"].max() / 2 * 1.2
    for kind, (marker, colour) in _SHORTCUTS.items():
        chosen = x[blocks["shortcut"] == kind]
        shape.plot(chosen, np.full(len(chosen), floor), marker, color=colour, ms=7, label=kind)
    shape.set_ylim(floor * 1.12, -floor * 1.08)
    shape.set_axis_off()
    sizes = [size for size in _RESOLUTIONS if size in set(blocks["resolution"])]
    patches = [Patch(color=_RESOLUTIONS[size], label=f"{size}×{size}") for size in sizes]
    fig.legend(handles=patches, title="output resolution", loc="outside upper left", **_ROW)
    markers, kinds = shape.get_legend_handles_labels()
    fig.legend(markers, kinds, title="shortcut", loc="outside upper right", **_ROW)
    percent = 100 * blocks[["macs", "weights"]] / blocks[["macs", "weights"]].sum()
    share.bar(x - 0.21, percent["macs"], 0.4, color=ORANGE, label="multiplications")
    share.bar(x + 0.21, percent["weights"], 0.4, color=BLUE, label="weights")
    share.set(xlabel="block", ylabel="% of all blocks", xticks=x)
    share.legend(loc="upper center", ncols=2)
    share.grid(axis="x", visible=False)
    for ax in (shape, share):
        ax.set_xlim(-0.6, len(blocks) - 0.4)
    return fig


def weights_by_layer(counts: pd.DataFrame) -> Figure:
    """Draw the parameters of each network by kind of layer, one stacked bar per network.

    Args:
        counts: one row per kind of layer (its name is the index, `batch norm, biases` for the
            rest), one column per network.
    """
    fig, (ax,) = figure(height=1.0 + 0.55 * counts.shape[1])
    left = pd.Series(0.0, index=counts.columns)
    styles = {**style.KIND_STYLES, _REST: (_REST, _PALE)}
    for kind in (kind for kind in styles if kind in counts.index):
        label, fill = styles[kind]
        widths = counts.loc[kind] / 1000
        bars = ax.barh(counts.columns, widths, 0.72, left=left, color=fill, label=label)
        inside = [f"{width:.0f}" if width > 15 else "" for width in widths]
        ink = _DARK if fill in (GREY, YELLOW, _PALE) else "white"
        ax.bar_label(bars, inside, label_type="center", color=ink)
        left += widths
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("parameters (thousands)")
    fig.legend(loc="outside upper center", **_ROW)
    return fig


def expand_ratio(released: pd.DataFrame, printed: pd.DataFrame, source: str) -> Figure:
    """Draw storage and operations by expansion ratio, against the paper's numbers.

    Args:
        released: the counted network beside the paper, from `records.beside_paper`: point, metric
            (`param_storage_millions`, `math_ops_millions`), paper, measured.
        printed: the same for the network of the paper's Table 1.
    """
    fig, axes = figure(height=5.2, columns=2, rows=2)
    titles = {
        "param_storage_millions": "NP: storage (millions)",
        "math_ops_millions": "MO: operations (millions)",
    }
    for above, below, metric in zip(axes[:2], axes[2:], titles, strict=True):
        ours, other = (t[t["metric"] == metric].set_index("point") for t in (released, printed))
        ratios = ours.index.astype(float)
        above.plot(ratios, ours["paper"], "_", color=_DARK, ms=15, mew=2.5, label="paper, Table 2")
        above.plot(ratios, ours["measured"], "o", color=BLUE, label="released code, counted")
        table_1, label = other.index.astype(float), "Table 1 as printed, counted"
        above.plot(table_1, other["measured"], "x", color=ORANGE, mew=2, label=label)
        above.set(ylim=(0, None), title=titles[metric], xticks=ratios)
        band = 100 * _LAST_DIGIT[metric] / 2 / ours["paper"]
        below.bar(ratios, 2 * band, 0.36, -band, color=_PALE, label="rounds to what is printed")
        below.plot(ratios, 100 * (ours["measured"] / ours["paper"] - 1), "o", color=BLUE)
        below.axhline(0, color=_DARK, lw=1)
        below.set(ylim=(-6, 6), xlabel="expansion ratio i", xticks=ratios)
    axes[2].set_ylabel("counted against paper (%)")
    handles = [line for ax in (axes[0], axes[2]) for line in ax.get_legend_handles_labels()[0]]
    fig.legend(handles=handles, loc="outside upper center", ncols=2)
    return footer(fig, source)


def expand_ratio_top1(paper: pd.DataFrame, target: float, source: str) -> Figure:
    """Draw the paper's top-1 against the paper's score, by expansion ratio. Nothing is measured.

    Args:
        paper: one row per ratio, from `records.paper_wide`.
        target: top-1 in percent that the challenge requires.
    """
    fig, (ax,) = figure(height=3.5)
    for metric, label, colour, marker in (
        ("top1_no_bias_decay_percent", "biases and batch norm not decayed", BLUE, "o"),
        ("top1_vanilla_percent", "everything decayed", ORANGE, "s"),
    ):
        ax.plot(paper["score"], paper[metric], f"{marker}-", color=colour, label=label)
    for row in paper.to_dict("records"):
        top = (row["score"], row["top1_no_bias_decay_percent"])
        note(ax, f"i = {row['point']}", top, (0, 7), ha="center")
    ax.axhline(target, color=_DARK, ls="--", lw=1)
    note(ax, "what the challenge asks for", (paper["score"].min(), target), (0, 4), size=8.5)
    ax.set(ylim=(None, target + 1.2), xlabel="score (lower is better)", ylabel="top-1 (%)")
    ax.legend(loc="lower right")
    return footer(fig, source)


def expand_ratio_table(compared: pd.DataFrame) -> pd.DataFrame:
    """Return one row per ratio; for NP, MO and score the paper's number, ours and the error.

    Args:
        compared: from `records.beside_paper`.
    """
    columns = {"i": compared["point"].unique()}
    for metric, name in zip(_LAST_DIGIT, ("NP", "MO", "score"), strict=True):
        rows = compared[compared["metric"] == metric].set_index("point").loc[columns["i"]]
        off = rows["measured"] / rows["paper"] - 1
        rounded = rows["difference"].abs() <= _LAST_DIGIT[metric] / 2
        columns |= {f"{name}, paper": rows["paper"], f"{name}": rows["measured"]}
        columns |= {f"{name} off": off, f"{name} rounds": rounded}
    return pd.DataFrame({name: list(values) for name, values in columns.items()})
