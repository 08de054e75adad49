"""Downloads: CIFAR-100, the published checkpoints and policies.

`fetch` downloads, `check` only reads. Nothing else in the library uses the network. Every file is
pinned by a digest and gets its name only if the digest is right. data/README.md has licences, sizes
and how to get each file by hand.
"""

import ast
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from micronet_lib.errors import InputError, check_choice

GROUPS = ("cifar100", "kaist", "policies")
RETRIES = 1  # of each address, after a second
TIMEOUT_S = (10.0, 30.0)  # for a connection, and of silence on it
CHUNK_BYTES = 1 << 16
UNFINISHED = "fetch.part"  # folder below the data root; the next fetch clears it after a kill

# One repository under its two names: the one the paper prints, and the other.
KAIST_REPOSITORIES = (
    "Kthyeon/micronet_neurips_challenge",
    "Kthyeon/KAIST-AI-NeurIPS2019-MicroNet-2nd-place-solution",
)
KAIST_COMMIT = "fb41bbb2fd0f238ec775930cba8eb4b429606a98"
KAIST_SHA256 = {
    "v1_pr_60": "8f78e1d6fceea4163af444f923702c9d8de9c66135e19921aab72512d4d602b5",
    "v2_pr_15": "94e62f31454e878f30cd1452e1b5c289712d0e03d44159ae63fe914f28c192b8",
    "v2_pr_30": "8fd49c2eb657f59ca5a6beae81492108269f55eb65f1bf5c70fe5204f6ca855e",
    "v2_pr_45": "11e8aa8aec8f30da327f5690fe63ef0878ea428ad0c284159fbfa6d470e18577",
    "v2_pr_60": "c578f599a064319ea704d592e926947276bd46c71083136afb71d36d3424114c",
}
CIFAR100_FILES = {
    "cifar-100-python/train": "md5:16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "md5:7973b15100ade9c7d40fb424638fde48",
}
POLICIES_FILE = "policies/fast_autoaugment_cifar100.json"


@dataclass(frozen=True)
class Asset:
    """One download and its files; paths are relative to the data root.

    Attributes:
        group: one of `GROUPS`.
        path: of the download. A file placed there by hand is used before any address.
        urls: addresses, tried in order until one gives the right files.
        files: path -> digest, `md5:...` or `sha256:...`, of the files to obtain. Contains `path` if
            the download itself is wanted.
        make: otherwise called as `make(download, folder)`. Writes `files` below `folder`; raises
            `InputError` if the download does not hold them.
    """

    group: str
    path: str
    urls: tuple[str, ...]
    files: Mapping[str, str]
    make: Callable[[Path, Path], None] | None = None


class NotFetchedError(InputError):
    """No source of a download gave the right files."""


def extract(archive: Path, folder: Path, paths: Collection[str]) -> None:
    """Extract the files `paths` below `folder`, and nothing else that a tar archive holds.

    Raises:
        InputError: the archive is damaged.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = str(PurePosixPath(member.name))
                content = tar.extractfile(member) if member.isfile() and name in paths else None
                if content is not None:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    with content, (folder / name).open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"not a whole tar archive: {error}") from error


def convert_policies(source: Path, folder: Path) -> None:
    """Write the policies of a Python file [lim2019] as JSON below `folder`, without running it.

    The file holds functions of two statements each, `p = [...]` and `return p`, where `[...]` is a
    literal list of sub-policies. The digest of the result pins names and numbers.

    Raises:
        InputError: the source holds anything else, such as a call.
    """
    policies = {}
    try:
        for node in ast.parse(source.read_bytes()).body:
            match node:
                case ast.FunctionDef(body=[ast.Assign(value=literal), ast.Return()]):
                    policies[node.name] = ast.literal_eval(literal)
                case _:
                    raise ValueError(f"line {node.lineno} is no function that returns one list")
        content = json.dumps(policies, separators=(",", ":"))
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"the policy source is refused: {error}") from error
    target = folder / POLICIES_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content, encoding="utf-8")


def _kaist_urls(path: str) -> tuple[str, ...]:
    return tuple(
        f"https://raw.githubusercontent.com/{repository}/{KAIST_COMMIT}/{path}"
        for repository in KAIST_REPOSITORIES
    )


ASSETS = (
    Asset(
        "cifar100",
        "cifar-100-python.tar.gz",
        (
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",  # the author's
            "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",  # PaddlePaddle's copy
        ),
        CIFAR100_FILES,
        partial(extract, paths=CIFAR100_FILES),
    ),
    *(
        Asset(
            "kaist",
            f"kaist/micronet_{stem}.t7",
            _kaist_urls(f"Checkpoint_ver{stem[1]}/micronet_{stem}.t7"),
            {f"kaist/micronet_{stem}.t7": f"sha256:{sha256}"},
        )
        for stem, sha256 in KAIST_SHA256.items()
    ),
    Asset(
        "policies",
        "policies/cifar100_fast_aug.py",
        _kaist_urls("Utils/cifar100_fast_aug.py"),
        {POLICIES_FILE: "sha256:da7ab46b2ef1e25d17a49fdf0103bcd2a7fe39fbfc0640850c4f07d03b00f938"},
        convert_policies,
    ),
)


def published_digests() -> dict[str, str]:
    """Return name -> sha256 of the published networks and policies."""
    files = {path: digest for asset in ASSETS for path, digest in asset.files.items()}
    return {
        PurePosixPath(path).name: digest.removeprefix("sha256:")
        for path, digest in files.items()
        if digest.startswith("sha256:")
    }


def fetch(
    groups: Sequence[str] | None, root: Path, assets: Sequence[Asset] = ASSETS
) -> dict[str, str]:
    """Download missing or damaged files below `root`. Intact files do not change.

    A failed download does not stop the others, and changes no file.

    Args:
        groups: some of `GROUPS`; None or empty means all.
        root: the data root, created if missing.
        assets: all possible downloads.

    Returns:
        Path of each file below `root` -> `present` or `fetched`, in the order of `assets`.

    Raises:
        NotFetchedError: at the end, if a download has failed.
        InputError: an unknown group, a folder that cannot be written, another fetch into the same
            folder, or pooch not installed.
    """
    for group in groups or ():
        check_choice("data group", group, GROUPS)
    found: dict[str, str] = {}
    failed = {}
    silent: set[str] = set()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            for asset in assets:
                if groups and asset.group not in groups:
                    continue
                try:
                    found |= _fetch_asset(asset, root, silent)
                except NotFetchedError as error:
                    failed[asset.path] = str(error)
    except OSError as error:
        raise InputError(
            f"cannot write below {root} ({error.strerror or error}): make room there, get the "
            "right to write, or point MICRONET_DATA to another folder"
        ) from error
    except ModuleNotFoundError as error:
        raise InputError(
            f"downloading needs {error.name}, which is not installed: `pip install pooch`, or "
            f"place the files below {root} by hand (data/README.md)"
        ) from error
    if failed:
        first, *others = failed
        also = f"; not fetched either: {', '.join(others)}" if others else ""
        raise NotFetchedError(failed[first] + also)
    return found


def check(root: Path, assets: Sequence[Asset] = ASSETS) -> dict[str, str]:
    """Return the `file_status` of every file of `assets` below `root`. Change nothing."""
    digests = {path: digest for asset in assets for path, digest in asset.files.items()}
    return {path: file_status(root / path, digest) for path, digest in digests.items()}


def file_status(path: Path, digest: str) -> str:
    """Return `ok`, `missing`, `wrong digest` or `unreadable`; the digest is as in `Asset`."""
    algorithm, _, expected = digest.partition(":")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "unreadable"
    return "ok" if found == expected else "wrong digest"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder of unfinished files against a second process."""
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


