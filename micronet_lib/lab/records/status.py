"""The coverage of the committed records: sweeps, points and machines.

`records` counts files, `measurements` counts runs. One run may appear under several names.
"""

import pandas as pd

from micronet_lib.lab.host.places import MEASURED, of_checkout
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.records.record import Record, read, read_sweep
from micronet_lib.lab.records.tables import NOT_RUN, table


def machines() -> pd.DataFrame:
    """Return the committed records by machine and code: number, time, newest date."""
    records = [read(path) for path in sorted(of_checkout(MEASURED).rglob("*.json"))]
    runs = pd.DataFrame([{**run.env, "run": _identity(run)} for run in records])
    key = ["device", "torch", "python", "commit"]
    once = runs.drop_duplicates([*key, "run"]).groupby(key)
    found = once.agg(
        measurements=("run", "size"), seconds=("wall_s", "sum"), newest=("date", "max")
    )
    found.insert(0, "records", runs.groupby(key).size())
    return found.reset_index()


def coverage() -> pd.DataFrame:
    """Return one row for each sweep and profile: points measured, machines, points missing."""
    rows = []
    for sweep in SWEEPS.values():
        for profile in sweep.profiles:
            if PROFILES[profile].dataset == "embedded":
                continue  # no evidence about real images
            records = read_sweep(sweep, profile, MEASURED)
            result = table(sweep, records, profile=profile)
            done = result[result["n"] > 0]
            missing = list(result["point"][result["n"] == 0])
            rows.append(
                {
                    "chapter": sweep.chapter,
                    "sweep": sweep.name,
                    "profile": profile,
                    "points": len(result),
                    "measured": len(done),
                    "records": len(records),
                    "measurements": len({_identity(record) for record in records}),
                    "n": "/".join(str(n) for n in sorted(set(done["n"]))) or "0",
                    "hardware": ", ".join(done["device"].unique()) or NOT_RUN,
                    "missing": ", ".join(missing) if done.size else NOT_RUN,
                }
            )
    return pd.DataFrame(rows)


def _identity(record: Record) -> tuple[str, str, int]:
    """Return the key that all records of one run share."""
    return record.profile, record.recipe_id, record.seed
