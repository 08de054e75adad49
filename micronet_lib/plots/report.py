"""Figures and tables of the page `98_report`."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from micronet_lib.plots.style import BLUE, GREEN, GREY, ORANGE, RED, SKY, figure, footer, not_run

__all__ = ["claim_verdicts", "core_hours", "hyperparameters"]

_COLOURS = (GREEN, SKY, BLUE, ORANGE, RED, GREY)

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
    "train.dropout": ("dropout", "training", "", ""),
    "srip.coef": ("coef", "paper", "readme readme_list", "code"),
    "smoothing.smoothing": ("smoothing", "paper", "", "released_dense"),
    "smoothing.temperature": ("temperature", "paper", "", ""),
    "augment.mix_alpha": ("cutmix_alpha", "", "training", ""),
    "prune.sparsities": ("rounds", "paper", "", ""),
}
_SOURCES = {"paper": "kim2020", "README": "micronet_code", "released code": "micronet_code"}


def claim_verdicts(claims: pd.DataFrame, verdicts: Sequence[str], source: str) -> Figure:
    """Draw the verdict of each claim: a row a claim, a column a verdict.

    Args:
        claims: columns claim and verdict.
        verdicts: in the order of the columns.
    """
    fig, (ax,) = figure(height=1.2 + 0.25 * len(claims))
    places = [verdicts.index(verdict) for verdict in claims["verdict"]]
    rows = range(len(claims))
    ax.scatter(places, rows, s=70, color=[_COLOURS[place] for place in places], zorder=3)
    ax.set_yticks(rows, claims["claim"].str.removesuffix("."), fontsize=8)
    names = [verdict.replace(" ", "\n").replace("at\n", "at ") for verdict in verdicts]
    counts = [places.count(place) for place in range(len(verdicts))]
    labels = [f"{name}\n{count}" for name, count in zip(names, counts, strict=True)]
    ax.set_xticks(range(len(verdicts)), labels, fontsize=8)
    ax.set_xlim(-0.5, len(verdicts) - 0.5)
    ax.xaxis.tick_top()
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
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
        stand; a dash where a source does not say.
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
