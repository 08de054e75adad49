"""What has to be done for a point: in every state, for chains and teachers across sweeps."""

import re
from dataclasses import replace

import pytest
import torch
from tiny_lab import chain, rounds, sweep_of, tiny_lab

from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.bases import ORN, PAPER
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.lineage import Case, cases, jobs, missing_file, state_of
from micronet_lib.lab.running.measure import ensure, perform_all
from micronet_lib.lab.running.plan import table_of
from micronet_lib.pruning.schedules import PruneConfig, PruneTo

PIPELINE = SWEEPS["pipeline"]


@pytest.fixture
def lab(tmp_path):
    with tiny_lab(tmp_path) as lab:
        yield lab


def case_of(sweep, point, profile="smoke", **words) -> Case:
    (found,) = cases(sweep, PROFILES[profile], point=point, **words)
    return found


def todo(sweep, pattern=None, **words) -> list[tuple[str, str]]:
    asked = cases(sweep, PROFILES["smoke"], point=pattern)
    return [(job.case.name, job.does) for job in jobs(asked, **words)]


def put(lab, *files: str) -> None:
    for file in files:
        path = lab.data / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# ------------------------------------------------------------------------------------ the states


def test_a_point_goes_from_training_to_rating_to_nothing(lab):
    case = case_of(PIPELINE, "dense")
    assert state_of(case).does == "train"
    perform_all(jobs([case], recorded=False), progress=False)
    assert state_of(case).does == "rate"
    assert state_of(case, recorded=False).does == "nothing"
    ensure(PIPELINE, "smoke", point="dense", progress=False)
    assert state_of(case).does == "nothing"
    assert lab.trained == lab.recorded == ["pipeline/dense"]


def test_a_recipe_that_trains_nothing_is_counted(lab):
    assert state_of(case_of(SWEEPS["expand_ratio"], "1.0")).does == "count"


def test_a_damaged_network_is_no_network(lab):
    case = case_of(PIPELINE, "dense")
    perform_all(jobs([case], recorded=False), progress=False)
    content = case.network_path.read_bytes()
    case.network_path.write_bytes(content[:-1])
    assert state_of(case).does == "train"
    assert case.network_path.read_bytes() == content[:-1]  # looking changes nothing


@pytest.mark.parametrize("what", ["gone", "damaged"])
def test_a_network_whose_record_is_there_is_trained_again_only_when_asked(lab, what):
    """The record may be of 600 epochs on another machine."""
    ensure(PIPELINE, "smoke", point="dense", progress=False)
    case = case_of(PIPELINE, "dense")
    record = case.record_path.read_bytes()
    if what == "gone":
        case.network_path.unlink()
    else:
        case.network_path.write_bytes(case.network_path.read_bytes()[:-1])
    assert state_of(case).does == "nothing"
    state = state_of(case, recorded=False)
    assert state.does == "impossible"
    assert case.folder.name in state.reason
    assert "--retrain" in state.reason
    assert state_of(case, recorded=False, retrain=True).does == "train"
    assert todo(PIPELINE, "0.15")[-1] == ("pipeline/0.15", "impossible")
    assert todo(PIPELINE, "0.15", retrain=True)[-1] == ("pipeline/0.15", "train")
    assert case.record_path.read_bytes() == record


def test_a_lost_network_is_found_under_any_name_of_its_record(lab):
    """The dense network of the pipeline is a stage too."""
    ensure(SWEEPS["stages"], "smoke", point="3.0-cutmix", progress=False)
    case = case_of(PIPELINE, "dense")
    assert state_of(case).does == "rate"
    case.network_path.unlink()
    state = state_of(case)
    assert (state.does, state.lost) == ("impossible", True)
    assert "stages/3.0-cutmix has a record" in state.reason
    assert state_of(case, retrain=True).does == "train"


def test_a_profile_that_a_sweep_does_not_have_is_impossible(lab):
    state = state_of(case_of(SWEEPS["published"], "v1_pr_60"))
    assert (state.does, state.reason) == ("impossible", "not defined at smoke")


