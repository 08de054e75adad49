"""Figures of chapter `00_contest`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from micronet_lib.plots.style import BLUE, GREEN, GREY, ORANGE, RED, figure, footer, note

__all__ = ["area_squares", "five_guesses", "trick_gains", "trick_steps"]

# Point and metric of each row of [kim2020, Tables 2 to 5] at expansion ratio 3, and what it adds.
_TRICKS = {
    ("3.0", "top1_vanilla_percent"): "the network alone",
    ("3.0", "top1_no_bias_decay_percent"): "no bias decay",
    ("ratio_3.0", "top1_orn_percent"): "SRIP",
    ("ratio_3.0", "top1_als_percent"): "adaptive label smoothing",
    ("ratio_3.0", "top1_fast_autoaugment_percent"): "Fast AutoAugment",
    ("ratio_3.0", "top1_cutmix_percent"): "CutMix",
    ("prune_60", "top1_percent"): "pruning of 60 %",
}


def five_guesses(
    image: np.ndarray, names: Sequence[str], shares: Sequence[float], source: str
) -> Figure:
    """Draw an image beside what a network says about it.

    Args:
        image: `[3, H, W]` in 0 to 255.
        names: of the classes, the likeliest first.
        shares: their probabilities.
    """
    # On a phone the panels stand below each other, as wide as the wider one: half of the figure.
    fig, (left, right) = figure(height=2.5, columns=2, widths=(1, 0.95))
    left.imshow(np.asarray(image).transpose(1, 2, 0), interpolation="nearest")
    left.set(xticks=[], yticks=[], title=f"{image.shape[1]} x {image.shape[2]} pixels")
    left.spines[:].set_visible(False)
    bars = right.barh(list(names)[::-1], list(shares)[::-1], color=[GREY] * 4 + [BLUE], height=0.7)
    right.bar_label(bars, [f"{share:.1%}" for share in list(shares)[::-1]], padding=4)
    right.set(xlim=(0, 1.12), xticks=[], title="five best guesses")
    right.grid(visible=False)
    right.spines["bottom"].set_visible(False)
    right.tick_params(length=0, labelsize=10)
    return footer(fig, source)


def area_squares(pairs: Mapping[str, tuple[str, float, str, float]], source: str) -> Figure:
    """Draw for each pair of quantities two squares whose areas are to scale.

    Args:
        pairs: title -> label and quantity of the large one, label and quantity of the small one.
    """
    fig, axes = figure(height=3.5, columns=len(pairs))
    for ax, (title, (large, whole, small, part)) in zip(axes, pairs.items(), strict=True):
        side = (part / whole) ** 0.5
        ax.add_patch(Rectangle((0, 0), 1, 1, color=GREY, alpha=0.45, lw=0))
        ax.add_patch(Rectangle((0, 0), side, side, color=RED, lw=0))
        ax.text(0.5, 0.55, large, ha="center", va="center", fontsize=11)
        note(ax, small, (side, side / 2), (6, 4), size=10, color=RED, va="center")
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=title)
        ax.axis("off")
    return footer(fig, source)


def trick_gains(quoted: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of the paper's network after each trick, and what the trick added.

    Args:
        quoted: transcribed numbers of all chapters, concatenated.

    Returns:
        Columns trick, top1 (percent), gain (points; `NaN` in the first row), locator.
    """
    rows = quoted[quoted["source"] == "kim2020"].drop_duplicates(["point", "metric"])
    rows = rows.set_index(["point", "metric"]).loc[list(_TRICKS)]
    table = pd.DataFrame({"trick": list(_TRICKS.values()), "top1": rows["value"].to_numpy()})
    return table.assign(gain=table["top1"].diff(), locator=rows["locator"].to_numpy())


def trick_steps(gains: pd.DataFrame, needed: float, source: str) -> Figure:
    """Draw the accuracy as a staircase, one step for each trick.

    Args:
        gains: from `trick_gains`.
        needed: the accuracy that the contest asks for, in percent.
    """
    fig, (ax,) = figure(height=3.3)
    ax.axvline(needed, color=GREY, ls="--", lw=1)
    note(ax, f"needed: {needed:.0f} %", (needed, 0), (-5, 0), ha="right", va="center")
    names = [("" if place == 0 else "+ ") + name for place, name in enumerate(gains["trick"])]
    before = gains["top1"].shift()
    for place, (start, end) in enumerate(zip(before, gains["top1"], strict=True)):
        if place == 0:
            ax.plot([end], [0], "o", color=GREY)
            note(ax, f"{end:.2f} %", (end, 0), (8, 0), va="center")
            continue
        colour = GREEN if end > start else ORANGE
        ax.barh(place, end - start, left=start, color=colour, height=0.6)
        ax.plot([start, start], [place - 1, place], color=GREY, lw=0.8)
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # of the line at `needed`
        place_of_text = (max(start, end), place)
        note(ax, f"{end - start:+.2f}", place_of_text, (5, 0), va="center", bbox=clear)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="top-1 accuracy (%)", xlim=(gains["top1"].min() - 1, gains["top1"].max() + 1.5))
    return footer(fig, source)