def _wrong(folder: Path, asset: Asset) -> dict[str, str]:
    return {path: status for path, status in check(folder, [asset]).items() if status != "ok"}


def _fetch_asset(asset: Asset, root: Path, silent: set[str]) -> dict[str, str]:
    stale = _wrong(root, asset)
    if stale:
        unfinished = root / UNFINISHED
        try:
            _obtain(asset, root, unfinished, silent)
            for path in stale:
                target = root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                # That folder may be a link to another disk, where a move is a copy.
                beside = target.with_name(f"{target.name}.part")
                shutil.move(unfinished / path, beside)
                beside.replace(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return {path: "fetched" if path in stale else "present" for path in asset.files}


def _obtain(asset: Asset, root: Path, folder: Path, silent: set[str]) -> None:
    """Empty `folder` and fill it from the first source that gives the right files.

    `silent` are hosts that did not answer, which are not asked again. It is extended in place.
    """
    placed = root / asset.path
    sources: list[Path | str] = [*asset.urls]
    if asset.make and placed.is_file():
        sources.insert(0, placed)
    refused = []
    for source in sources:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            download = (
                source if isinstance(source, Path) else _download(source, asset, folder, silent)
            )
            if asset.make:
                asset.make(download, folder)
            wrong = _wrong(folder, asset)
            if not wrong:
                return
            raise InputError(", ".join(f"{path}: {status}" for path, status in wrong.items()))
        except InputError as error:
            refused.append(f"{source} ({error})")
    raise NotFetchedError(
        f"cannot get {asset.path} from {' or '.join(refused)}: run the command again, or put the "
        f"file by hand at {placed} (data/README.md has addresses and digests)"
    )


def _download(url: str, asset: Asset, folder: Path, silent: set[str]) -> Path:
    """Download one file below `folder`; an `InputError` says in a few words why that fails."""
    import pooch
    from requests.exceptions import ConnectionError, RequestException

    host = urlsplit(url).netloc
    if host in silent:
        raise InputError("no connection")
    pooch.get_logger().setLevel("ERROR")  # the bar and our own line are enough
    source = pooch.Pooch(
        path=folder,
        base_url="",
        registry={asset.path: asset.files.get(asset.path)},
        urls={asset.path: url},
        retry_if_failed=RETRIES,
    )
    get = pooch.HTTPDownloader(progressbar=True, chunk_size=CHUNK_BYTES, timeout=TIMEOUT_S)
    try:
        download = Path(source.fetch(asset.path, downloader=get))
    except ConnectionError as error:
        silent.add(host)
        raise InputError("no connection") from error
    except RequestException as error:  # an OSError, but not of the disk
        status = "" if error.response is None else f" {error.response.status_code}"
        raise InputError(f"{type(error).__name__}{status}") from error
    except ValueError as error:
        raise InputError("wrong digest") from error
    download.chmod(0o644)  # as a temporary file it was its owner's alone
    return download
