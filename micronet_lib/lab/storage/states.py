"""Our own files of tensors: training states, and trained networks.

They cannot run code. They begin with a digest of the rest, so a truncated file is detected. A
training state has its predecessor beside it. An unreadable file is never deleted.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from micronet_lib.errors import InputError
from micronet_lib.lab.host.files import set_aside, write_atomically
from micronet_lib.lab.host.progress import say

_HEADER = re.compile(rb"[0-9a-f]{64}\n")
_HEADER_SIZE = 65


def save_own(
    path: Path, key: str, content: Mapping[str, Any], previous: Path | None = None
) -> None:
    """Write tensors and plain containers as one file, atomically. An old file moves to `previous`.

    The key says to which recipe and seed the content belongs.

    Raises:
        InputError: the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"key": key, "content": dict(content)}, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    write_atomically(path, digest + b"\n" + payload, f"the checkpoint {path.name}", previous)


def is_own(path: Path) -> bool:
    """Return whether a readable file begins like those of `save_own`."""
    try:
        with path.open("rb") as file:
            return _HEADER.fullmatch(file.read(_HEADER_SIZE)) is not None
    except OSError:
        return False


def load_own(path: Path, key: str | None = None) -> dict[str, Any] | None:
    """Read a file of `save_own` on the CPU. Rename it to `<name>.damaged` if its digest is wrong.

    Returns:
        The content; None if the file is missing, damaged or has another key than a given one.

    Raises:
        InputError: the file exists but cannot be read or renamed.
    """
    payload = _payload(path)
    if payload is None:
        aside = set_aside(path)
        say(f"{path} is damaged: it is {aside.name} now and is not used")
    if not payload:
        return None
    file = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return file["content"] if key in (None, file["key"]) else None


def is_whole(path: Path, key: str) -> bool:
    """Return whether a file exists, is intact and has that key. Change nothing.

    Raises:
        InputError: the file exists but cannot be read.
    """
    payload = _payload(path)
    if not payload:
        return False
    return torch.load(io.BytesIO(payload), map_location="meta", weights_only=True)["key"] == key


def _payload(path: Path) -> bytes | None:
    """Return the bytes after a file's digest; `b""` if it is missing, None if damaged."""
    try:
        digest, _, payload = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror}): make it readable or move it away"
        ) from error
    return payload if hashlib.sha256(payload).hexdigest().encode() == digest else None


def save_state(folder: Path, key: str, state: Mapping[str, Any]) -> None:
    """Save a training state and keep the one before. Arguments and errors as for `save_own`."""
    save_own(folder / "state.pt", key, state, previous=folder / "state.previous.pt")


def load_state(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the newest intact training state of that key, or None.

    Raises:
        InputError: see `load_own`.
    """
    newest = load_own(folder / "state.pt", key)
    return newest if newest is not None else load_own(folder / "state.previous.pt", key)


def epochs_done(folder: Path, key: str) -> int:
    """Return the epochs of the newest intact training state of that key; 0 without one.

    Nothing is changed.

    Raises:
        InputError: a state exists but cannot be read.
    """
    for name in ("state.pt", "state.previous.pt"):
        payload = _payload(folder / name)
        if payload:
            file = torch.load(io.BytesIO(payload), map_location="meta", weights_only=True)
            if file["key"] == key:
                return int(file["content"]["epoch"])
    return 0


def forget_states(folder: Path) -> None:
    """Delete the training states of a finished run."""
    for path in folder.glob("state*.pt"):
        path.unlink(missing_ok=True)
