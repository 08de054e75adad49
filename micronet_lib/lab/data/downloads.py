"""What the book does not ship: CIFAR-100, the published checkpoints, the published policies.

`fetch` downloads, `check` looks; nothing else in the library touches the network. Every file is
pinned by a digest and gets its name only once the digest is right, so a file that is there was
whole when it came. Licences, sizes and how to get each file by hand: data/README.md.
"""

import ast
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from micronet_lib.errors import InputError, unknown
from micronet_lib.lab.data.transfers import Algorithm, download, file_status, locked

GROUPS = ("cifar100", "kaist", "policies")

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
POLICIES_FILE = (
    "policies/fast_autoaugment_cifar100.json",
    "da7ab46b2ef1e25d17a49fdf0103bcd2a7fe39fbfc0640850c4f07d03b00f938",
)


@dataclass(frozen=True)
class Asset:
    """One download.

    Attributes:
        group: which of `GROUPS` it belongs to.
        urls: where it comes from; the next is asked when the one before does not have it.
        path: where the download goes, relative to the data root.
        digest: of the download, hexadecimal.
        algorithm: of every digest of this asset.
        files: `(path, digest)` of the files made from the download, relative to the data root;
            empty when the download itself is what is wanted.
        make: called as `make(download, folder)`; writes `files` below `folder`.
    """

    group: str
    urls: tuple[str, ...]
    path: str
    digest: str
    algorithm: Algorithm
    files: tuple[tuple[str, str], ...] = ()
    make: Callable[[Path, Path], None] | None = None

    @property
    def expected(self) -> tuple[tuple[str, str], ...]:
        """`(path, digest)` of what must be there in the end, relative to the data root."""
        return self.files or ((self.path, self.digest),)


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
        path: relative to the data root.
        status: `present` or `fetched` from `fetch`, that of `file_status` from `check`.
    """

    path: str
    status: str


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive below `folder`.

    Raises:
        InputError: when a member would land outside `folder`.
    """
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise InputError(f"{archive} is refused ({error}): delete it") from error


def read_policies(source: str) -> dict[str, list[list[list[Any]]]]:
    """The augmentation policies in a Python source, read and never run [lim2019].

    Args:
        source: functions of two statements each, `p = [...]` and `return p`, where `[...]` is a
            literal list of sub-policies.

    Returns:
        Function name -> list of sub-policies, each two `[operation, probability, level]` with
        probability and level in [0, 1].

    Raises:
        InputError: when the source holds anything else, such as a call.
    """
    policies = {}
    line = 0
    try:
        for node in ast.parse(source).body:
            line = node.lineno
            match node:
                case ast.FunctionDef(
                    decorator_list=[],
                    body=[
                        ast.Assign(targets=[ast.Name(id=kept)], value=literal),
                        ast.Return(ast.Name(id=returned)),
                    ],
                ) if returned == kept:
                    sub_policies = ast.literal_eval(literal)
                case _:
                    raise ValueError("not a function that returns one literal list")
            if not isinstance(sub_policies, list) or not all(map(_is_sub_policy, sub_policies)):
                raise ValueError("not pairs of [operation, probability, level]")
            policies[node.name] = sub_policies
    except (SyntaxError, TypeError, ValueError) as error:
        raise InputError(f"the policy source is refused at line {line}: {error}") from error
    return policies


def _is_sub_policy(value: object) -> bool:
    match value:
        case [[str(), float() as p1, float() as level1], [str(), float() as p2, float() as level2]]:
            return all(0 <= x <= 1 for x in (p1, level1, p2, level2))
    return False


