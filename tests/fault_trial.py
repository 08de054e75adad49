"""One trial of a fault: what must hold afterwards, and where a child can be met by it."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from tiny_pipeline import COMMAND, Place, run, same


class CannotStage(Exception):
    """This machine or user cannot have that fault; the message says why."""


@dataclass
class Trial:
    """One place, what an undisturbed run left there, and what the faults of this trial came to.

    Attributes:
        place: fresh.
        random: for moments.
        wanted: how many faults are still to be tried, where their number is free.
        expected: outcome and files of an undisturbed run.
        duration: of that run, in seconds.
        survived: for each fault whether what it did at once was right.
        hit: where faults fell, for the report.
    """

    place: Place
    random: Random
    wanted: int
    expected: tuple[dict[str, object], set[str]]
    duration: float
    survived: list[bool] = field(default_factory=list)
    hit: list[str] = field(default_factory=list)

    @property
    def more(self) -> bool:
        """Whether faults are still to be tried."""
        return len(self.survived) < self.wanted

    def some_time(self) -> float:
        """A random part of an undisturbed run, in seconds."""
        return self.random.uniform(0, 0.4 * self.duration)

    def as_undisturbed(self) -> bool:
        """Whether every stage has exactly the record and the network of an undisturbed run."""
        outcome, files = self.expected
        return self.place.files() == files and same(self.place.outcome(), outcome)

    def finish(self, command: Sequence[str] = COMMAND) -> None:
        """Give a command once more; where that does not help, no fault was survived."""
        if run(self.place, command=command) or not self.as_undisturbed():
            print("\n".join(self.place.said()), self.place.files(), file=sys.stderr)
            self.survived = [False] * len(self.survived)

    def refused(self, meddle: Callable[[], None] | None, reason: str) -> None:
        """Give the command where it cannot work: one line, status 2, nothing half-written left."""
        before = set(self.place.files())  # whoever was killed in a write has left half a file
        status, said = run(self.place, meddle), self.place.said()
        clear = (
            len(said) == 1 and said[0].startswith("micronet: cannot write") and reason in said[0]
        )
        tidy = not any(name.endswith(".tmp") for name in set(self.place.files()) - before)
        self.survived.append(status == 2 and clear and tidy)
        self.hit.append(" ".join(said).removeprefix("micronet: "))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_write(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """For a child: act before it writes its file of that number."""

    def meddle() -> None:
        whole, count = tempfile.NamedTemporaryFile, 0

        def opened(*args: object, **words: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                act()
            return whole(*args, **words)

        tempfile.NamedTemporaryFile = opened

    return meddle
