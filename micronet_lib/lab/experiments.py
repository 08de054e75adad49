"""Measuring: a recipe goes in, a record comes out, and nothing is measured twice."""

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from micronet_lib.architecture import MicroNet, build
from micronet_lib.dead_channels import apply_savings
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.checkpoints import load_published
from micronet_lib.lab.data import data_root, load_split
from micronet_lib.lab.evaluation import evaluate, logits_of, rate
from micronet_lib.lab.machine import environment
from micronet_lib.lab.recipes import (
    Profile,
    Recipe,
    Sweep,
    get_profile,
    with_overrides,
)
from micronet_lib.operations import record_operations
from micronet_lib.rules import RULE_SETS, rules_of
from micronet_lib.scoring import score_operations


def checkpoint_path(name: str) -> Path:
    """Where a published file lies: `kaist/<name>.t7` under the data folder."""
    return data_root() / "kaist" / f"{name}.t7"


def prepare(recipe: Recipe) -> MicroNet:
    """The network of a recipe, its free savings applied.

    Raises:
        InputError: unknown model, or a checkpoint that is not there or not of that kind.
    """
    torch.manual_seed(0)  # one fresh network in forty draws a weight of exactly zero
    model = (
        load_published(checkpoint_path(recipe.checkpoint))
        if recipe.checkpoint
        else build(recipe.model)
    )
    return apply_savings(model, recipe.savings)


def measure(
    recipe: Recipe, sweep: str, point: str, profile: Profile, seed: int = 0, progress: bool = True
) -> records.Record:
    """Run one recipe and return its record; writing it is the caller's business.

    A published network is rated on the profile's test set. With free savings it is run in float64
    as well, and the largest change of any logit is recorded.

    Raises:
        InputError: whatever keeps the recipe from running, in one line.
    """
    start = time.perf_counter()
    model = prepare(recipe)
    operations = record_operations(model)
    blocks = model.architecture.blocks
    metrics: dict[str, float] = {"hidden_chs": sum(block.hidden_chs for block in blocks)}
    layers: list[dict[str, Any]] = []
    official = rules_of("official", recipe.weight_bits, recipe.activation_bits, recipe.accumulator)
    for name, rules in (RULE_SETS | {"official": official}).items():
        result = score_operations(operations, rules)
        metrics |= {f"{name}.{key}": value for key, value in result.metrics().items()}
        if name == "published" and recipe.checkpoint and not recipe.savings:
            layers = result.table().drop(columns=["score"]).to_dict("records")
    dataset = "none"
    if recipe.checkpoint and not recipe.weight_bits:
        dataset = profile.dataset
        if recipe.savings:
            metrics |= _compare(recipe, model, dataset, progress)
        else:
            metrics |= evaluate(model, load_split(dataset, "test"), progress).metrics()
    return records.Record(
        sweep=sweep,
        point=point,
        recipe_id=records.recipe_id(recipe),
        recipe=asdict(recipe),
        profile=profile.name,
        seed=seed,
        dataset=dataset,
        metrics=metrics,
        env=environment(wall_s=time.perf_counter() - start),
        layers=layers,
    )


def _compare(recipe: Recipe, trimmed: MicroNet, dataset: str, progress: bool) -> dict[str, float]:
    """Rate the trimmed network and hold every logit of it against the published file's.

    `max_logit_difference` is of savings made and run in float64, where rounding cannot hide a
    fault; `max_logit_difference_stored` of savings made in float32, whose weights are rounded, and
    run in float64; `bit_identical` is 1 when the float32 logits are the same to the last bit.
    """
    single, double = _published_logits(data_root(), recipe.checkpoint, dataset, progress)
    test = load_split(dataset, "test")
    logits = logits_of(trimmed, test.images, progress=progress)
    found = rate(logits, test.targets, seconds=float("inf")).metrics()
    exact = apply_savings(
        load_published(checkpoint_path(recipe.checkpoint)).double(), recipe.savings
    )
    stored = copy.deepcopy(trimmed).double()
    change = (double - logits_of(exact, test.images, progress=progress)).abs().max().item()
    rounded = change
    if not all(map(torch.equal, exact.state_dict().values(), stored.state_dict().values())):
        rounded = (double - logits_of(stored, test.images, progress=progress)).abs().max().item()
    return {
        **{name: found[name] for name in ("correct", "num_examples", "top1", "top5", "loss")},
        "max_logit_difference": change,
        "max_logit_difference_stored": rounded,
        "bit_identical": int(torch.equal(single, logits)),
    }