def convert_policies(source: Path, folder: Path) -> None:
    """Write the policies of the Python file `source` as JSON below `folder`."""
    target = folder / POLICIES_FILE[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    policies = read_policies(source.read_text(encoding="utf-8"))
    target.write_text(json.dumps(policies, separators=(",", ":")), encoding="utf-8")


def _kaist_urls(path: str) -> tuple[str, ...]:
    return tuple(
        f"https://raw.githubusercontent.com/{repository}/{KAIST_COMMIT}/{path}"
        for repository in KAIST_REPOSITORIES
    )


ASSETS = (
    Asset(
        group="cifar100",
        # As in torchvision.datasets.CIFAR100; a test compares, since its import takes seconds.
        urls=("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
        path="cifar-100-python.tar.gz",
        digest="eb9058c3a382ffc7106e4002c42a8d85",
        algorithm="md5",
        files=(
            ("cifar-100-python/train", "16019d7e3df5f24257cddd939b257f8d"),
            ("cifar-100-python/test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            ("cifar-100-python/meta", "7973b15100ade9c7d40fb424638fde48"),
        ),
        make=unpack,
    ),
    *(
        Asset(
            group="kaist",
            urls=_kaist_urls(f"Checkpoint_ver{stem[1]}/micronet_{stem}.t7"),
            path=f"kaist/micronet_{stem}.t7",
            digest=sha256,
            algorithm="sha256",
        )
        for stem, sha256 in KAIST_SHA256.items()
    ),
    Asset(
        group="policies",
        urls=_kaist_urls("Utils/cifar100_fast_aug.py"),
        path="policies/cifar100_fast_aug.py",
        digest="03af49759eb8141bfde16d82ba0acbfea82d9c43532f0d15ffa97bec33974382",
        algorithm="sha256",
        files=(POLICIES_FILE,),
        make=convert_policies,
    ),
)


def fetch(
    groups: Sequence[str] | None, root: Path, assets: Sequence[Asset] = ASSETS
) -> list[Outcome]:
    """Download what is missing below `root`; files with the right digest are left alone.

    A download that was cut or killed goes on where it stopped.

    Args:
        groups: some of `GROUPS`; none or empty means all.
        root: the data root, made if it does not exist.
        assets: what there is to fetch.

    Returns:
        One outcome per file, in the order of `assets`.

    Raises:
        InputError: for an unknown group, a download that fails or has the wrong digest, or a
            folder that cannot be written. Files fetched before that stay.
    """
    for group in groups or ():
        if group not in GROUPS:
            raise unknown("data group", group, GROUPS)
    outcomes = []
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            for asset in assets:
                if not groups or asset.group in groups:
                    outcomes += _fetch_asset(asset, root)
    except OSError as error:
        raise InputError(
            f"cannot write below {root} ({error.strerror or error}): make room there, get the "
            "right to write, or point MICRONET_DATA to another folder"
        ) from error
    return outcomes


def check(root: Path, assets: Sequence[Asset] = ASSETS) -> list[Outcome]:
    """Compare every file that `fetch` leaves below `root` with its digest; change nothing."""
    return [
        Outcome(path, file_status(root / path, digest, asset.algorithm))
        for asset in assets
        for path, digest in asset.expected
    ]


def _fetch_asset(asset: Asset, root: Path) -> list[Outcome]:
    stale = [
        (path, digest)
        for path, digest in asset.expected
        if file_status(root / path, digest, asset.algorithm) != "ok"
    ]
    if stale:
        source = root / asset.path
        placed_by_hand = file_status(source, asset.digest, asset.algorithm) == "ok"
        if not placed_by_hand:
            download(asset.urls, source, asset.digest, asset.algorithm)
        if asset.make is not None:
            _make_files(asset, asset.make, source, root)
            if not placed_by_hand:
                source.unlink()
    return [
        Outcome(path, "fetched" if (path, digest) in stale else "present")
        for path, digest in asset.expected
    ]


def _make_files(asset: Asset, make: Callable[[Path, Path], None], source: Path, root: Path) -> None:
    scratch = source.with_name(f"{source.name}.files.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        make(source, scratch)
        for path, digest in asset.files:
            if file_status(scratch / path, digest, asset.algorithm) != "ok":
                raise InputError(
                    f"{path} made from {source} is not the expected file "
                    f"({asset.algorithm} {digest}); nothing was installed"
                )
        for path, _ in asset.files:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).replace(root / path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
