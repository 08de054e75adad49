"""Measure one point, kill the process again and again, and say whether anything came out different.

A script of its own: it forks, so that a kill costs no new import of PyTorch. Arguments: a folder
and the number of rounds, of two kills at random moments each. Prints one JSON object.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from micronet_lib.lab import experiments, records, settings, training
from micronet_lib.lab.checkpoints import load_own
from micronet_lib.lab.recipes import SWEEPS

SWEEP, POINT = SWEEPS["augmentation"], "mixup"
TINY = replace(
    settings.PROFILES["smoke"],
    epoch_share=6 / 600,
    num_images=96,
    num_validation=100,
    width_mult=0.1,
)


def measure() -> None:
    """What the killed process does."""
    training.SAVE_EVERY_S = 0.0
    settings.PROFILES["smoke"] = TINY
    experiments.ensure(SWEEP, "smoke", point=POINT, progress=False)


def killed_in_fsync(nth: int) -> Callable[[], None]:
    """A process that dies in the middle of writing its nth file."""

    def run() -> None:
        calls = 0

        def die(_: int) -> None:
            nonlocal calls
            calls += 1
            if calls == nth:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = die  # type: ignore[assignment]
        measure()

    return run


def in_child(work: Callable[[], None], kill_after: float | None = None) -> bool:
    """Whether a child came to the end of its work before it was killed."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def outcome(root: Path) -> tuple[dict, dict]:
    """The record without what tells of time, and the network."""
    record = records.read(root / records.record_path(SWEEP.name, POINT, "smoke", 0))
    metrics = {k: v for k, v in record.metrics.items() if "images_per_s" not in k}
    folder = root / records.record_path(SWEEP.name, POINT, "smoke", 0).with_suffix("")
    network = load_own(folder / "network.pt", f"{record.recipe_id}-s0")
    assert network is not None
    told = {"recipe_id": record.recipe_id, "metrics": metrics, "curve": record.curve}
    return told, network["model"]


def main(folder: Path, rounds: int) -> None:
    """Compare a run that was left alone with runs that were not."""
    torch.set_num_threads(1)
    os.environ["MICRONET_RUNS"] = str(folder / "alone")
    start = time.monotonic()
    assert in_child(measure)
    duration = time.monotonic() - start
    expected, expected_network = outcome(folder / "alone")

    moments = random.Random(0)
    died, same_record, same_weights, left = 0, 0, 0, set()
    for number in range(rounds):
        root = folder / f"round{number}"
        os.environ["MICRONET_RUNS"] = str(root)
        died += not in_child(killed_in_fsync(number % 3 + 1))
        for latest in (0.9, 0.5):
            died += not in_child(measure, moments.uniform(0, latest * duration))
        assert in_child(measure)
        found, network = outcome(root)
        same_record += found == expected
        same_weights += all(
            torch.equal(value, network[name]) for name, value in expected_network.items()
        )
        left |= {path.name for path in root.rglob("*") if path.is_file()}
    print(
        json.dumps(
            {
                "died": died,
                "same_record": same_record,
                "same_weights": same_weights,
                "left": sorted(left),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
