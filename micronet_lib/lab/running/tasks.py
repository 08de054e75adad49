"""Points of a sweep as tasks for any machine: what travels, what comes back, in which order.

Nothing is shared but what travels with a task: the recipe and, for a round of pruning, the record
and the network of the round before. A task gives back its record and its network, and whoever
started it keeps both. A round of pruning starts when the round before it is done, and points of
the same recipe are one task.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from micronet_lib.errors import InputError
from micronet_lib.lab.host.files import Busy, only_one, write_atomically
from micronet_lib.lab.host.places import data_root, runs_root
from micronet_lib.lab.host.progress import say
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import Profile
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records import record as records
from micronet_lib.lab.running.measure import (
    ensure_point,
    forget,
    round_before,
    run_folder,
    twin_of,
)
from micronet_lib.lab.running.runs import kept_network, missing_files
from micronet_lib.lab.training.loop import DivergedError

# A file server may keep the lock of a machine that died for a minute and a half.
PATIENCE_S = 100.0


@dataclass(frozen=True)
class Finished:
    """What a point that was measured leaves: its record and the bytes of its `network.pt`."""

    record: records.Record
    network: bytes | None


@dataclass(frozen=True)
class Left:
    """Why a point stays `not run`; a fault that a user has to mend ends the whole sweep."""

    reason: str
    fault: bool = False


@dataclass(frozen=True)
class Job:
    """A point to be measured, as it travels to a machine.

    Attributes:
        recipes: of the point and of the round before it.
        parent: what the round before left.
        patience_s: how long to wait for a lock that a process which just died may still hold.
    """

    sweep: Sweep
    point: str
    recipes: Mapping[str, Recipe]
    profile: Profile
    seed: int
    parent: Finished | None
    patience_s: float


class Pool(Protocol):
    """Something that runs jobs."""

    def start(self, job: Job) -> Any:
        """A handle of a job that will be done."""

    def next_done(self, handles: Collection[Any]) -> tuple[Any, Finished | Left]:
        """Wait for one of these jobs."""


def perform(job: Job) -> Finished | Left:
    """Measure a point on the machine that this runs on."""
    recipe, trains = job.recipes[job.point], job.recipes[job.point].train.epochs > 0
    folder = run_folder(job.sweep.name, job.point, job.profile.name, job.seed)
    given_up = time.monotonic() + job.patience_s
    while True:
        try:
            if job.parent is not None:
                keep(job.parent)
            if trains and kept_network(recipe, job.seed, folder) is None:
                forget(job.sweep, job.point, job.profile, job.seed)
            found = ensure_point(
                job.sweep, job.point, job.recipes, job.profile, job.seed, progress=False
            )
            break
        except Busy as busy:
            if time.monotonic() >= given_up:
                return Left(str(busy))
            time.sleep(1)
        except DivergedError as diverged:
            return Left(f"{job.sweep.name}/{job.point} seed {job.seed}: {diverged}")
        except InputError as error:
            return Left(str(error), fault=True)
    if found is None:
        missing = missing_files(recipe, job.profile)
        return Left(
            f"{job.sweep.name}/{job.point} seed {job.seed}: the machine that took it has no "
            f"{missing} under {data_root()}"
        )
    return Finished(found, (folder / "network.pt").read_bytes() if trains else None)


def keep(found: Finished) -> None:
    """Write what a point left into this machine's runs folder, unless it is there.

    Raises:
        Busy: another process is at the point.
        InputError: the folder cannot be written.
    """
    record, root = found.record, runs_root()
    path = root / record.path
    mine = records.kept(path)
    there = mine is not None and mine.recipe_id == record.recipe_id
    if found.network is None:
        if not there:
            records.write(record, root)
        return
    network = path.with_suffix("") / "network.pt"
    if there and network.is_file() and network.read_bytes() == found.network:
        return
    with only_one(network.parent / "lock", f"{record.sweep}/{record.point} seed {record.seed}"):
        path.unlink(missing_ok=True)  # a record says that the network beside it is its own
        write_atomically(network, found.network, f"the network of {record.point}")
        records.write(record, root)


class Schedule:
    """Which points have to be measured, in which order, and what becomes of them.

    Points of the same recipe that trains are a group, of which the first is measured.

    Args:
        sweep: of the points.
        recipes: of all of its points, resolved.
        profile: that they are resolved for.
        seed: of the runs.
    """

    def __init__(
        self, sweep: Sweep, recipes: Mapping[str, Recipe], profile: Profile, seed: int
    ) -> None:
        self.sweep, self.recipes, self.profile, self.seed = sweep, recipes, profile, seed
        self._groups: dict[str, list[str]] = {}
        self._waiting: dict[str, str] = {}  # group -> the group of the round before

    @property
    def points(self) -> list[str]:
        """Those that will be measured or copied."""
        return [point for group in self._groups.values() for point in group]

    def kept(self, point: str) -> records.Record | None:
        """The point's record on this machine, if it is of today's recipe."""
        path = records.record_path(self.sweep.name, point, self.profile.name, self.seed)
        found = records.kept(runs_root() / path)
        same = found and found.recipe_id == recipe_id(self.recipes[point])
        return found if same else None

    def add(self, point: str, with_network: bool = False) -> None:
        """Take a point in, and the rounds before it, unless its record is there or can be copied.

        Args:
            point: its name.
            with_network: whether a record without its network does not do.
        """
        group, recipe = self._group(point), self.recipes[point]
        if group in self._groups:
            if point not in self._groups[group]:
                self._groups[group].append(point)
            return
        folder = run_folder(self.sweep.name, point, self.profile.name, self.seed)
        if with_network and kept_network(recipe, self.seed, folder) is None:
            forget(self.sweep, point, self.profile, self.seed)
        if self.kept(point):
            return
        if recipe.train.epochs and twin_of(recipe, self.profile, self.seed):
            self._copy(point)
            return
        defined = self.profile.name in self.sweep.profiles
        if not defined or missing_files(recipe, self.profile) is not None:
            return
        before = round_before(self.sweep, point, self.recipes)
        if before is not None:
            self.add(before, with_network=True)
            if self._group(before) in self._groups:
                self._waiting[group] = self._group(before)
        self._groups[group] = [point]

    def _group(self, point: str) -> str:
        recipe = self.recipes[point]
        return recipe_id(recipe) if recipe.train.epochs else point

    def run(self, pool: Pool) -> Iterator[int]:
        """Measure everything; yields how many points are done with, a group at a time.

        Raises:
            InputError: a fault that a user has to mend; what was done until then is kept.
        """
        todo = [group for group in self._groups if group not in self._waiting]
        running: dict[Any, str] = {}
        while todo or running:
            for group in todo:
                try:
                    running[pool.start(self._job(self._groups[group][0]))] = group
                except Busy as busy:
                    yield self._leave(group, str(busy))
            todo = []
            if not running:
                return
            handle, result = pool.next_done(running.keys())
            group = running.pop(handle)
            if isinstance(result, Finished):
                result = self._receive(group, result)
            if isinstance(result, Finished):
                todo = self._after(group)
                yield len(self._groups[group])
            elif result.fault:
                raise InputError(result.reason)
            else:
                yield self._leave(group, result.reason)

    def _after(self, group: str) -> list[str]:
        return [later for later, before in self._waiting.items() if before == group]

    def _job(self, point: str) -> Job:
        before = round_before(self.sweep, point, self.recipes)
        recipes = {name: self.recipes[name] for name in (before, point) if name is not None}
        parent = None
        if before is not None:
            record = ensure_point(
                self.sweep, before, self.recipes, self.profile, self.seed, progress=False
            )
            assert record is not None  # `run` takes a round up when the one before it is there
            folder = run_folder(self.sweep.name, before, self.profile.name, self.seed)
            parent = Finished(record, (folder / "network.pt").read_bytes())
        return Job(
            self.sweep, point, recipes, self.profile, self.seed, parent, patience_s=PATIENCE_S
        )

    def _receive(self, group: str, found: Finished) -> Finished | Left:
        """Keep what the first point of a group left, also for the others."""
        try:
            keep(found)
        except Busy as busy:
            return Left(str(busy))
        for point in self._groups[group][1:]:
            self._copy(point)
        return found

    def _copy(self, point: str) -> None:
        """Take the record and the network of the same recipe over from another point."""
        try:
            ensure_point(self.sweep, point, self.recipes, self.profile, self.seed, progress=False)
        except Busy as busy:
            say(str(busy))

    def _leave(self, group: str, reason: str) -> int:
        """Say why a group is left, and leave the rounds after it."""
        say(reason)
        left = len(self._groups[group])
        for later in self._after(group):
            first = self._groups[later][0]
            left += self._leave(
                later,
                f"{self.sweep.name}/{first} seed {self.seed}: the round before it was not measured",
            )
        return left
