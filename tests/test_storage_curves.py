"""Curves: a line an epoch in the folder of a run, and the page that shows them."""

import json
import re
import sys

import pandas as pd
import pytest
from tiny_lab import sweep_of, tiny_lab

from micronet_lib import plots
from micronet_lib.__main__ import main
from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.bases import ORN
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.running import ensure
from micronet_lib.lab.storage import states
from micronet_lib.lab.storage.curves import (
    NAME,
    append_epoch,
    begin_curve,
    curves_of_sweep,
    curves_under,
    printed_accuracy,
    read_curve,
)
from micronet_lib.lab.training import loop


@pytest.fixture
def lab(tmp_path):
    with tiny_lab(tmp_path) as found:
        yield found


def put(folder, name, *losses):
    curve = {"lr": [0.1] * len(losses), "train_loss": list(losses)}
    begin_curve(folder, name, curve)
    return folder / NAME


def test_a_line_is_added_for_each_epoch(tmp_path):
    path = put(tmp_path / "abc-s2", "toy/a", 4.0)
    append_epoch(path.parent, {"lr": [0.1, 0.05], "train_loss": [4.0, 1 / 3]})
    assert path.read_text().splitlines() == [
        "# toy/a", "epoch,lr,train_loss", "1,0.1,4.0", f"2,0.05,{1 / 3!r}",
    ]  # fmt: skip
    found = read_curve(path)
    assert found.iloc[-1].to_dict() == {
        "epoch": 2, "lr": 0.05, "train_loss": 1 / 3, "point": "toy/a", "id": "abc", "seed": 2,
    }  # fmt: skip


def test_a_line_that_is_not_whole_is_not_read(tmp_path):
    path = put(tmp_path / "abc-s0", "toy/a", 4.0)
    with path.open("a") as file:
        file.write("2,0.05")
    assert read_curve(path)["epoch"].tolist() == [1]
    path.write_text("# toy/a\nepoch,lr\n1,x\n")
    with pytest.raises(InputError, match=r"curve\.csv is not a readable curve"):
        read_curve(path)


def test_a_file_is_read_wherever_its_writing_was_cut(tmp_path, lab):
    """A page that is written again and again meets a training at any moment."""
    path = put(tmp_path / "abc-s0", "toy/a", 4.0, 3.0)
    whole = path.read_bytes()
    put(tmp_path / "def-s0", "toy/b", 2.0)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert len(read_curve(path)) == max(0, whole[:end].count(b"\n") - 2)
        if whole[end : end + 1] == b"\n":
            found = curves_under(tmp_path)
            assert set(found["point"]) - {"toy/a"} == {"toy/b"}
            plots.curves_page(found, {}, "title", "source")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write the curve curve\.csv"):
        put(tmp_path / "file", "toy/a", 4.0)


