"""Figures and tables of singular values, for chapter `02_srip`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from micronet_lib.architecture.layers import POINTWISE
from micronet_lib.plots.style import BLUE, GREY, KIND_STYLES, ORANGE, PURPLE, figure, footer

__all__ = [
    "singular_values",
    "srip_resting_places",
    "srip_sides",
    "srip_spectra",
    "srip_summary",
]

_WIDE_TICKS, _NARROW_TICKS = (0.1, 0.3, 1, 3, 10), (0.25, 0.5, 0.7, 1, 1.4, 2, 4)
_RATIOS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


def singular_values(
    network: str,
    spectra: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    kinds: Mapping[str, str],
) -> pd.DataFrame:
    """Return a network's singular values as a long table, one row per value; empty without spectra.

    Args:
        network: its name in figures.
        spectra: the values of each matrix by layer, with or without `.weight` at the end.
        shapes: `[out_chs, fan_in]` of each matrix by the same names, in network order, which a
            record does not have.
        kinds: of each matrix by the names of `shapes`, from `architecture.weight_kinds`.

    Returns:
        Columns network, layer, kind, pointwise, out_chs, fan_in, side, value. A square matrix is on
        the side `tall`, because it has no null directions either.
    """
    found = {layer.removesuffix(".weight"): values for layer, values in spectra.items()}
    rows = []
    for name, (out_chs, fan_in) in shapes.items():
        layer = name.removesuffix(".weight")
        kind, side = kinds[name], "wide" if fan_in > out_chs else "tall"
        place = [network, layer, kind, kind in POINTWISE, out_chs, fan_in, side]
        rows += [[*place, float(value)] for value in found.get(layer, ())]
    columns = ["network", "layer", "kind", "pointwise", "out_chs", "fan_in", "side", "value"]
    return pd.DataFrame(rows, columns=columns)


def srip_summary(values: pd.DataFrame, networks: Sequence[str]) -> pd.DataFrame:
    """Return how near 1 the singular values are, in pointwise layers and in the others.

    Args:
        values: from `singular_values`, of all networks.
        networks: their order; one without values has `NaN`.

    Returns:
        Columns network, layers, matrices, smallest, median, largest, near 1: the last is the share
        of values within a tenth of 1.
    """
    rows: list[dict[str, Any]] = []
    for network in networks:
        for layers in ("pointwise", "others"):
            kind = values["pointwise"].astype(bool) == (layers == "pointwise")
            found = values[kind & (values["network"] == network)]
            quantiles = found["value"].quantile([0, 0.5, 1])
            rows.append(
                {
                    "network": network,
                    "layers": layers,
                    "matrices": found["layer"].nunique(),
                    **dict(zip(("smallest", "median", "largest"), quantiles, strict=True)),
                    "near 1": ((found["value"] - 1).abs() <= 0.1).mean(),
                }
            )
    return pd.DataFrame(rows)


def srip_sides(values: pd.DataFrame) -> pd.DataFrame:
    """Return the share of singular values within a tenth of 1, and of SRIP's own resting places.

    Args:
        values: from `singular_values`, one network, with the predicted places `lower` and `upper`.

    Returns:
        Columns kind, side, values, near 1, near a predicted place; one row of `NaN` without values.
    """
    own = values[values["pointwise"].astype(bool)]
    away = own[["lower", "upper"]].sub(own["value"], axis=0).abs()
    table = own[["kind", "side", "value"]].assign(
        near=(own["value"] - 1).abs() <= 0.1, predicted=away.min(axis=1) <= 0.1
    )
    groups = table.groupby(["kind", "side"], sort=False)
    counts = groups.agg(
        values=("value", "size"), near=("near", "mean"), predicted=("predicted", "mean")
    ).reset_index()
    names = {"near": "near 1", "predicted": "near a predicted place"}
    if counts.empty:
        nothing = ["pointwise", "both", 0, np.nan, np.nan]  # every kind, nothing found
        counts = pd.DataFrame([nothing], columns=list(counts.columns))
    counts["kind"] = counts["kind"].map(lambda kind: KIND_STYLES[kind][0])
    return counts.rename(columns=names)


def ratio_axis(ax: Axes) -> None:
    """Scale the horizontal axis as fan_in / out_chs, with one tick per octave."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(_RATIOS, [f"1/{1 / r:.0f}" if r < 1 else f"{r:.0f}" for r in _RATIOS])
    ax.set(xlabel="fan_in / out_chs", xlim=(0.12, 6.7))


