"""Measuring: a recipe goes in, a record comes out, and nothing is measured twice."""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.host.files import Busy, only_one, write_atomically
from micronet_lib.lab.host.machine import default_device, environment
from micronet_lib.lab.host.places import checkpoint_path, runs_root
from micronet_lib.lab.host.progress import say
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import Profile, get_profile, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records import record as records
from micronet_lib.lab.records.record import find
from micronet_lib.lab.records.tables import table
from micronet_lib.lab.running.inspection import INSPECTIONS
from micronet_lib.lab.running.runs import (
    fresh_network,
    kept_network,
    missing_files,
    ratings,
    train_recipe,
)
from micronet_lib.lab.running.savings import compare_logits
from micronet_lib.lab.storage.published import load_published
from micronet_lib.lab.training.evaluation import evaluate
from micronet_lib.lab.training.loop import DivergedError
from micronet_lib.pruning.density import density_table
from micronet_lib.scoring.bill import score_operations
from micronet_lib.scoring.dead_channels import apply_savings
from micronet_lib.scoring.operations import record_operations
from micronet_lib.scoring.rules import RULE_SETS, rules_of


def prepare(recipe: Recipe) -> MicroNet:
    """The network of a recipe, its free savings applied.

    Raises:
        InputError: unknown model, or a checkpoint that is not there or not of that kind.
    """
    model = (
        load_published(checkpoint_path(recipe.checkpoint))
        if recipe.checkpoint
        else fresh_network(recipe, seed=0)  # one in forty draws a weight of exactly zero
    )
    return apply_savings(model, recipe.savings)


def measure(
    recipe: Recipe,
    sweep: str,
    point: str,
    profile: Profile,
    seed: int = 0,
    progress: bool = True,
    parent: Path | None = None,
) -> records.Record:
    """Run one resolved recipe and return its record; writing it is the caller's business.

    A recipe that trains is trained, or goes on where an earlier process was cut, and rated. A
    published network is rated on the profile's test set. With free savings it is run in float64
    as well, and the largest change of any logit is recorded.

    Raises:
        InputError: whatever keeps the recipe from running, in one line.
    """
    start = time.perf_counter()
    notes: list[str] = []
    learned: dict[str, float] = {}
    curve: dict[str, list[float]] = {}
    device = torch.device("cpu")
    if recipe.train.epochs:
        folder = run_folder(sweep, point, profile.name, seed)
        device = default_device()
        trained, notes = train_recipe(recipe, profile, seed, folder, parent, progress)
        learned, curve = ratings(trained, recipe, profile), trained.curve
        model = trained.model.cpu()
    else:
        model = prepare(recipe)
    operations = record_operations(model)
    blocks = model.architecture.blocks
    metrics: dict[str, float] = {"hidden_chs": sum(block.hidden_chs for block in blocks)}
    if recipe.prune.sparsities:
        metrics["sparsity"] = density_table(model)["sparsity"].iloc[-1].item()
    layers: list[dict[str, Any]] = []
    official = rules_of("official", recipe.weight_bits, recipe.activation_bits, recipe.accumulator)
    for name, rules in (RULE_SETS | {"official": official}).items():
        result = score_operations(operations, rules)
        metrics |= {f"{name}.{key}": value for key, value in result.metrics().items()}
        if name == "published" and recipe.checkpoint and not (recipe.savings or recipe.inspect):
            layers = result.table().drop(columns=["score"]).to_dict("records")
    arrays: dict[str, Any] = {}
    for name in recipe.inspect:
        found, arrays[name] = INSPECTIONS[name](model)
        metrics |= found
    dataset = profile.dataset if learned else "none"
    metrics |= learned
    if recipe.checkpoint and not recipe.weight_bits and not recipe.inspect:
        dataset = profile.dataset
        if recipe.savings:
            metrics |= compare_logits(recipe, model, dataset, progress)
        else:
            metrics |= evaluate(model, load_split(dataset, "test"), progress).metrics()
    return records.Record(
        sweep=sweep,
        point=point,
        recipe_id=recipe_id(recipe),
        recipe=asdict(recipe),
        profile=profile.name,
        seed=seed,
        dataset=dataset,
        metrics=metrics,
        env=environment(device, wall_s=time.perf_counter() - start),
        layers=layers,
        curve=curve,
        arrays=arrays,
        notes=notes,
    )


def run_folder(sweep: str, point: str, profile: str, seed: int) -> Path:
    """Where a run keeps its lock, its training states and its network."""
    return runs_root() / records.record_path(sweep, point, profile, seed).with_suffix("")