@pytest.mark.parametrize(
    ("sweep", "point", "profile", "files", "missing"),
    [
        ("expand_ratio", "1.0", "full", (), None),
        ("published", "v1_pr_60", "full", (), "kaist/micronet_v1_pr_60.t7"),
        (
            *("published", "v1_pr_60", "full"),
            ("kaist/micronet_v1_pr_60.t7",),
            "cifar-100-python/test",
        ),
        ("bit_widths", "w8a8-fp32", "full", ("kaist/micronet_v1_pr_60.t7",), None),
        ("class_similarity", "v1_pr_60", "full", ("kaist/micronet_v1_pr_60.t7",), None),
        ("spectra", "trained_distribution", "full", (), "kaist/micronet_v1_pr_60.t7"),
        ("stages", "3.0-orn", "quick", (), "cifar-100-python/test"),
        ("stages", "3.0-orn", "quick", ("cifar-100-python/test",), "cifar-100-python/train"),
        ("stages", "3.0-orn", "smoke", (), None),
        ("stages", "3.0-cutmix", "smoke", (), None),
        (
            *("stages", "3.0-cutmix", "quick"),
            ("cifar-100-python/test", "cifar-100-python/train"),
            "policies/fast_autoaugment_cifar100.json",
        ),
    ],
)
def test_the_first_missing_file_is_named(lab, sweep, point, profile, files, missing):
    put(lab, *files)
    case = case_of(SWEEPS[sweep], point, profile)
    found = missing_file(case, trains=case.recipe.train.epochs > 0)
    assert (found and found.removeprefix(f"{lab.data}/")) == missing


# ---------------------------------------------------------------------------------- needed networks


def test_rounds_need_the_rounds_before_them(lab):
    stages = [f"pipeline/{stage}" for stage in ("dense", "0.15", "0.30", "0.45", "0.60")]
    assert todo(PIPELINE, "0.60") == [(stage, "train") for stage in stages]
    assert [c.name for c in case_of(PIPELINE, "0.30").needs] == ["pipeline/0.15"]


def test_a_needed_network_is_named_with_overrides_too(lab):
    case = case_of(PIPELINE, "0.30", overrides={"train.lr": 0.05})
    assert [c.name for c in case.needs] == ["pipeline/0.15"]
    assert case.needs[0].recipe.train.lr == 0.05


def test_a_network_under_several_names_is_trained_once(lab):
    found = todo(SWEEPS["prune_schedule"], "*-0")
    assert [does for _, does in found] == ["train", "rate", "rate"]


def test_a_chain_has_settings_and_a_teacher_of_its_own(lab):
    sweep = chain(ORN)
    assert todo(sweep) == [
        ("chain/dense", "train"),
        ("chain/half", "train"),
        ("chain/more", "train"),
    ]
    more = case_of(sweep, "more")
    assert [case.name for case in more.needs] == ["chain/half"]
    assert case_of(sweep, "half").needs == (case_of(sweep, "dense"),)


def test_start_and_teacher_may_be_of_other_sweeps(lab):
    teacher = SWEEPS["stages"].point("3.0-cutmix").recipe
    start = SWEEPS["srip_placement"].point("none").recipe
    sweep = sweep_of(student=replace(start, start=start, teacher=teacher))
    assert todo(sweep) == [
        ("srip_placement/none", "train"),
        ("stages/3.0-cutmix", "train"),
        ("toy/student", "train"),
    ]


def test_a_network_that_no_sweep_has_is_named_after_the_point_that_needs_it(lab):
    unlisted = replace(PAPER, train=replace(PAPER.train, lr=0.03))
    (needed,) = case_of(sweep_of(student=replace(ORN, start=unlisted)), "student").needs
    assert re.fullmatch(r"toy/student<[0-9a-f]{10}", needed.name)


def test_a_start_that_trains_nothing_passes_its_own_needs_on(lab):
    """Pruned without training: the network is made when it is needed."""
    one_shot = Recipe(start=ORN, changes=(PruneTo(0.6),))
    sweep = sweep_of(dense=ORN, one_shot=one_shot, tuned=replace(ORN, start=one_shot))
    assert todo(sweep, "one_shot") == [("toy/dense", "train"), ("toy/one_shot", "count")]
    assert todo(sweep, "tuned")[0][1] == "train"
    assert len(todo(sweep, "tuned")) == 2
    assert len({case.id for case in cases(sweep, PROFILES["smoke"])}) == 3


