"""The whole pipeline in a second or two, in a child of this process that faults can befall.

A child is a fork, so that ending it costs no new import of PyTorch. It runs the command line as a
user would; the network and the images are so few that five stages take a second or two.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from micronet_lib.__main__ import main
from micronet_lib.architecture.micronet import ARCHITECTURES
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running import engines, lineage, networks, plan
from micronet_lib.lab.running.measures import ratings
from micronet_lib.lab.storage.states import load_own
from micronet_lib.lab.training import loop as training

SWEEP = SWEEPS["pipeline"]
IMPORTED = (engines, plan)  # so that a fork finds what the command line imports when it runs
BUDGET = {
    "width_mult": 0.1,
    "train.epochs": 3,
    "train.num_images": 32,
    "train.num_validation": 50,
}
CASES = lineage.cases(SWEEP, PROFILES["smoke"], overrides=BUDGET)
_OVERRIDES = [("--override", f"{key}={value}") for key, value in BUDGET.items()]
COMMAND = ("measure", SWEEP.name, "--profile", "smoke", "--json", *sum(_OVERRIDES, ()))


def shrink() -> None:
    """Two blocks instead of sixteen, 100 test images, a state an epoch."""
    network = ARCHITECTURES["c_efficientnet_3.0"]
    stages = tuple(replace(stage, num_blocks=1) for stage in network.stages[:2])
    ARCHITECTURES[network.name] = replace(network, stages=stages)
    images = networks.load_dataset("embedded")
    images = replace(images, test=images.test.first(100))
    networks.load_dataset = lambda *_: images
    ratings.load_split = lambda *_: images.test
    training.SAVE_EVERY_S = 0.0


@dataclass(frozen=True)
class Place:
    """Where one run of the pipeline keeps its files, on what may be a disk of its own."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def runs(self) -> Path:
        return self.disk / "runs"

    def made(self) -> "Place":
        self.disk.mkdir(parents=True)
        return self

    def said(self) -> list[str]:
        """The lines that the last child wrote to stderr."""
        return (self.folder / "log").read_text().splitlines()

    def record(self, stage: int) -> Path:
        return self.runs / "smoke" / SWEEP.name / CASES[stage].record_path.name

    def of_run(self, stage: int, name: str) -> Path:
        """A file of a stage's run, such as `state.pt`."""
        return self.runs / "smoke" / "networks" / CASES[stage].id / name

    def stage(self) -> int:
        """How many stages have their record."""
        return sum(1 for _ in self.runs.glob("smoke/*/*.json"))

    def files(self) -> set[str]:
        """All files but those that were set aside because they were damaged."""
        found = {str(p.relative_to(self.runs)) for p in self.runs.rglob("*") if p.is_file()}
        return {name for name in found if ".damaged" not in name}

    def outcome(self) -> dict[str, object]:
        """Every record and every network, without what tells of time and machine."""
        found: dict[str, object] = {}
        for path in self.runs.rglob("*.json"):
            record = json.loads(path.read_text())
            del record["env"], record["metrics"]["train_images_per_s"]
            found[path.name] = record
        for path in self.runs.rglob("network.pt"):
            network = load_own(path, path.parent.name) or {}
            found[path.parent.name] = network | {"images_per_s": None, "env": None}
        return found


def start(
    place: Place,
    meddle: Callable[[], None] | None = None,
    command: Sequence[str] = COMMAND,
) -> int:
    """A child that runs the command after some meddling; returns its process id once it begins."""
    begun, begin = os.pipe()
    child = os.fork()
    if child:
        os.close(begin)
        os.read(begun, 1)
        os.close(begun)
        return child
    status = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["micronet", *command]
        os.environ["MICRONET_RUNS"] = str(place.runs)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        os.dup2(os.open(place.folder / "log", flags), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if meddle is not None:
            meddle()
        os.write(begin, b".")
        status = main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def end(child: int) -> int:
    """The exit status of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(
    place: Place,
    meddle: Callable[[], None] | None = None,
    command: Sequence[str] = COMMAND,
) -> int:
    """Run the command in a child to its end."""
    return end(start(place, meddle, command))


def signalled(
    place: Place,
    number: signal.Signals,
    after: float,
    meddle: Callable[[], None] | None = None,
) -> int:
    """Run the command in a child that gets a signal after some seconds."""
    child = start(place, meddle)
    time.sleep(after)
    os.kill(child, number)
    return end(child)


def same(one: object, other: object) -> bool:
    """Equal to the last bit, tensors inside included."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other
