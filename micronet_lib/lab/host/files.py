"""Atomic files, and locks between processes."""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO

from micronet_lib.errors import InputError

LOOK_AGAIN_S = 0.001
RUNS_ELSEWHERE = "let MICRONET_RUNS name another folder for runs"


class Busy(InputError):
    """Another process holds the lock."""


def write_atomically(
    path: Path,
    content: bytes,
    what: str,
    previous: Path | None = None,
    unfinished: Path | None = None,
) -> None:
    """Write a file under a temporary name first, so that `path` never holds half of it.

    Args:
        path: of the file. Its folder is created if missing.
        content: all bytes.
        what: name for the message, such as `the record quick/stages/3.0-orn-s0.json`.
        previous: path to which an existing file at `path` is moved, once the new one is complete.
        unfinished: folder for the temporary file, on the same disk; by default the folder of
            `path`. A killed process leaves it there; `only_one` deletes such files.

    Raises:
        InputError: the folder cannot be written.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "wb", dir=unfinished or path.parent, prefix=".", suffix=".tmp", delete=False
        ) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        if previous is not None and path.exists():
            path.replace(previous)
        Path(temporary).replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {what} under {path.parent} ({error.strerror}): make room and get the "
            "right to write there, or give another folder (MICRONET_RUNS is that of runs)"
        ) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def check_writable(folder: Path, remedy: str = RUNS_ELSEWHERE) -> None:
    """Raise an error if files cannot be written to a folder, which may still have to be made.

    Args:
        folder: of the files.
        remedy: what else the user can do, for the message.

    Raises:
        InputError: the place that refuses, and what to do.
    """
    there = _first_existing(folder)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    fault = errno.EACCES if there.is_dir() else errno.ENOTDIR
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        fault = errno.EROFS
    raise InputError(
        f"cannot write under {there} ({os.strerror(fault)}): get the right to write there, or "
        f"{remedy}"
    )


def _first_existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if os.access(each, os.F_OK))


def check_room(folder: Path, size_mb: float) -> None:
    """Raise an error if files of `size_mb` in all do not fit on the disk of a folder.

    Raises:
        InputError: what is needed, what is free, and what to do.
    """
    free_mb = shutil.disk_usage(_first_existing(folder)).free / 1e6
    if size_mb > free_mb:
        raise InputError(
            f"cannot write {size_mb:.1f} MB of networks and training states under {folder.parent} "
            f"({os.strerror(errno.ENOSPC)}: {free_mb:.1f} MB are free): make room, ask for fewer "
            f"points, or {RUNS_ELSEWHERE}"
        )


def check_output(path: Path) -> None:
    """Raise an error if the file that a user names cannot be written, before it has content.

    Raises:
        InputError: what is in the way, and what to do.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    check_writable(path.parent, "name a file elsewhere")


def is_here(path: Path) -> bool:
    """Return whether a file or folder exists.

    Raises:
        InputError: it is there or may be, and cannot be read.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        reason = error.strerror
    else:
        if os.access(path, os.R_OK):
            return True
        reason = os.strerror(errno.EACCES)
    raise InputError(
        f"cannot read {path} ({reason}): make it readable, or point MICRONET_DATA to another folder"
    )


def sha256_of(path: Path) -> str:
    """Return a file's digest in hex.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): make it readable") from error


def set_aside(path: Path) -> Path:
    """Rename an unusable file to `<name>.damaged`, numbered if the name is taken; return its path.

    Raises:
        InputError: it cannot be renamed.
    """
    names = (f"{path.name}.damaged{number or ''}" for number in count())
    aside = next(place for name in names if not (place := path.with_name(name)).exists())
    try:
        return path.rename(aside)
    except FileNotFoundError:
        return aside  # another process was faster
    except OSError as error:
        raise InputError(
            f"{path} is damaged and cannot be renamed ({error.strerror}): move it away"
        ) from error


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold a lock while the body runs. The system releases it when the process ends.

    The new holder deletes temporary files that a killed one left in the lock's folder.

    Args:
        path: of the lock file, which is created and stays.
        what: name for the message, such as `stages/3.0-orn`.

    Raises:
        Busy: another process holds the lock.
        InputError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")  # a lock over NFS that is shared takes the right to read
    except OSError as error:
        raise InputError(
            f"cannot write under {path.parent} ({error.strerror}): make room and get the right to "
            "write there, or let MICRONET_RUNS name another folder for runs"
        ) from error
    with file:
        try:
            _lock(file)
        except BlockingIOError as error:
            raise Busy(f"{what} is running in another process: skipped") from error
        for left in path.parent.rglob(".*.tmp"):
            left.unlink(missing_ok=True)
        yield


def _lock(file: IO[str]) -> None:
    """Take the lock, past processes that only look at it (`is_held`).

    Raises:
        BlockingIOError: another process has it.
    """
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # granted beside those who look
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(LOOK_AGAIN_S)


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock of `only_one` at this path.

    Any number of processes may look at once: none takes another for the holder, nor keeps one that
    wants the lock from it.
    """
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
