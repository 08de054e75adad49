"""A progress bar that people see and committed outputs do not: on stderr, gone when done."""

import sys
from collections.abc import Iterable
from typing import TypeVar

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
    live = sys.stderr.isatty()
    silence = {} if shown else {"disable": True}  # given at all, it overrules TQDM_DISABLE
    return tqdm(
        items,
        desc=what,
        unit=unit,
        file=sys.stderr,
        leave=False,
        mininterval=0.2 if live else 10.0,
        **silence,
    )
