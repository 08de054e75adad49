"""Exceptions whose message is meant for the user."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """The user gave something unusable. The message is one line and says how to correct it.

    The command line prints it without a traceback. Any other exception is a bug and keeps its
    traceback.
    """


class NotFiniteError(InputError):
    """A loss, a weight or a logit is NaN or infinite. Other networks may still succeed."""


class Registry(dict[str, Value]):
    """Named values; a name that is not among them raises `InputError` and lists those that are.

    Args:
        kind: what is registered, for the message, such as `model`.
        values: by name.
    """

    def __init__(self, kind: str, values: Mapping[str, Value] | None = None) -> None:
        super().__init__(values or {})
        self.kind = kind

    def __missing__(self, name: str) -> Value:
        raise unknown(self.kind, name, self)


def check_choice(kind: str, name: object, known: Iterable[object]) -> None:
    """Refuse a name that is not among the known ones; arguments as of `unknown`.

    Raises:
        InputError: it is not.
    """
    if name not in known:
        raise unknown(kind, name, known)


def unknown(kind: str, name: object, known: Iterable[object]) -> InputError:
    """Return the error for a name that is not in a closed list.

    Args:
        kind: type of the name, for example `model`.
        name: the given name.
        known: the valid names, in the order in which to print them.
    """
    choices = ", ".join(str(k) for k in known)
    return InputError(f"unknown {kind} {str(name)!r}; choose from {choices}")
