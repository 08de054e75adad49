"""The work to do: requested points, and the networks that they need.

`state_of` is the only answer to "what must be done for this point?". `jobs` puts all work in order.
Measuring does the jobs, a plan shows them, and an engine sends them to other machines.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from micronet_lib.errors import InputError
from micronet_lib.lab.host.files import is_here
from micronet_lib.lab.host.given import as_overrides, as_seed
from micronet_lib.lab.host.places import POLICY_FILES, data_root, policy_path, runs_root
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id, run_id
from micronet_lib.lab.recipes.inputs import augments
from micronet_lib.lab.recipes.profile import Profile, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records.record import Record, readable, record_path
from micronet_lib.lab.running.measures import MEASURES
from micronet_lib.lab.running.networks import network_path
from micronet_lib.lab.storage.states import is_whole


@dataclass(frozen=True)
class Case:
    """One point of a sweep on one profile with one seed, and the paths of its files.

    Attributes:
        recipe: resolved for the profile, overrides included.
        overrides: dotted keys that changed the sweep's recipes.
    """

    sweep: Sweep
    point: str
    recipe: Recipe
    profile: Profile
    seed: int
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name for people: `stages/3.0-orn`."""
        return f"{self.sweep.name}/{self.point}"

    @property
    def id(self) -> str:
        """The identity of its network."""
        return run_id(self.recipe, self.seed)

    @property
    def network_path(self) -> Path:
        """Path of the trained network. Its lock and its training states are in the same folder."""
        return network_path(self.recipe, self.profile, self.seed)

    @property
    def folder(self) -> Path:
        """The folder of its network."""
        return self.network_path.parent

    @property
    def record_path(self) -> Path:
        """Path of the record."""
        return runs_root() / self._place

    @property
    def _place(self) -> Path:
        overridden = recipe_id(self.recipe) if self.overrides else ""
        return record_path(self.sweep.name, self.point, self.profile.name, self.seed, overridden)

    def record(self, root: Path | None = None) -> Record | None:
        """Return its record below a folder, or None if there is none of this recipe.

        The folder is that of this machine's runs by default; `places.MEASURED` has committed ones.
        """
        found = readable((root or runs_root()) / self._place)
        return found if found and found.recipe_id == recipe_id(self.recipe) else None

    @property
    def training_record(self) -> Record | None:
        """A record of its training on this machine, under whatever name, or None.

        One that was measured comes before one that failed.
        """
        paths = (runs_root() / self.profile.name).glob(f"*/*-s{self.seed}.json")
        found = (readable(path) for path in sorted(paths))
        identity = recipe_id(self.recipe)
        same = [each for each in found if each and each.recipe_id == identity]
        return min(same, key=lambda each: bool(each.failed), default=None)

    @property
    def needs(self) -> tuple["Case", ...]:
        """The trainings whose networks must exist first: of the start and of the teachers."""
        found = {case.id: case for case in map(self._of, _trainings(self.recipe.needs))}
        return tuple(found.values())

    def _of(self, recipe: Recipe) -> "Case":
        """Return the case of a needed recipe, named as in a sweep that has it if one does."""
        for sweep, overrides in ((self.sweep, self.overrides), *((s, {}) for s in SWEEPS.values())):
            for point in sweep.points():
                with suppress(InputError):  # overrides may not fit a point that nobody asked for
                    if resolved(point.recipe, self.profile, overrides) == recipe:
                        named = replace(self, sweep=sweep, point=point.name, recipe=recipe)
                        return replace(named, overrides=overrides)
        return replace(self, point=f"{self.point}<{recipe_id(recipe)}", recipe=recipe)


def _trainings(recipes: Sequence[Recipe]) -> Iterator[Recipe]:
    """Yield the recipes that train. Replace a recipe that does not train by those it needs."""
    for recipe in recipes:
        if recipe.train.epochs:
            yield recipe
        else:
            yield from _trainings(recipe.needs)


def cases(
    sweep: Sweep,
    profile: Profile,
    seed: int = 0,
    overrides: Mapping[str, Any] | str | None = None,
    point: str | None = None,
) -> list[Case]:
    """Return the points of a sweep as cases.

    Args:
        sweep: of the points.
        profile: to resolve them for.
        seed: of the runs.
        overrides: dotted keys that change every recipe, and so its identity; also as JSON text.
        point: pattern of their names, such as `3.0-*`.

    Raises:
        InputError: unknown point or key; a value of another type; settings that are wrong
            together; no valid seed.
    """
    seed, overrides = as_seed(seed), as_overrides(overrides)
    return [
        Case(
            sweep,
            found.name,
            resolved(found.recipe, profile, overrides),
            profile,
            seed,
            overrides,
        )
        for found in sweep.matching(point)
    ]


Action = Literal["nothing", "count", "rate", "train", "impossible"]


@dataclass(frozen=True)
class State:
    """The work to do for a case.

    Attributes:
        does: `nothing`, the record exists; `count`, the recipe trains nothing; `rate`, the network
            exists; `train`; or `impossible`.
        reason: why it is impossible here; of `nothing`, that the training failed.
        lost: whether it is because a recorded network is missing.
        diverged: whether it is because the training failed.
    """

    does: Action
    reason: str = ""
    lost: bool = False
    diverged: bool = False


