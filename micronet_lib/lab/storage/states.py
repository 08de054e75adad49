"""Our own files of tensors: training states, and networks with what led to them.

Nothing in them can run code. They begin with a digest of the rest, so that half of a file is
never taken for a whole one, and a training state has its predecessor beside it. A file is never
deleted because it could not be read.
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
    """Write tensors and plain containers as one whole file.

    Args:
        path: where.
        key: names the recipe and seed that it belongs to.
        content: of tensors, numbers, strings, lists and dictionaries.
        previous: where the file goes that `path` was until now.

    Raises:
        InputError: when the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"key": key, "content": dict(content)}, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    write_atomically(path, digest + b"\n" + payload, f"the checkpoint {path.name}", previous)


def is_own(path: Path) -> bool:
    """Return whether a readable file begins as those of `save_own` do."""
    try:
        with path.open("rb") as file:
            return _HEADER.fullmatch(file.read(_HEADER_SIZE)) is not None
    except OSError:
        return False


def load_own(path: Path, key: str | None = None) -> dict[str, Any] | None:
    """Read what `save_own` wrote, on the CPU.

    A file whose digest is wrong is renamed to `<name>.damaged`, and then it is absent.

    Args:
        path: where.
        key: what it has to belong to; None for anything.

    Returns:
        The content; None if the file is absent, damaged or of another key.

    Raises:
        InputError: the file may be there and cannot be read, or cannot be renamed.
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
    """Return whether a file is there, is whole, and belongs to that key; change nothing.

    Raises:
        InputError: the file may be there and cannot be read.
    """
    payload = _payload(path)
    if not payload:
        return False
    return torch.load(io.BytesIO(payload), map_location="meta", weights_only=True)["key"] == key


def _payload(path: Path) -> bytes | None:
    """Return what stands behind a file's digest; nothing if it is absent, None if damaged."""
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
    """Keep a training state and the one before it. Arguments and errors as of `save_own`."""
    save_own(folder / "state.pt", key, state, previous=folder / "state.previous.pt")


def load_state(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the newest training state of that key that is whole, or None.

    Raises:
        InputError: see `load_own`.
    """
    for name in ("state.pt", "state.previous.pt"):
        state = load_own(folder / name, key)
        if state is not None:
            return state
    return None


def forget_states(folder: Path) -> None:
    """Delete the training states of a run that is done."""
    for path in folder.glob("state*.pt"):
        path.unlink(missing_ok=True)
