"""Tables of records and of transcribed numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from micronet_lib.architecture.layers import named_kind
from micronet_lib.errors import InputError
from micronet_lib.lab.host.places import MEASURED, PAPER_TABLES, of_checkout, runs_root
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records.record import Record, diverged, read_runs, read_sweep

NOT_RUN = "not run"


def paper(stem: str) -> pd.DataFrame:
    """Return the transcribed numbers of one chapter: point, metric, value, source, locator."""
    return printed_rows(stem).astype({"value": float})


def printed_rows(stem: str) -> pd.DataFrame:
    """Return the transcribed numbers of one chapter as text, with the digits that are printed."""
    return pd.read_csv(of_checkout(PAPER_TABLES / f"{stem}.csv"), dtype=str)


def paper_wide(stem: str, source: str) -> pd.DataFrame:
    """Return the transcribed numbers of one source: a row for each point, a column for each metric.

    Args:
        stem: of the chapter.
        source: a key of the bibliography, for example `kim2020`.
    """
    rows = paper(stem).query("source == @source")
    wide = rows.pivot_table(index="point", columns="metric", values="value", sort=False)
    return wide.reset_index().rename_axis(columns=None)


def beside_paper(
    rows: pd.DataFrame, stem: str, pairs: Mapping[str, tuple[str, float]]
) -> pd.DataFrame:
    """Return paper and measurement side by side, for points that have both.

    Args:
        rows: a `table` of measured records.
        stem: of the chapter with the transcribed numbers.
        pairs: metric of the paper -> measured metric, and the factor to the paper's unit.

    Returns:
        Columns point, metric, paper, printed (its digits, as text), measured, difference, n,
        source, locator.
    """
    lines = []
    for quoted in printed_rows(stem).itertuples():
        found = rows[(rows["point"] == quoted.point) & (rows["n"] > 0)]
        if quoted.metric in pairs and len(found):
            name, factor = pairs[quoted.metric]
            value = found[name].iloc[0] * factor
            lines.append(
                {
                    "point": quoted.point,
                    "metric": quoted.metric,
                    "paper": float(quoted.value),
                    "printed": quoted.value,
                    "measured": value,
                    "difference": value - float(quoted.value),
                    "n": found["n"].iloc[0],
                    "source": quoted.source,
                    "locator": quoted.locator,
                }
            )
    return pd.DataFrame(lines)


def table(
    sweep: Sweep, records: Iterable[Record], source: str = "measured", profile: str = "full"
) -> pd.DataFrame:
    """Return one row for each point and profile: mean, spread and number of runs of each metric.

    A measurement that is given twice counts once. Runs that failed are counted in `failed` and in
    nothing else.

    Columns: sweep, point, profile, source, n, failed, device, torch, commit, then the metrics
    (those of the sweep first) and `<metric>_std` (`NaN` for a single run). A point without a
    measurement has `n` 0 and `NaN`. `profile` labels the rows of a sweep without records.
    `attrs["diverged"]` has the text of `diverged` for each point all of whose runs failed.
    """
    once = {(r.point, r.profile, r.recipe_id, r.seed): r for r in records}
    everything = list(once.values())
    records = [record for record in everything if not record.failed]
    metrics = list(dict.fromkeys([*sweep.metrics, *(m for r in records for m in r.metrics)]))
    rows = []
    for name in dict.fromkeys([r.profile for r in everything]) or [profile]:
        for point in sweep.points():
            runs = [r for r in records if r.point == point.name and r.profile == name]
            own = [r for r in everything if r.point == point.name and r.profile == name]
            row: dict[str, Any] = {
                "sweep": sweep.name,
                "point": point.name,
                "profile": name,
                "source": source,
                "n": len(runs),
                "failed": len(own) - len(runs),
            }
            for key in ("device", "torch", "commit"):
                row[key] = ", ".join(sorted({str(run.env[key]) for run in runs}))
            values = pd.DataFrame([run.metrics for run in runs], columns=metrics, dtype=float)
            row |= values.mean().to_dict() | values.std().add_suffix("_std").to_dict()
            rows.append(row)
    found = pd.DataFrame(rows)
    found.attrs["diverged"] = diverged(everything)
    return found


def measured(sweep: Sweep, profile: str = "full") -> pd.DataFrame:
    """Return the committed records of a sweep as a `table`."""
    return table(sweep, read_runs(sweep, profile, MEASURED), profile=profile)


def mine(sweep: Sweep, profile: str) -> pd.DataFrame:
    """Return this machine's records of a sweep as a `table`, as `compared` reads them.

    No point was run at a profile of drawn images, or at one that the sweep is not defined on.
    """
    found = read_sweep(sweep, profile, runs_root()) if is_comparable(sweep, profile) else []
    return table(sweep, found, "yours", profile)


def is_comparable(sweep: Sweep, profile: str) -> bool:
    """Say whether runs at a profile can stand beside committed records and paper."""
    return PROFILES[profile].dataset != "embedded" and profile in sweep.profiles


def bill(sweep: Sweep, point: str) -> pd.DataFrame:
    """Return the committed per-layer table of one point at the profile `full`.

    Columns: layer, layer_kind (a name of `architecture.KINDS`), kind (of the operation), quantity,
    count, bits and costs.

    Raises:
        InputError: the point has no record, or its record has no such table.
    """
    for record in read_sweep(sweep, "full", MEASURED):
        if record.point == point and record.layers:
            rows = pd.DataFrame(record.layers)
            return rows.assign(layer_kind=rows["layer"].map(named_kind))
    raise InputError(f"no record of {sweep.name}/{point} at full holds a per-layer table")


def arrays(sweep: Sweep, point: str, profile: str = "full") -> dict[str, Any]:
    """Return the arrays of a point's committed record.

    Raises:
        InputError: the point has no record.
    """
    for record in read_sweep(sweep, profile, MEASURED):
        if record.point == point:
            return {name: _as_arrays(value) for name, value in record.arrays.items()}
    raise InputError(f"{sweep.name}/{point} has no record at {profile}")


def _as_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_arrays(entry) for name, entry in value.items()}
    return np.asarray(value)


def by_image(sweep: Sweep, profile: str, value: str) -> pd.DataFrame:
    """Return what a sweep of the robustness measures has for each test image.

    The first committed seed of each point counts: all points of a seed have seen the same images.

    Args:
        sweep: whose records have the array `by_image`.
        profile: of the records.
        value: the name of the last column.

    Returns:
        Columns point, seed (the number of the image, by which `gain` forms pairs) and the value.
        Points without a record are left out.
    """
    numbers = dict[str, list[str]]()
    for record in read_sweep(sweep, profile, MEASURED):
        numbers.setdefault(record.point, record.arrays["by_image"].split())
    rows = [
        pd.DataFrame({"point": point, "seed": range(len(own)), value: own})
        for point, own in numbers.items()
    ]
    found = pd.concat(rows) if rows else pd.DataFrame(columns=["point", "seed", value])
    return found.astype({value: float})


def curves(sweep: Sweep, profile: str) -> pd.DataFrame:
    """Return the curves of a sweep's committed records, as `curves_of`."""
    return curves_of(read_sweep(sweep, profile, MEASURED))