def state_of(case: Case, recorded: bool = True, retrain: bool = False) -> State:
    """Return the work to do for a case, without the trainings that it needs.

    A training that failed is done: its record says so, and there is no network.

    Args:
        case: any.
        recorded: whether a record is enough; otherwise its network must be on this machine.
        retrain: whether a network that has a record may be trained again.
    """
    own = case.record()
    measured = own is not None and not own.failed
    if measured and recorded and not retrain:
        return State("nothing")
    trains = case.recipe.train.epochs > 0
    there = trains and is_whole(case.network_path, case.id)
    if measured and recorded and (there or not trains):
        return State("nothing")
    before = (own or case.training_record) if trains and not there and not retrain else None
    if before and before.failed:
        does: Action = "nothing" if recorded else "impossible"
        reason = f"its training diverged in epoch {before.failed['epoch']}"
        return State(does, reason, diverged=not recorded)
    if recorded and case.profile.name not in case.sweep.profiles:
        return State("impossible", f"not defined at {case.profile.name}")
    missing = missing_file(case, trains=trains and not there)
    if missing is not None:
        return State("impossible", f"no file {missing}")
    if not trains:
        return State("count")
    if there:
        return State("rate" if recorded else "nothing")
    if before:
        return State(
            "impossible",
            f"{before.sweep}/{before.point} has a record, but its network is gone or damaged: copy "
            f"{case.folder.name} into {case.folder.parent}, or give --retrain to train it again",
            lost=True,
        )
    return State("train")


@dataclass(frozen=True)
class Job:
    """A unit of work: a training, a record, or both.

    Attributes:
        case: to measure or train.
        does: as in `State`.
        recorded: whether a record is requested.
        reason: as in `State`.
        needs: identities of the networks that it needs.
        lost: as in `State`.
        diverged: as in `State`, or because the training of a network that it needs failed.
        retrain: see `state_of`.
    """

    case: Case
    does: Action
    recorded: bool
    reason: str = ""
    needs: tuple[str, ...] = ()
    lost: bool = False
    diverged: bool = False
    retrain: bool = False

    @property
    def may_write(self) -> bool:
        """Whether its record may be written: one that was not asked for replaces no other."""
        return self.recorded or not self.case.record_path.exists()

    @property
    def said(self) -> str:
        """The line that is printed about a job that cannot be done; empty for most."""
        if self.diverged and self.recorded:
            return f"{self.case.name} seed {self.case.seed} is skipped: {self.reason}"
        return self.reason if self.lost else ""


def jobs(asked: Sequence[Case], recorded: bool = True, retrain: bool = False) -> list[Job]:
    """Return all work for some cases, needed trainings first.

    Each network is trained once, however many cases show or need it. Measuring does the jobs in
    this order, one after the other; a plan is a table of them.

    Args:
        asked: the cases.
        recorded: whether records or only networks are requested.
        retrain: see `state_of`.
    """
    found: list[Job] = []
    trainings: dict[str, Job] = {}

    def add(case: Case, wanted: bool) -> Job:
        if not wanted and case.id in trainings:
            return trainings[case.id]
        state = state_of(case, wanted, retrain)
        own = (case.id,) if state.does == "rate" else ()
        job = Job(case, state.does, wanted, state.reason, own, state.lost, state.diverged, retrain)
        if state.does == "train" and case.id in trainings:
            before = trainings[case.id]
            does: Action = "rate" if before.does == "train" else before.does
            job = Job(case, does, wanted, before.reason, (case.id,), diverged=before.diverged)
        elif state.does in ("train", "count"):
            needed = [add(each, False) for each in case.needs]
            blocked = next((each for each in needed if each.does == "impossible"), None)
            if blocked is not None:
                reason = f"{blocked.case.name}, which it needs: {blocked.reason}"
                job = Job(case, "impossible", wanted, reason, diverged=blocked.diverged)
                trainings[case.id] = job
            else:
                job = replace(job, needs=tuple(each.case.id for each in needed))
        if not wanted or job.does in ("rate", "train"):
            trainings.setdefault(case.id, job)
        if wanted or job.does in ("train", "impossible"):
            found.append(job)
        return job

    for case in asked:
        add(case, recorded)
    return found


def missing_file(case: Case, trains: bool) -> str | None:
    """Return the first of `missing_files`, or None."""
    return next(iter(missing_files(case, trains)), None)


def missing_files(case: Case, trains: bool) -> list[str]:
    """Return the files that a case reads and this machine lacks, relative to the data folder.

    Args:
        case: any.
        trains: whether it will be trained, or only rated.

    Raises:
        InputError: a file is there and cannot be read.
    """
    may_make = trains or not case.recipe.train.epochs
    needed = list(_files(case.recipe)) if may_make else []
    if case.profile.dataset == "cifar100":
        images = Path("cifar-100-python")
        measures = [MEASURES[name] for name in case.sweep.measures]
        if any(m.on_test and (case.recipe.learns or m.of_untrained) for m in measures):
            needed.append(images / "test")
        read = [each for each in _steps(case.recipe) if augments(each)] if may_make else []
        if read:
            needed.append(images / "train")
        policies = dict.fromkeys(each.augment.policy for each in read)
        needed += [policy_path(name) for name in policies if name in POLICY_FILES]
    missing = [path for path in needed if not is_here(data_root() / path)]
    return [str(path).removeprefix(f"{data_root()}/") for path in missing]


def _steps(recipe: Recipe) -> Iterator[Recipe]:
    """Yield a recipe, and those of the networks that it needs and that are made with it."""
    yield recipe
    for other in recipe.needs:
        if not other.train.epochs:
            yield from _steps(other)


def _files(recipe: Recipe) -> Iterator[Path]:
    """Yield the published files that a recipe reads, without those of needed trainings."""
    for name in (recipe.checkpoint, recipe.train.initialize_from):
        if name:
            yield Path("kaist") / f"{name}.t7"
    for other in (recipe.start, *recipe.teachers):
        if other is not None and not other.train.epochs:
            yield from _files(other)
