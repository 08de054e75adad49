"""Paths: every folder that the library reads or writes."""

import os
from pathlib import Path

from micronet_lib.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
PAPER_TABLES = ROOT / "data" / "paper"
MEASURED = ROOT / "data" / "measured"
OWN_NETWORKS = ROOT / "data" / "networks"
CIFAR100_CLASSES = ROOT / "data" / "cifar100_classes.csv"
# Our own search's result is committed, wherever downloads may lie (`micronet search-policies`).
SEARCHED_POLICIES = ROOT / "data" / "policies" / "searched.json"

POLICY_FILES = {
    "fast_autoaugment": "fast_autoaugment_cifar100.json",
    "searched": SEARCHED_POLICIES.name,
}


def of_checkout(path: Path) -> Path:
    """Return a path of the repository, if the library runs in a checkout of it.

    Tables, records and policies are files of the repository and not of the package. Without this
    check, an installed copy would find none and write runs beside itself.

    Raises:
        InputError: the library is installed without the repository, and the path does not exist.
    """
    if not path.exists() and not (ROOT / "pyproject.toml").is_file():
        raise InputError(
            f"the library in {ROOT} is a copy without the repository, which has {path.name}: "
            "install a checkout with `pip install -e .`, or let MICRONET_DATA and MICRONET_RUNS "
            "name folders, which is enough for training"
        )
    return path


def check_library(folder: Path) -> None:
    """Raise an error if the library that runs is not that of the checkout around a folder.

    A copied virtual environment still imports the library of the place where it was made.

    Raises:
        InputError: both places, and what to do.
    """
    for place in (folder.resolve(), *folder.resolve().parents):
        if (place / "micronet_lib" / "__init__.py").is_file():
            if place != ROOT:
                raise InputError(
                    f"this is the library of {ROOT}, not of {place}: run `make setup` in {place}, "
                    "and use that environment"
                )
            return


def data_root() -> Path:
    """Return the folder of downloads: `$MICRONET_DATA`, or the repository's `data/`.

    Raises:
        InputError: there is neither.
    """
    given = os.environ.get("MICRONET_DATA")
    return Path(given).expanduser() if given else of_checkout(ROOT / "data")


def runs_root() -> Path:
    """Return the folder of this machine's records and networks: `$MICRONET_RUNS`, or `runs/`.

    Raises:
        InputError: there is neither.
    """
    given = os.environ.get("MICRONET_RUNS")
    return Path(given).expanduser() if given else of_checkout(ROOT / "runs")


def checkpoint_path(name: str) -> Path:
    """Return the path of a published file: `kaist/<name>.t7` under the data folder."""
    return data_root() / "kaist" / f"{name}.t7"


def policy_path(kind: str) -> Path:
    """Return the path of a policy file. Our own is in the repository, the other a download."""
    if kind == "searched":
        return SEARCHED_POLICIES
    return data_root() / "policies" / POLICY_FILES[kind]
