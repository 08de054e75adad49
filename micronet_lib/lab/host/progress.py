"""Progress bars and messages on stderr, so that committed outputs do not contain them.

And durations as people say them.
"""

import math
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

Item = TypeVar("Item")


def bar(items: Iterable[Item], what: str, unit: str, shown: bool = True) -> "tqdm[Item]":
    """Iterate with a bar: live in a terminal, a line every ten seconds in a log file.

    Args:
        items: to iterate; their number gives the remaining time.
        what: label.
        unit: of one item.
        shown: False hides the bar, like TQDM_DISABLE=1.
    """
    return tqdm(items, desc=what, unit=unit, **_options(shown))


def _options(shown: bool) -> dict:
    live = sys.stderr.isatty()
    silence = {} if shown else {"disable": True}  # given at all, it overrules TQDM_DISABLE
    return {
        "file": sys.stderr,
        "leave": False,
        "mininterval": 0.2 if live else 10.0,
        **silence,
    }


def duration(seconds: float) -> str:
    """Return a time in its two largest units, such as `2 d 7 h`, `3 h 1 min`, `4 min` or `12 s`.

    Times are rounded, and below an hour they have one unit. NaN is `unknown`.
    """
    if math.isnan(seconds):
        return "unknown"
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 0.5 or not seconds else "under 1 s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round((60 * hours + minutes) / 60), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def say(line: str) -> None:
    """Print one line on stderr, above any bar."""
    tqdm.write(f"micronet: {line}", file=sys.stderr)


def say_place(line: str) -> None:
    """Print where a list of jobs is, like `say`.

    What a notebook's kernel writes to stderr ends in the notebook. If papermill or make started it
    from a terminal, which its `fileno` still names, the line is printed there too.
    """
    say(line)
    with suppress(OSError, ValueError, AttributeError):  # no such file, or closed
        if not sys.stderr.isatty() and os.isatty(terminal := sys.stderr.fileno()):
            os.write(terminal, f"\r\x1b[K{line}\n".encode())  # over papermill's own bar


def is_shown(shown: bool = True) -> bool:
    """Return whether progress is to be shown: if asked for, and unless TQDM_DISABLE hides it."""
    return shown and os.environ.get("TQDM_DISABLE", "0") in ("", "0")


class TrainingBar:
    """A bar with loss, validation accuracy, images per second and remaining time of a training.

    Reading the loss makes the host wait for the device. On a CPU it is read when a line is due. On
    a GPU, which would idle, it is read after each epoch.

    Args:
        name: of the run.
        epochs: in all.
        images: per epoch.
        steps: per epoch.
        done: epochs that an earlier process trained.
        shown: False hides the bar.
    """

    def __init__(
        self, name: str, epochs: int, images: int, steps: int, done: int, shown: bool
    ) -> None:
        self._epochs, self._batch = epochs, images // steps
        self._loss = self._accuracy = "-"
        self._next = time.monotonic()
        self._bar = tqdm(
            total=epochs * images,
            initial=done * images,
            desc=name,
            unit="img",
            unit_scale=True,
            **_options(shown),
        )

    def stepped(self, epoch: int, steps: int, loss: Tensor) -> None:
        """Show a finished step, the `steps`-th of the epoch. `loss` is the sum of its losses."""
        if not self._bar.disable and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._bar.mininterval
            if not loss.is_cuda:
                self._loss = f"{loss.item() / steps:.3f}"
            self._bar.set_postfix_str(
                f"epoch {epoch + 1}/{self._epochs}, loss {self._loss}, validation {self._accuracy}",
                refresh=False,
            )
        self._bar.update(self._batch)

    def rated(self, loss: float, accuracy: float | None) -> None:
        """Show a finished epoch: its mean loss, and the accuracy on any validation images."""
        self._loss = f"{loss:.3f}"
        self._accuracy = "-" if accuracy is None else f"{accuracy:.1%}"

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
