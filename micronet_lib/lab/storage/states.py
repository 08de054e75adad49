"""Our own files of tensors: training states, and networks with what led to them.

Nothing in them can run code. They begin with a digest of the rest, so that half of a file is
never taken for a whole one, and a training state has its predecessor beside it.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from micronet_lib.lab.host.files import write_atomically
from micronet_lib.lab.host.progress import say


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


def load_own(path: Path, key: str) -> dict[str, Any] | None:
    """Read what `save_own` wrote, on the CPU; None if it is absent, of another key or not whole."""
    try:
        digest, _, payload = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        say(f"{path.name} is not whole and is not used")
        return None
    file = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return file["content"] if file["key"] == key else None


def is_whole(path: Path, key: str) -> bool:
    """Return whether a file is there, is whole, and belongs to that key; change nothing."""
    try:
        digest, _, payload = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return False
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        return False
    return torch.load(io.BytesIO(payload), map_location="meta", weights_only=True)["key"] == key


def save_state(folder: Path, key: str, state: Mapping[str, Any]) -> None:
    """Keep a training state and the one before it. Arguments and errors as of `save_own`."""
    save_own(folder / "state.pt", key, state, previous=folder / "state.previous.pt")


def load_state(folder: Path, key: str) -> dict[str, Any] | None:
    """The newest training state of that key that is whole, or None."""
    for name in ("state.pt", "state.previous.pt"):
        state = load_own(folder / name, key)
        if state is not None:
            return state
    return None


def forget_states(folder: Path) -> None:
    """Remove the training states of a run that is done."""
    for path in folder.glob("state*.pt"):
        path.unlink(missing_ok=True)
