"""A plan says what would run, how much of it, and how long at a speed that was measured."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest

from micronet_lib.__main__ import main
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running import measure as experiments
from micronet_lib.lab.running import plan as plans
from micronet_lib.lab.running.plan import images_per_s, plan, timed_images_per_s

SWEEP = SWEEPS["srip_placement"]


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(records, "MEASURED", tmp_path / "measured")
    budget = {"epoch_share": 1 / 600, "num_images": 70, "num_validation": 100, "width_mult": 0.1}
    monkeypatch.setitem(PROFILES, "smoke", dataclasses.replace(PROFILES["smoke"], **budget))


def test_without_a_measured_speed_a_few_steps_are_timed(monkeypatch):
    speeds: list[float] = []
    monkeypatch.setattr(plans, "timed_images_per_s", lambda recipe: speeds.append(8.0) or 8.0)
    rows = plan(SWEEP, "smoke").set_index("point")
    assert list(rows.index) == [point.name for point in SWEEP.points()]
    assert (rows["state"] == "to run").all()
    assert (rows["images"] == 64).all()  # two batches of 32
    assert (rows["minutes"] == 64 / 8 / 60).all()
    assert len(speeds) == 1  # once a plan
    plan(SWEEPS["expand_ratio"], "quick")
    assert len(speeds) == 1  # nothing is trained


def test_the_timed_speed_is_that_of_real_steps_without_the_first(monkeypatch):
    steps: list[int] = []  # images of each step; every step takes two seconds, the first one ten

    class Counted(plans.Step):
        def __call__(self, images, *args):
            steps.append(len(images))
            return super().__call__(images, *args)

    clock = SimpleNamespace(perf_counter=lambda: 8.0 + 2.0 * len(steps) if steps else 0.0)
    monkeypatch.setattr(plans, "Step", Counted)
    monkeypatch.setattr(plans, "time", clock)
    speed = timed_images_per_s(PROFILES["smoke"].apply(SWEEP.point("pointwise").recipe))
    assert len(steps) >= 2
    assert speed == sum(steps[1:]) / (2.0 * len(steps[1:]))


def test_after_a_first_point_the_rest_is_estimated_at_its_speed(monkeypatch):
    experiments.ensure(SWEEP, "smoke", point="none", progress=False)
    speed = images_per_s(PROFILES["smoke"])
    assert speed is not None
    monkeypatch.setattr(plans, "timed_images_per_s", None)  # not asked
    rows = plan(SWEEP, "smoke", point="[nf]*").set_index("point")
    assert rows["state"].to_dict() == {"none": "measured", "fc": "to run"}
    assert rows.at["fc", "minutes"] == pytest.approx(64 / speed / 60)
    assert plan(SWEEP, "smoke", 1, {"train.epochs": 3}, "none")["images"].item() == 3 * 64


def test_a_damaged_record_is_to_run_and_has_no_speed():
    experiments.ensure(SWEEP, "smoke", point="none", progress=False)
    (path,) = records.runs_root().rglob("*.json")
    path.write_text("{")
    assert plan(SWEEP, "smoke", point="none")["state"].item() == "to run"
    assert images_per_s(PROFILES["smoke"]) is None


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(plans, "timed_images_per_s", None)  # not asked for what cannot run
    rows = plan(SWEEPS["stages"], "full", point="3.0-vanilla")
    assert rows["state"].item() == "no file cifar-100-python/test"
    assert rows["images"].item() == 600 * (45_000 // 128) * 128
    assert plan(SWEEPS["spectra"], "quick")["state"].iloc[-1] == "not defined at quick"
    assert plan(SWEEPS["expand_ratio"], "quick")["images"].sum() == 0


def test_a_run_stays_under_the_room_that_the_plan_says(tmp_path):
    experiments.ensure(SWEEP, "smoke", point="none", progress=False)
    used = sum(p.stat().st_size for p in (tmp_path / "runs").rglob("*.pt")) / 1e6
    planned = plan(SWEEP, "smoke", point="none")["disk_mb"].item()
    assert not math.isnan(planned)
    assert planned > 0
    full = plan(SWEEPS["stages"], "full", point="3.0-cutmix")["disk_mb"].item()
    assert used < planned + 1  # headers weigh more than these few weights
    assert 10 < full < 32


def test_the_command_line_prints_a_plan_and_says_by_its_status_what_was_not_measured(
    capsys, monkeypatch
):
    words = ["measure", "srip_placement", "--point", "fc", "--profile", "smoke"]
    assert main([*words, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"][0]["images"] == 64
    assert not records.runs_root().exists()
    assert main([*words, "--plan"]) == 0
    assert "to run: 1 of 1 points, 0." in capsys.readouterr().out
    assert main([*words, "--override", "train.lr=1e30"]) == 1
    told = capsys.readouterr()
    assert "to run" in told.err
    assert "srip_placement/fc seed 0: the loss became" in told.err
    assert "not run" in told.out
    assert main(words) == 0
