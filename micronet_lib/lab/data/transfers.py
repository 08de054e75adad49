"""One file over HTTP, whole or not at all.

A download grows in `<name>.part`, goes on where it was cut or killed, and gets its name only once
its digest is right. Which files these are: `micronet_lib.lab.data.downloads`.
"""

import fcntl
import hashlib
import http.client
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from micronet_lib.errors import InputError

ATTEMPTS = 5  # per address
PAUSE_S = 1.0  # before the second attempt; doubles with each further one
TIMEOUT_S = 30.0  # of silence on the line, however long the whole download takes
CHUNK_BYTES = 1 << 16

Algorithm = Literal["md5", "sha256"]


class _TransferError(Exception):
    """A transfer that ended early.

    Attributes:
        kind: `offline` (no connection), `absent` (not at this address), `refused` (final, for
            another reason) or `cut` (worth another attempt).
    """

    def __init__(self, kind: Literal["offline", "absent", "refused", "cut"], why: object):
        super().__init__(str(why))
        self.kind = kind


def file_status(path: Path, digest: str, algorithm: Algorithm) -> str:
    """`ok`, `missing`, `wrong digest` or `unreadable`; changes nothing.

    Args:
        path: of the file.
        digest: what it should be, hexadecimal.
        algorithm: of the digest.
    """
    try:
        return "ok" if _digest(path, algorithm) == digest else "wrong digest"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "unreadable"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process from writing to the same partial files; a kill releases it.

    Raises:
        InputError: when another process holds the folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another fetch into {folder} is running; wait for it") from None
        except OSError:
            pass  # some network file systems cannot lock a folder
        yield
    finally:
        os.close(handle)


def download(urls: Sequence[str], target: Path, digest: str, algorithm: Algorithm) -> None:
    """Bring one file to `target`; its folder is made if it does not exist.

    Args:
        urls: addresses of the same file, at least one; the next is asked when the server of the
            one before says that the file is not there (404).
        target: where it goes. What arrived of a cut or killed download stays beside it, in
            `<name>.part`, for the next call.
        digest: of the file, hexadecimal.
        algorithm: of the digest.

    Raises:
        InputError: when no address has the file, the connection fails for good, or what came has
            another digest (it is deleted).
        OSError: when it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    if file_status(part, digest, algorithm) != "ok":
        try:
            url = _transfer_first(urls, part)
        except _TransferError as error:
            raise InputError(
                f"cannot download {target.name} from {' or '.join(urls)} ({error}): run the "
                f"command again, or put the file by hand at {target} ({algorithm} {digest})"
            ) from error
        got = _digest(part, algorithm)
        if got != digest:
            part.unlink()
            raise InputError(
                f"{target.name} from {url} has the wrong {algorithm}: expected {digest}, got "
                f"{got}; it was deleted: run the command again, or put the right file by hand at "
                f"{target}"
            )
    part.replace(target)


def _transfer_first(urls: Sequence[str], part: Path) -> str:
    """Fill `part` from the first address that has the file; says which that was."""
    url, *others = urls
    try:
        _transfer_patiently(url, part)
    except _TransferError as error:
        if error.kind == "absent" and others:
            return _transfer_first(others, part)
        raise
    return url


def _transfer_patiently(url: str, part: Path) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(url, part)
            return
        except _TransferError as error:
            # Offline at once means no network; offline later may be one that comes back.
            passing = error.kind == "cut" or (error.kind == "offline" and attempt > 1)
            if not passing or attempt == ATTEMPTS:
                raise
        time.sleep(PAUSE_S * 2 ** (attempt - 1))


def _transfer(url: str, part: Path) -> None:
    """Append to `part` what it lacks; a server that ignores Range makes it start again."""
    start = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"User-Agent": "micronet-lib"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urlopen(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code == 404:
            raise _TransferError("absent", error) from error
        if error.code == 416:  # the partial file is longer than what is published
            part.unlink(missing_ok=True)
        passing = error.code in (408, 416, 429) or error.code >= 500
        raise _TransferError("cut" if passing else "refused", error) from error
    except URLError as error:
        raise _TransferError("offline", error.reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError("cut", error) from error
    with response:
        if response.status != 206:
            start = 0
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True) as bar,
        ):
            for chunk in _chunks(response):
                file.write(chunk)
                bar.update(len(chunk))
            received = file.tell()
    if total is not None and received < total:
        raise _TransferError("cut", f"the connection ended after {received} of {total} bytes")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body in pieces; only here may an `OSError` mean the network and not the disk."""
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _TransferError("cut", f"the connection was lost: {error}") from error
        if not chunk:
            return
        yield chunk


def _digest(path: Path, algorithm: Algorithm) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
