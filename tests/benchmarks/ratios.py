"""Time several ways of doing one thing in turn, print how they compare, and keep it if asked to.

`make bench ARGS="--record data/speed.json"` keeps what CONTRIBUTING.md shows.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from micronet_lib.lab.host.machine import environment

KEPT: dict[str, Any] = {"rows": [], "predictions": []}
"""What this process has measured: rows of the table, and equal predictions."""


def write(path: Path) -> None:
    path.write_text(json.dumps({"env": environment(), **KEPT}, indent=1) + "\n", encoding="utf-8")


def as_table(kept: Mapping[str, Any]) -> str:
    """The table of CONTRIBUTING.md: three digits of each ratio, so that 1.97 does not read as 2."""
    lines = ["| what, on one thread | against | ratio |", "|---|---|---|"]
    for row in kept["rows"]:
        ratio = float(f"{row['seconds'][0] / row['seconds'][1]:.3g}")
        lines.append(f"| {row['what']} | {row['against']} | {ratio:g} |")
    return "\n".join(lines) + "\n"


def compare(
    ways: Mapping[str, Callable[[], object]],
    items: int,
    unit: str,
    rounds: int = 5,
    repeats: int = 1,
    rows: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Median seconds of each way; the first is the baseline of the ratios.

    The ways take turns, so that a busy moment of the machine hits all of them alike, and each is
    run once before the clock starts. With `repeats`, each turn does its way that many times and
    waits for a GPU once, as a training loop does. One thread on a CPU is timed by what it computes,
    so that other processes on its core count little. `rows` names the ways that are kept.
    """
    threads = torch.get_num_threads()
    alone = threads == 1 and not torch.cuda.is_available()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(_computed(way, repeats) if alone else _waited(way, repeats))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = next(iter(medians.values()))
    print(f"\n{threads} threads, torch {torch.__version__}, median of {rounds} rounds in turn")
    for name, median in medians.items():
        print(f"  {name:44} {items / median:10.0f} {unit}/s   x{base / median:.2f}")
    against = next(iter(ways))
    for name, what in (rows or {}).items():
        seconds_of = [medians[against] / items, medians[name] / items]
        KEPT["rows"].append(
            {"what": what, "against": against, "a": unit, "rounds": rounds, "seconds": seconds_of}
        )
    return medians


def _computed(way: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        way()
    return (time.process_time() - start) / repeats


def _waited(way: Callable[[], object], repeats: int) -> float:
    timer = Timer("way()", globals={"way": way}, num_threads=torch.get_num_threads())
    return timer.timeit(repeats).mean  # waits for a GPU
