"""Figures and tables of the page `98_report`."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from micronet_lib.plots.style import BLUE, GREEN, GREY, ORANGE, RED, SKY, figure, footer, not_run

__all__ = ["claim_verdicts", "core_hours", "hyperparameters"]

_COLOURS = (GREEN, SKY, BLUE, ORANGE, RED, GREY)
_MARKS = "oPD^Xs"
_NAME_CHARS = 38  # of a line of a claim

# Setting of a recipe -> where the paper, the README and the released code say it. First the
# metric, then the points of each among the transcribed numbers.
_QUOTED: dict[str, tuple[str, str, str, str]] = {
    "train.epochs": ("epochs", "training", "training", "released"),
    "train.cycles": ("cycles", "", "", "released"),
    "train.batch_size": ("batch_size", "training", "training", "released"),
    "train.lr": ("lr", "training", "training", "released"),
    "train.min_lr": ("min_lr", "training", "training", "released"),
    "train.momentum": ("momentum", "training", "training", "released"),
    "train.weight_decay": ("weight_decay", "training", "training", "released"),
    "train.bn_momentum": ("bn_average_decay", "training", "training", "released"),
    "train.dropout": ("dropout", "training", "", "released"),
    "srip.coef": ("coef", "paper", "readme readme_list", "code"),
    "smoothing.smoothing": ("smoothing", "paper", "", "released_dense"),
    "smoothing.temperature": ("temperature", "paper", "", ""),
    "augment.mix_alpha": ("cutmix_alpha", "training", "training", "released"),
    "prune.sparsities": ("rounds", "paper", "readme", "code"),
}
_SOURCES = {"paper": "kim2020", "README": "micronet_code", "released code": "micronet_code"}


def claim_verdicts(claims: pd.DataFrame, verdicts: Sequence[str], source: str) -> Figure:
    """Draw the verdict of each claim: a row a claim, a mark and a column a verdict.

    The claims stand in two panels, so that a phone shows them below each other. The legend names
    the columns from left to right and counts the claims of each.

    Args:
        claims: columns claim and verdict.
        verdicts: at most six, in the order of the columns.
    """
    half = max(1, (len(claims) + 1) // 2)
    fig, axes = figure(height=1.3 + 0.36 * half, columns=2)
    for ax, part in zip(axes, (claims[:half], claims[half:]), strict=True):
        names = part["claim"].str.removesuffix(".").map(lambda text: fill(text, _NAME_CHARS))
        places = [verdicts.index(verdict) for verdict in part["verdict"]]
        for row, place in enumerate(places):
            ax.scatter(place, row, s=60, color=_COLOURS[place], marker=_MARKS[place], zorder=3)
        ax.set_yticks(range(len(part)), names, fontsize=8)
        ax.set_xticks(range(len(verdicts)), [])
        ax.set(xlim=(-0.5, len(verdicts) - 0.5), ylim=(half - 0.5, -0.5))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    counts = claims["verdict"].value_counts()
    handles = [
        Line2D([], [], ls="", color=colour, marker=mark, label=f"{name}: {counts.get(name, 0)}")
        for name, colour, mark in zip(verdicts, _COLOURS, _MARKS, strict=False)
    ]
    fig.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=8.5)
    return footer(fig, source)


def core_hours(compute: pd.DataFrame, source: str) -> Figure:
    """Draw the core-hours of each sweep, the longest first.

    Args:
        compute: columns sweep, profile and core_hours.
    """
    hours = compute.groupby("sweep", sort=False)["core_hours"].sum()
    hours = hours[hours > 0].sort_values()
    fig, (ax,) = figure(height=1 + 0.22 * max(4, len(hours)))
    ax.barh(hours.index, hours, color=BLUE)
    for row, value in enumerate(hours):
        ax.annotate(f" {value:.2g}", (value, row), va="center", fontsize=8)
    if hours.empty:
        not_run(ax)
    ax.set(xlabel="hours of one CPU core, each training once")
    return footer(fig, source)


def hyperparameters(quoted: pd.DataFrame, recipes: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return settings as paper, README and released code give them, beside those of recipes.

    Args:
        quoted: transcribed numbers, as text.
        recipes: heading -> settings of a recipe, by their dotted names.

    Returns:
        Columns setting, paper, README, released code, one for each recipe, and where the numbers
        stand; a dash where a source gives no number.
    """
    rows = []
    for setting, (metric, *points) in _QUOTED.items():
        row, places = {"setting": setting}, []
        for (column, key), names in zip(_SOURCES.items(), points, strict=True):
            found = quoted[
                quoted["point"].isin(names.split())
                & (quoted["metric"] == metric)
                & (quoted["source"] == key)
            ].drop_duplicates(["point", "metric"])
            row[column] = "; ".join(_value(setting, text) for text in found["value"]) or "–"
            places += list(found["locator"])
        for heading, settings in recipes.items():
            row[heading] = _of_recipe(settings.get(setting, "–"))
        rows.append(row | {"printed in": "; ".join(dict.fromkeys(places))})
    return pd.DataFrame(rows)


def _value(setting: str, text: str) -> str:
    """Return a printed number as the setting has it."""
    if setting == "train.bn_momentum":  # print gives how much of the old average stays
        return f"{1 - float(text):.4g}"
    return f"{float(text):.4g}"


def _of_recipe(value: Any) -> str:
    if isinstance(value, list | tuple):
        return str(len(value))
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
