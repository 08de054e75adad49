"""A made-up sweep and records of it."""

import json
from dataclasses import replace
from typing import Any

import pandas as pd

from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import plain_recipe, recipe_id
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records.record import Record

SWEEP = Sweep(
    name="toy",
    title="Three recipes",
    chapter="01_architecture",
    axes={"model": ("micronet_v1", "micronet_v2", "table1_3.0")},
    make=lambda model: Recipe(model=model),
    metrics=("score", "top1"),
    measures=("corruptions",),  # the seed draws their images, so each seed is another run
)
ENV = {"device": "2 CPU threads", "torch": "2.15.0", "python": "3.11.7", "commit": "abc1234"}


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The fields as they come back from a file: tuples are lists there."""
    return json.loads(json.dumps(plain_recipe(recipe)))


def record(point: str = "micronet_v1", seed: int = 0, **changes: Any) -> Record:
    """A record of the made-up sweep."""
    recipe = SWEEP.point(point).recipe
    made = Record(
        sweep="toy",
        point=point,
        recipe_id=recipe_id(recipe),
        recipe=as_json(recipe),
        profile="quick",
        seed=seed,
        dataset="cifar100",
        metrics={"score": 1.5 + seed, "top1": 0.5},
        env=ENV | {"date": "2026-11-22T21:00:00Z", "wall_s": 1.5},
    )
    return replace(made, **changes)


def failed_record(point: str = "micronet_v1", seed: int = 0, epoch: int = 1, **more: Any) -> Record:
    """A record of a training that diverged, of the made-up sweep."""
    failed = {"what": "loss", "epoch": epoch, "message": f"the loss became nan in epoch {epoch}"}
    before = {"lr": [0.1] * (epoch - 1)}
    return record(point, seed, metrics={}, dataset="none", curve=before, failed=failed, **more)


def top1_records(sweep: str, top1: dict[str, list[float]], profile: str = "quick") -> list[Record]:
    """Records of a sweep's points with these accuracies, a seed each."""
    rest = {"loss": 3.0, "validation_top1": 0.1, "train_loss": 3.5, "srip_penalty": 0.5}
    rest |= {"published.score": 0.01, "official.score": 0.02}
    made = []
    for point, values in top1.items():
        if sweep == "pipeline" and point != "dense":
            rest["sparsity"] = float(point)
        for seed, value in enumerate(values):
            metrics = {"top1": value, **rest}
            made.append(Record(sweep, point, point, {}, profile, seed, "", metrics, ENV))
    return made


def top1_table(sweep: str, top1: dict[str, list[float]], profile: str = "quick") -> pd.DataFrame:
    """The table of these records; a point that is not named was not run."""
    return records.table(SWEEPS[sweep], top1_records(sweep, top1, profile), profile=profile)
