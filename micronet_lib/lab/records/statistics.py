"""Differences between points: means of runs, with intervals and the smallest detectable effect."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from micronet_lib.errors import check_choice, unknown
from micronet_lib.lab.host.places import MEASURED
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records.record import diverged, read_runs

LEVEL = 0.05
POWER = 0.8


def runs(sweep: Sweep, profile: str = "full", root: Path = MEASURED) -> pd.DataFrame:
    """Return the single runs of a sweep: columns point, seed, then each recorded metric.

    A point without a measurement has one row, without a seed and with `NaN`. `attrs["diverged"]` is
    as in `records.table`.
    """
    found: dict[str, list[dict[str, object]]] = {point.name: [] for point in sweep.points()}
    everything = read_runs(sweep, profile, root)
    for record in everything:
        if not record.failed:
            found[record.point].append({"seed": record.seed, **record.metrics})
    rows = [{"point": name} | row for name, own in found.items() for row in own or [{}]]
    metrics = dict.fromkeys([*sweep.metrics, *(name for row in rows for name in row)])
    columns = dict.fromkeys(["point", "seed", *metrics])
    table = pd.DataFrame(rows, columns=list(columns)).astype({"seed": "Int64"})
    table.attrs["diverged"] = diverged(everything)
    return table


def gain(
    runs: pd.DataFrame,
    reference: str | Mapping[str, str],
    metric: str = "top1",
    paired: bool = False,
    scale: float = 1.0,
) -> pd.DataFrame:
    """Return the difference of each point's mean from its reference's, with an interval.

    Welch's t test by default. The interval and the smallest detectable difference use the spread of
    the two points. They are `NaN` for a single run, and if all runs agree exactly.

    Args:
        runs: one row per run: point, seed and the metric, from `records.runs`; `attrs` pass on.
        reference: the point to compare all others with; or a mapping from each point to its
            reference.
        metric: a column of `runs`.
        paired: take differences between runs of the same seed. Only for points whose runs of one
            seed share a parent network; elsewhere equal seeds have nothing in common.
        scale: multiplies all differences; 100 turns fractions into points.

    Returns:
        Columns point, against, n, n_against (both count pairs if paired), gain (point minus
        reference), low and high (of the 95 % interval), p, p_holm (adjusted for the comparisons of
        the table by Holm's rule), comparisons (number of them with a p), detectable (the smallest
        true difference that such runs show, p below 0.05, in 80 % of cases).

    Raises:
        InputError: a point or the metric is not in `runs`.
    """
    if metric not in runs:
        raise unknown("metric", metric, runs.columns)
    values = {
        name: rows.dropna(subset=[metric]).set_index("seed")[metric].astype(float)
        for name, rows in runs.groupby("point", sort=False)
    }
    if isinstance(reference, str):
        reference = {name: reference for name in values if name != reference}
    for name in (*reference, *reference.values()):
        check_choice("point", name, values)
    rows = [
        {"point": point, "against": other} | _compare(values[point], values[other], paired)
        for point, other in reference.items()
    ]
    columns = ["point", "against", "n", "n_against", "gain", "low", "high", "p", "p_holm"]
    table = pd.DataFrame(rows, columns=[*columns, "comparisons", "detectable"])
    table[["gain", "low", "high", "detectable"]] *= scale
    table.attrs |= runs.attrs
    return table.assign(p_holm=_holm(table["p"]), comparisons=table["p"].notna().sum())


def detectable(spread: float, n: int) -> float:
    """Return the smallest true difference that two points of `n` runs each show in 80 % of cases.

    By Welch's test at p below 0.05, as in `gain`. `NaN` below two runs.

    Args:
        spread: standard deviation of single runs, the same at both points.
        n: runs of each point.
    """
    if n < 2:
        return float("nan")
    from scipy import stats

    freedom, error = 2 * (n - 1), spread * (2 / n) ** 0.5
    return float(error * (stats.t.isf(LEVEL / 2, freedom) + stats.t.isf(1 - POWER, freedom)))


def _compare(ours: pd.Series, theirs: pd.Series, paired: bool) -> dict[str, float]:
    """Return the numbers of one row, without those that the runs do not give."""
    if paired:
        shared = ours.index.intersection(theirs.index)
        ours, theirs = ours[shared], theirs[shared]
    found = {"n": len(ours), "n_against": len(theirs), "gain": ours.mean() - theirs.mean()}
    if min(len(ours), len(theirs)) < 2:
        return found
    samples = [ours - theirs] if paired else [ours, theirs]
    squares = [sample.var() / len(sample) for sample in samples]
    error = sum(squares) ** 0.5
    if error <= 1e-9 * max(ours.abs().max(), theirs.abs().max()):
        return found  # the rest is rounding
    # Welch and Satterthwaite; for pairs it is their number minus one.
    parts = [s**2 / (len(sample) - 1) for s, sample in zip(squares, samples, strict=True)]
    freedom = sum(squares) ** 2 / sum(parts)
    from scipy import stats

    margin = stats.t.isf(LEVEL / 2, freedom) * error
    # The usual approximation of a t test's power: 1 % too small at 4 degrees, 5 % at 2.
    detectable = margin + stats.t.isf(1 - POWER, freedom) * error
    return found | {
        "low": found["gain"] - margin,
        "high": found["gain"] + margin,
        "p": 2 * stats.t.sf(abs(found["gain"]) / error, freedom),
        "detectable": detectable,
    }


def _holm(p: pd.Series) -> pd.Series:
    """Return p adjusted for the number of comparisons by Holm's step-down rule."""
    ordered = p.dropna().sort_values()
    weights = np.arange(len(ordered), 0, -1)
    return (ordered * weights).cummax().clip(upper=1).reindex(p.index)
