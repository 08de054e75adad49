"""A lab in which a point takes a tenth of a second: two blocks, few images, one thread."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_networks import single_thread

from micronet_lib.architecture.micronet import ARCHITECTURES
from micronet_lib.lab.data.images import load_dataset
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.running import measure, networks
from micronet_lib.lab.running.measures import retrieval
from micronet_lib.lab.storage.states import load_own
from micronet_lib.pruning.schedules import PruneConfig, PruneTo


@contextmanager
def tiny_lab(folder: Path) -> Iterator[SimpleNamespace]:
    """A folder for runs and one for data; lists of what was trained and of what was recorded."""
    network = ARCHITECTURES["c_efficientnet_3.0"]
    stages = tuple(replace(stage, num_blocks=1) for stage in network.stages[:2])
    images = load_dataset("embedded")
    images = replace(images, test=images.test.first(100))
    budget = {"epoch_share": 1 / 600, "num_images": 32, "num_validation": 50, "width_mult": 0.1}
    lab = SimpleNamespace(runs=folder / "runs", data=folder / "data", trained=[], recorded=[])
    train, record = networks.train_network, measure.measure

    def train_network(recipe, profile, seed, name, progress=True):
        lab.trained.append(name)
        train(recipe, profile, seed, name, progress)

    def record_case(case, progress=True):
        lab.recorded.append(case.name)
        return record(case, progress)

    with pytest.MonkeyPatch.context() as patch, single_thread():
        patch.setitem(ARCHITECTURES, network.name, replace(network, stages=stages))
        patch.setitem(PROFILES, "smoke", replace(PROFILES["smoke"], **budget))
        patch.setattr(networks, "load_dataset", lambda name: images)
        for reader in (networks, retrieval):
            patch.setattr(reader, "load_split", lambda name, split: getattr(images, split))
        patch.setattr(measure, "train_network", train_network)
        patch.setattr(measure, "measure", record_case)
        patch.setenv("MICRONET_RUNS", str(lab.runs))
        patch.setenv("MICRONET_DATA", str(lab.data))
        yield lab


def sweep_of(name: str = "toy", **recipes: Recipe) -> Sweep:
    """A sweep with one axis: a point a recipe."""
    axes = {"which": tuple(recipes)}
    return Sweep(name, "A toy", "05_pruning", axes, lambda which: recipes[which], ("top1",))


def rounds(base: Recipe, config: PruneConfig) -> Sweep:
    """The dense network, then a point a round."""
    stages = {"dense": base}
    for number in range(1, len(config.sparsities) + 1):
        prune = replace(config, sparsities=config.sparsities[:number])
        stages[f"round{number}"] = replace(base, prune=prune)
    return sweep_of("rounds", **stages)


def chain(base: Recipe) -> Sweep:
    """Three stages with settings of their own: dense, pruned with a teacher, pruned further."""
    shorter = replace(base, train=replace(base.train, lr=0.02, optimizer="adam"))
    half = replace(shorter, start=base, changes=(PruneTo(0.5),), teacher=base)
    more = replace(base, start=half, changes=(PruneTo(0.7),))
    return sweep_of("chain", dense=base, half=half, more=more)


def outcome(runs: Path) -> dict[str, object]:
    """Every record, without what tells of time and machine, and every network, by their files."""
    found: dict[str, object] = {}
    for path in runs.rglob("*.json"):
        record = json.loads(path.read_text())
        del record["env"]
        record["metrics"].pop("train_images_per_s", None)
        found[str(path.relative_to(runs))] = record
    for path in runs.rglob("network.pt"):
        content = load_own(path)
        assert content is not None
        found[str(path.relative_to(runs))] = content | {"env": None, "images_per_s": None}
    return found


def same(one: object, other: object) -> bool:
    """Equal to the last bit, tensors inside included."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other
