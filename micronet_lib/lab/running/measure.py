"""Measuring: turn a recipe into a record, once."""

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from micronet_lib.architecture.network import Network
from micronet_lib.errors import InputError, NotFiniteError
from micronet_lib.lab.host.files import Busy, only_one
from micronet_lib.lab.host.machine import COMMIT, NO_COMMIT, default_device, environment, set_up
from micronet_lib.lab.host.places import MEASURED, runs_root
from micronet_lib.lab.host.progress import duration, is_shown, say, say_place
from micronet_lib.lab.recipes.identity import plain_recipe, recipe_id
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records.record import (
    Record,
    readable,
    record_path,
    set_aside_damaged,
    write,
)
from micronet_lib.lab.records.tables import curves_of, table
from micronet_lib.lab.running.lineage import (
    Case,
    Job,
    cases,
    jobs,
    state_of,
)
from micronet_lib.lab.running.measures import MEASURES
from micronet_lib.lab.running.networks import (
    commits_of,
    content_of,
    inputs_of,
    network_of,
    train_network,
    untrained,
)
from micronet_lib.lab.storage.states import forget_states
from micronet_lib.lab.training.loop import DivergedError
from micronet_lib.scoring.bill import score_operations
from micronet_lib.scoring.operations import record_operations
from micronet_lib.scoring.rules import RULE_SETS, UnpricedError, rules_of

WORK = ("count", "rate", "train")
ON_IMAGES = {"top1", "recall_at_1"}
"""A record with one of these was rated on images of the data set."""
WORTH_A_LINE_S = 5


def ensure(
    sweep: Sweep,
    profile: str,
    seed: int = 0,
    overrides: Mapping[str, Any] | str | None = None,
    point: str | None = None,
    progress: bool = True,
    retrain: bool = False,
) -> pd.DataFrame:
    """Measure the missing points of a sweep on this machine, and return this run's table.

    Existing records of the same recipe, profile and seed are not made again, and existing networks
    are not trained again. A point stays `not run` if the sweep is not defined on the profile, a
    file is missing, a needed network is lost or its training failed, or another process works on
    it. The last three print a line on stderr. So does a training whose loss becomes NaN or
    infinite; its record says that it failed, and it is not tried again.

    Args:
        sweep: to measure.
        profile: a name of `PROFILES`.
        seed: of the runs.
        overrides: dotted keys that change every recipe, and so its identity.
        point: pattern of the points to measure, such as `3.0-*`.
        progress: show bars on stderr.
        retrain: train again networks that have a record but are not on this machine, and trainings
            that failed.

    Raises:
        InputError: unknown profile, point or key, or a file that cannot be used.
    """
    asked = cases(sweep, PROFILES[profile], seed, overrides, point)
    perform_all(jobs(asked, retrain=retrain), progress)
    return this_run(asked)


def warn_without_commit(ahead: Iterable[Job]) -> None:
    """Print why the records of these jobs cannot be promoted, if so."""
    if NO_COMMIT and any(job.does in WORK for job in ahead):
        say(f"records of this run have no commit and cannot be promoted: {NO_COMMIT}")


def check_measurable(ahead: Iterable[Job]) -> None:
    """Raise an error if overrides make a network that a sweep's measures cannot rate.

    Its training may take days. The sweep's own recipes fit, and to make a network takes a while.

    Raises:
        InputError: that of the measure.
    """
    for case in [job.case for job in ahead if job.recorded and job.does in WORK]:
        checks = [check for name in case.sweep.measures if (check := MEASURES[name].check)]
        if not (case.overrides and checks):
            continue
        try:
            with torch.random.fork_rng([]):
                network = untrained(case.recipe)
        except InputError:  # such as a published file that only the start's training needed
            continue
        for check in checks:
            check(case, network)


def perform_all(ahead: Iterable[Job], progress: bool = True) -> list[str]:
    """Do jobs one after the other. Print a line on stderr for each that cannot be done.

    Returns:
        The names of the jobs that were tried and could not be done.

    Raises:
        InputError: bad user input.
    """
    failed: set[str] = set()
    undone: list[str] = []
    ahead = list(ahead)
    check_measurable(ahead)
    warn_without_commit(ahead)
    clock = _Clock([job for job in ahead if job.does in WORK])
    for job in ahead:
        if job.said:
            say(job.said)
        if job.does in WORK:
            clock.start()
            if is_shown(progress) and (line := clock.line()):
                say_place(line)
        try:
            if failed.intersection(job.needs):
                say(
                    f"{job.case.name} seed {job.case.seed}: a network that it needs was not trained"
                )
            else:
                perform(job, progress)
                continue
        except Busy as busy:
            say(str(busy))
        except NotFiniteError as error:
            say(f"{job.case.name} seed {job.case.seed}: {error}")
        undone.append(f"{job.case.name} seed {job.case.seed}")
        if job.does == "train":  # a network that could not be rated is there all the same
            failed.add(job.case.id)
    return undone


