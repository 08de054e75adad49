"""Measuring: what a record holds, and that nothing is measured twice or without its files."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from micronet_lib.lab.running.runs import missing_files
from published_format import pruned_network, published_state, save

from micronet_lib.architecture import build
from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.host.files import only_one
from micronet_lib.lab.host.machine import environment
from micronet_lib.lab.host.places import checkpoint_path
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES, Profile
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.running import measure as experiments
from micronet_lib.lab.running import runs as lab_runs
from micronet_lib.lab.running.measure import ensure, measure, prepare, resolve, round_before
from micronet_lib.lab.running.plan import require
from micronet_lib.lab.training import loop as training
from micronet_lib.lab.training.loop import DivergedError, Run
from micronet_lib.pruning.masks import current_masks
from micronet_lib.pruning.schedules import PruneConfig
from micronet_lib.scoring.bill import SCORE_METRICS, score_network
from micronet_lib.scoring.rules import RULE_SETS, rules_of

SWEEP = SWEEPS["expand_ratio"]
NAMES = [point.name for point in SWEEP.points()]


@pytest.fixture(scope="module")
def pruned() -> MicroNet:
    return pruned_network("c_efficientnet_1.0_released")


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path / "data"))
    return tmp_path / "runs"


@pytest.fixture
def place(tmp_path, pruned) -> Callable[[str], Path]:
    """A function that puts a file of the published format where recipes look for that name."""

    def put(name: str) -> Path:
        path = tmp_path / "data" / "kaist" / f"{name}.t7"
        path.parent.mkdir(parents=True, exist_ok=True)
        return save(published_state(pruned), path, as_zip=False)

    return put


@pytest.fixture
def measured(monkeypatch) -> list[tuple[str, str, str, int]]:
    """What was measured since the test began; the measuring itself is replaced."""
    calls = []

    def pretend(recipe, sweep, point, profile, seed=0, progress=True):
        calls.append((sweep, point, profile.name, seed))
        return records.Record(
            sweep=sweep,
            point=point,
            recipe_id=records.recipe_id(recipe),
            recipe=dataclasses.asdict(recipe),
            profile=profile.name,
            seed=seed,
            dataset="none",
            metrics=dict.fromkeys(SWEEPS[sweep].metrics, float(len(calls))),
            env=environment(),
        )

    monkeypatch.setattr(experiments, "measure", pretend)
    return calls


# ----------------------------------------------------------------------------------- measure


def test_record_of_a_fresh_network():
    recipe = Recipe(model="c_efficientnet_1.0")
    found = measure(recipe, "expand_ratio", "1.0", PROFILES["smoke"], seed=4)
    assert (found.sweep, found.point, found.profile, found.seed) == (
        *("expand_ratio", "1.0", "smoke"),
        4,
    )
    assert found.recipe_id == records.recipe_id(recipe)
    assert found.recipe == dataclasses.asdict(recipe)
    assert found.dataset == "none"
    assert not found.layers
    model = build(recipe.model)
    for rules in RULE_SETS:
        expected = score_network(model, rules).metrics()
        assert {name: found.metrics[f"{rules}.{name}"] for name in SCORE_METRICS} == expected
    assert found.metrics["hidden_chs"] == sum(b.hidden_chs for b in model.architecture.blocks)
    assert "correct" not in found.metrics
    assert {"device", "torch", "cuda", "python", "commit", "date", "wall_s"} == set(found.env)


def test_record_of_a_published_network(place, pruned):
    place("ours")
    found = measure(Recipe(checkpoint="ours"), "published", "ours", PROFILES["smoke"], 0, False)
    assert found.dataset == "embedded"
    assert found.metrics["num_examples"] == 1000
    assert found.metrics["top1"] == found.metrics["correct"] / 1000
    assert found.metrics["published.score"] == score_network(pruned).score
    assert (
        sum(line["count"] for line in found.layers if line["quantity"] == "param")
        == (found.metrics["published.num_params"])
    )


def test_record_of_a_price_list_rates_nothing(place, pruned):
    place("ours")
    recipe = Recipe(checkpoint="ours", weight_bits=4, activation_bits=8, accumulator="integer")
    found = measure(recipe, "bit_widths", "w4a8-integer", PROFILES["full"], 0, False)
    assert found.dataset == "none"
    assert "correct" not in found.metrics
    expected = score_network(pruned, rules_of("official", 4, 8, "integer")).score
    assert found.metrics["official.score"] == expected
    assert found.metrics["published.score"] == score_network(pruned).score


def test_measuring_again_gives_the_same_numbers():
    recipe = SWEEP.point("1.5").recipe
    one, other = (measure(recipe, "expand_ratio", "1.5", PROFILES["smoke"]) for _ in range(2))
    assert one.metrics == other.metrics


def test_prepared_network_has_its_savings_applied(place, pruned):
    place("ours")
    assert prepare(Recipe(checkpoint="ours")).architecture == pruned.architecture
    saved = prepare(Recipe(checkpoint="ours", savings=("dead_gates",)))
    assert saved.architecture.downsample_se == "none"
    with pytest.raises(InputError, match="no checkpoint at"):
        prepare(Recipe(checkpoint="theirs"))


# ------------------------------------------------------------------------------------ ensure


def test_ensure_measures_what_is_missing_and_only_that(measured, runs):
    rows = ensure(SWEEP, "smoke")
    assert [call[1] for call in measured] == NAMES
    assert list(rows["n"]) == [1] * len(NAMES)
    assert set(rows["source"]) == {"this run"}

    assert ensure(SWEEP, "smoke").equals(rows)
    assert len(measured) == len(NAMES)

    (runs / records.record_path("expand_ratio", "2.0", "smoke", 0)).unlink()
    again = ensure(SWEEP, "smoke").set_index("point")
    assert measured[len(NAMES) :] == [("expand_ratio", "2.0", "smoke", 0)]
    assert again.loc["2.0", "revised.score"] == len(NAMES) + 1
    assert again.loc["1.0", "revised.score"] == 1


def test_another_seed_and_another_profile_are_other_runs(measured):
    ensure(SWEEP, "smoke", point="1.0")
    ensure(SWEEP, "smoke", seed=1, point="1.0")
    ensure(SWEEP, "quick", point="1.0")
    assert [call[2:] for call in measured] == [("smoke", 0), ("smoke", 1), ("quick", 0)]


def test_one_point_gives_one_row(measured, runs):
    rows = ensure(SWEEP, "smoke", point="3.0")
    assert list(rows["point"]) == ["3.0"]
    assert list(rows.index) == [0]
    assert measured == [("expand_ratio", "3.0", "smoke", 0)]
    assert [path.name for path in runs.rglob("*.json")] == ["3.0-s0.json"]


def test_another_recipe_under_the_same_name_is_measured_again(measured, runs):
    ensure(SWEEP, "smoke", point="1.0")
    overrides = {"model": "micronet_v2"}
    ensure(SWEEP, "smoke", overrides=overrides, point="1.0")
    ensure(SWEEP, "smoke", overrides=overrides, point="1.0")
    assert len(measured) == 2
    (path,) = runs.rglob("*.json")
    assert records.read(path).recipe["model"] == "micronet_v2"


def test_points_without_their_files_stay_not_run(measured, runs, place, tmp_path):
    rows = ensure(SWEEPS["published"], "full")
    assert (rows["n"] == 0).all()
    assert not measured
    assert not runs.exists()

    place("micronet_v2_pr_30")
    assert (ensure(SWEEPS["published"], "full")["n"] == 0).all()  # the images are missing too

    images = tmp_path / "data" / "cifar-100-python" / "test"
    images.parent.mkdir()
    images.touch()
    rows = ensure(SWEEPS["published"], "full").set_index("point")
    assert measured == [("published", "v2_pr_30", "full", 0)]
    assert rows["n"].to_dict() == {name: int(name == "v2_pr_30") for name in rows.index}


def test_a_sweep_outside_the_profile_produces_nothing(measured, runs, place):
    for name in ("micronet_v1_pr_60", "micronet_v2_pr_60"):
        place(name)
    for name in ("published", "free_savings", "bit_widths"):
        rows = ensure(SWEEPS[name], "smoke")
        assert len(rows) == len(SWEEPS[name].points())
        assert (rows["n"] == 0).all()
    assert not measured
    assert not runs.exists()


def test_a_fault_in_the_middle_keeps_what_was_finished(measured, runs, monkeypatch):
    pretend = experiments.measure

    def fail_third(*args, **kwargs):
        if len(measured) == 2:
            raise InputError("a damaged file")
        return pretend(*args, **kwargs)

    monkeypatch.setattr(experiments, "measure", fail_third)
    with pytest.raises(InputError, match="a damaged file"):
        ensure(SWEEP, "smoke")
    assert sorted(path.name for path in runs.rglob("*") if path.is_file()) == [
        f"{name}-s0.json" for name in NAMES[:2]
    ]
    monkeypatch.setattr(experiments, "measure", pretend)
    assert (ensure(SWEEP, "smoke")["n"] == 1).all()
    assert [call[1] for call in measured] == NAMES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"profile": "huge"}, "unknown profile 'huge'"),
        ({"profile": "smoke", "point": "9"}, "unknown point of expand_ratio '9'"),
        ({"profile": "smoke", "overrides": {"lr": 1}}, "unknown key of Recipe 'lr'"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(measured, runs, words, message):
    with pytest.raises(InputError, match=message):
        ensure(SWEEP, **words)
    assert not measured
    assert not runs.exists()


# ---------------------------------------------------------------------------- files and refusals


@pytest.mark.parametrize(
    ("recipe", "profile", "files", "missing"),
    [
        (Recipe(), "full", (), None),
        (Recipe(checkpoint="a"), "full", (), "kaist/a.t7"),
        (Recipe(checkpoint="a"), "full", ("kaist/a.t7",), "cifar-100-python/test"),
        (Recipe(checkpoint="a"), "full", ("kaist/a.t7", "cifar-100-python/test"), None),
        (Recipe(checkpoint="a"), "smoke", ("kaist/a.t7",), None),
        (Recipe(checkpoint="a", weight_bits=8), "full", ("kaist/a.t7",), None),
    ],
)
def test_the_first_missing_file_is_named(tmp_path, recipe, profile, files, missing):
    for file in files:
        path = tmp_path / "data" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert missing_files(recipe, PROFILES[profile]) == missing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("published", "huge"), "unknown profile 'huge'; choose from smoke, quick, full"),
        (
            ("published", "quick"),
            "sweep 'published' is not defined on profile 'quick'; choose from full",
        ),
        (("published", "full", "v9"), "unknown point of published 'v9'; choose from v1_pr_60, "),
        (
            ("published", "full"),
            "published needs kaist/micronet_v1_pr_60.t7 under the data folder; "
            "`micronet data fetch kaist` gets it",
        ),
        (
            ("published", "full", "v2_pr_45"),
            "published needs kaist/micronet_v2_pr_45.t7 under the data folder; "
            "`micronet data fetch kaist` gets it",
        ),
        (
            ("expand_ratio", "smoke", None, {"checkpoint": "mine"}),
            "expand_ratio needs kaist/mine.t7 under the data folder; "
            "`micronet data fetch kaist` gets it",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_a_remedy(words, message):
    name, *rest = words
    with pytest.raises(InputError) as caught:
        require(SWEEPS[name], *rest)
    assert str(caught.value).startswith(message)


def test_missing_images_are_fetched_from_another_group(place):
    place("micronet_v1_pr_60")
    with pytest.raises(InputError) as caught:
        require(SWEEPS["published"], "full", "v1_pr_60")
    assert str(caught.value) == (
        "published needs cifar-100-python/test under the data folder; "
        "`micronet data fetch cifar100` gets it"
    )


def test_what_can_run_is_not_refused(place):
    place("micronet_v1_pr_60")
    require(SWEEP, "smoke")
    require(SWEEP, "full", "4.0")
    require(SWEEPS["bit_widths"], "full")
    require(SWEEPS["expand_ratio"], "smoke", None, {"checkpoint": "micronet_v1_pr_60"})


def test_a_sweep_of_which_one_point_can_run_is_not_refused(place):
    place("micronet_v2_pr_60")
    folder = checkpoint_path("x").parents[1] / "cifar-100-python"
    folder.mkdir()
    (folder / "test").touch()
    require(SWEEPS["published"], "full")
    require(SWEEPS["free_savings"], "full")


def test_a_profile_of_ones_own_will_do():
    """`measure` takes a profile and no name, so that a test or a cluster can bring its own."""
    own = Profile("own", "embedded", "a test")
    found = measure(SWEEP.point("1.0").recipe, "expand_ratio", "1.0", own)
    assert found.path == Path("own/expand_ratio/1.0-s0.json")


# ---------------------------------------------------------------------------------- training sweeps

STAGES, PLACEMENT = SWEEPS["stages"], SWEEPS["srip_placement"]


@pytest.fixture
def tiny(monkeypatch) -> Profile:
    """A profile `smoke` of a second a point."""
    budget = {"epoch_share": 1 / 600, "num_images": 64, "num_validation": 100, "width_mult": 0.1}
    profile = dataclasses.replace(PROFILES["smoke"], **budget)
    monkeypatch.setitem(PROFILES, "smoke", profile)
    return profile


def test_record_of_a_trained_network(tiny, runs):
    rows = ensure(PLACEMENT, "smoke", seed=3, point="pointwise", progress=False)
    found = records.read(runs / "smoke" / "srip_placement" / "pointwise-s3.json")
    assert found.recipe_id == records.recipe_id(tiny.apply(PLACEMENT.point("pointwise").recipe))
    assert found.dataset == "embedded"
    assert rows["top1"].item() == found.metrics["top1"] == found.metrics["correct"] / 1000
    assert set(PLACEMENT.metrics) <= set(found.metrics)
    assert len(found.curve["train_loss"]) == 1
    assert found.metrics["published.score"] > 0
    assert found.notes == []
    curves = records.curves(PLACEMENT, "smoke", runs)
    assert curves.loc[0, ["point", "seed", "epoch"]].tolist() == ["pointwise", 3, 1]


def test_what_one_sweep_has_trained_another_does_not_train_again(tiny, monkeypatch):
    ensure(PLACEMENT, "smoke", point="pointwise", progress=False)
    monkeypatch.setattr(experiments, "measure", None)
    rows = ensure(STAGES, "smoke", point="3.0-orn", progress=False)
    assert rows["n"].tolist() == [1]
    model = experiments.trained(STAGES, "3.0-orn", "smoke", progress=False)
    twin = experiments.trained(PLACEMENT, "pointwise", "smoke", progress=False)
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))


def test_a_record_without_its_network_is_trained_again(tiny, runs):
    model = experiments.trained(PLACEMENT, "fc", "smoke", progress=False)
    assert not model.training
    (runs / "smoke" / "srip_placement" / "fc-s0" / "network.pt").unlink()
    again = experiments.trained(PLACEMENT, "fc", "smoke", progress=False)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_a_network_whose_record_is_damaged_is_rated_again_and_not_trained(
    tiny, runs, monkeypatch, capsys
):
    ensure(PLACEMENT, "smoke", point="fc", progress=False)
    path = runs / "smoke" / "srip_placement" / "fc-s0.json"
    before = records.read(path)
    path.write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr("micronet_lib.lab.runs.train", None)
    ensure(PLACEMENT, "smoke", point="fc", progress=False)
    after = records.read(path)
    assert (after.metrics, after.curve, after.notes) == (
        *(before.metrics, before.curve, before.notes),
    )
    told = capsys.readouterr().err
    assert f"{path} is damaged or of another schema: the point is measured again" in told


def test_a_record_without_its_network_is_no_twin(tiny, runs):
    ensure(PLACEMENT, "smoke", point="pointwise", progress=False)
    network = runs / "smoke" / "srip_placement" / "pointwise-s0" / "network.pt"
    network.write_bytes(network.read_bytes()[:-1])
    ensure(STAGES, "smoke", point="3.0-orn", progress=False)
    assert (runs / "smoke" / "stages" / "3.0-orn-s0" / "network.pt").is_file()
    assert experiments.trained(STAGES, "3.0-orn", "smoke", progress=False)


def test_a_point_that_trains_nothing_leaves_no_network(tiny):
    with pytest.raises(InputError, match=r"expand_ratio/1.0 at smoke leaves no trained network"):
        experiments.trained(SWEEP, "1.0", "smoke", progress=False)


def test_overrides_come_after_the_profile(tiny):
    rows = ensure(PLACEMENT, "smoke", point="none", overrides={"train.epochs": 2}, progress=False)
    assert rows["n"].tolist() == [1]
    (path,) = records.runs_root().glob("smoke/srip_placement/*.json")
    assert records.read(path).recipe["train"]["epochs"] == 2


def test_a_pattern_chooses_points(measured):
    rows = ensure(STAGES, "smoke", point="3.0-*")
    assert list(rows["point"]) == [f"3.0-{stage}" for stage in STAGES.axes["stage"]]
    with pytest.raises(InputError, match=r"unknown point of stages '9\*'"):
        ensure(STAGES, "smoke", point="9*")


def test_a_point_that_another_process_is_at_is_left_to_it(tiny, measured, capsys):
    lock = experiments.run_folder("srip_placement", "fc", "smoke", 0) / "lock"
    with only_one(lock, "test"):
        rows = ensure(PLACEMENT, "smoke").set_index("point")
    assert rows["n"].to_dict() == {"none": 1, "fc": 0, "depthwise": 1, "pointwise": 1, "all": 1}
    assert (
        "srip_placement/fc seed 0 is being measured by another process" in capsys.readouterr().err
    )


def test_a_diverged_point_has_no_record_and_the_others_go_on(
    tiny, runs, measured, capsys, monkeypatch
):
    pretend = experiments.measure

    def diverge(recipe, sweep, point, *rest):
        if point == "fc":
            raise DivergedError("the loss became nan: no record is written")
        return pretend(recipe, sweep, point, *rest)

    monkeypatch.setattr(experiments, "measure", diverge)
    rows = ensure(PLACEMENT, "smoke").set_index("point")
    assert rows["n"].to_dict() == {"none": 1, "fc": 0, "depthwise": 1, "pointwise": 1, "all": 1}
    assert (
        "srip_placement/fc seed 0: the loss became nan: no record is written"
        in capsys.readouterr().err
    )
    assert not list(runs.rglob("fc-s0.json"))


def test_a_loss_that_is_no_number_is_noticed(tiny, runs, capsys):
    ensure(PLACEMENT, "smoke", point="all", overrides={"train.lr": 1e30}, progress=False)
    assert "no record is written; try a lower train.lr" in capsys.readouterr().err
    assert not list(runs.rglob("*.json"))


# ----------------------------------------------------------------------------------------- pruning

ROUNDS = ("dense", "first", "second")


def pruning_sweep(config: PruneConfig) -> Sweep:
    """The dense network, then one point a round."""

    def make(stage: str) -> Recipe:
        done = ROUNDS.index(stage)
        sparsities = config.sparsities[:done]
        prune = dataclasses.replace(config, sparsities=sparsities) if done else PruneConfig()
        return dataclasses.replace(RELEASED_ROUNDS, prune=prune)

    axes = {"stage": ROUNDS}
    return Sweep("toy", "Two rounds", "05_pruning", axes, make, ("top1", "sparsity"))


RELEASED_ROUNDS = STAGES.point("3.0-orn").recipe
CONFIGS = {
    "paper": PruneConfig((0.3, 0.6)),
    "released": PruneConfig((0.3, 0.6), threshold_from="last_epoch", mask_updates=True),
    "initial": PruneConfig((0.3, 0.6), rewind="initial"),
    "early": PruneConfig((0.3, 0.6), rewind="early", early_epoch=1, scope="kind"),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_rounds_of_pruning_follow_each_other(tiny, runs, config):
    """Asked for the last round alone, all before it are measured, and their masks are nested."""
    sweep = pruning_sweep(config)
    rows = ensure(sweep, "smoke", point="second", progress=False)
    assert rows["sparsity"].item() == pytest.approx(0.6, abs=2e-3)
    found = sorted(path.name for path in runs.rglob("*.json"))
    assert found == ["dense-s0.json", "first-s0.json", "second-s0.json"]
    models = [experiments.trained(sweep, stage, "smoke", progress=False) for stage in ROUNDS]
    masks = [current_masks(model) for model in models]
    for name in masks[0]:
        assert not (masks[2][name] & ~masks[1][name]).any(), f"{name} came back"
    record = records.read(runs / "smoke" / "toy" / "second-s0.json")
    assert record.metrics["published.score"] < 0.6 * score_network(models[0]).score


def test_a_round_whose_predecessor_is_lost_is_made_again_from_it(tiny, runs):
    sweep = pruning_sweep(CONFIGS["paper"])
    expected = experiments.trained(sweep, "first", "smoke", progress=False).state_dict()
    for path in (runs / "smoke" / "toy").glob("*/network.pt"):
        path.unlink()
    again = experiments.trained(sweep, "first", "smoke", progress=False).state_dict()
    assert all(map(torch.equal, again.values(), expected.values()))


def test_a_round_whose_predecessor_is_damaged_is_made_again_from_it(tiny, runs, capsys):
    sweep = pruning_sweep(CONFIGS["paper"])
    ensure(sweep, "smoke", point="dense", progress=False)
    network = runs / "smoke" / "toy" / "dense-s0" / "network.pt"
    expected = network.read_bytes()
    network.write_bytes(expected[:-1])
    ensure(sweep, "smoke", point="first", progress=False)
    assert "network.pt is damaged" in capsys.readouterr().err
    assert network.stat().st_size == pytest.approx(len(expected), abs=64)  # of the seconds in it


def test_a_round_without_the_one_before_is_refused(tiny):
    sweep = pruning_sweep(CONFIGS["paper"])
    alone = dataclasses.replace(sweep, axes={"stage": ("second",)})
    with pytest.raises(InputError, match="the round before is no point of this sweep"):
        ensure(alone, "smoke", progress=False)


@pytest.mark.parametrize(
    "override",
    [{"prune.threshold_from": "last_epoch"}, {"prune.scope": "kind"}, {"prune.mask_updates": True}],
    ids=lambda override: next(iter(override)),
)
def test_the_way_of_pruning_can_be_overridden(override):
    """The dense network is the same one whatever is done with it afterwards."""
    sweep = SWEEPS["pipeline"]
    recipes = resolve(sweep, PROFILES["smoke"], override)
    assert round_before(sweep, "0.30", recipes) == "0.15"
    assert round_before(sweep, "0.15", recipes) == "dense"
    usual = resolve(sweep, PROFILES["smoke"], None)
    assert recipes["dense"] == usual["dense"]
    assert recipes["0.15"] != usual["0.15"]


def test_a_round_that_goes_on_does_not_rewind_again(tiny, runs, monkeypatch):
    sweep, twice = pruning_sweep(CONFIGS["early"]), {"train.epochs": 2}
    expected = experiments.trained(sweep, "first", "smoke", 0, twice, progress=False).state_dict()
    shutil.rmtree(runs / "smoke" / "toy" / "first-s0")
    (runs / "smoke" / "toy" / "first-s0.json").unlink()
    rewound = []
    weights_after, run_epoch = lab_runs._weights_after, Run.run_epoch

    def counted(*args):
        rewound.append(args)
        return weights_after(*args)

    def cut(run, bar=None):
        if run.step.masks is not None and run.epoch == 1:
            raise KeyboardInterrupt
        run_epoch(run, bar)

    monkeypatch.setattr(lab_runs, "_weights_after", counted)
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "run_epoch", cut)
        with pytest.raises(KeyboardInterrupt):
            ensure(sweep, "smoke", overrides=twice, point="first", progress=False)
    assert len(rewound) == 1
    found = experiments.trained(sweep, "first", "smoke", 0, twice, progress=False).state_dict()
    assert len(rewound) == 1
    assert all(map(torch.equal, found.values(), expected.values()))
