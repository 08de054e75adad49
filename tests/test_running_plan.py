"""A plan says how much is trained, how long that takes at a measured speed, and the room it needs.

That it says what measuring then does is in `test_running_lineage`.
"""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_lab import chain, sweep_of, tiny_lab

from micronet_lib.__main__ import main
from micronet_lib.adjustable_quantization.network import Adjust
from micronet_lib.architecture.network import build
from micronet_lib.beyond.changes import Allocate, Quantize
from micronet_lib.beyond.gates import RemoveGates
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import ImageSet, normalize
from micronet_lib.lab.recipes.bases import ORN
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import plain_recipe
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running import networks
from micronet_lib.lab.running import plan as plans
from micronet_lib.lab.running.lineage import cases, jobs
from micronet_lib.lab.running.measure import ensure
from micronet_lib.lab.running.networks import fresh_network
from micronet_lib.lab.running.plan import images_seen, table_of
from micronet_lib.lab.running.requirements import require
from micronet_lib.lab.storage.networks import pack
from micronet_lib.lab.storage.states import save_own, save_state
from micronet_lib.lab.training.loop import Run, TrainingData
from micronet_lib.pruning.schedules import PruneTo

SWEEP = SWEEPS["srip_placement"]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "MEASURED", tmp_path / "measured")
    with tiny_lab(tmp_path) as lab:
        smoke = replace(PROFILES["smoke"], num_images=70)  # two batches of 32
        monkeypatch.setitem(PROFILES, "smoke", smoke)
        yield lab


@pytest.fixture
def timed(monkeypatch) -> list[Recipe]:
    """The recipes whose steps were timed; 8 images/s each."""
    recipes: list[Recipe] = []
    monkeypatch.setattr(plans, "timed_images_per_s", lambda r: recipes.append(r) or 8.0)
    return recipes


def plan(sweep, profile: str, seed: int = 0, overrides=None, point: str | None = None):
    return table_of(jobs(cases(sweep, PROFILES[profile], seed, overrides, point)), sweep)


def test_images_of_all_trainings_behind_a_network_are_added_up():
    assert images_seen(SWEEP, "none", "quick") == 4 * 1984  # 62 whole batches of 32
    assert images_seen(SWEEPS["pipeline"], "0.60", "quick") == 5 * 4 * 1984
    trained = images_seen(SWEEPS["stages"], "3.0-cutmix", "quick")
    assert images_seen(SWEEPS["exit_training"], "joint", "quick") > trained
    with pytest.raises(InputError, match=r"rounds/linear-1 starts from .*v2_pr_15"):
        images_seen(SWEEPS["rounds"], "linear-1", "day")


def test_without_a_measured_speed_a_few_steps_are_timed(lab, timed):
    rows = plan(SWEEP, "smoke").set_index("point")
    assert list(rows.index) == [point.name for point in SWEEP.points()]
    assert (rows["state"] == "to train").all()
    assert (rows["images"] == 64).all()
    assert (rows["minutes"] == 64 / 8 / 60).all()
    assert len(timed) == 1  # once a shape of network
    plan(SWEEPS["stages"], "smoke", point="[12].0-orn")
    assert [recipe.model for recipe in timed[1:]] == ["c_efficientnet_1.0", "c_efficientnet_2.0"]
    assert plan(SWEEPS["expand_ratio"], "quick")["images"].sum() == 0
    assert len(timed) == 3


def test_a_needed_network_is_planned_with_the_point(lab, timed):
    rows = plan(SWEEPS["pipeline"], "smoke", point="0.30")
    assert rows["point"].tolist() == ["dense", "0.15", "0.30"]
    assert rows["record"].tolist() == [False, False, True]
    assert rows["images"].tolist() == [64, 64, 64]
    assert "3 to do, 3 of them to train" in plans.in_all(rows)
    student = sweep_of(student=replace(ORN, start=SWEEPS["pipeline"].point("0.15").recipe))
    assert plan(student, "smoke")["point"].tolist() == [
        *("pipeline/dense", "pipeline/0.15", "student")
    ]


def test_after_a_first_point_the_rest_is_estimated_at_its_speed(lab, timed):
    rows = ensure(SWEEP, "smoke", point="none", progress=False)
    speed = rows["train_images_per_s"].item()
    ahead = plan(SWEEP, "smoke", point="[nf]*").set_index("point")
    assert ahead["state"].to_dict() == {"none": "measured", "fc": "to train"}
    assert ahead.at["fc", "minutes"] == pytest.approx(64 / speed / 60)
    assert plan(SWEEP, "smoke", 1, {"train.epochs": 3}, "none")["images"].item() == 3 * 64
    assert not timed
    plan(SWEEPS["stages"], "smoke", point="1.0-orn")  # another network has another speed
    assert len(timed) == 1


