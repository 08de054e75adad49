"""What must be here before anything runs: for a command, and for a chapter of the book."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from micronet_lib.architecture.network import build
from micronet_lib.errors import InputError
from micronet_lib.lab.host.files import check_room, check_writable
from micronet_lib.lab.host.given import as_overrides, as_seed
from micronet_lib.lab.host.machine import stamp
from micronet_lib.lab.host.places import check_library, data_root
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running.lineage import Case, Job, cases, jobs, missing_files
from micronet_lib.lab.running.plan import room_mb, sizes_mb

# The beginning of a file's path -> its group of `micronet data fetch`.
GROUPS = {
    "cifar-100-python/": "cifar100",
    "kaist/": "kaist",
    "policies/fast_autoaugment": "policies",
}
NUM_SHOWN = 3  # missing files in a message


def begin(
    profile: str,
    seed: Any = 0,
    overrides: Any = None,
    records: Sequence[str] = (),
    networks: Sequence[str] = (),
) -> tuple[int, dict[str, Any]]:
    """Check a chapter's library, settings and files, print its stamp, and seed PyTorch.

    So the page draws the same weights each time it runs with this seed.

    Nothing is measured or trained yet. A sweep that the profile does not define stays `not run`.
    The points of a sweep that trains must all be possible, because the chapter compares them. Of
    published files, some may be missing, and their points stay `not run`. A training that diverged
    stops nothing here: tables say so, and so does the cell that looks at its network.

    Args:
        profile: a name of `PROFILES`.
        seed: see `as_seed`.
        overrides: see `as_overrides`.
        records: what the chapter measures: names of sweeps, or `sweep/pattern` for some points.
        networks: the points whose trained networks it looks at, in the same way.

    Returns:
        Seed and overrides, checked.

    Raises:
        InputError: another checkout's library, a setting that cannot be used, missing files or
            networks, or a folder for results that cannot be written or has too little room.
    """
    check_library(Path.cwd())
    budget, seed, overrides = PROFILES[profile], as_seed(seed), as_overrides(overrides)

    def asked(names: Iterable[str]) -> Iterator[list[Case]]:
        for name in names:
            sweep, _, pattern = name.partition("/")
            yield cases(SWEEPS[sweep], budget, seed, overrides, pattern or None)

    impossible: list[Job] = []
    possible: list[Job] = []
    for points in asked(records):
        ahead = jobs(points)
        found = _impossible(ahead)
        possible += ahead
        trains = any(job.case.recipe.train.epochs for job in ahead)
        if profile in points[0].sweep.profiles and (trains or len(found) == len(ahead)):
            impossible += found
    for points in asked(networks):
        ahead = jobs(points, recorded=False)
        impossible += _impossible(ahead)
        possible += ahead
    if impossible:
        raise _refusal(impossible)
    _check_options(possible)
    _check_writable(possible)
    torch.manual_seed(seed)  # after the checks: where a network is to be trained, they draw one
    print(stamp(profile, seed))
    if overrides:
        print("overrides:", ", ".join(f"{key}={value}" for key, value in overrides.items()))
    return seed, overrides


def _check_options(ahead: Iterable[Job]) -> None:
    """Raise an error if a network lacks an option of its recipe: `model` may be overridden."""
    with torch.device("meta"):
        for recipe in (job.case.recipe for job in ahead):
            if recipe.options:
                build(recipe.model, **recipe.options)


def _impossible(ahead: Iterable[Job]) -> list[Job]:
    return [job for job in ahead if job.does == "impossible" and not job.diverged]


def require(ahead: Sequence[Job]) -> None:
    """Raise an error if there are jobs and none is possible here, or every point stays `not run`.

    Raises:
        InputError: why, and what to do; also if a folder for results cannot be written, or has
            too little room.
    """
    if ahead and all(job.does == "impossible" for job in ahead):
        raise _refusal(ahead)
    _check_writable(ahead)


def _check_writable(ahead: Sequence[Job]) -> None:
    """Raise an error if the jobs could not write what they make, or have too little room."""
    todo = [job for job in ahead if job.does in ("count", "rate", "train")]
    folders = [job.case.folder for job in todo if job.case.recipe.train.epochs]
    folders += [job.case.record_path.parent for job in todo if job.recorded]
    for folder in dict.fromkeys(folders):
        check_writable(folder)
    trained = {job.case.folder: job.case.recipe for job in todo if job.does == "train"}
    if trained:
        check_room(next(iter(trained)), room_mb(map(sizes_mb, trained.values())))


def _refusal(impossible: Sequence[Job]) -> InputError:
    """Return the error for jobs that are impossible here, with what to do."""
    case, reason = impossible[0].case, impossible[0].reason
    if reason.startswith("not defined"):
        return InputError(
            f"sweep {case.sweep.name!r} is not defined on profile {case.profile.name!r}; "
            f"choose from {', '.join(case.sweep.profiles)}"
        )
    missing = list(dict.fromkeys(name for job in impossible for name in _missing(job)))
    if not missing:
        return InputError(reason if case.name in reason else f"{case.name}: {reason}")
    shown = ", ".join(missing[:NUM_SHOWN])
    if len(missing) > NUM_SHOWN:
        shown += f" and {len(missing) - NUM_SHOWN} more"
    groups = {group: None for name in missing for group in [_group(name)] if group}
    remedy = f"`micronet data fetch {' '.join(groups)}`" if groups else ""
    return InputError(
        f"{case.name} at {case.profile.name} needs {shown} below {data_root()}; "
        + (f"{remedy} gets what is missing" if groups else "it is in the repository")
    )


def _missing(job: Job) -> list[str]:
    """Return the missing files of a job, for its training if it has none yet."""
    return missing_files(job.case, job.case.recipe.train.epochs > 0)


def _group(path: str) -> str | None:
    """Return the group of a file, or None for a file of the repository."""
    return next((group for start, group in GROUPS.items() if path.startswith(start)), None)
