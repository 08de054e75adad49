"""Work through the agenda of `recipes.agenda`: what is done, what runs, and what is left."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from micronet_lib.lab.host.files import is_held
from micronet_lib.lab.host.places import MEASURED
from micronet_lib.lab.recipes.agenda import AGENDA, Item
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.records.record import readable, record_path
from micronet_lib.lab.running.lineage import Case, Job, cases, jobs
from micronet_lib.lab.running.measure import perform_all
from micronet_lib.lab.running.plan import table_of


def left_of(item: Item, profile: str) -> tuple[list[Case], list[Job]]:
    """Return the cases of an item, and the work that is left for them.

    A committed record counts as done, like one on this machine.
    """
    asked = [
        case
        for seed in item.seeds
        for case in cases(SWEEPS[item.sweep], PROFILES[profile], seed, point=item.points)
    ]
    return asked, jobs([case for case in asked if not _is_committed(case)])


def _is_committed(case: Case) -> bool:
    place = record_path(case.sweep.name, case.point, case.profile.name, case.seed)
    found = readable(MEASURED / place)
    return found is not None and found.recipe_id == recipe_id(case.recipe)


def overview(profile: str, agenda: Sequence[Item] = AGENDA) -> pd.DataFrame:
    """Return a row for each item, in order, and one for all.

    Columns: question; sweep; points, with the number of seeds; done, running and left, points;
    hours of training that are left, in one process. A training that two items need is counted in
    the first.
    """
    rows, seen = list[dict[str, Any]](), set[str]()
    for item in agenda:
        asked, ahead = left_of(item, profile)
        todo = [job for job in ahead if job.does not in ("nothing", "impossible")]
        new = [job for job in todo if f"{job.case.name} {job.case.id}" not in seen]
        seen.update(f"{job.case.name} {job.case.id}" for job in todo)
        running = {job.case.id for job in new if is_held(job.case.folder / "lock")}
        plan = table_of(new, SWEEPS[item.sweep])
        left = {(job.case.name, job.case.seed) for job in todo if job.recorded}
        impossible = sum(job.does == "impossible" and job.recorded for job in ahead)
        rows.append(
            {
                "question": item.question,
                "sweep": item.sweep,
                "points": f"{item.points} x {len(item.seeds)}",
                "done": len(asked) - len(left) - impossible,
                "running": len(running),
                "left": len(left),
                "hours": plan["minutes"].sum() / 60 if len(plan) else 0.0,
            }
        )
    whole = {"question": "in all", "sweep": "", "points": "", "done": "", "left": ""}
    hours = sum(row["hours"] for row in rows)
    running_now = sum(row["running"] for row in rows)
    return pd.DataFrame([*rows, {**whole, "running": running_now, "hours": hours}])


def work_through(profile: str, agenda: Sequence[Item] = AGENDA, progress: bool = True) -> None:
    """Measure what is left, item after item; go on where another run of this stopped.

    Raises:
        InputError: bad user input.
    """
    for item in agenda:
        perform_all(left_of(item, profile)[1], progress)