def test_a_run_that_was_begun_resumes_and_has_the_rest_left(lab, timed):
    more = {"train.epochs": 4}
    whole = plan(SWEEP, "smoke", 0, more, "none")
    (case,) = cases(SWEEP, PROFILES["smoke"], 0, more, "none")
    save_state(case.folder, case.id, {"epoch": 3})
    begun = plan(SWEEP, "smoke", 0, more, "none")
    assert begun[["epochs", "done"]].iloc[0].tolist() == [4, 3]
    assert 4 * begun["images"].item() == whole["images"].item() == 4 * 64
    assert 4 * begun["minutes"].item() == pytest.approx(whole["minutes"].item())
    assert "resumes at epoch 4 of 4" in plans.as_text(begun)
    assert "to train" in plans.as_text(whole).splitlines()[1]
    # A state of another run is none of this one.
    save_state(case.folder, "another", {"epoch": 1})
    (case.folder / "state.previous.pt").unlink()
    assert plan(SWEEP, "smoke", 0, more, "none")["done"].item() == 0


def test_a_plan_says_its_times_as_people_do(lab, monkeypatch):
    monkeypatch.setattr(plans, "timed_images_per_s", lambda recipe: 64 / 10_834)
    shown = plans.as_text(plan(SWEEPS["pipeline"], "smoke", point="0.15"))
    assert shown.count("3 h 1 min") == 2
    assert shown.splitlines()[-1].startswith("2 to do, 2 of them to train: 6 h 1 min, ")
    assert "network only" in shown
    nothing = plans.as_text(plan(SWEEPS["spectra"], "quick"))
    assert nothing.splitlines()[-1] == "0 to do, 0 of them to train"


def test_the_timed_speed_is_that_of_real_steps(lab, monkeypatch):
    """By a clock of its own: a step of 32 images that takes 4 seconds is 8 images/s."""
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(plans.time, "perf_counter", lambda: 3.0 * next(clock))
    (case,) = cases(SWEEP, PROFILES["smoke"], point="pointwise")
    assert plans.timed_images_per_s(case.recipe) == plans.TIMED_STEPS * 32 / 12


@pytest.mark.parametrize("point", ["dense", "half"])
def test_any_network_can_be_timed(lab, point):
    (case,) = cases(chain(ORN), PROFILES["smoke"], point=point)
    assert plans.timed_images_per_s(case.recipe) > 0


@pytest.mark.parametrize("change", [Allocate(), Adjust(target=1e-4)])
def test_a_rounded_network_is_timed_as_one(lab, monkeypatch, change):
    """With its hooks. Allocation takes minutes, so one width stands for all of its widths."""
    wide = replace(ORN, model="micronet_v1", width_mult=2.5)  # narrower ones keep no first block
    start = Recipe(start=wide, changes=(PruneTo(0.4),))
    train = replace(ORN.train, initialization="default")
    rounded = Recipe(start=start, changes=(change,), train=train)
    stepped = []
    real = plans.Step

    def watched(network, recipe, generator, hooks, teacher):
        stepped.append((type(network).__name__, {type(hook).__name__ for hook in hooks}))
        return real(network, recipe, generator, hooks, teacher)

    monkeypatch.setattr(plans, "Step", watched)
    assert (plan(sweep_of("toy", rounded=rounded), "smoke")["minutes"] > 0).all()
    integers = "AdjustableMicroNet" if isinstance(change, Adjust) else "IntegerMicroNet"
    assert [kind for kind, _ in stepped] == ["MicroNet", integers]  # the start is trained too
    assert ("Steer" in stepped[1][1]) == isinstance(change, Adjust)


def test_a_measured_speed_is_that_of_the_same_changes(lab, timed):
    start = replace(ORN, model="micronet_v1")
    floats = Recipe(start=start, train=ORN.train)
    pruned, rounded = (replace(floats, changes=(c,)) for c in (PruneTo(0.4), Quantize()))
    shapes = [plans._shape(plain_recipe(recipe)) for recipe in (floats, pruned, rounded)]
    assert shapes[0] == shapes[1] != shapes[2]


def test_what_is_missing_is_said_and_not_timed(lab, timed):
    rows = plan(SWEEPS["stages"], "full", point="3.0-vanilla")
    assert rows["state"].item() == "no file cifar-100-python/test"
    assert rows["images"].item() == 0
    assert plan(SWEEPS["spectra"], "quick")["state"].iloc[-1] == "not defined at quick"
    assert not timed


