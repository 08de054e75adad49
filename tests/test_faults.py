"""The pipeline survives faults of every kind; the whole round, as CONTRIBUTING.md's table says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults import FAULTS

ROOT = Path(__file__).resolve().parent.parent
each_fault = pytest.mark.parametrize("name", FAULTS)


def staged(folder: Path, *options: str) -> dict[str, dict]:
    """What the suite says, in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "tests/faults.py", str(folder), "--json", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
    )
    assert ran.stdout, ran.stderr
    return json.loads(ran.stdout) | {"stderr": {"text": ran.stderr}}


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> dict[str, dict]:
    return staged(tmp_path_factory.mktemp("faults"), "--few", "2")


@pytest.fixture(scope="module")
def every(tmp_path_factory) -> dict[str, dict]:
    return staged(tmp_path_factory.mktemp("faults"))


def counts(told: dict[str, dict], name: str) -> tuple[int, int]:
    found = told[name]
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert found["survived"] == found["tried"], (found["hit"], told["stderr"]["text"])
    return found["tried"], found["survived"]


@each_fault
def test_a_few_of_every_kind_end_as_if_nothing_had_happened(few, name):
    assert counts(few, name)[0] >= 2


def table_of_faults() -> dict[str, tuple[int, int]]:
    """What CONTRIBUTING.md says: how many were tried, and how many survived."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("\n## Faults\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {row[0].strip(): (int(row[2]), int(row[3])) for row in rows[2:]}


@pytest.mark.slow
@each_fault
def test_a_whole_round_comes_to_what_the_table_says(every, name):
    assert counts(every, name) == table_of_faults()[name]


def test_the_table_names_every_fault():
    assert set(table_of_faults()) == set(FAULTS)


@pytest.mark.slow
def test_random_kills_fall_into_most_stages(every):
    assert len(set(every["`kill -9` at a random moment"]["hit"])) >= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "operation",
    ["fsync", "replace state.pt", "replace state.previous.pt", "replace .*-s0.json", "unlink"],
)
def test_kills_fall_into_every_kind_of_file_operation(every, operation):
    hit = every["`kill -9` within a file operation"]["hit"]
    assert any(re.match(operation, where) for where in hit), hit
