"""Exceptions whose message is meant for the user."""


class InputError(ValueError):
    """The user gave something unusable. The message is one line and says how to correct it.

    The command line prints it without a traceback. Any other exception is a bug and keeps its
    traceback.
    """


class NotFiniteError(InputError):
    """A loss, a weight or a logit is NaN or infinite. Other networks may still succeed."""


def unknown(kind: str, name: object, known: object) -> InputError:
    """Return the error for a name that is not in a closed list.

    Args:
        kind: type of the name, for example `model`.
        name: the given name.
        known: the valid names, in the order in which to print them.
    """
    choices = ", ".join(str(k) for k in known)  # type: ignore[attr-defined]
    return InputError(f"unknown {kind} {str(name)!r}; choose from {choices}")