def curves_of(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row for each run and epoch: point, seed, epoch, then the recorded curves."""
    rows = [
        pd.DataFrame(record.curve).assign(
            point=record.point, seed=record.seed, epoch=range(1, len(record.curve["lr"]) + 1)
        )
        for record in records
        if record.curve
    ]
    empty = pd.DataFrame(columns=["point", "seed", "epoch"])
    return pd.concat(rows, ignore_index=True) if rows else empty


def provenance(rows: pd.DataFrame) -> str:
    """Return the footer of a figure or table: source, profile, hardware, version, n and commit."""
    run = rows[rows["n"] > 0]
    failed = sum(rows.get("failed", ()))
    lost = f" · {failed} diverged" if failed else ""
    if run.empty:
        return f"{rows['source'].iloc[0]} · {rows['profile'].iloc[0]}{lost}" if failed else NOT_RUN
    each = {  # a cell lists the different values of its runs
        name: " + ".join(dict.fromkeys(part for cell in run[name] for part in cell.split(", ")))
        for name in ("source", "profile", "device", "torch", "commit")
    }
    counts = "/".join(str(n) for n in sorted(set(run["n"])))
    where = f"{each['device']} · torch {each['torch']} · n={counts}{lost} · {each['commit']}"
    return f"{each['source']} · {each['profile']} · {where}"
