"""The coverage of the committed records: sweeps, points and machines.

`records` counts files, `measurements` counts runs. One run may appear under several names.
"""

import math
from typing import Any

import pandas as pd

from micronet_lib.lab.host.places import MEASURED, of_checkout
from micronet_lib.lab.host.progress import duration
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.sweep import Point, Sweep
from micronet_lib.lab.records.record import (
    diverged,
    measurement_key,
    read,
    read_runs,
    read_sweep,
)
from micronet_lib.lab.records.tables import NOT_RUN, printed_rows, table

REAL = tuple(name for name, profile in PROFILES.items() if profile.dataset != "embedded")


def machines() -> pd.DataFrame:
    """Return the committed records by machine and code: number, time, newest date.

    `diverged` counts the runs that failed among the measurements.
    """
    records = [read(path) for path in sorted(of_checkout(MEASURED).rglob("*.json"))]
    runs = pd.DataFrame(
        [{**run.env, "run": measurement_key(run), "failed": bool(run.failed)} for run in records]
    )
    key = ["device", "torch", "python", "commit"]
    once = runs.drop_duplicates([*key, "run"]).groupby(key)
    found = once.agg(
        measurements=("run", "size"),
        diverged=("failed", "sum"),
        seconds=("wall_s", "sum"),
        newest=("date", "max"),
    )
    found.insert(0, "records", runs.groupby(key).size())
    return found.reset_index()


def coverage() -> pd.DataFrame:
    """Return one row for each sweep and profile: points measured, machines, points missing.

    A point all of whose runs failed is neither: `diverged` names it.
    """
    rows = []
    for sweep in SWEEPS.values():
        for profile in sweep.profiles:
            if PROFILES[profile].dataset == "embedded":
                continue  # no evidence about real images
            everything = read_runs(sweep, profile, MEASURED)
            records = [record for record in everything if not record.failed]
            result = table(sweep, records, profile=profile)
            done = result[result["n"] > 0]
            lost = diverged(everything)
            missing = [name for name in result["point"][result["n"] == 0] if name not in lost]
            rows.append(
                {
                    "chapter": sweep.chapter,
                    "sweep": sweep.name,
                    "profile": profile,
                    "points": len(result),
                    "measured": len(done),
                    "records": len(records),
                    "measurements": len({measurement_key(record) for record in records}),
                    "n": "/".join(str(n) for n in sorted(set(done["n"]))) or "0",
                    "hardware": ", ".join(done["device"].unique()) or NOT_RUN,
                    "missing": ", ".join(missing) if done.size or lost else NOT_RUN,
                    "diverged": "; ".join(f"{name}: {said}" for name, said in lost.items()),
                }
            )
    return pd.DataFrame(rows)


def listing() -> pd.DataFrame:
    """Return one row for each sweep: what it asks, where it is shown, and what it has cost.

    Columns: sweep, title, chapter, points, printed (the tables that it reproduces, or the source
    of other numbers), then for each profile of real images `<profile>.measured` (points; `NaN` if
    the sweep is not defined there), `.diverged` (points all of whose runs failed), `.runs`,
    `.seconds` (of all committed measurements) and `.per_run` (their mean; `NaN` without one).
    """
    rows = []
    for sweep in SWEEPS.values():
        row: dict[str, Any] = {
            "sweep": sweep.name,
            "title": sweep.title,
            "chapter": sweep.chapter,
            "points": len(sweep.points()),
            "printed": ", ".join(_tables(sweep)),
        }
        for profile in REAL:
            there = profile in sweep.profiles
            everything = read_runs(sweep, profile, MEASURED) if there else []
            found = [record for record in everything if not record.failed]
            lost = diverged(everything)
            times = {measurement_key(record): record.env["wall_s"] for record in found}
            row |= {
                f"{profile}.measured": len({record.point for record in found})
                if there
                else math.nan,
                f"{profile}.diverged": len(lost),
                f"{profile}.runs": len(times),
                f"{profile}.seconds": sum(times.values()),
                f"{profile}.per_run": sum(times.values()) / len(times) if times else math.nan,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def durations() -> pd.DataFrame:
    """Return how long one run of each point took, by chapter, profile and machine.

    A chapter's training that stands in several sweeps counts once. Runs that failed have no part in
    the times. Columns: chapter, profile,
    points (`measured of all`), seconds (sum of the points' mean times) and machine.
    """
    times: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    asked: dict[tuple[str, str], set[str]] = {}
    for sweep in SWEEPS.values():
        for profile in (each for each in REAL if each in sweep.profiles):
            found = read_sweep(sweep, profile, MEASURED)
            names = {p.name: _training(sweep, p, profile) for p in sweep.points()}
            asked.setdefault((sweep.chapter, profile), set()).update(names.values())
            for record in found:
                key = (sweep.chapter, profile, record.env["device"])
                own = times.setdefault(key, {}).setdefault(names[record.point], [])
                own.append(record.env["wall_s"])
    rows = [
        {
            "chapter": chapter,
            "profile": profile,
            "points": f"{len(found)} of {len(asked[chapter, profile])}",
            "seconds": sum(sum(each) / len(each) for each in found.values()),
            "machine": machine,
        }
        for (chapter, profile, machine), found in times.items()
    ]
    return pd.DataFrame(rows, columns=["chapter", "profile", "points", "seconds", "machine"])


def durations_text() -> str:
    """Return `durations` as the README has it, a table in Markdown."""
    lines = ["| chapter | profile | points | time | machine |", "|---|---|---|---|---|"]
    lines += [
        f"| `{row.chapter}` | {row.profile} | {row.points} | {duration(row.seconds)} "
        f"| {row.machine} |"
        for row in durations().itertuples()
    ]
    return "\n".join(lines) + "\n"


def as_text(listed: pd.DataFrame) -> str:
    """Return a listing as people read it: times as durations."""
    shown = listed[["sweep", "chapter", "points", "printed"]].replace("", "-")
    for profile in REAL:
        columns = [f"{profile}.{name}" for name in ("measured", "diverged", "runs", "per_run")]
        shown[profile] = [
            "-"
            if math.isnan(measured)
            else f"{measured:.0f}"
            + (f" + {lost} diverged" if lost else "")
            + (f", {duration(each)} x {runs}" if runs else "")
            for measured, lost, runs, each in listed[columns].itertuples(index=False)
        ]
    return (
        f"{shown.to_string(index=False)}\n"
        "quick, day, full: points measured + diverged, mean time of a run x committed runs "
        "(machines: chapter What was measured)"
    )


def _tables(sweep: Sweep) -> list[str]:
    """Return where the numbers that a sweep reproduces stand: `Table 2`, or the source's key."""
    found: dict[str, None] = {}
    for each in sweep.printed:
        rows = printed_rows(each.stem).query("metric == @each.metric")
        names = [point.name for point in sweep.points()]
        points = each.points.values() if each.points else names
        for row in rows[rows["point"].isin(list(points))].itertuples():
            table_name = str(row.locator).partition(",")[0]
            found[table_name if table_name.startswith("Table") else str(row.source)] = None
    return list(found)


def _training(sweep: Sweep, point: Point, profile: str) -> str:
    """Return the same for a point, measured or not."""
    recipe = resolved(point.recipe, PROFILES[profile])
    return recipe_id(recipe) if recipe.train.epochs else f"{sweep.name}/{point.name}"
