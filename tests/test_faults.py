"""The pipeline survives every fault of CONTRIBUTING.md, as often as its table says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults import FAULTS

ROOT = Path(__file__).resolve().parent.parent
AT_LEAST = {"`kill -9` at a random moment": 20, "`kill -9` within a file operation": 20}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, dict]:
    """What the suite says after one round, in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "tests/faults.py", str(tmp_path_factory.mktemp("faults")), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
    )
    assert ran.stdout, ran.stderr
    return json.loads(ran.stdout) | {"stderr": {"text": ran.stderr}}


@pytest.mark.parametrize("name", FAULTS)
def test_the_same_command_ends_as_if_nothing_had_happened(told, name):
    found = told[name]
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert found["tried"] >= max(AT_LEAST.get(name, 1), FAULTS[name][0])
    assert found["survived"] == found["tried"], (found["hit"], told["stderr"]["text"])


def test_random_kills_fall_into_most_stages(told):
    assert len(set(told["`kill -9` at a random moment"]["hit"])) >= 4


@pytest.mark.parametrize(
    "operation",
    ["fsync", "replace state.pt", "replace state.previous.pt", "replace .*-s0.json", "unlink"],
)
def test_kills_fall_into_every_kind_of_file_operation(told, operation):
    hit = told["`kill -9` within a file operation"]["hit"]
    assert any(re.match(operation, where) for where in hit), hit


def test_the_table_of_faults_is_the_suites():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("\n## Faults\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    table = {row[0].strip(): [int(cell) for cell in row[2:4]] for row in rows[2:]}
    assert table == {name: [number, number] for name, (number, _) in FAULTS.items()}
