"""Paths: every folder that the library reads or writes."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAPER_TABLES = ROOT / "data" / "paper"
MEASURED = ROOT / "data" / "measured"
CIFAR100_CLASSES = ROOT / "data" / "cifar100_classes.csv"
# Our own search's result is committed, wherever downloads may lie (`micronet search-policies`).
SEARCHED_POLICIES = ROOT / "data" / "policies" / "searched.json"

POLICY_FILES = {
    "fast_autoaugment": "fast_autoaugment_cifar100.json",
    "searched": SEARCHED_POLICIES.name,
}


def data_root() -> Path:
    """Return the folder of downloads: `$MICRONET_DATA`, or the repository's `data/`."""
    given = os.environ.get("MICRONET_DATA")
    return Path(given).expanduser() if given else ROOT / "data"


def runs_root() -> Path:
    """Return the folder of this machine's records and networks: `$MICRONET_RUNS`, or `runs/`."""
    return Path(os.environ.get("MICRONET_RUNS") or ROOT / "runs")


def checkpoint_path(name: str) -> Path:
    """Return the path of a published file: `kaist/<name>.t7` under the data folder."""
    return data_root() / "kaist" / f"{name}.t7"


def policy_path(kind: str) -> Path:
    """Return the path of a policy file. Our own is in the repository, the other a download."""
    if kind == "searched":
        return SEARCHED_POLICIES
    return data_root() / "policies" / POLICY_FILES[kind]
