"""Figures of the page `90_training`."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from micronet_lib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    YELLOW,
    component,
    figure,
    footer,
    not_run,
    note,
    whole_page,
)

__all__ = ["curves_page", "learning_rates", "training_curves"]

_COLOURS, _DASHES = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, GREY), ("-", "--", ":")


def training_curves(curves: pd.DataFrame, labels: Mapping[str, str], source: str) -> Figure:
    """Draw training loss and validation accuracy by epoch: a thin line a run, a thick one the mean.

    Args:
        curves: from `records.curves`; points that are not in `labels` are left out.
        labels: point -> name in the legend.
    """
    fig, (left, right) = figure(height=3.2, columns=2)
    known = curves[curves["point"].isin(list(labels))]
    panels = ((left, "train_loss", 1), (right, "validation_top1", 100))
    for ax, column, scale in panels:
        if known.empty:
            not_run(ax)
        for number, (point, label) in enumerate(labels.items()):
            colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % 3]
            rows = known[known["point"] == point]
            if rows.empty:
                continue
            lines = rows.pivot_table(index="epoch", columns="seed", values=column) * scale
            ax.plot(lines.index, lines, color=colour, lw=0.8, alpha=0.35)
            mean = lines.mean(axis=1)
            name = f"{label}, n={lines.shape[1]}"
            ax.plot(lines.index, mean, "o", ls=dash, color=colour, lw=2, ms=4, label=name)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(title="training loss (nats)", xlabel="epoch")
    right.set(title="right on validation images (%)", xlabel="epoch")
    if not known.empty:
        handles, names = left.get_legend_handles_labels()
        columns = min(3, len(names))
        fig.legend(handles, names, loc="outside upper center", ncols=columns, fontsize=8)
    return footer(fig, source)


# Column of a curve -> title, factor, and whether the printed accuracy belongs beside it.
_PANELS = {
    "train_loss": ("training loss, nats", 1, False),
    "validation_top1": ("right on validation images, %", 100, True),
    "test_top1": ("right on test images, %", 100, True),
}


def curves_page(
    curves: pd.DataFrame, printed: Mapping[str, float], title: str, source: str, refresh_s: int = 0
) -> str:
    """Return a page of its own with the curves of trainings: the mean and a band over seeds.

    It needs no network connection and no other file, and has the colours of the system.

    Args:
        curves: point, seed, epoch and any of train_loss, validation_top1, test_top1; a row for each
            run and epoch.
        printed: point -> accuracy in print, a fraction, drawn as a line.
        title: plain text.
        source: of the numbers.
        refresh_s: seconds after which a browser reads the page again; 0 for never.
    """
    panels = {name: about for name, about in _PANELS.items() if name in curves}
    points = [
        {
            "label": str(point),
            "printed": 100 * printed[point] if point in printed else None,
            "curves": {
                name: _band(rows.dropna(subset=[name]), name, factor)
                for name, (_, factor, _) in panels.items()
            },
        }
        for point, rows in curves.groupby("point", sort=False)
    ]
    shown = [{"name": n, "title": t, "printed": p} for n, (t, _, p) in panels.items()]
    data = {"points": points, "panels": shown, "source": source}
    part = component("training_curves.html", "training-curves", "curves", data)
    return whole_page(part, title, refresh_s)


def _band(rows: pd.DataFrame, name: str, factor: float) -> list[list[float]]:
    """Return `[epoch, mean, least, most, runs]` for each epoch."""
    found = rows.groupby("epoch")[name].agg(["mean", "min", "max", "size"])
    return [
        [int(epoch), *(round(float(v) * factor, 5) for v in (mean, low, high)), int(size)]
        for epoch, mean, low, high, size in found.itertuples()
    ]


def learning_rates(rates: pd.DataFrame, source: str) -> Figure:
    """Draw schedules of the learning rate.

    Args:
        rates: a column for each schedule; the index is the epoch.
    """
    fig, (ax,) = figure(height=2.9)
    for number, name in enumerate(rates):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % 3]
        ax.plot(rates.index, rates[name], color=colour, ls=dash, label=name)
    start, end = rates.iloc[0, 0], rates.iloc[-1, 0]
    note(ax, f"{start:g}", (rates.index[0], start), (-4, 0), ha="right", va="center")
    note(ax, f"{end:.2g}", (rates.index[-1], end), (4, 0), va="center")
    ax.set(xlabel="epoch", ylabel="learning rate")
    ax.legend()
    return footer(fig, source)
