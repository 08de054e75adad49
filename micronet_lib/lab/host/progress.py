"""A progress bar that people see and committed outputs do not: on stderr, gone when done."""

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

Item = TypeVar("Item")


def bar(items: Iterable[Item], what: str, unit: str, shown: bool = True) -> "tqdm[Item]":
    """Iterate with a bar: live in a terminal, a line every ten seconds in a log file.

    Args:
        items: what to go through; its length gives the time left.
        what: the label.
        unit: of one item.
        shown: `False` for silence, as TQDM_DISABLE=1 has it everywhere.
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


def say(line: str) -> None:
    """One line on stderr, above whatever bar is shown."""
    tqdm.write(f"micronet: {line}", file=sys.stderr)


class TrainingBar:
    """Loss, validation accuracy, images a second and time left of a training run.

    Reading the loss makes the host wait for the device. So on a CPU it is read when a line is due,
    and on a GPU, where waiting would leave the device idle, after an epoch.

    Args:
        name: of the run.
        epochs: in all.
        images: an epoch.
        steps: an epoch.
        done: epochs that an earlier process has trained.
        shown: `False` for silence.
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
        """A step is done: the `steps`-th of the epoch, whose losses add up to `loss`."""
        if not self._bar.disable and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._bar.mininterval
            if not loss.is_cuda:
                self._loss = f"{loss.item() / steps:.3f}"
            self._bar.set_postfix_str(
                f"epoch {epoch + 1}/{self._epochs}, loss {self._loss}, validation {self._accuracy}",
                refresh=False,
            )
        self._bar.update(self._batch)

    def rated(self, loss: float, accuracy: float) -> None:
        """An epoch is over: its mean loss, and how many of the validation images are right."""
        self._loss, self._accuracy = f"{loss:.3f}", f"{accuracy:.1%}"

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
