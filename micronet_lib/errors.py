"""The one exception that speaks to the person at the keyboard."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line and says what to do.

    The command line prints it without a traceback. Everything else that is raised is a fault
    of ours and keeps its traceback.
    """


class NotFiniteError(InputError):
    """A loss, a weight or a logit is NaN or infinite: this network is of no use, others are."""


def unknown(kind: str, name: object, known: object) -> InputError:
    """The error for a name that is not in a closed list: what was given, what there is.

    Args:
        kind: what sort of thing was named, for example `model`.
        name: what the user gave.
        known: the names that exist, in the order to print them.
    """
    choices = ", ".join(str(k) for k in known)  # type: ignore[attr-defined]
    return InputError(f"unknown {kind} {str(name)!r}; choose from {choices}")