def test_images_of_the_papers_schedule(lab):
    (case,) = cases(SWEEPS["stages"], PROFILES["full"], point="3.0-vanilla")
    assert plans.num_images(case.recipe, case.profile) == 600 * (45_000 // 128) * 128
    everything = replace(case.recipe, train=replace(case.recipe.train, hold_out=False))
    assert plans.num_images(everything, case.profile) == 600 * (50_000 // 128) * 128
    fewer = replace(case.recipe, train=replace(case.recipe.train, num_classes=80))
    assert plans.num_images(fewer, case.profile) == 600 * (36_000 // 128) * 128


def test_a_run_stays_under_the_room_that_the_plan_says(lab, timed):
    planned = plan(SWEEP, "smoke", point="none")["disk_mb"].item()
    assert planned > 0
    ensure(SWEEP, "smoke", point="none", progress=False)
    used = sum(p.stat().st_size for p in lab.runs.rglob("*.pt")) / 1e6
    assert used < planned + 1  # headers weigh more than these few weights


# ------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("sweep", "profile", "words"),
    [
        ("published", "quick", ["published", "quick", "choose from full"]),
        ("published", "full", ["micronet_v1_pr_60.t7", "data fetch kaist"]),
        ("stages", "quick", ["cifar-100-python", "data fetch cifar100"]),
    ],
)
def test_what_cannot_run_is_refused_with_a_remedy(lab, sweep, profile, words):
    with pytest.raises(InputError) as caught:
        require(jobs(cases(SWEEPS[sweep], PROFILES[profile])))
    assert [word for word in words if word not in str(caught.value)] == []


def test_missing_policies_are_fetched_and_ours_are_in_the_repository(lab):
    for name in ("test", "train"):
        path = lab.data / "cifar-100-python" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    ahead = jobs(cases(SWEEPS["stages"], PROFILES["quick"], point="3.0-cutmix"))
    with pytest.raises(InputError, match="data fetch policies"):
        require(ahead)
    require(jobs(cases(SWEEPS["augmentation"], PROFILES["quick"], point="searched")))


def test_a_sweep_of_which_one_point_can_run_is_not_refused(lab):
    path = lab.data / "kaist" / "micronet_v1_pr_60.t7"
    path.parent.mkdir(parents=True)
    path.touch()
    require(jobs(cases(SWEEPS["spectra"], PROFILES["full"])))
    require(jobs(cases(SWEEP, PROFILES["smoke"])))


@pytest.mark.parametrize(
    ("optimizer", "ema_decay", "changes"),
    [("sgd", 0.0, ()), ("sgd", 0.5, ()), ("adam", 0.0, (RemoveGates(8),))],
)
def test_a_state_is_as_large_as_planned(tmp_path, optimizer, ema_decay, changes):
    settings = {"epochs": 1, "batch_size": 8, "optimizer": optimizer, "ema_decay": ema_decay}
    recipe = replace(ORN, model="table1_2.0", changes=changes)
    recipe = replace(recipe, train=replace(recipe.train, **settings))
    pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(8))
    network = fresh_network(recipe, 0)
    for change in changes:
        network = change.apply(network, normalize(pixels))
    data = TrainingData(images, images)
    run = Run(network, recipe, data, 0, planned=networks._planned(network, recipe))
    run.run_epoch()
    save_state(tmp_path, "key", run.state_dict())
    size = (tmp_path / "state.pt").stat().st_size / 1e6
    assert size == pytest.approx(plans.sizes_mb(recipe)[1] / 2, rel=0.1)


def test_a_disk_that_is_too_small_for_the_plan_is_told_before_anything_runs(lab, monkeypatch):
    ahead = jobs(cases(SWEEP, PROFILES["smoke"]))
    sizes = [plans.sizes_mb(job.case.recipe) for job in ahead]
    kept, meanwhile = map(list, zip(*sizes, strict=True))
    needed = plans.room_mb(sizes)
    assert needed == pytest.approx(sum(kept) + max(meanwhile))
    for share in (1.01, 0.99):
        free = SimpleNamespace(free=share * needed * 1e6)
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: free)
        if share > 1:
            require(ahead)
    with pytest.raises(
        InputError, match=r"^cannot write \d+\.\d MB of .*No space left.* make room"
    ):
        require(ahead)
    assert lab.trained == []


def test_the_command_line_prints_a_plan_and_tells_by_its_status_what_was_not_measured(lab, capsys):
    words = ["measure", "srip_placement", "--point", "fc", "--profile", "smoke"]
    assert main([*words, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"][0]["images"] == 64
    assert not lab.runs.exists()
    assert main([*words, "--plan"]) == 0
    assert re.search("1 to do, 1 of them to train", capsys.readouterr().out)
    assert main([*words, "--override", "train.lr=1e30"]) == 1
    shown = capsys.readouterr()
    assert "to train" in shown.err
    assert "srip_placement/fc seed 0: the loss became" in shown.err
    assert "fc: diverged (epoch 1, 1 of 1 seed)" in shown.out
    assert main([*words, "--override", "train.lr=1e30"]) == 0  # it is done
    assert "diverged" in capsys.readouterr().out
    assert main([*words, "--override", "train.lr=1e30", "--plan"]) == 0
    assert "its training diverged in epoch 1" in capsys.readouterr().out
    assert main(words) == 0


def test_a_start_that_was_trained_needs_its_file_no_more(lab):
    """Measuring works without it, so the plan does too, without a time."""
    start = replace(ORN, checkpoint="gone")
    sweep = sweep_of(student=replace(ORN, start=start))
    (case,) = cases(sweep, PROFILES["smoke"])
    network = build("c_efficientnet_1.0", width_mult=0.1)
    save_own(case.needs[0].network_path, case.needs[0].id, pack(network))
    ahead = plan(sweep, "smoke")
    assert ahead["state"].tolist() == ["to train"]
    assert ahead["minutes"].isna().all()
    assert "1 of them to train: 0 s and 1 of unknown time" in plans.in_all(ahead)
    assert " unknown " in plans.as_text(ahead)
