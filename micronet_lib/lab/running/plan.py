"""Plans: the work and time that measuring a sweep would take, before anything runs."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Any

import pandas as pd
import torch

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.distillation import Committee
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import NUM_CLASSES, NUM_IMAGES
from micronet_lib.lab.host.machine import default_device, environment, set_up
from micronet_lib.lab.host.places import MEASURED, runs_root
from micronet_lib.lab.host.progress import duration
from micronet_lib.lab.recipes.identity import plain_recipe
from micronet_lib.lab.recipes.profile import PROFILES, Profile, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records.record import Record, readable
from micronet_lib.lab.running.lineage import Job
from micronet_lib.lab.running.networks import untrained
from micronet_lib.lab.storage.states import epochs_done
from micronet_lib.lab.training.step import Step

FLOAT_BYTES = 4
TIMED_STEPS = 3
TIMED_BATCH = 32  # enough on a CPU, where the time per image does not depend on the batch

_NUM_PARAMS: dict[str, int] = {}
"""Of the networks whose size was asked for, by shape: building one takes a moment."""

WORDS = {"nothing": "measured", "count": "to count", "rate": "to rate", "train": "to train"}


def table_of(ahead: Sequence[Job], sweep: Sweep) -> pd.DataFrame:
    """Return jobs as a plan of the requested sweep: one row for each, in their order.

    Columns: point (with its sweep if that is another one); state (`measured`, `to count`, `to
    rate`, `to train`, or why it is impossible here or failed); record (whether one is requested, or
    only the network); epochs of the training, and done, those that a state has already; images to
    train; minutes of training; disk_mb of the network and its training states; kept_mb of the
    network alone, once it is trained. The speed is the median of records with the same network,
    device and profile. Without such records, a few steps are timed now.
    """
    rows, speeds = [], dict[str, float]()
    for job in ahead:
        case, trains = job.case, job.does == "train"
        epochs = case.recipe.train.epochs if trains else 0
        done = epochs_done(case.folder, case.id) if trains else 0
        images = num_images(case.recipe, case.profile) * (epochs - done) // epochs if trains else 0
        speed, kept, meanwhile = 1.0, *(sizes_mb(case.recipe) if trains else (0.0, 0.0))
        if trains:
            shape = repr(_shape(plain_recipe(case.recipe)))
            if shape not in speeds:
                with suppress(InputError):  # the file of a start that was trained is gone
                    speeds[shape] = speed_of(case.recipe, case.profile)
            speed = speeds.get(shape, math.nan)
        rows.append(
            {
                "point": case.point if case.sweep is sweep else case.name,
                "state": job.reason or WORDS[job.does],
                "record": job.recorded,
                "epochs": epochs,
                "done": done,
                "images": images,
                "minutes": images / speed / 60,
                "disk_mb": kept + meanwhile,
                "kept_mb": kept,
            }
        )
    return pd.DataFrame(rows)


def as_text(ahead: pd.DataFrame) -> str:
    """Return a plan as people read it, with a line of totals."""
    rows = []
    for row in ahead.to_dict("records"):
        trains = row["state"] == WORDS["train"]
        begun = trains and row["done"]
        rows.append(
            {
                "point": row["point"],
                "state": f"resumes at epoch {row['done'] + 1} of {row['epochs']}"
                if begun
                else row["state"],
                "makes": "record" if row["record"] else "network only",
                "epochs": row["epochs"] - row["done"] if trains else "-",
                "images": f"{row['images']:,}".replace(",", " ") if trains else "-",
                "time": duration(60 * row["minutes"]) if trains else "-",
                "disk": f"{row['disk_mb']:.0f} MB" if trains else "-",
            }
        )
    return f"{pd.DataFrame(rows).to_string(index=False)}\n{in_all(ahead)}"


def in_all(ahead: pd.DataFrame) -> str:
    """Return one line with the totals of a plan."""
    left = ahead[ahead["state"].str.startswith("to ")]
    trained = left[left["state"] == WORDS["train"]]
    line = f"{len(left)} to do, {len(trained)} of them to train"
    if trained.empty:
        return line
    time = duration(60 * trained["minutes"].sum())
    unknown = trained["minutes"].isna().sum()
    more = f" and {unknown} of unknown time" if unknown else ""
    room = room_mb(zip(trained["kept_mb"], trained["disk_mb"] - trained["kept_mb"], strict=True))
    return f"{line}: {time}{more}, {room:.0f} MB"


def num_images(recipe: Recipe, profile: Profile) -> int:
    """Return the images of all epochs of a run, without the dropped last batch of each epoch."""
    train = recipe.train
    if not train.epochs:
        return 0
    sizes = NUM_IMAGES[profile.dataset]
    learned = sizes["train"] + (0 if train.hold_out else sizes["validation"])
    in_all = train.num_images or learned * (train.num_classes or NUM_CLASSES) // NUM_CLASSES
    return train.epochs * (in_all // train.batch_size) * train.batch_size


def images_seen(sweep: Sweep, point: str, profile: str) -> int:
    """Return the images that a point's network was trained on since random weights.

    An image counts each time that it is shown, also in the trainings that the network starts from.

    Raises:
        InputError: unknown profile or point; the network starts from a published file, of which
            nobody has counted them.
    """
    recipe = resolved(sweep.point(point).recipe, PROFILES[profile])
    seen = 0
    while True:
        seen += (1 + len(recipe.prune.sparsities)) * num_images(recipe, PROFILES[profile])
        if recipe.checkpoint:
            raise InputError(f"{sweep.name}/{point} starts from {recipe.checkpoint}")
        if recipe.start is None:
            return seen
        recipe = recipe.start


def speed_of(recipe: Recipe, profile: Profile) -> float:
    """Return the speed, in images/s, at which this device trains a recipe at a profile."""
    device = environment(default_device())["device"]
    speeds = [
        record.metrics["train_images_per_s"]
        for record in _trained_records(profile.name)
        if record.env["device"] == device and _shape(record.recipe) == _shape(plain_recipe(recipe))
    ]
    return median(speeds) if speeds else timed_images_per_s(recipe)


def _shape(recipe: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the fields of a recorded recipe that decide the training time of an image."""
    start, teacher = recipe.get("start"), recipe.get("teacher")
    offline = recipe.get("distillation", {}).get("offline", False)  # answered before
    network = (recipe["model"], recipe["width_mult"], recipe["checkpoint"], recipe.get("options"))
    return (
        _shape(start) if start else (*network[:3], network[3] or {}),
        _shape(teacher) if teacher and not offline else None,
        tuple(map(_shape, recipe.get("more_teachers") or ())),
        recipe["train"]["precision"],
        # A frozen trunk takes no backward pass. Older records have neither.
        tuple(recipe["train"].get("freeze", ())),
        recipe.get("exits", {}).get("weight", 0.0),
        # Rounded numbers take longer. Pruned ones do not.
        tuple(
            name for change in recipe.get("changes") or () for name in change if name != "PruneTo"
        ),
    )