def ensure(
    sweep: Sweep,
    profile: str,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    point: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what is missing of a sweep on this machine, and return this run's table.

    A record in the runs folder that was made from the same recipe, profile and seed is not made
    again, be it of another sweep. Where the sweep makes no sense on a profile (published networks
    on the embedded images), or its files are not on this machine, points stay `not run`. So does a
    point that another process is at, and one whose loss becomes NaN or infinite, each with a line
    on stderr.

    Args:
        sweep: what to run.
        profile: a name of `PROFILES`.
        seed: of the runs.
        overrides: dotted keys that change every recipe, and so its id.
        point: only those whose names match, such as `3.0-*`.
        progress: bars on stderr.

    Raises:
        InputError: unknown profile, point or key; or a fault of a file that is there.
    """
    chosen = get_profile(profile)
    points = [p.name for p in sweep.matching(point)]
    recipes = resolve(sweep, chosen, overrides)
    done = []
    for name in points:
        try:
            found = ensure_point(sweep, name, recipes, chosen, seed, progress)
        except Busy as busy:
            say(str(busy))
            continue
        except DivergedError as diverged:
            say(f"{sweep.name}/{name} seed {seed}: {diverged}")
            continue
        if found is not None:
            done.append(found)
    return this_run(sweep, profile, points, done)


def resolve(
    sweep: Sweep, profile: Profile, overrides: Mapping[str, Any] | None
) -> dict[str, Recipe]:
    """The recipe of every point on a profile.

    Raises:
        InputError: unknown key, or a value of another type.
    """
    return {p.name: resolved(p.recipe, profile, overrides) for p in sweep.points()}


def this_run(
    sweep: Sweep, profile: str, points: Collection[str], done: Iterable[records.Record]
) -> pd.DataFrame:
    """The table of some points of a sweep, of which those without a record are `not run`."""
    rows = table(sweep, done, source="this run", profile=profile)
    return rows[rows["point"].isin(points)].reset_index(drop=True)


def ensure_point(
    sweep: Sweep,
    point: str,
    recipes: Mapping[str, Recipe],
    profile: Profile,
    seed: int,
    progress: bool,
) -> records.Record | None:
    """The record of one point, read, taken from another sweep or made; None if it cannot be.

    Args:
        sweep: of the point.
        point: its name.
        recipes: resolved, of this point and of the rounds before it at least.
        profile: that they are resolved for.
        seed: of the run.
        progress: bars on stderr.

    Raises:
        Busy: another process is at the point.
        DivergedError: its loss became NaN or infinite.
        InputError: as `ensure`.
    """
    recipe, runs = recipes[point], runs_root()
    identity = recipe_id(recipe)
    path = runs / records.record_path(sweep.name, point, profile.name, seed)
    found = records.kept(path)
    if found and found.recipe_id == identity:
        return found
    if profile.name not in sweep.profiles or missing_files(recipe, profile) is not None:
        return None
    if found is None and path.is_file():
        say(f"{path} is damaged or of another schema: the point is measured again")
    if not recipe.train.epochs:
        found = measure(recipe, sweep.name, point, profile, seed, progress)
        records.write(found, runs)
        return found
    folder = run_folder(sweep.name, point, profile.name, seed)
    twin = twin_of(recipe, profile, seed)
    parent = None if twin else _parent_folder(sweep, point, recipes, profile, seed, progress)
    with only_one(folder / "lock", f"{sweep.name}/{point} seed {seed}"):
        found = records.kept(path)  # of the process that had the lock until now
        if found and found.recipe_id == identity:
            return found
        if twin:
            theirs = run_folder(twin.sweep, twin.point, profile.name, seed)
            network = (theirs / "network.pt").read_bytes()
            write_atomically(folder / "network.pt", network, f"the network of {point}")
            found = replace(twin, sweep=sweep.name, point=point)
        else:
            given = {} if parent is None else {"parent": parent}
            found = measure(recipe, sweep.name, point, profile, seed, progress, **given)
        records.write(found, runs)
    return found


def twin_of(recipe: Recipe, profile: Profile, seed: int) -> records.Record | None:
    """A record of this machine of the same recipe and seed, if its network is whole as well."""
    runs, identity = runs_root(), recipe_id(recipe)
    found = find(runs, profile.name, identity, seed)
    if found is None:
        return None
    folder = run_folder(found.sweep, found.point, profile.name, seed)
    return None if kept_network(recipe, seed, folder) is None else found


def round_before(sweep: Sweep, point: str, recipes: Mapping[str, Recipe]) -> str | None:
    """The point in whose network a point's last round of pruning begins; None without a round.

    Raises:
        InputError: no point of the sweep is the round before.
    """
    recipe = recipes[point]
    if not recipe.prune.sparsities:
        return None
    for name, other in recipes.items():
        if other == recipe.parent:
            return name
    raise InputError(f"{sweep.name}/{point}: the round before is no point of this sweep")


def _parent_folder(
    sweep: Sweep,
    point: str,
    recipes: Mapping[str, Recipe],
    profile: Profile,
    seed: int,
    progress: bool,
) -> Path | None:
    """Where the network of the round before lies, measured if need be; None without a round."""
    before = round_before(sweep, point, recipes)
    if before is None:
        return None
    folder = run_folder(sweep.name, before, profile.name, seed)
    if kept_network(recipes[before], seed, folder) is None:
        forget(sweep, before, profile, seed)
    ensure_point(sweep, before, recipes, profile, seed, progress)
    return folder


def forget(sweep: Sweep, point: str, profile: Profile, seed: int) -> None:
    """Remove a record whose network, which nobody commits, is not whole on this machine."""
    path = records.record_path(sweep.name, point, profile.name, seed)
    (runs_root() / path).unlink(missing_ok=True)


def trained(
    sweep: Sweep,
    point: str,
    profile: str,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> MicroNet:
    """The network that a point ends in, in evaluation mode on the CPU; trained now if it has to be.

    Raises:
        InputError: as `ensure`; also when the point trains nothing or cannot be run here.
    """
    chosen = get_profile(profile)
    recipe = resolved(sweep.point(point).recipe, chosen, overrides)
    folder = run_folder(sweep.name, point, profile, seed)
    for _ in range(2):
        model = kept_network(recipe, seed, folder)
        if model is not None:
            return model
        forget(sweep, point, chosen, seed)
        ensure(sweep, profile, seed, overrides, point, progress)
    raise InputError(f"{sweep.name}/{point} at {profile} leaves no trained network on this machine")