class _Clock:
    """Where a list of jobs is, and how long the rest takes by committed runs of the same recipes.

    Args:
        todo: the jobs that do something, in order.
    """

    def __init__(self, todo: Sequence[Job]) -> None:
        self.todo = todo
        self.started: list[float] = []

    @cached_property
    def expected(self) -> list[float]:
        """Seconds of each job in committed runs; NaN where there are none."""
        return [_recorded_seconds(job) for job in self.todo]

    def start(self) -> None:
        """Note that the next job starts now."""
        self.started.append(time.monotonic())

    def line(self) -> str:
        """Return where the job that started last stands; nothing if it takes a moment only.

        Such as `06_scoring · free_savings 2/8 · v1_pr_60-dead_gates · 4 min left`. A job without a
        committed run counts like the mean of those that this process has done; the first of them
        has no time.
        """
        number = len(self.started)
        job, case = self.todo[number - 1], self.todo[number - 1].case
        counts = job.does == "count" and not case.sweep.measures
        if counts or self.expected[number - 1] < WORTH_A_LINE_S:
            return ""
        done = [end - start for start, end in pairwise(self.started)]
        usual = sum(done) / len(done) if done else math.nan
        left = sum(usual if math.isnan(each) else each for each in self.expected[number - 1 :])
        time_left = "" if math.isnan(left) else f" · {duration(left)} left"
        place = f"{case.sweep.name} {number}/{len(self.todo)}"
        return f"{case.sweep.chapter} · {place} · {case.point}{time_left}"


def _recorded_seconds(job: Job) -> float:
    """Return the mean time of committed runs of a job's recipe on such a device, or NaN."""
    case = job.case
    place = MEASURED / record_path(case.sweep.name, case.point, case.profile.name, case.seed)
    found = [readable(path) for path in place.parent.glob(f"{case.point}-s*.json")]
    on_gpu = default_device().type == "cuda"
    same = [
        each
        for each in found
        if each and each.recipe_id == recipe_id(case.recipe) and bool(each.env["cuda"]) == on_gpu
    ]
    return sum(each.env["wall_s"] for each in same) / len(same) if same else math.nan


def perform(job: Job, progress: bool = True) -> None:
    """Do one job: train, record, or both.

    Raises:
        Busy: another process works on it.
        NotFiniteError: a loss, a weight or a logit is NaN or infinite. If that ended the training,
            a record says so.
        InputError: bad user input.
    """
    case, recipe = job.case, job.case.recipe
    if job.does in ("nothing", "impossible"):
        return
    lock = lock_of(job)
    with only_one(lock, f"{case.name} seed {case.seed}"):
        if job.does == "count":
            if state_of(case).does != "nothing":
                write(measure(case, progress), runs_root(), unfinished=lock.parent)
            return
        now = state_of(case, job.recorded, job.retrain)  # others may have worked on it meanwhile
        trains = job.does == now.does == "train"
        if job.does == "train" and (now.diverged or (now.does == "nothing" and now.reason)):
            raise NotFiniteError(f"{now.reason} in another process")
        if job.does == "train" and now.does == "impossible":  # its training state stays
            raise InputError(f"{case.name} seed {case.seed}: {now.reason}")
        if trains:
            try:
                train_network(recipe, case.profile, case.seed, case.name, progress)
            except DivergedError as error:
                _write_failed(job, error)
                raise NotFiniteError(
                    f"{error}: its record says that it failed; try a lower train.lr"
                ) from error
        else:
            forget_states(case.folder)  # of a process killed after writing the network
        if job.recorded and (trains or now.does != "nothing"):
            write(measure(case, progress), runs_root(), unfinished=case.folder)


def lock_of(job: Job) -> Path:
    """Return the file that is locked while a job is done.

    Jobs of one training share it. Those that train nothing have one for each sweep, because sweeps
    share recipes.
    """
    case = job.case
    return (case.folder / case.sweep.name if job.does == "count" else case.folder) / "lock"


def _write_failed(job: Job, error: DivergedError) -> None:
    """Write the record of a training that failed, and delete its training states.

    So also if only the network was asked for: the next start would train it again until it fails.
    """
    case = job.case
    if job.may_write:
        set_aside_damaged(case.record_path)
        failed = {"what": error.what, "epoch": error.epoch, "message": str(error)}
        record = _record(case, error.content, {}, failed=failed)
        write(record, runs_root(), unfinished=case.folder)
    forget_states(case.folder)


