"""Time several ways of doing one thing in turn and print how they compare."""

import statistics
from collections.abc import Callable, Mapping

import torch
from torch.utils.benchmark import Timer


def compare(
    ways: Mapping[str, Callable[[], object]],
    items: int,
    unit: str,
    rounds: int = 5,
    repeats: int = 1,
) -> dict[str, float]:
    """Median seconds of each way; the first is the baseline of the ratios.

    The ways take turns, so that a busy moment of the machine hits all of them alike, and each is
    run once before the clock starts. With `repeats`, each turn does its way that many times and
    waits for a GPU once, as a training loop does.
    """
    threads = torch.get_num_threads()
    timers = {
        name: Timer("way()", globals={"way": way}, num_threads=threads)  # waits for a GPU
        for name, way in ways.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(repeats).mean)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = next(iter(medians.values()))
    print(f"\n{threads} threads, torch {torch.__version__}, median of {rounds} rounds in turn")
    for name, median in medians.items():
        print(f"  {name:44} {items / median:10.0f} {unit}/s   x{base / median:.2f}")
    return medians
