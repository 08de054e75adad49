"""Before anything runs: what measuring a sweep would take, and whether it can be done at all."""

import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import pandas as pd
import torch

from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.host.machine import default_device, environment, set_up
from micronet_lib.lab.host.places import MEASURED, runs_root
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import Profile, get_profile, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records import record as records
from micronet_lib.lab.running.runs import fresh_network, missing_files
from micronet_lib.lab.training.step import Step

FLOAT_BYTES = 4
TIMED_STEPS = 3
TIMED_BATCH = 32  # on a CPU, where an image takes as long in a large batch


def plan(
    sweep: Sweep,
    profile: str,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    point: str | None = None,
) -> pd.DataFrame:
    """One row a point: whether it is to be run, how much it trains, and what that would take.

    Columns: point; state (`measured`, `to run`, or what is missing); epochs; images trained, in
    all epochs; minutes of training, at the median speed of what was trained on this device at this
    profile before, or else of a few steps that are taken now (`NaN` if no point can be trained);
    disk_mb of the network and the training states.

    Raises:
        InputError: unknown profile, point or key.
    """
    chosen = get_profile(profile)
    recipes = {p.name: resolved(p.recipe, chosen, overrides) for p in sweep.matching(point)}
    states = {n: _state(sweep, n, recipe, chosen, seed) for n, recipe in recipes.items()}
    to_train = [r for n, r in recipes.items() if states[n] == "to run" and r.train.epochs]
    speed = images_per_s(chosen) or (timed_images_per_s(to_train[0]) if to_train else float("nan"))
    rows = []
    for name, recipe in recipes.items():
        images = num_images(recipe, chosen)
        rows.append(
            {
                "point": name,
                "state": states[name],
                "epochs": recipe.train.epochs,
                "images": images,
                "minutes": images / speed / 60,
                "disk_mb": _disk_mb(recipe) if recipe.train.epochs else 0.0,
            }
        )
    return pd.DataFrame(rows)


def in_all(ahead: pd.DataFrame) -> str:
    """One line under a plan: what the points that are to run take together."""
    left = ahead[ahead["state"] == "to run"]
    return (
        f"to run: {len(left)} of {len(ahead)} points, {left['minutes'].sum():.1f} minutes of "
        f"training, {left['disk_mb'].sum():.0f} MB"
    )


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
    recipes = [resolved(p.recipe, chosen, overrides) for p in sweep.matching(point)]
    missing = [missing_files(recipe, chosen) for recipe in recipes]
    first = missing[0]
    if first and all(missing):
        group = {"kaist": "kaist", "cifar-100-python": "cifar100"}.get(
            first.split("/")[0], "policies"
        )
        raise InputError(
            f"{sweep.name} needs {first} under the data folder; "
            f"`micronet data fetch {group}` gets it"
        )


def num_images(recipe: Recipe, profile: Profile) -> int:
    """Images that a run trains on, counted in every epoch; the last, smaller batch is dropped."""
    train = recipe.train
    if not train.epochs:
        return 0
    in_all = train.num_images or _train_images(profile.dataset, train.hold_out)
    return train.epochs * (in_all // train.batch_size) * train.batch_size


def _train_images(dataset: str, hold_out: bool) -> int:
    if dataset == "embedded":
        held, rest = len(load_split(dataset, "train")), len(load_split(dataset, "validation"))
    else:
        held, rest = 45_000, 5_000
    return held if hold_out else held + rest


def images_per_s(profile: Profile) -> float | None:
    """The median training speed of this device's records at a profile, or None without one."""
    device = environment(default_device())["device"]
    speeds = [
        record.metrics["train_images_per_s"]
        for root in (runs_root(), MEASURED)
        for path in (root / profile.name).glob("*/*.json")
        if (record := records.kept(path)) is not None
        and record.env["device"] == device
        and "train_images_per_s" in record.metrics
    ]
    return median(speeds) if speeds else None


def timed_images_per_s(recipe: Recipe) -> float:
    """The training speed of this device, from a few steps on random images.

    Augmentation and rating are left out. On a GPU the steps are eager, a captured run is faster.
    """
    device, train = default_device(), replace(recipe.train, initialization="default")
    set_up(device)
    model = fresh_network(replace(recipe, train=train), 0).to(device)
    model = model.to(memory_format=torch.channels_last).train()
    step = Step(model, recipe, torch.Generator(device).manual_seed(0))
    batch = train.batch_size if device.type == "cuda" else min(train.batch_size, TIMED_BATCH)
    images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, device=device)
    targets = torch.zeros(batch, dtype=torch.int64, device=device)
    start = 0.0
    for number in range(TIMED_STEPS + 1):
        step(images, targets, None, train.min_lr)
        step.loss.item()  # waits for the device
        start = start if number else time.perf_counter()  # the first one sets things up
    return TIMED_STEPS * batch / (time.perf_counter() - start)


def _state(sweep: Sweep, point: str, recipe: Recipe, profile: Profile, seed: int) -> str:
    path = runs_root() / records.record_path(sweep.name, point, profile.name, seed)
    found = records.kept(path)
    if found is not None and found.recipe_id == recipe_id(recipe):
        return "measured"
    if profile.name not in sweep.profiles:
        return f"not defined at {profile.name}"
    missing = missing_files(recipe, profile)
    return f"no file {missing}" if missing else "to run"


def _disk_mb(recipe: Recipe) -> float:
    """The largest that a run's folder gets: a network, and two states of weights and momentum."""
    num = sum(p.numel() for p in fresh_network(recipe, 0).parameters())
    copies = 2 + 2 * (4 if recipe.train.ema_decay else 3)
    return copies * num * FLOAT_BYTES / 1e6