def measure(case: Case, progress: bool = True) -> Record:
    """Return the record of a case. If its recipe trains, its network must exist.

    Raises:
        InputError: why it cannot be measured, in one line.
    """
    set_aside_damaged(case.record_path)
    set_up(default_device())  # ratings must not depend on what this process did before
    start, recipe = time.perf_counter(), case.recipe
    if recipe.train.epochs:
        content = content_of(recipe, case.profile, case.seed)
    else:
        inputs = inputs_of(recipe, case.profile, case.seed)
        commits = [COMMIT, *commits_of(recipe, case.profile, case.seed)]
        on_device = any(MEASURES[name].on_device for name in case.sweep.measures)
        env = environment(default_device() if on_device else "cpu", commits=commits, inputs=inputs)
        content = {"curve": {}, "notes": [], "env": env}
    network = network_of(recipe, case.profile, case.seed)
    metrics, arrays, layers = scores(case, network), dict[str, Any](), list[dict[str, Any]]()
    for name in case.sweep.measures:
        found = MEASURES[name].of(case, network, progress)
        metrics |= found.metrics
        arrays |= found.arrays
        layers += found.layers
    env = content["env"]
    env = {**env, "wall_s": round(env["wall_s"] + time.perf_counter() - start, 2)}
    if COMMIT not in (known := env.get("commits", [env["commit"]])):
        env["commits"] = [*known, COMMIT]  # this code rated what other code had trained
    content["env"] = env
    return _record(case, content, metrics, layers=layers, arrays=arrays)


def _record(
    case: Case, content: Mapping[str, Any], metrics: dict[str, float], **found: Any
) -> Record:
    """Return a record with the curve, notes and env of a training, and what else was found."""
    return Record(
        sweep=case.sweep.name,
        point=case.point,
        recipe_id=recipe_id(case.recipe),
        recipe=plain_recipe(case.recipe),
        profile=case.profile.name,
        seed=case.seed,
        dataset=case.profile.dataset if metrics.keys() & ON_IMAGES else "none",
        metrics=metrics,
        curve=content["curve"],
        notes=content["notes"],
        env=content["env"],
        overrides=dict(case.overrides),
        **found,
    )


def scores(case: Case, network: Network) -> dict[str, float]:
    """Return the totals of the network under every rule set, at the recipe's price.

    A rule set that has no price for one of its operations is left out.
    """
    operations, price = record_operations(network), case.recipe.price
    official = rules_of("official", price.weight_bits, price.activation_bits, price.accumulator)
    metrics: dict[str, float] = {}
    for name, rules in (RULE_SETS | {"official": official}).items():
        with suppress(UnpricedError):
            totals = score_operations(operations, rules).metrics()
            metrics |= {f"{name}.{key}": value for key, value in totals.items()}
    return metrics


def this_run(asked: Collection[Case]) -> pd.DataFrame:
    """Return the table of some cases; those without a record are `not run`."""
    first = next(iter(asked))
    found = [record for case in asked if (record := _record_of(case)) is not None]
    rows = table(first.sweep, found, source="this run", profile=first.profile.name)
    return rows[rows["point"].isin([case.point for case in asked])].reset_index(drop=True)


def run_curves(
    sweep: Sweep,
    profile: str,
    seed: int = 0,
    overrides: Mapping[str, Any] | str | None = None,
    point: str | None = None,
) -> pd.DataFrame:
    """Return the curves of this machine's runs, as `records.curves`. Arguments are `ensure`'s."""
    asked = cases(sweep, PROFILES[profile], seed, overrides, point)
    return curves_of(record for case in asked if (record := _record_of(case)) is not None)


def _record_of(case: Case) -> Record | None:
    """Return the record of a case, or that of its failed training under another name."""
    own = case.record()
    other = case.training_record if own is None and case.recipe.train.epochs else None
    return (
        replace(other, sweep=case.sweep.name, point=case.point) if other and other.failed else own
    )


def _check_possible(ahead: Iterable[Job]) -> None:
    """Raise an error if a network cannot be made here."""
    for job in ahead:
        if job.does == "impossible":
            named = "" if job.lost else f"{job.case.name} seed {job.case.seed} has no network: "
            raise InputError(f"{named}{job.reason}")


def trained(
    sweep: Sweep,
    point: str,
    profile: str,
    seed: int = 0,
    overrides: Mapping[str, Any] | str | None = None,
    progress: bool = True,
) -> Network:
    """Return the trained network of a point, in evaluation mode on the CPU. Train it if needed.

    Raises:
        InputError: as `ensure`; also if the point trains nothing, cannot be run here, or diverged.
    """
    (case,) = cases(sweep, PROFILES[profile], seed, overrides, sweep.point(point).name)
    if not case.recipe.train.epochs:
        raise InputError(f"{case.name} trains nothing at {profile}")
    ahead = jobs([case], recorded=False)
    _check_possible(ahead)
    perform_all(ahead, progress)
    _check_possible(jobs([case], recorded=False))  # it may have diverged just now
    return network_of(case.recipe, case.profile, case.seed)
