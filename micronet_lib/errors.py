"""Exceptions whose message is meant for the user."""

import math
from collections.abc import Iterable, Mapping
from typing import TypeGuard, TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """The user gave something unusable. The message is one line and says how to correct it.

    The command line and a notebook print it without a traceback. Any other exception is a bug and
    keeps its traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows in a notebook."""
        return [f"{type(self).__name__}: {self}"]


class NotFiniteError(InputError):
    """A loss, a weight or a logit is NaN or infinite. Other networks may still succeed."""


class Registry(dict[str, Value]):
    """Named values. An unknown name raises `InputError` with the list of the known ones.

    Args:
        kind: type of the values for the message, such as `model`.
        values: by name.
    """

    def __init__(self, kind: str, values: Mapping[str, Value] | None = None) -> None:
        super().__init__(values or {})
        self.kind = kind

    def __getitem__(self, name: str) -> Value:
        try:
            return super().__getitem__(name)
        except TypeError as error:  # a list, for example, cannot be looked up
            raise unknown(self.kind, name, self) from error

    def __missing__(self, name: str) -> Value:
        raise unknown(self.kind, name, self)


def check_choice(kind: str, name: object, known: Iterable[object]) -> None:
    """Raise an error unless a name is in a closed list. Arguments are those of `unknown`.

    Raises:
        InputError: the name is not in the list.
    """
    known = list(known)
    if name not in known:
        raise unknown(kind, name, known)


def is_integer(value: object, least: float = -math.inf) -> bool:
    """Return whether something is an integer from `least` on, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> TypeGuard[float]:
    """Return whether something is an integer or a float, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def unknown(kind: str, name: object, known: Iterable[object]) -> InputError:
    """Return the error for a name that is not in a closed list.

    Args:
        kind: type of the name, for example `model`.
        name: the given name.
        known: the valid names, in the order in which to print them.
    """
    choices = ", ".join(str(k) for k in known)
    return InputError(f"unknown {kind} {str(name)!r}; choose from {choices}")
