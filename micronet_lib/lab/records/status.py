"""What the committed records cover: which sweeps, how much of each, on which machines.

`records` counts files, `measurements` counts runs: one run may stand under several names.
"""

import pandas as pd

from micronet_lib.lab.host.places import MEASURED
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.records.record import Record, read, read_sweep
from micronet_lib.lab.records.tables import NOT_RUN, table


def machines() -> pd.DataFrame:
    """Return the committed records by machine and code: how many, how long, the newest."""
    records = [read(path) for path in sorted(MEASURED.rglob("*.json"))]
    runs = pd.DataFrame([{**run.env, "run": _identity(run)} for run in records])
    key = ["device", "torch", "python", "commit"]
    once = runs.drop_duplicates([*key, "run"]).groupby(key)
    found = once.agg(
        measurements=("run", "size"), seconds=("wall_s", "sum"), newest=("date", "max")
    )
    found.insert(0, "records", runs.groupby(key).size())
    return found.reset_index()


def coverage() -> pd.DataFrame:
    """Return one row a sweep and profile: what was measured, on which machine, what was not."""
    rows = []
    for sweep in SWEEPS.values():
        for profile in sweep.profiles:
            if PROFILES[profile].dataset == "embedded":
                continue  # it says nothing about accuracy on real images
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
    """Return what two records of one run have in common."""
    return record.profile, record.recipe_id, record.seed
