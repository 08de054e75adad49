"""Work through the agenda of `recipes.agenda`: what is done, what runs, and what is left."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from micronet_lib.lab.host.files import is_held
from micronet_lib.lab.host.places import MEASURED
from micronet_lib.lab.host.progress import duration
from micronet_lib.lab.recipes.agenda import AGENDA, Item
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running.lineage import Case, Job, cases, jobs
from micronet_lib.lab.running.measure import lock_of, perform_all
from micronet_lib.lab.running.plan import table_of
from micronet_lib.lab.running.requirements import require


def left_of(item: Item, profile: str) -> tuple[list[Case], list[Job]]:
    """Return the cases of an item, and the work that is left for them.

    A committed record counts as done, like one on this machine.
    """
    asked = [
        case
        for seed in item.seeds
        for case in cases(SWEEPS[item.sweep], PROFILES[profile], seed, point=item.points)
    ]
    return asked, jobs([case for case in asked if case.record(MEASURED) is None])


def overview(profile: str, agenda: Sequence[Item] = AGENDA) -> pd.DataFrame:
    """Return a row for each item, in order, and one for all.

    Columns: question; sweep; points, with the number of seeds; done, running, left and impossible
    here, points; hours of training that are left, in one process. A training that two items need is
    counted in the first.
    """
    rows, seen = list[dict[str, Any]](), set[str]()
    for item in agenda:
        asked, ahead = left_of(item, profile)
        trained = [job for job in ahead if job.does == "train"]
        new = {job.case.id: job for job in trained if job.case.id not in seen}
        seen.update(new)
        plan = table_of(list(new.values()), SWEEPS[item.sweep])
        points = [job for job in ahead if job.recorded]
        impossible = [job for job in points if job.does == "impossible"]
        left = [job for job in points if job.does not in ("nothing", "impossible")]
        running = [job for job in left if is_held(lock_of(job))]
        rows.append(
            {
                "question": item.question,
                "sweep": item.sweep,
                "points": f"{item.points} x {len(item.seeds)}",
                "done": len(asked) - len(left) - len(impossible),
                "running": len(running),
                "left": len(left),
                "impossible": len(impossible),
                "hours": plan["minutes"].sum() / 60 if len(plan) else 0.0,
            }
        )
    whole = dict.fromkeys(rows[0], "") | {
        "question": "in all",
        "hours": sum(row["hours"] for row in rows),
    }
    return pd.DataFrame([*rows, whole])


def as_text(table: pd.DataFrame) -> str:
    """Return an overview as people read it: hours as durations."""
    hours = [duration(3600 * float(value)) if value else "-" for value in table["hours"]]
    return table.drop(columns="hours").assign(time=hours).to_string(index=False)


def work_through(profile: str, agenda: Sequence[Item] = AGENDA, progress: bool = True) -> list[str]:
    """Measure what is left, item after item; go on where another run of this stopped.

    Returns:
        As `perform_all`.

    Raises:
        InputError: nothing that is left can be measured here; or bad user input.
    """
    require([job for item in agenda for job in left_of(item, profile)[1]])
    return [name for item in agenda for name in perform_all(left_of(item, profile)[1], progress)]