def srip_resting_places(
    values: pd.DataFrame, curve: pd.DataFrame, dead: Sequence[str], source: str
) -> Figure:
    """Draw the singular values of pointwise layers over the shape of their matrices.

    Args:
        values: from `singular_values`, one trained network; without any, only the curve is drawn.
        curve: ratio (fan_in / out_chs), lower, upper: resting places predicted for SRIP alone.
        dead: prefixes of the names of layers that no loss reached.
    """
    fig, (ax, share) = figure(height=4.0, columns=2, widths=(3, 1))
    own = values[values["pointwise"].astype(bool)]
    silent = own["layer"].str.startswith(tuple(dead)).to_numpy(dtype=bool)
    ratio, value = own["fan_in"] / own["out_chs"], own["value"]
    points: dict[str, Any] = {"s": 9, "alpha": 0.25, "lw": 0, "color": BLUE}
    ax.scatter(ratio[~silent], value[~silent], label="loss and SRIP", **points)
    points = {"s": 26, "lw": 0, "color": PURPLE, "zorder": 4}
    ax.scatter(ratio[silent], value[silent], label="SRIP alone (dead gates)", **points)
    line: dict[str, Any] = {"color": ORANGE, "lw": 1.5, "zorder": 3}
    ax.plot(curve["ratio"], curve["upper"], label="predicted for SRIP alone", **line)
    ax.plot(curve["ratio"], curve["lower"], **line)
    bins = np.arange(0.35, 1.601, 0.05)
    for name, colour in (("tall", GREY), ("wide", BLUE)):
        chosen = value[own["side"] == name]
        heights = np.histogram(chosen, bins)[0] / max(len(chosen), 1)
        share.stairs(heights, bins, orientation="horizontal", color=colour, lw=1.5, label=name)
    if own.empty:
        ax.text(0.5, 0.9, "published network: not run", transform=ax.transAxes, ha="center")
    ratio_axis(ax)
    ax.set_xlabel("fan_in / out_chs (tall matrices left of 1, wide ones right)")
    ax.set(ylabel="singular value", ylim=(0.35, 1.6))
    share.set(xlabel="share of values", ylim=(0.35, 1.6))
    share.legend(loc="lower right", fontsize=8)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return footer(fig, source)


def srip_spectra(values: pd.DataFrame, networks: Sequence[str], source: str = "") -> Figure:
    """Draw range and median of each matrix's singular values, one panel per network.

    Args:
        values: from `singular_values`, of all networks.
        networks: panels from top to bottom; one without values says `not run`.
        source: the provenance footer; none if empty.
    """
    fig, axes = figure(height=1.1 * len(networks) + 1.1, rows=len(networks))
    bottom, top = (0.02, 30.0)
    if len(values):
        bottom, top = max(bottom, 0.8 * values["value"].min()), 1.25 * values["value"].max()
    ticks = _WIDE_TICKS if top > 10 * bottom else _NARROW_TICKS
    legend: dict[str, Any] = {}
    for ax, network in zip(axes, networks, strict=True):
        ax.axhline(1, color="#222222", lw=0.8)
        own = values[values["network"] == network]
        left = 0
        for kind, (label, colour) in KIND_STYLES.items():
            layers = own[own["kind"] == kind].groupby("layer", sort=False)["value"]
            low, middle, high = layers.min(), layers.median(), layers.max()
            x = np.arange(left, left + len(low))
            if len(x):
                ax.vlines(x, low.clip(lower=bottom), high, color=colour, lw=2, label=label)
                ax.plot(x, middle, "_", color="#222222", ms=4)
                legend[label] = ax.get_legend_handles_labels()[0][-1]
                left += len(x) + 2
        if own.empty:
            ax.text(0.5, 0.6, "not run", transform=ax.transAxes, ha="center")
        ax.set_title(network, size=9, loc="left", pad=3)
        ax.set_yscale("log")
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set_ylim(bottom, top)  # ticks beyond would widen it
        ax.set_xticks([])
    ordered = [label for label, _ in KIND_STYLES.values() if label in legend]
    fig.legend([legend[k] for k in ordered], ordered, loc="outside upper center", ncols=4)
    fig.supylabel("singular values", size=9.5)
    return footer(fig, source) if source else fig