def test_a_training_that_was_killed_has_each_epoch_once(lab, monkeypatch):
    """It is killed after its second epoch, and only the first has been saved."""
    sweep = sweep_of(a=ORN)
    saved, run_epoch = [], loop.Run.run_epoch

    def save_first(folder, key, state):
        saved.append(state["epoch"])
        if len(saved) == 1:
            states.save_state(folder, key, state)

    def killed(run, bar=None):
        if run.epoch == 2:
            raise KeyboardInterrupt
        run_epoch(run, bar)

    asked = {"overrides": {"train.epochs": 3}, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_EVERY_S", 0.0)
        patch.setattr(loop, "save_state", save_first)
        patch.setattr(loop.Run, "run_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure(sweep, "smoke", **asked)
    (path,) = lab.runs.rglob(NAME)
    assert read_curve(path)["epoch"].tolist() == [1, 2]
    before = read_curve(path)
    ensure(sweep, "smoke", **asked)
    found = read_curve(path)
    assert found["epoch"].tolist() == [1, 2, 3]
    pd.testing.assert_frame_equal(found.iloc[:1], before.iloc[:1])
    (record,) = lab.runs.glob("smoke/toy/*.json")
    assert found["train_loss"].tolist() == json.loads(record.read_text())["curve"]["train_loss"]


# ------------------------------------------------------------------------------------------ page


def data_of(page: str) -> dict:
    found = re.search(r"const data = (\{.*\});", page)
    assert found is not None
    return json.loads(found[1])


def test_the_page_has_the_mean_and_a_band_over_seeds():
    rows = [
        {"point": point, "seed": seed, "epoch": 1, "train_loss": loss, "validation_top1": 0.5}
        for point, seed, loss in (("a", 0, 1.0), ("a", 1, 2.0), ("b", 0, 4.0))
    ]
    page = plots.curves_page(pd.DataFrame(rows), {"a": 0.7890}, "A <title>", "somewhere", 10)
    data = data_of(page)
    assert [point["label"] for point in data["points"]] == ["a", "b"]
    assert [point["printed"] for point in data["points"]] == [pytest.approx(78.9), None]
    assert data["points"][0]["curves"]["train_loss"] == [[1, 1.5, 1.0, 2.0, 2]]
    assert data["points"][1]["curves"]["validation_top1"] == [[1, 50, 50, 50, 1]]
    assert [panel["name"] for panel in data["panels"]] == ["train_loss", "validation_top1"]
    assert "<h1>A &lt;title&gt;</h1>" in page
    assert '<meta http-equiv="refresh" content="10">' in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # nothing from elsewhere
    assert "__" not in page
    assert "refresh" not in plots.curves_page(pd.DataFrame(rows), {}, "A", "somewhere")


def test_the_command_shows_a_folder_or_a_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path))
    for name, seed in (("abc", 0), ("abc", 1), ("def", 0)):
        put(tmp_path / "quick" / "networks" / f"{name}-s{seed}", "stages/3.0-orn", 4.0, 3.0)
    assert main(["curves", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # One name, two recipes.
    assert (found["runs"], found["points"]) == (3, ["stages/3.0-orn abc", "stages/3.0-orn def"])
    page = tmp_path / "a page.html"
    assert main(["curves", "stages", "--profile", "quick", "--output", str(page)]) == 0
    points = data_of(page.read_text())["points"]
    assert {each["label"]: each["printed"] for each in points}["3.0-orn"] == 78.9


def test_watching_writes_a_page_that_is_read_again_until_it_is_stopped(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path))
    path = put(tmp_path / "abc-s0", "stages/3.0-orn", 4.0)
    sizes = []

    def passes(seconds):
        sizes.append(len(data_of((tmp_path / "curves.html").read_text())["points"]))
        put(tmp_path / "def-s0", "stages/3.0-als", 4.0)
        if len(sizes) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", passes)
    assert main(["curves", str(path.parent.parent), "--watch"]) == 130
    assert sizes == [1, 2]
    assert 'http-equiv="refresh"' in (tmp_path / "curves.html").read_text()
    assert capsys.readouterr().err.splitlines()[-1] == "micronet: stopped"


def test_a_runs_own_name_finds_its_printed_accuracy(tmp_path, monkeypatch):
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path))
    put(tmp_path / "abc-s0", "stages/3.0-orn", 4.0)
    assert main(["curves", str(tmp_path)]) == 0
    (point,) = data_of((tmp_path / "curves.html").read_text())["points"]
    assert point["printed"] == 78.9
    assert curves_under(tmp_path)["point"].unique() == ["stages/3.0-orn"]
    assert printed_accuracy(SWEEPS["srip_placement"]) == {"pointwise": 0.789}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no folder and no sweep 'nowhere'; sweeps are expand_ratio,"),
        (["EMPTY"], "no curve.csv under"),
        (["EMPTY", "--profile", "quick"], "--profile goes with a sweep"),
        (["stages", "--profile", "x"], "unknown profile 'x'"),
        (["expand_ratio"], "sweep expand_ratio trains nothing"),
        (["beyond", "--profile", "quick"], "beyond is not defined on the profile quick"),
        (["stages", "--output", "EMPTY"], "is a folder: give the name of a file"),
    ],
)
def test_what_cannot_be_shown_is_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path / "runs"))
    assert main(["curves", *(word.replace("EMPTY", str(tmp_path)) for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_curves_are_written_for_tensorboard_too(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="the extra `test` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path / "runs"))
    for seed, losses in ((0, (4.0, 3.0)), (1, (5.0, 2.5))):
        put(tmp_path / "networks" / f"abc-s{seed}", "stages/3.0-orn", *losses)
    words = ["curves", str(tmp_path / "networks"), "--tensorboard", str(tmp_path / "events")]
    for _ in range(2):  # the second call takes the place of the first
        assert main(words) == 0
        for seed, losses in ((0, [4.0, 3.0]), (1, [5.0, 2.5])):
            (place,) = (tmp_path / "events" / "stages" / "3.0-orn" / f"seed_{seed}").iterdir()
            events = EventAccumulator(str(place)).Reload().Scalars("train_loss")
            assert [(each.step, each.value) for each in events] == list(enumerate(losses, 1))


def test_without_tensorboard_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path / "runs"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    put(tmp_path / "abc-s0", "toy/a", 4.0)
    assert main(["curves", str(tmp_path), "--tensorboard", str(tmp_path / "events")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "micronet: event files need TensorBoard: `pip install tensorboard`"


def test_a_curve_of_this_machine_stands_beside_the_committed_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path))
    profile, committed = curves_of_sweep(SWEEPS["stages"])
    identity = recipe_id(resolved(SWEEPS["stages"].point("3.0-orn").recipe, PROFILES[profile]))
    put(tmp_path / profile / "networks" / f"{identity}-s0", "srip_placement/pointwise", 4.0)
    _, both = curves_of_sweep(SWEEPS["stages"], profile)
    assert set(both["point"]) - set(committed["point"]) == {"3.0-orn, mine"}


def test_searches_of_two_seeds_are_two_runs(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / "search_policies" / f"s{seed}" / "fold0"
        folder.mkdir(parents=True)
        put(folder, "search fold0", 3.0 - seed)
    found = curves_under(tmp_path)
    assert found.groupby("seed")["train_loss"].sum().tolist() == [3.0, 2.0]
