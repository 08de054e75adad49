"""Measuring: what a record holds, and that nothing is measured twice or without its files."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from published_format import pruned_network, published_state, save
from small_networks import PLAIN_RULES, TORCHVISION
from tiny_lab import chain, sweep_of, tiny_lab

from micronet_lib.architecture import build
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.host import machine
from micronet_lib.lab.host.files import only_one
from micronet_lib.lab.recipes.bases import ORN
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import plain_recipe, recipe_id
from micronet_lib.lab.recipes.profile import PROFILES, Profile
from micronet_lib.lab.recipes.recipe import Price, Recipe
from micronet_lib.lab.running import measure as running
from micronet_lib.lab.running.lineage import Case, cases, jobs
from micronet_lib.lab.running.measure import ensure, lock_of, measure, run_curves, trained
from micronet_lib.lab.running.measures import MEASURES
from micronet_lib.lab.storage.states import save_own
from micronet_lib.lab.training import loop as training
from micronet_lib.scoring.bill import SCORE_METRICS, score_network
from micronet_lib.scoring.rules import rules_of

SWEEP, PLACEMENT, STAGES = (SWEEPS[n] for n in ("expand_ratio", "srip_placement", "stages"))
NAMES = [point.name for point in SWEEP.points()]


@pytest.fixture
def lab(tmp_path):
    with tiny_lab(tmp_path) as lab:
        yield lab


@pytest.fixture
def pruned(lab):
    """A network, and its file of the published format where the recipe `ours` looks for it."""
    network = pruned_network("c_efficientnet_1.0_released")
    path = lab.data / "kaist" / "ours.t7"
    path.parent.mkdir(parents=True)
    save(published_state(network), path, as_zip=False)
    return network


def record_of(recipe: Recipe, measures=("accuracy",), profile="smoke", seed=0) -> records.Record:
    sweep = dataclasses.replace(sweep_of(point=recipe), measures=measures)
    return measure(Case(sweep, "point", recipe, PROFILES[profile], seed), progress=False)


# ------------------------------------------------------------------------------------- one record


def test_record_of_a_fresh_network():
    recipe = Recipe(model="c_efficientnet_1.0")
    found = record_of(recipe, seed=4)
    assert (found.sweep, found.point, found.profile, found.seed) == ("toy", "point", "smoke", 4)
    assert found.recipe_id == recipe_id(recipe)
    assert found.recipe == plain_recipe(recipe)
    assert (found.dataset, found.layers, found.curve, found.arrays) == ("none", [], {}, {})
    network = build(recipe.model)
    expected = {
        f"{rules}.{name}": score_network(network, rules).metrics()[name]
        for rules in PLAIN_RULES
        for name in SCORE_METRICS
    }
    assert found.metrics == expected
    assert {"device", "torch", "cuda", "python", "commit", "date", "wall_s"} <= set(found.env)
    assert record_of(recipe, seed=4).metrics == found.metrics


def test_record_of_a_published_network(pruned):
    found = record_of(Recipe(checkpoint="ours"), ("accuracy", "bill", "sparsity"))
    assert found.dataset == "embedded"
    assert found.metrics["top1"] == found.metrics["correct"] / 100
    assert found.metrics["published.score"] == score_network(pruned).score
    stored = sum(line["count"] for line in found.layers if line["quantity"] == "param")
    assert stored == found.metrics["published.num_params"]
    assert 0.5 < found.metrics["sparsity"] < 0.7


def test_a_price_is_charged_and_quantises_nothing(pruned):
    recipe = Recipe(checkpoint="ours", price=Price(4, 8, "integer"))
    found = record_of(recipe, ())
    assert found.dataset == "none"
    assert "correct" not in found.metrics
    expected = score_network(pruned, rules_of("official", 4, 8, "integer")).score
    assert found.metrics["official.score"] == expected
    assert found.metrics["published.score"] == score_network(pruned).score


def test_a_record_holds_what_its_sweep_names(pruned):
    found = record_of(Recipe(checkpoint="ours"), ("class_similarity", "spectrum"))
    assert set(found.arrays) == {"class_similarity", "spectrum"}
    assert "top1" not in found.metrics
    assert all(set(sweep.measures) <= set(MEASURES) for sweep in SWEEPS.values())


def test_a_profile_of_ones_own_will_do():
    own = Profile("own", "embedded", "a test")
    recipe = SWEEP.point("1.0").recipe
    assert measure(Case(SWEEP, "1.0", recipe, own, 0)).path == Path("own/expand_ratio/1.0-s0.json")


def test_record_of_a_trained_network(lab):
    rows = ensure(PLACEMENT, "smoke", seed=3, point="pointwise", progress=False)
    found = records.read(lab.runs / "smoke" / "srip_placement" / "pointwise-s3.json")
    (case,) = cases(PLACEMENT, PROFILES["smoke"], 3, point="pointwise")
    assert f"{found.recipe_id}-s3" == case.id == case.folder.name
    assert found.dataset == "embedded"
    assert rows["top1"].item() == found.metrics["top1"] == found.metrics["correct"] / 100
    assert set(PLACEMENT.metrics) <= set(found.metrics)
    assert len(found.curve["train_loss"]) == 1
    assert found.notes == []
    curves = run_curves(PLACEMENT, "smoke", seed=3, point="pointwise")
    assert curves.loc[0, ["point", "seed", "epoch"]].tolist() == ["pointwise", 3, 1]


def test_a_network_of_another_library_is_measured_like_any_other(lab):
    """At a profile that narrows MicroNets, and under the rules that price its operations."""
    recipe = dataclasses.replace(ORN, model=TORCHVISION[0])
    rows = ensure(sweep_of(other=recipe), "smoke", progress=False)
    assert rows["n"].item() == 1
    assert rows["official.score"].item() > 0
    assert "published.score" not in rows


# ------------------------------------------------------------------------------------ ensure


def test_ensure_measures_what_is_missing_and_only_that(lab):
    rows = ensure(SWEEP, "smoke")
    assert lab.recorded == [f"expand_ratio/{name}" for name in NAMES]
    assert list(rows["n"]) == [1] * len(NAMES)
    assert set(rows["source"]) == {"this run"}

    assert ensure(SWEEP, "smoke").equals(rows)
    (lab.runs / records.record_path("expand_ratio", "2.0", "smoke", 0)).unlink()
    ensure(SWEEP, "smoke")
    assert lab.recorded[len(NAMES) :] == ["expand_ratio/2.0"]


def test_another_seed_another_profile_and_another_recipe_are_other_runs(lab):
    ensure(SWEEP, "smoke", point="1.0")
    ensure(SWEEP, "smoke", seed=1, point="1.0")
    ensure(SWEEP, "quick", point="1.0")
    overrides = {"model": "micronet_v2"}
    ensure(SWEEP, "smoke", overrides=overrides, point="1.0")
    ensure(SWEEP, "smoke", overrides=overrides, point="1.0")
    ensure(SWEEP, "smoke", point="1.0")  # the other recipe took nothing from it
    assert len(lab.recorded) == 4
    (case,) = cases(SWEEP, PROFILES["smoke"], 0, overrides, "1.0")
    assert case.record_path.name == f"1.0+{recipe_id(case.recipe)}-s0.json"
    found = records.read(case.record_path)
    assert (found.recipe["model"], found.overrides) == ("micronet_v2", overrides)
    (read,) = records.read_sweep(SWEEP, "smoke", lab.runs)  # nothing is trained: a seed is a copy
    assert (read.overrides, read.seed) == ({}, 0)


def test_the_curves_are_those_of_the_recipe_that_was_run(lab):
    for overrides, epochs in ({}, [1]), ({"train.epochs": 2}, [1, 2]):
        ensure(PLACEMENT, "smoke", overrides=overrides, point="none")
        found = run_curves(PLACEMENT, "smoke", overrides=overrides, point="none")
        assert list(found["epoch"]) == epochs
    assert list(run_curves(PLACEMENT, "smoke", point="none")["epoch"]) == [1]
    assert run_curves(PLACEMENT, "smoke", seed=1, point="none").empty


def test_a_record_names_all_code_that_had_a_part_in_it(lab, monkeypatch):
    """What trained a network, what trained the one it starts from, and what rated it."""
    sweep = chain(ORN)
    for commit, do in (
        ("1111111", lambda: trained(sweep, "half", "smoke")),
        ("2222222", lambda: trained(sweep, "more", "smoke")),
        ("3333333+", lambda: ensure(sweep, "smoke", point="more")),
    ):
        for module in (running, training, machine):
            monkeypatch.setattr(module, "COMMIT", commit)
        do()
    (found,) = records.read_sweep(sweep, "smoke", lab.runs)
    assert found.env["commit"] == "2222222"
    assert found.env["commits"] == ["2222222", "1111111", "3333333+"]


def test_a_pattern_chooses_points(lab):
    rows = ensure(SWEEP, "smoke", point="3.*")
    assert list(rows["point"]) == ["3.0", "3.5"]
    assert list(rows.index) == [0, 1]
    assert sorted(path.name for path in lab.runs.rglob("*.json")) == ["3.0-s0.json", "3.5-s0.json"]


def test_overrides_come_after_the_profile(lab):
    rows = ensure(PLACEMENT, "smoke", point="none", overrides={"train.epochs": 2}, progress=False)
    assert rows["n"].tolist() == [1]
    (path,) = lab.runs.glob("smoke/srip_placement/*.json")
    assert records.read(path).recipe["train"]["epochs"] == 2


def test_points_without_their_files_stay_not_run(lab, pruned):
    sweep = sweep_of(ours=Recipe(checkpoint="ours"), theirs=Recipe(checkpoint="theirs"))
    assert (ensure(sweep, "full", progress=False)["n"] == 0).all()  # the images are missing too
    assert not lab.runs.exists()
    images = lab.data / "cifar-100-python" / "test"
    images.parent.mkdir()
    images.touch()
    rows = ensure(sweep, "full", progress=False).set_index("point")
    assert rows["n"].to_dict() == {"ours": 1, "theirs": 0}


def test_a_sweep_outside_the_profile_produces_nothing(lab):
    for name in ("published", "free_savings", "bit_widths"):
        rows = ensure(SWEEPS[name], "smoke")
        assert len(rows) == len(SWEEPS[name].points())
        assert (rows["n"] == 0).all()
    assert not lab.runs.exists()


@pytest.mark.parametrize(
    "words",
    [
        {"profile": "huge"},
        {"profile": "smoke", "point": "9"},
        {"profile": "smoke", "overrides": {"lr": 1}},
    ],
    ids=lambda words: list(words)[-1],
)
def test_unknown_names_are_refused_before_anything_runs(lab, words):
    with pytest.raises(InputError, match="unknown"):
        ensure(SWEEP, **words)
    assert not lab.runs.exists()


# ------------------------------------------------------------------------------ what can go wrong


def test_a_fault_in_the_middle_keeps_what_was_finished(lab, monkeypatch):
    whole = running.measure

    def fail_third(case, progress=True):
        if case.point == NAMES[2]:
            raise InputError("a damaged file")
        return whole(case, progress)

    with monkeypatch.context() as patch:
        patch.setattr(running, "measure", fail_third)
        with pytest.raises(InputError, match="a damaged file"):
            ensure(SWEEP, "smoke")
    found = {path.name for path in lab.runs.rglob("*") if path.is_file()}
    assert found - {"lock"} == {f"{name}-s0.json" for name in NAMES[:2]}
    assert (ensure(SWEEP, "smoke")["n"] == 1).all()


def test_a_damaged_record_is_set_aside_and_its_network_rated_again(lab, capsys):
    ensure(PLACEMENT, "smoke", point="fc", progress=False)
    path = lab.runs / "smoke" / "srip_placement" / "fc-s0.json"
    before = records.read(path)
    half = path.read_bytes()[:100]
    path.write_bytes(half)
    ensure(PLACEMENT, "smoke", point="fc", progress=False)
    after = records.read(path)
    assert (after.metrics, after.curve) == (before.metrics, before.curve)
    assert lab.trained == ["srip_placement/fc"]
    assert path.with_name("fc-s0.json.damaged").read_bytes() == half
    assert str(path) in capsys.readouterr().err


def test_a_counted_point_that_another_process_measures_is_left_to_it(lab, capsys):
    """Only of that sweep: another one may count the same network meanwhile."""
    first, second = jobs(cases(SWEEP, PROFILES["smoke"]))[:2]
    with only_one(lock_of(first), "test"):
        table = ensure(SWEEP, "smoke", progress=False).set_index("point")["n"]
    assert table[[first.case.point, second.case.point]].tolist() == [0, 1]
    assert "is running in another process: skipped" in capsys.readouterr().err
    assert (ensure(SWEEP, "smoke", progress=False)["n"] == 1).all()


def test_a_point_that_another_process_works_on_is_left_to_it(lab, capsys):
    (case,) = cases(PLACEMENT, PROFILES["smoke"], point="fc")
    with only_one(case.folder / "lock", "test"):
        rows = ensure(PLACEMENT, "smoke", point="[fn]*", progress=False).set_index("point")
    assert rows["n"].to_dict() == {"none": 1, "fc": 0}
    assert "srip_placement/fc seed 0" in capsys.readouterr().err


def test_a_training_that_diverged_meanwhile_is_not_tried_again(lab, capsys):
    """Two processes made their lists before the first of them trained."""
    asked = cases(PLACEMENT, PROFILES["smoke"], 0, {"train.lr": 1e30}, "fc")
    first, second = jobs(asked), jobs(asked)
    for ahead in (first, second):
        assert running.perform_all(ahead, progress=False) == ["srip_placement/fc seed 0"]
    assert lab.trained == ["srip_placement/fc"]
    assert "its training diverged in epoch 1 in another process" in capsys.readouterr().err
    running.perform_all(jobs(asked, retrain=True), progress=False)
    assert lab.trained == ["srip_placement/fc"] * 2


def test_a_file_that_went_away_meanwhile_costs_no_training_state(lab, pruned):
    sweep = sweep_of(tuned=dataclasses.replace(ORN, checkpoint="ours"))
    ahead = jobs(cases(sweep, PROFILES["smoke"]))
    (case,) = (job.case for job in ahead)
    case.folder.mkdir(parents=True)
    state = case.folder / "state.pt"
    state.write_bytes(b"begun")
    (lab.data / "kaist" / "ours.t7").unlink()
    with pytest.raises(InputError, match=r"toy/tuned seed 0: no file .*ours\.t7"):
        running.perform_all(ahead, progress=False)
    assert state.read_bytes() == b"begun"


def test_a_network_whose_rating_is_busy_is_there_for_others(lab, capsys):
    sweep = chain(ORN)
    trained(sweep, "dense", "smoke", progress=False)
    (dense,) = cases(sweep, PROFILES["smoke"], point="dense")
    with only_one(dense.folder / "lock", "test"):
        rows = ensure(sweep, "smoke", point="[dh]*", progress=False).set_index("point")["n"]
    assert rows.to_dict() == {"dense": 0, "half": 1}
    assert "a network that it needs was not trained" not in capsys.readouterr().err


def test_a_network_that_diverges_leaves_those_that_need_it_and_no_others(lab, capsys, monkeypatch):
    monkeypatch.setattr(training, "_finite", lambda _: name_of_run != "chain/half")
    whole, name_of_run = running.train_network, ""

    def train(recipe, profile, seed, name, progress):
        nonlocal name_of_run
        name_of_run = name
        whole(recipe, profile, seed, name, progress)

    monkeypatch.setattr(running, "train_network", train)
    rows = ensure(chain(ORN), "smoke", progress=False).set_index("point")
    assert rows["n"].to_dict() == {"dense": 1, "half": 0, "more": 0}
    assert rows["failed"].to_dict() == {"dense": 0, "half": 1, "more": 0}
    assert rows.attrs["diverged"] == {"half": "diverged (epoch 1, 1 of 1 seed)"}
    first, second = capsys.readouterr().err.splitlines()
    assert "chain/half seed 0: weights became NaN or infinite" in first
    assert "its record says that it failed; try a lower train.lr" in first
    assert "chain/more seed 0" in second

    # It is done: nothing is trained again, and what needs it is skipped with one line.
    monkeypatch.undo()
    again = ensure(chain(ORN), "smoke", progress=False).set_index("point")
    assert again["n"].to_dict() == rows["n"].to_dict()
    (line,) = capsys.readouterr().err.splitlines()
    assert "chain/more seed 0 is skipped: chain/half, which it needs" in line
    assert "diverged in epoch 1" in line
    with pytest.raises(InputError, match=r"chain/half seed 0 has no network: .*epoch 1"):
        trained(chain(ORN), "more", "smoke", progress=False)
    with pytest.raises(InputError, match=r"chain/half seed 0 has no network: its training"):
        trained(chain(ORN), "half", "smoke", progress=False)
    retried = ensure(chain(ORN), "smoke", progress=False, retrain=True)
    assert (retried["n"] == 1).all()
    assert retried.attrs["diverged"] == {}


def diverge(sweep=PLACEMENT, point: str = "fc", **changes) -> None:
    ensure(sweep, "smoke", point=point, overrides={"train.lr": 1e30}, progress=False, **changes)


def test_a_loss_that_is_no_number_is_recorded_with_what_when_and_why(lab, capsys):
    rows = ensure(PLACEMENT, "smoke", overrides={"train.lr": 1e30}, progress=False)
    assert (rows["n"] == 0).all()
    assert (rows["failed"] == 1).all()
    assert capsys.readouterr().err.count("its record says that it failed; try a lower") == 5
    found = [records.read(path) for path in lab.runs.rglob("*.json")]
    assert len(found) == 5
    for record in found:
        assert record.failed["what"] in ("loss", "logits")
        assert record.failed["epoch"] == 1
        assert "in epoch 1" in record.failed["message"]
        assert record.metrics == {}
        assert record.recipe["train"]["lr"] == 1e30
        assert record.env["wall_s"] >= 0
        assert record.curve
        assert not any(record.curve.values())  # it ends before the epoch that failed
    assert not list(lab.runs.rglob("state*.pt"))


def test_the_epochs_before_it_diverged_are_in_its_record(lab, monkeypatch):
    monkeypatch.setattr(training, "_finite", lambda _: next(answers))
    answers = iter([True, False])
    ensure(PLACEMENT, "smoke", point="fc", overrides={"train.epochs": 3}, progress=False)
    record = records.read(next(lab.runs.rglob("fc+*.json")))
    assert (record.failed["what"], record.failed["epoch"]) == ("weights", 2)
    assert {len(values) for values in record.curve.values()} == {1}


def test_a_failed_run_is_tried_again_only_if_asked(lab):
    diverge()
    diverge()
    assert lab.trained == ["srip_placement/fc"]
    diverge(retrain=True)
    next(lab.runs.rglob("fc+*.json")).unlink()
    diverge()
    assert lab.trained == ["srip_placement/fc"] * 3


def test_a_network_that_was_trained_after_all_is_rated(lab):
    """As by `--retrain` of a point that starts from it, which asks for the network alone."""
    diverge()
    (case,) = cases(PLACEMENT, PROFILES["smoke"], point="fc")
    path = case.record_path
    failed = records.read(next(lab.runs.rglob("fc+*.json")))
    records.write(
        dataclasses.replace(failed, recipe_id=recipe_id(case.recipe), overrides={}), lab.runs
    )
    assert [job.does for job in jobs([case])] == ["nothing"]
    running.perform_all(jobs([case], recorded=False, retrain=True), progress=False)
    assert records.read(path).failed
    rows = ensure(PLACEMENT, "smoke", point="fc", progress=False)
    assert (rows["n"].item(), rows["failed"].item()) == (1, 0)


def test_the_same_training_under_another_name_has_failed_too(lab):
    twin = sweep_of(other=PLACEMENT.point("fc").recipe)
    diverge()
    overrides = {"train.lr": 1e30}
    rows = ensure(twin, "smoke", overrides=overrides, progress=False)
    assert (rows["n"].item(), rows["failed"].item()) == (0, 1)
    assert rows.attrs["diverged"] == {"other": "diverged (epoch 1, 1 of 1 seed)"}
    assert lab.trained == ["srip_placement/fc"]


def test_a_network_that_was_only_looked_at_replaces_no_record_when_it_diverges(lab):
    ensure(PLACEMENT, "smoke", point="fc", progress=False)
    path = lab.runs / "smoke" / "srip_placement" / "fc-s0.json"
    measured = path.read_bytes()
    with pytest.raises(InputError):
        trained(PLACEMENT, "fc", "smoke", overrides={"train.lr": 1e30}, progress=False)
    assert path.read_bytes() == measured
    with pytest.raises(InputError, match="has no network: its training diverged in epoch 1"):
        trained(PLACEMENT, "none", "smoke", overrides={"train.lr": 1e30}, progress=False)
    assert records.read(next(lab.runs.rglob("none+*.json"))).failed["epoch"] == 1


def test_a_network_that_cannot_be_rated_fails_its_own_point_alone(lab, capsys, pruned):
    with torch.no_grad():
        pruned.stem.bn.running_var.fill_(-1)
    save(published_state(pruned), lab.data / "kaist" / "huge.t7", as_zip=False)
    sweep = sweep_of(huge=Recipe(checkpoint="huge"), ours=Recipe(checkpoint="ours"))
    rows = ensure(sweep, "smoke", progress=False)
    assert rows["n"].tolist() == [0, 1]
    assert "toy/huge seed 0" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- trained


def test_a_point_that_trains_nothing_leaves_no_network(lab):
    with pytest.raises(InputError, match="trains nothing"):
        trained(SWEEP, "1.0", "smoke", progress=False)


def test_a_network_that_cannot_be_trained_here_says_why(lab):
    with pytest.raises(InputError, match="cifar-100-python"):
        trained(STAGES, "3.0-orn", "quick", progress=False)


def test_looking_at_a_network_deletes_no_record(lab):
    """Its record may have come from another machine, after 600 epochs."""
    ensure(PLACEMENT, "smoke", point="fc", progress=False)
    (case,) = cases(PLACEMENT, PROFILES["smoke"], point="fc")
    record = case.record_path.read_bytes()
    case.network_path.unlink()
    with pytest.raises(InputError, match="--retrain"):
        trained(PLACEMENT, "fc", "smoke", progress=False)
    assert case.record_path.read_bytes() == record
    assert lab.trained == ["srip_placement/fc"]


def test_a_trained_network_is_that_of_its_record(lab):
    network = trained(PLACEMENT, "fc", "smoke", progress=False)
    rows = ensure(PLACEMENT, "smoke", point="fc", progress=False)
    assert rows["published.score"].item() == score_network(network).score
    again = trained(PLACEMENT, "fc", "smoke", progress=False)
    ours, theirs = network.state_dict(), again.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert lab.trained == lab.recorded == ["srip_placement/fc"]


def test_a_file_that_is_gone_before_a_job_costs_no_training_state(lab):
    (job,) = jobs(cases(PLACEMENT, PROFILES["smoke"], point="fc"))
    gone = dataclasses.replace(job.case.recipe, checkpoint="gone")
    job = dataclasses.replace(job, case=dataclasses.replace(job.case, recipe=gone))
    state = job.case.folder / "state.pt"
    save_own(state, job.case.id, {"of": "an epoch"})
    before = state.read_bytes()
    with pytest.raises(InputError, match=r"gone\.t7"):
        running.perform(job, progress=False)
    assert state.read_bytes() == before


def test_a_network_that_is_trained_again_gets_a_new_record(lab):
    ensure(PLACEMENT, "smoke", point="fc", progress=False)
    (case,) = cases(PLACEMENT, PROFILES["smoke"], point="fc")
    text = case.record_path.read_text()
    case.record_path.write_text(text.replace('"seed": 0', '"seed": 0, "notes": ["old"]', 1))
    case.network_path.unlink()
    ensure(PLACEMENT, "smoke", point="fc", progress=False, retrain=True)
    assert lab.trained == ["srip_placement/fc"] * 2
    assert records.read(case.record_path).notes == []


def test_a_bill_that_has_no_price_leaves_the_rest_of_the_record(lab):
    recipe = dataclasses.replace(ORN, model=TORCHVISION[1])
    sweep = dataclasses.replace(sweep_of(other=recipe), measures=("accuracy", "bill"))
    assert ensure(sweep, "smoke", progress=False)["n"].item() == 1


# --------------------------------------------------------------------------------- the way there


def test_a_long_run_says_where_it_is(lab, monkeypatch, capsys, tmp_path):
    """A committed run of the same recipe took 10 834 s; before it, nobody knows."""
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setattr(running, "MEASURED", tmp_path / "measured")
    ensure(PLACEMENT, "smoke", point="none")
    shown = capsys.readouterr().err.replace("\r", "\n")
    assert "micronet: 02_srip · srip_placement 1/1 · none\n" in shown

    made = records.read(lab.runs / "smoke" / "srip_placement" / "none-s0.json")
    for seed, wall_s in ((0, 10_000), (1, 11_668)):
        env = made.env | {"wall_s": wall_s}
        records.write(dataclasses.replace(made, seed=seed, env=env), tmp_path / "measured")
    ensure(PLACEMENT, "smoke", seed=5, point="[np]o*")
    shown = capsys.readouterr().err.replace("\r", "\n")
    assert "micronet: 02_srip · srip_placement 1/2 · none\n" in shown  # the other one is unknown
    assert "micronet: 02_srip · srip_placement 2/2 · pointwise · " in shown
    ensure(PLACEMENT, "smoke", seed=6, point="none")
    assert "srip_placement 1/1 · none · 3 h 1 min left\n" in capsys.readouterr().err


def test_progress_is_hidden_where_bars_are_and_where_it_takes_a_moment(lab, monkeypatch, capsys):
    ensure(PLACEMENT, "smoke", point="none")  # TQDM_DISABLE=1, as everywhere in the tests
    monkeypatch.setenv("TQDM_DISABLE", "0")
    ensure(PLACEMENT, "smoke", seed=1, point="none", progress=False)
    ensure(SWEEP, "smoke")
    assert "micronet: " not in capsys.readouterr().err


def test_expected_times_are_those_of_such_a_device(monkeypatch, tmp_path):
    """A GPU's time says nothing about a core's."""
    (case,) = cases(SWEEPS["rounds"], PROFILES["day"], point="linear-1")
    committed = running.MEASURED / "day" / "rounds" / "linear-1-s0.json"
    content = json.loads(committed.read_text())
    folder = tmp_path / "day" / "rounds"
    folder.mkdir(parents=True)
    for seed, (wall_s, cuda) in enumerate([(100.0, None), (300.0, None), (7.0, "13.0")]):
        content["seed"], content["env"] = seed, {**content["env"], "wall_s": wall_s, "cuda": cuda}
        (folder / f"linear-1-s{seed}.json").write_text(json.dumps(content))
    monkeypatch.setattr(running, "MEASURED", tmp_path)
    job = SimpleNamespace(case=case)
    for device, seconds in (("cpu", 200.0), ("cuda", 7.0)):
        monkeypatch.setattr(running, "default_device", lambda d=device: torch.device(d))
        assert running._recorded_seconds(job) == seconds
