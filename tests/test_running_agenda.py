"""The agenda: what is done, running and left; it goes on where it stopped."""

from dataclasses import replace

import pytest
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.errors import InputError
from micronet_lib.lab.host.files import is_held, only_one
from micronet_lib.lab.recipes.agenda import Item
from micronet_lib.lab.recipes.bases import PAPER
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.records import read, write
from micronet_lib.lab.running import agenda, ensure, plan
from micronet_lib.lab.running.lineage import cases

TOY = sweep_of(
    first=PAPER,
    second=replace(PAPER, train=replace(PAPER.train, lr=0.05)),
    third=replace(PAPER, train=replace(PAPER.train, lr=0.02)),
)
ITEMS = (
    Item("two seeds of one", "toy", "first", (0, 1)),
    Item("the others", "toy"),
)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setitem(SWEEPS, "toy", TOY)
    monkeypatch.setattr(agenda, "MEASURED", tmp_path / "measured")
    with tiny_lab(tmp_path) as made:
        yield made


def counts(column):
    return agenda.overview("smoke", ITEMS)[column].tolist()


def test_an_agenda_is_worked_through_in_order_and_once(lab):
    assert counts("done") == [0, 0, ""]
    assert counts("left") == [2, 3, ""]
    first, others, whole = counts("hours")
    assert first > 0
    assert whole == pytest.approx(first + others)
    agenda.work_through("smoke", ITEMS, progress=False)
    assert lab.trained == ["toy/first", "toy/first", "toy/second", "toy/third"]
    assert counts("done") == [2, 3, ""]
    assert counts("hours") == [0, 0, 0]
    assert agenda.work_through("smoke", ITEMS, progress=False) == []
    assert len(lab.trained) == 4


def test_what_cannot_be_done_is_named(lab):
    (case,) = cases(TOY, PROFILES["smoke"], point="first")
    with only_one(case.folder / "lock", "test"):
        undone = agenda.work_through("smoke", ITEMS[:1], progress=False)
    assert undone == ["toy/first seed 0"]


def test_a_training_that_diverged_is_done(lab):
    """As a record of this machine, and as a committed one."""
    overrides = {"train.lr": 1e30}
    (case,) = cases(TOY, PROFILES["smoke"], point="first")
    ensure(TOY, "smoke", point="first", overrides=overrides, progress=False)
    (path,) = lab.runs.rglob("first+*.json")
    lost = read(path)
    assert lost.failed
    write(replace(lost, recipe_id=recipe_id(case.recipe), overrides={}), agenda.MEASURED)
    assert counts("done") == [1, 1, ""]
    assert counts("left") == [1, 2, ""]


def test_a_training_of_two_sweeps_is_counted_once(lab, monkeypatch):
    """The first point of both is the same network."""
    monkeypatch.setitem(SWEEPS, "other", sweep_of("other", same=PAPER))
    monkeypatch.setattr(plan, "timed_images_per_s", lambda _: 8.0)
    alone = agenda.overview("smoke", ITEMS[1:])["hours"].iloc[-1]
    both = agenda.overview("smoke", (ITEMS[1], Item("again", "other")))
    assert both["left"].tolist() == [3, 1, ""]
    assert both["hours"].iloc[1] == 0
    assert both["hours"].iloc[-1] == pytest.approx(alone)
    assert alone > 0


def test_hours_are_said_as_people_do(lab):
    table = agenda.overview("smoke", ITEMS).assign(hours=[3.009393, 0.0, 3.009393])
    lines = agenda.as_text(table).splitlines()
    assert [line.split()[-4:] for line in (lines[1], lines[3])] == [["3", "h", "1", "min"]] * 2
    assert lines[2].split()[-1] == "-"


def test_what_cannot_run_here_is_said_and_not_passed_over(lab, monkeypatch):
    monkeypatch.setitem(SWEEPS, "toy", sweep_of(gone=Recipe(checkpoint="micronet_gone")))
    item = Item("a file that is missing", "toy")
    table = agenda.overview("smoke", (item,))
    assert table[["done", "left", "impossible"]].iloc[0].tolist() == [0, 0, 1]
    with pytest.raises(InputError):
        agenda.work_through("smoke", (item,), progress=False)


def test_it_goes_on_where_it_stopped(lab):
    agenda.work_through("smoke", ITEMS[:1], progress=False)
    assert counts("done") == [2, 1, ""]
    agenda.work_through("smoke", ITEMS, progress=False)
    assert lab.trained[2:] == ["toy/second", "toy/third"]


def test_a_committed_record_is_done_and_another_recipes_is_not(lab, tmp_path):
    agenda.work_through("smoke", ITEMS[:1], progress=False)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert counts("done") == [0, 0, ""]
    place = tmp_path / "measured" / "smoke" / "toy"
    place.mkdir(parents=True)
    record = (tmp_path / "elsewhere" / "smoke" / "toy" / "first-s0.json").read_text()
    (place / "first-s0.json").write_text(record)
    (place / "second-s0.json").write_text(record.replace('"first"', '"second"'))
    assert counts("done") == [1, 1, ""]


def test_an_agenda_whose_points_are_all_committed_is_done(lab, tmp_path):
    agenda.work_through("smoke", ITEMS[:1], progress=False)
    (tmp_path / "runs").rename(tmp_path / "measured")
    assert counts("done")[0] == 2
    agenda.work_through("smoke", ITEMS[:1], progress=False)
    assert len(lab.trained) == 2
    assert not (tmp_path / "runs").exists()


def test_a_point_of_another_process_is_running(lab):
    (case,) = cases(TOY, PROFILES["smoke"], 1, point="first")
    with only_one(case.folder / "lock", case.name):
        assert is_held(case.folder / "lock")
        assert counts("running") == [1, 0, ""]
        agenda.work_through("smoke", ITEMS, progress=False)
    assert not is_held(case.folder / "lock")
    assert counts("left") == [1, 0, ""]
