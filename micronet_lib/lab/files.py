"""Files that are whole or absent, whatever happens, and work that only one process does."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from micronet_lib.errors import InputError


class Busy(InputError):
    """Another process is at it."""


def write_atomically(path: Path, content: bytes, what: str) -> None:
    """Write a file under a name of its own first, so that `path` never holds half of it.

    Args:
        path: where; its folder is made if it is missing.
        content: everything.
        what: for the message, such as `the record quick/stages/3.0-orn-s0.json`.

    Raises:
        InputError: when the folder cannot be written.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "wb", dir=path.parent, prefix=".", suffix=".tmp", delete=False
        ) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {what} ({error.strerror}): make room and get the right to write there; "
            "MICRONET_RUNS names another folder for runs"
        ) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold a lock while the body runs; the system lets it go when the process ends, however.

    Args:
        path: of the lock file, which is made and stays.
        what: for the message, such as `stages/3.0-orn`.

    Raises:
        Busy: another process holds it.
        InputError: when the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(f"{what} is being measured by another process; left to it") from error
            yield
    except PermissionError as error:
        raise InputError(
            f"cannot write under {path.parent} ({error.strerror}): get the right to write there, "
            "or let MICRONET_RUNS name another folder for runs"
        ) from error