def _trained_records(profile: str) -> list[Record]:
    paths = [p for root in (runs_root(), MEASURED) for p in (root / profile).glob("*/*.json")]
    records = [record for path in paths if (record := readable(path)) is not None]
    return [record for record in records if "train_images_per_s" in record.metrics]


def timed_images_per_s(recipe: Recipe) -> float:
    """Return this device's training speed from a few steps on random images.

    Augmentation and rating are not included. On a GPU the steps are eager; a captured run is
    faster.
    """
    device, train = default_device(), recipe.train
    set_up(device)
    network = untrained(recipe).to(device).to(memory_format=torch.channels_last).train()
    asked = () if recipe.distillation.offline else recipe.teachers
    teachers = [fold_batch_norm(untrained(each)).to(device) for each in asked]
    hooks = [hook for change in recipe.changes for hook in change.hooks(network)]
    teacher = Committee(teachers) if teachers else None
    generator = torch.Generator(device).manual_seed(0)
    step = Step(network, recipe, generator, hooks, teacher)
    batch = train.batch_size if device.type == "cuda" else min(train.batch_size, TIMED_BATCH)
    images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, device=device)
    targets = torch.zeros(batch, dtype=torch.int64, device=device)
    start = 0.0
    for number in range(TIMED_STEPS + 1):
        step(images, targets, None, train.min_lr)
        step.loss.item()  # waits for the device
        start = start if number else time.perf_counter()  # the first step is warm-up
    return TIMED_STEPS * batch / (time.perf_counter() - start)


def sizes_mb(recipe: Recipe) -> tuple[float, float]:
    """Return the size of a run's network, and of the two training states that it has meanwhile.

    NaN if a published file is missing that the network starts from.
    """
    shape = repr(_shape(plain_recipe(recipe)))
    if shape not in _NUM_PARAMS:
        with suppress(InputError):
            _NUM_PARAMS[shape] = sum(p.numel() for p in untrained(recipe).parameters())
    copy = _NUM_PARAMS.get(shape, math.nan) * FLOAT_BYTES / 1e6
    # The network, the best one and a momentum; then Adam's second one, the average, and the plan.
    planned = any(change.num_images for change in recipe.changes)
    train = recipe.train
    copies = 3 + (train.optimizer != "sgd") + bool(train.ema_decay) + planned
    return 2 * copy, 2 * copies * copy


def room_mb(sizes: Iterable[tuple[float, float]]) -> float:
    """Return the room that runs one after another need: every network, and the states of one.

    Args:
        sizes: from `sizes_mb`. A run of unknown size counts as none.
    """
    known = [(kept, meanwhile) for kept, meanwhile in sizes if not math.isnan(kept)]
    return sum(kept for kept, _ in known) + max((states for _, states in known), default=0.0)
