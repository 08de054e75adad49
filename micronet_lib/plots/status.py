"""Figures of chapter `99_status`."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from micronet_lib.plots.style import BLUE, GREEN, SKY, figure, footer

__all__ = ["embedded_set", "points_measured"]


def points_measured(covered: pd.DataFrame, source: str) -> Figure:
    """Draw the share of each chapter's points that have a record, by profile.

    Args:
        covered: one row per sweep and profile: chapter, profile, points, measured.
    """
    sums = covered.groupby(["chapter", "profile"], sort=False)[["points", "measured"]].sum()
    chapters = list(dict.fromkeys(covered["chapter"]))
    profiles = list(dict.fromkeys(covered["profile"]))
    fig, (ax,) = figure(height=0.36 * len(chapters) + 1.2)
    wide = 0.8 / len(profiles)
    for k, (profile, colour) in enumerate(zip(profiles, (SKY, GREEN, BLUE), strict=True)):
        rows = sums.xs(profile, level="profile").reindex(chapters, fill_value=0)
        at = np.arange(len(chapters)) + (k - (len(profiles) - 1) / 2) * wide
        shares = 100 * (rows["measured"] / rows["points"].where(rows["points"] > 0)).fillna(0)
        bars = ax.barh(at, shares, wide, color=colour, label=profile)
        counts = [
            f"{m} of {n}" if n else ""
            for m, n in zip(rows["measured"], rows["points"], strict=True)
        ]
        ax.bar_label(bars, counts, fontsize=6.5, padding=2)
    ax.set_yticks(range(len(chapters)), chapters)
    ax.invert_yaxis()
    ax.set(xlabel="points with a record (%)", xlim=(0, 112))
    ax.grid(axis="y", visible=False)
    fig.legend(title="profile", loc="outside upper center", ncols=len(profiles))
    return footer(fig, source)


def embedded_set(sheet: np.ndarray, superclass_names: tuple[str, ...], source: str) -> Figure:
    """Draw the embedded data set, one row per superclass.

    Args:
        sheet: uint8 picture `[H, W, 3]` whose rows are the superclasses, evenly spaced.
        superclass_names: from top to bottom.
    """
    fig, (ax,) = figure(height=9.6)
    ax.imshow(sheet, interpolation="nearest")
    step = sheet.shape[0] / len(superclass_names)
    ax.set_yticks([step * (row + 0.5) for row in range(len(superclass_names))], superclass_names)
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return footer(fig, source)
