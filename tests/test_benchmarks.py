"""What CONTRIBUTING.md says of speed is what the benchmarks kept."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KEPT = json.loads((ROOT / "data" / "speed.json").read_text(encoding="utf-8"))


@pytest.fixture
def ratios(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "tests" / "benchmarks"), *sys.path])
    return pytest.importorskip("ratios")


def test_the_table_of_ratios_is_the_kept_one(ratios):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert ratios.as_table(KEPT) in text, "write `ratios.as_table` of data/speed.json there"
    env = KEPT["env"]
    machine = env["device"].partition("(")[2].rstrip(")")
    assert f"({machine}, {env['isa']}, torch {env['torch'].partition('+')[0]})" in text


def test_what_was_kept_names_the_code_it_timed():
    assert len(KEPT["env"]["commit"]) == 7, "commit first: a `+` is a change that no commit has"
    assert len({row["what"] for row in KEPT["rows"]}) == len(KEPT["rows"])
    assert {row["same"] - row["images"] for row in KEPT["predictions"]} == {0}


def test_every_row_that_is_kept_is_kept_by_a_benchmark(ratios, capsys):
    """A way that was named, against the first one."""
    before = list(ratios.KEPT["rows"])
    ways = {"a loop": lambda: [i**2 for i in range(20_000)], "nothing": lambda: None, "b": int}
    ratios.compare(ways, 10, "squares", rows={"nothing": "squares"})
    (row,) = ratios.KEPT["rows"][len(before) :]
    ratios.KEPT["rows"][:] = before
    assert (row["what"], row["against"], row["a"]) == ("squares", "a loop", "squares")
    slow, fast = row["seconds"]
    assert slow > fast >= 0
    table = ratios.as_table({"rows": [{**row, "seconds": [0.33333, 0.1]}]})
    assert table.splitlines()[2:] == ["| squares | a loop | 3.3 |"]
    assert "a loop" in capsys.readouterr().out