@lru_cache(maxsize=1)
def _published_logits(
    root: Path, checkpoint: str, dataset: str, progress: bool
) -> tuple[Tensor, Tensor]:
    """Logits of a published file in float32 and float64; every step of its savings needs them."""
    model = load_published(root / "kaist" / f"{checkpoint}.t7")
    images = load_split(dataset, "test").images
    single = logits_of(model, images, progress=progress)
    return single, logits_of(model.double(), images, progress=progress)


def ensure(
    sweep: Sweep,
    profile: str,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    point: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what is missing of a sweep on this machine, and return this run's table.

    A record in the runs folder that was made from the same recipe and profile is not made again.
    Where the sweep makes no sense on a profile (published networks on the embedded images), or its
    files are not on this machine, points stay `not run`.

    Args:
        sweep: what to run.
        profile: a name of `PROFILES`.
        seed: of the runs.
        overrides: dotted keys that change every recipe, and so its id.
        point: only this one.
        progress: bars on stderr.

    Raises:
        InputError: unknown profile, point or key; or a fault of a file that is there.
    """
    chosen = get_profile(profile)
    runs = records.runs_root()
    done = []
    for p in [sweep.point(point)] if point else sweep.points():
        recipe = with_overrides(p.recipe, overrides or {})
        path = runs / records.record_path(sweep.name, p.name, profile, seed)
        found = records.read(path) if path.is_file() else None
        if found and found.recipe_id == records.recipe_id(recipe):
            done.append(found)
        elif profile in sweep.profiles and missing_inputs(recipe, chosen) is None:
            done.append(measure(recipe, sweep.name, p.name, chosen, seed, progress))
            records.write(done[-1], runs)
    rows = records.table(sweep, done, source="this run", profile=profile)
    return rows[rows["point"] == point].reset_index(drop=True) if point else rows


def missing_inputs(recipe: Recipe, profile: Profile) -> str | None:
    """The first file a recipe needs that is not on this machine, under the data folder; or None."""
    if recipe.checkpoint:
        needed = [Path("kaist") / f"{recipe.checkpoint}.t7"]
        if profile.dataset == "cifar100" and not recipe.weight_bits:
            needed.append(Path("cifar-100-python") / "test")
        for path in needed:
            if not (data_root() / path).exists():
                return str(path)
    return None


def require(
    sweep: Sweep,
    profile: str,
    point: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Refuse what `ensure` would leave as `not run`: for the command line, where one asks for it.

    Raises:
        InputError: the sweep is not defined on the profile, or not one point has its files.
    """
    chosen = get_profile(profile)
    if profile not in sweep.profiles:
        raise InputError(
            f"sweep {sweep.name!r} is not defined on profile {profile!r}; "
            f"choose from {', '.join(sweep.profiles)}"
        )
    points = [sweep.point(point)] if point else sweep.points()
    recipes = [with_overrides(p.recipe, overrides or {}) for p in points]
    missing = [missing_inputs(recipe, chosen) for recipe in recipes]
    first = missing[0]
    if first and all(missing):
        group = "kaist" if first.startswith("kaist") else chosen.dataset
        raise InputError(
            f"{sweep.name} needs {first} under the data folder; "
            f"`micronet data fetch {group}` gets it"
        )
