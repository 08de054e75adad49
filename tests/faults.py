"""Let faults befall the pipeline, and count after how many the same command ends as undisturbed.

A script of its own, because it forks. `faults.py FOLDER [--rounds N] [--few N] [--json]` prints a
table, or one JSON object. CONTRIBUTING.md says what each fault is, `fault_stages.py` stages it.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import fault_stages as stages
import torch
from fault_trial import CannotStage, Trial
from tiny_pipeline import COMMAND, Place, run, shrink

FAULTS: dict[str, tuple[int, Callable[[Trial], None]]] = {
    "`kill -9` at a random moment": (20, stages.killed_at_random),
    "`kill -9` within a file operation": (20, stages.killed_in_a_file_operation),
    "full disk": (9, stages.full_disk),
    "file that may not grow": (5, stages.file_that_may_not_grow),
    "read-only folder": (5, stages.read_only_folder),
    "read-only disk": (3, stages.read_only_disk),
    "damaged checkpoint": (10, stages.damaged_checkpoint),
    "damaged record": (10, stages.damaged_record),
    "clock that jumps back": (5, stages.clock_that_jumps_back),
    "Ctrl-C at a random moment": (6, stages.interrupted),
    "Ctrl-C in a process of its own": (3, stages.interrupted_command),
    "two processes at once": (2, stages.two_at_once),
}
"""Under the names of CONTRIBUTING.md: how many a round has, and how they are staged."""


def undisturbed(place: Place, command: tuple[str, ...] = COMMAND) -> tuple[dict, set[str], float]:
    """What the command leaves when nothing happens, and the seconds it takes."""
    begin = time.monotonic()
    status = run(place, command=command)
    if status:
        raise SystemExit(f"undisturbed, it ended with {status}: {place.said()}")
    return place.outcome(), place.files(), time.monotonic() - begin


def tally(folder: Path, rounds: int, few: int = 0) -> Iterator[tuple[str, dict[str, object]]]:
    """Each fault with how often it was tried and survived, where it fell, and why it was not.

    With `few`, a kind of fault ends soon after that many.
    """
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same bits are promised on a CPU
    real = undisturbed(Place(folder / "alone").made(), stages.ONE_STAGE)
    shrink()
    tiny = undisturbed(Place(folder / "alone_tiny").made())
    for number, (name, (wanted, stage)) in enumerate(FAULTS.items()):
        outcome, files, duration = real if stage is stages.interrupted_command else tiny
        told = {"tried": 0, "survived": 0, "hit": []}
        begin, attempts = time.monotonic(), 0
        wanted = min(wanted, few or wanted)
        while told["tried"] < wanted * rounds and attempts < 10 * rounds:
            place = Place(folder / f"{number}-{attempts}").made()
            random = Random(f"{number} {attempts}")
            more = wanted * rounds - told["tried"]
            trial = Trial(place, random, more, (outcome, files), duration)
            attempts += 1
            try:
                stage(trial)
            except CannotStage as reason:
                told["skipped"] = str(reason)
                break
            except Exception:
                traceback.print_exc()
                trial.survived = [False] * (len(trial.survived) + 1)
            told["tried"] += len(trial.survived)
            told["survived"] += sum(trial.survived)
            told["hit"] += trial.hit
        told["seconds"] = round(time.monotonic() - begin, 1)
        yield name, told


def main() -> None:
    """Print what became of every fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--few", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    told = {}
    for name, found in tally(args.folder, args.rounds, args.few):
        told[name] = found
        if not args.json:
            counts = f"{found['tried']:4} tried {found['survived']:4} survived"
            why = f"  skipped: {found['skipped']}" if "skipped" in found else ""
            print(f"{name:36}{counts}{why}", flush=True)
    if args.json:
        print(json.dumps(told))
    sys.exit(any(found["survived"] != found["tried"] for found in told.values()))


if __name__ == "__main__":
    main()
