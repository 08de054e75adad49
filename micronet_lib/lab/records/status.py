"""What the committed records cover: which sweeps, how much of each, on which machines."""

import pandas as pd

from micronet_lib.lab.host.places import MEASURED
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.records import record as records
from micronet_lib.lab.records.tables import NOT_RUN, measured


def machines() -> pd.DataFrame:
    """The committed records by machine and code: how many, how long they took, the newest."""
    runs = [
        {"record": str(run.path), **run.env}
        for sweep in SWEEPS.values()
        for profile in PROFILES
        for run in records.read_sweep(sweep, profile, MEASURED)
    ]
    groups = pd.DataFrame(runs).groupby(["device", "torch", "python", "commit"], as_index=False)
    return groups.agg(records=("record", "size"), seconds=("wall_s", "sum"), newest=("date", "max"))


def status() -> pd.DataFrame:
    """One row a sweep and profile: what was measured, on which machine, what was not run."""
    rows = []
    for sweep in SWEEPS.values():
        for profile in sweep.profiles:
            if PROFILES[profile].dataset == "embedded":
                continue  # smoke runs live in each chapter and proves nothing about accuracy
            result = measured(sweep, profile)
            done = result[result["n"] > 0]
            missing = list(result["point"][result["n"] == 0])
            rows.append(
                {
                    "chapter": sweep.chapter,
                    "sweep": sweep.name,
                    "profile": profile,
                    "points": len(result),
                    "measured": len(done),
                    "n": "/".join(str(n) for n in sorted(set(done["n"]))) or "0",
                    "hardware": ", ".join(done["device"].unique()) or NOT_RUN,
                    "missing": ", ".join(missing) if done.size else NOT_RUN,
                }
            )
    return pd.DataFrame(rows)