def test_what_needs_an_impossible_network_is_impossible_for_its_reason(lab):
    published = Recipe(checkpoint="micronet_v2_pr_30")
    sweep = sweep_of(student=replace(ORN, start=replace(ORN, checkpoint="micronet_v2_pr_15")))
    taught = sweep_of(student=replace(ORN, teacher=published))
    for each, file in ((sweep, "v2_pr_15"), (taught, "v2_pr_30")):
        job = jobs(cases(each, PROFILES["smoke"]))[-1]
        assert job.does == "impossible"
        assert file in job.reason


def test_a_measured_point_whose_network_another_needs_is_not_trained_twice(lab):
    """Asked for both, the record of the first does not stand for its network."""
    ensure(PIPELINE, "smoke", point="dense", progress=False)
    case_of(PIPELINE, "dense").network_path.unlink()
    both = cases(PIPELINE, PROFILES["smoke"], point="[d0]*[e1][n5]*")
    does = [job.does for job in jobs(both, retrain=True)]
    assert does == ["train", "train"]
    assert [job.does for job in jobs(both[:1], retrain=True)] == ["train"]
    assert [job.does for job in jobs(both[:1])] == ["nothing"]


# --------------------------------------------------------------- a plan is what measuring then does

STATES = ["fresh", "network", "record", "record_only", "damaged_network", "damaged_record"]


@pytest.mark.parametrize(("point", "retrain"), [(None, False), ("round1", True)])
@pytest.mark.parametrize("state", STATES)
def test_a_plan_says_what_measuring_then_does(lab, state, retrain, point):
    sweep = rounds(ORN, PruneConfig((0.3, 0.6)))
    first = case_of(sweep, "dense")
    if state != "fresh":
        perform_all(jobs([first], recorded=state != "network"), progress=False)
    if state == "record_only":
        first.network_path.unlink()
    if state == "damaged_network":
        first.network_path.write_bytes(first.network_path.read_bytes()[:-1])
    if state == "damaged_record":
        first.record_path.write_text("{")
    lab.trained.clear()
    lab.recorded.clear()
    ahead = table_of(jobs(cases(sweep, PROFILES["smoke"], point=point), retrain=retrain), sweep)
    rows = ensure(sweep, "smoke", point=point, retrain=retrain, progress=False)
    name = "rounds/" + ahead["point"]
    assert lab.trained == name[ahead["state"] == "to train"].tolist()
    asked = ahead[ahead["record"]]
    done = asked["state"].str.startswith(("to ", "measured"))
    assert lab.recorded == name[asked[asked["state"].str.startswith("to ")].index].tolist()
    assert dict(zip(asked["point"], done, strict=True)) == dict(
        zip(rows["point"], rows["n"] == 1, strict=True)
    )


def test_a_chain_is_trained_as_its_recipes_say(lab):
    sweep = chain(ORN)
    rows = ensure(sweep, "smoke", progress=False).set_index("point")
    assert rows["n"].tolist() == [1, 1, 1]
    half, more = (case_of(sweep, name) for name in ("half", "more"))
    masks = [
        {n: w != 0 for n, w in torch_load(case).items() if w.ndim > 1} for case in (half, more)
    ]
    kept = [sum(m.sum().item() for m in each.values()) for each in masks]
    total = sum(m.numel() for m in masks[0].values())
    assert [round(1 - k / total, 2) for k in kept] == [0.5, 0.7]
    assert not any((masks[1][name] & ~masks[0][name]).any() for name in masks[0])


def torch_load(case: Case) -> dict[str, torch.Tensor]:
    from micronet_lib.lab.running.networks import network_of

    return network_of(case.recipe, case.profile, case.seed).state_dict()


def test_a_chain_that_was_cut_goes_on(lab):
    sweep = chain(ORN)
    ensure(sweep, "smoke", point="half", progress=False)
    assert lab.recorded == ["chain/half"]
    ensure(sweep, "smoke", progress=False)
    assert lab.trained == ["chain/dense", "chain/half", "chain/more"]
    assert sorted(lab.recorded) == ["chain/dense", "chain/half", "chain/more"]


def test_unknown_points_and_keys_are_refused(lab):
    with pytest.raises(InputError, match="unknown point"):
        cases(PIPELINE, PROFILES["smoke"], point="9")
    with pytest.raises(InputError, match="unknown key"):
        cases(PIPELINE, PROFILES["smoke"], overrides={"lr": 1})
