"""What CONTRIBUTING.md and chapter 10 say of speed is what the benchmarks kept."""

import json
import sys
from pathlib import Path

import pytest
import torch
from chapter_cells import place

ROOT = Path(__file__).resolve().parent.parent
KEPT = json.loads((ROOT / "data" / "speed.json").read_text(encoding="utf-8"))


THROUGHPUT = json.loads((ROOT / "data" / "throughput.json").read_text(encoding="utf-8"))


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


@pytest.fixture
def throughput(ratios):
    return pytest.importorskip("throughput")


def test_throughput_was_kept_of_every_network_with_its_work(throughput):
    assert len(THROUGHPUT["env"]["commit"]) == 7
    rows = {row["network"]: row for row in THROUGHPUT["rows"]}
    groups = {"R50": list(throughput.ASSEMBLED)}
    for dense, names in throughput.PRUNED.items():
        groups[dense] = [name for name in (dense, *names) if name in rows]
        counted = [rows[name] for name in groups[dense]]
        assert len(counted) > 1
        assert len({row["macs"] for row in counted}) == 1
        left = [row["nonzero_macs"] for row in counted]
        assert left == sorted(left, reverse=True)
        assert left[0] == counted[0]["macs"]
    for first, group in groups.items():
        for name in group:
            ratio = rows[first]["images_per_s"] / rows[name]["images_per_s"]
            assert rows[name]["ratio"] == pytest.approx(ratio)
    assert list(rows) == [name for group in groups.values() for name in group]


def test_a_pruned_network_is_timed_beside_itself_without_zeros(throughput, tmp_path, monkeypatch):
    """The two published versions are two networks; a missing file leaves nothing to time."""
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path))
    assert [throughput.pruned(dense) for dense in throughput.PRUNED] == [{}, {}]
    place(tmp_path, ["kaist"])
    for dense, names in throughput.PRUNED.items():
        found = throughput.pruned(dense)
        assert list(found) == [dense, *names]
        macs, nonzero = throughput.macs_of(*found[dense])
        assert macs == nonzero
        assert all(throughput.macs_of(*found[name])[0] == macs for name in names)
        assert all(throughput.macs_of(*found[name])[1] < macs for name in names)


def test_the_work_of_a_network_is_counted_by_hand(throughput):
    layer = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 1, 1, bias=False), torch.nn.Conv2d(4, 4, 3, 2, 1, groups=4)
    )
    layer[1].weight.data[0] = 0
    own = (4 * 3 * 9 * 64, 4 * 9 * 16)
    assert throughput.macs_of(layer, 8) == (sum(own), own[0] + 3 * 9 * 16)
    assert all((p != 0).all() for p in throughput.without_zeros(layer).parameters())


def test_a_timed_row_is_the_networks(throughput, capsys):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten())
    first, second = throughput.timed({"one": (network, 4), "two": (network, 8)}, 3, 2)
    assert (first["network"], first["side"], first["ratio"]) == ("one", 4, 1)
    assert second["macs"] == 4 * first["macs"] == 2 * 3 * 64
    assert second["images_per_s"] > 0
    assert "one" in capsys.readouterr().out


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
    assert table.splitlines()[2:] == ["| squares | a loop | 3.33 |"]
    assert "a loop" in capsys.readouterr().out
