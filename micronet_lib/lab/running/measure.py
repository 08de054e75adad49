"""Measuring: a recipe goes in, a record comes out, and nothing is measured twice."""

import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import pandas as pd

from micronet_lib.architecture.network import Network
from micronet_lib.errors import InputError, NotFiniteError
from micronet_lib.lab.host.files import Busy, only_one
from micronet_lib.lab.host.machine import environment
from micronet_lib.lab.host.places import runs_root
from micronet_lib.lab.host.progress import say
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import get_profile
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records.record import Record, set_aside_damaged, write
from micronet_lib.lab.records.tables import table
from micronet_lib.lab.running.lineage import (
    Case,
    Job,
    cases,
    jobs,
    state_of,
)
from micronet_lib.lab.running.measures import MEASURES
from micronet_lib.lab.running.networks import content_of, network_of, train_network
from micronet_lib.lab.storage.states import forget_states
from micronet_lib.scoring.bill import score_operations
from micronet_lib.scoring.operations import record_operations
from micronet_lib.scoring.rules import RULE_SETS, UnpricedError, rules_of


def ensure(
    sweep: Sweep,
    profile: str,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    point: str | None = None,
    progress: bool = True,
    retrain: bool = False,
) -> pd.DataFrame:
    """Measure what is missing of a sweep on this machine, and return this run's table.

    A record in the runs folder of the same recipe, profile and seed is not made again, and a
    network that is there is not trained again. A point stays `not run` where the sweep makes no
    sense on the profile, a file is missing, it needs a network that is lost, another process works
    on it, or its loss becomes NaN or infinite. For the last three a line on stderr says so.

    Args:
        sweep: what to run.
        profile: a name of `PROFILES`.
        seed: of the runs.
        overrides: dotted keys that change every recipe, and so its identity.
        point: only those whose names match, such as `3.0-*`.
        progress: bars on stderr.
        retrain: train a network again that has a record but is not on this machine.

    Raises:
        InputError: unknown profile, point or key; or a fault of a file that is there.
    """
    asked = cases(sweep, get_profile(profile), seed, overrides, point)
    perform_all(jobs(asked, retrain=retrain), progress)
    return this_run(asked)


def perform_all(ahead: Iterable[Job], progress: bool = True) -> None:
    """Do jobs one after the other; for one that cannot be done, a line on stderr says why.

    Raises:
        InputError: a fault that a user has to mend.
    """
    failed: set[str] = set()
    for job in ahead:
        if job.lost:
            say(job.reason)
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
        failed.add(job.case.id)


def perform(job: Job, progress: bool = True) -> None:
    """Do one job: train, record, or both.

    Raises:
        Busy: another process works on it.
        NotFiniteError: a loss, a weight or a logit is NaN or infinite.
        InputError: a fault that a user has to mend.
    """
    case, recipe = job.case, job.case.recipe
    if job.does in ("nothing", "impossible"):
        return
    if job.does == "count":
        write(measure(case, progress), runs_root())
        return
    with only_one(case.folder / "lock", f"{case.name} seed {case.seed}"):
        if job.does == "train" and state_of(case, recorded=False, retrain=True).does == "train":
            train_network(recipe, case.profile, case.seed, case.name, progress)
        else:
            forget_states(case.folder)  # of a process that was killed as it wrote the network
        if job.recorded and state_of(case).does != "nothing":  # of who had the lock until now
            write(measure(case, progress), runs_root(), unfinished=case.folder)


def measure(case: Case, progress: bool = True) -> Record:
    """Return the record of a case; its network, if it trains one, is there already.

    Raises:
        InputError: whatever keeps it from being measured, in one line.
    """
    set_aside_damaged(case.record_path)
    start, recipe = time.perf_counter(), case.recipe
    content: dict[str, Any] = {"curve": {}, "notes": [], "env": environment()}
    if recipe.train.epochs:
        content = content_of(recipe, case.profile, case.seed)
    network = network_of(recipe, case.profile, case.seed)
    metrics, arrays, layers = scores(case, network), dict[str, Any](), list[dict[str, Any]]()
    for name in case.sweep.measures:
        found = MEASURES[name].of(case, network, progress)
        metrics |= found.metrics
        arrays |= found.arrays
        layers += found.layers
    wall_s = content["env"]["wall_s"] + time.perf_counter() - start
    return Record(
        sweep=case.sweep.name,
        point=case.point,
        recipe_id=recipe_id(recipe),
        recipe=asdict(recipe),
        profile=case.profile.name,
        seed=case.seed,
        dataset=case.profile.dataset if "top1" in metrics else "none",
        metrics=metrics,
        env={**content["env"], "wall_s": round(wall_s, 2)},
        layers=layers,
        curve=content["curve"],
        arrays=arrays,
        notes=content["notes"],
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
    """Return the table of some cases, of which those without a record are `not run`."""
    first = next(iter(asked))
    found = [record for case in asked if (record := case.record()) is not None]
    rows = table(first.sweep, found, source="this run", profile=first.profile.name)
    return rows[rows["point"].isin([case.point for case in asked])].reset_index(drop=True)


def trained(
    sweep: Sweep,
    point: str,
    profile: str,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Network:
    """Return the network that a point ends in, in evaluation mode on the CPU.

    It is trained now if it has to be.

    Raises:
        InputError: as `ensure`; also when the point trains nothing or cannot be run here.
    """
    (case,) = cases(sweep, get_profile(profile), seed, overrides, sweep.point(point).name)
    if not case.recipe.train.epochs:
        raise InputError(f"{case.name} trains nothing at {profile}")
    ahead = jobs([case], recorded=False)
    for job in ahead:
        if job.does == "impossible":
            raise InputError(job.reason)
    perform_all(ahead, progress)
    return network_of(case.recipe, case.profile, case.seed)
