"""The reviewer's tables, from records made up here."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_records import top1_records

from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.records import read, recipe_id, report, status, write

ENV = {"date": "2026-11-22T21:00:00Z", "wall_s": 1800.0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "measured"


def put(root: Path, sweep: str, profile: str = "quick", **top1: list[float]) -> None:
    """Write records of these accuracies, as if of today's recipes; `__` stands for `-`."""
    named = {point.replace("__", "-").replace("_at_", "."): v for point, v in top1.items()}
    for made in top1_records(sweep, named, profile):
        recipe = resolved(SWEEPS[sweep].point(made.point).recipe, PROFILES[profile])
        curve = {"lr": [0.1]}
        write(replace(made, recipe_id=recipe_id(recipe), env=made.env | ENV, curve=curve), root)


def verdict(root: Path, text: str) -> str:
    return judged(root, text)["verdict"]


def judged(root: Path, text: str) -> dict[str, str]:
    (claim,) = [each for each in report.CLAIMS if each.text == text]
    return report.judged(claim, root)


def test_without_records_nothing_was_run(root):
    found = report.claims(root)
    assert set(found["verdict"]) == {report.NOT_RUN}
    assert list(found["claim"]) == [claim.text for claim in report.CLAIMS]
    assert report.without_effect(root).empty
    assert report.compute(root).empty


HELPS = "SRIP on pointwise convolutions helps."


@pytest.mark.parametrize(
    ("profile", "with_it", "expected"),
    [
        ("quick", [0.30, 0.31], report.CONSISTENT),
        ("full", [0.30, 0.31], report.CONFIRMED),
        ("quick", [0.30], report.HERE),
        ("quick", [0.10, 0.12], report.HERE),
        ("full", [0.10, 0.12], report.UNSUPPORTED),
    ],
)
def test_a_gain_is_judged_by_its_interval_and_its_budget(root, profile, with_it, expected):
    put(root, "srip_placement", profile, none=[0.10, 0.11], pointwise=with_it)
    assert verdict(root, HELPS) == expected


def test_one_run_at_a_longer_profile_does_not_hide_the_runs_at_a_shorter_one(root):
    put(root, "srip_placement", none=[0.10, 0.11], pointwise=[0.30, 0.31])
    put(root, "srip_placement", "day", pointwise=[0.40])
    row = judged(root, HELPS)
    assert (row["profile"], row["verdict"]) == ("quick", report.CONSISTENT)
    put(root, "srip_placement", "day", none=[0.50])
    assert judged(root, HELPS)["profile"] == "quick"  # one run each has no interval
    put(root, "srip_placement", "day", none=[0.50, 0.51], pointwise=[0.40, 0.41])
    row = judged(root, HELPS)
    assert (row["profile"], row["verdict"]) == ("day", report.HERE)


def test_a_network_that_was_trained_longer_shows_nothing_at_a_small_budget(root):
    pruned = {"dense": [0.10, 0.11], "0_at_60": [0.30, 0.31]}
    put(root, "pipeline", **pruned)
    assert verdict(root, "Pruning 60 % costs less than one point of top-1.") == report.UNIDENTIFIED
    put(root, "pipeline", "full", **pruned)
    assert verdict(root, "Pruning 60 % costs less than one point of top-1.") == report.CONFIRMED


def counted(root: Path, storage: float, point: str = "1.0") -> str:
    """The verdict on Table 2's storage when one network has it, by the rules `published` only."""
    made = top1_records("expand_ratio", {point: [0.0]}, "full")[0]
    recipe = resolved(SWEEPS["expand_ratio"].point(point).recipe, PROFILES["full"])
    metrics = {"revised.param_storage": 1.0, "published.param_storage": storage}
    write(replace(made, recipe_id=recipe_id(recipe), metrics=metrics, env=made.env | ENV), root)
    return verdict(root, "Table 2: storage by expansion ratio.")


def test_a_count_is_judged_under_every_counting_rule(root):
    assert counted(root, 0.10e6) == report.CONFIRMED
    assert counted(root, 0.17e6) == report.UNSUPPORTED
    assert counted(root, 0.10e6) == report.CONFIRMED
    assert counted(root, 0.17e6, "2.0") == report.UNIDENTIFIED  # one of two


def test_a_printed_accuracy_needs_the_papers_schedule(root):
    put(root, "stages", **{"3_at_0__orn": [0.1, 0.2]})
    row = judged(root, "Tables 2 to 4: accuracy of every stage and ratio.")
    said = "1 run at quick, none at the paper's schedule"
    assert (row["verdict"], row["evidence"]) == (report.NOT_RUN, said)


def test_null_and_negative_results_are_those_whose_interval_reaches_zero(root):
    put(root, "srip_placement", none=[0.10, 0.11], fc=[0.30, 0.31], pointwise=[0.10, 0.12])
    found = report.without_effect(root)
    assert found[["sweep", "profile", "point"]].to_numpy().tolist() == [
        ["srip_placement", "quick", "pointwise"]
    ]


def test_trainings_that_two_sweeps_compare_are_one_null_result(root):
    put(root, "stages", **{"3_at_0__als": [0.2, 0.21], "3_at_0__fast_autoaugment": [0.1, 0.11]})
    found = report.without_effect(root)
    assert found[["sweep", "point"]].to_numpy().tolist() == [["stages", "3.0-fast_autoaugment"]]


def put_failed(root: Path, sweep: str, point: str, profile: str = "quick", seeds: int = 1) -> None:
    """Records of runs of a point that diverged, as if of today's recipe."""
    recipe = resolved(SWEEPS[sweep].point(point).recipe, PROFILES[profile])
    for made in top1_records(sweep, {point: [0.0] * seeds}, profile):
        failed = {"what": "loss", "epoch": 1, "message": "the loss became nan in epoch 1"}
        lost = replace(
            made, recipe_id=recipe_id(recipe), metrics={}, curve={"lr": []}, failed=failed
        )
        write(replace(lost, env=made.env | ENV), root)


@pytest.mark.parametrize(
    ("profile", "expected"), [("quick", report.HERE), ("full", report.UNSUPPORTED)]
)
def test_a_training_that_diverges_does_not_support_a_gain(root, profile, expected):
    put(root, "srip_placement", profile, none=[0.10, 0.11])
    put_failed(root, "srip_placement", "pointwise", profile, 2)
    row = judged(root, HELPS)
    assert row["verdict"] == expected
    assert row["evidence"] == "pointwise diverged (epoch 1, 2 of 2 seeds)"


def test_a_printed_accuracy_of_a_short_training_that_diverged_stays_open(root):
    put(root, "stages", **{"3_at_0__orn": [0.1, 0.2]})
    put_failed(root, "stages", "3.0-vanilla")
    row = judged(root, "Tables 2 to 4: accuracy of every stage and ratio.")
    assert row["verdict"] == report.NOT_RUN


def test_failed_runs_are_listed_once_and_cost_time(root):
    put_failed(root, "srip_placement", "none", seeds=2)  # the same training is in other sweeps
    found = report.failed(root)
    assert found[["sweep", "point", "seed", "epoch"]].to_numpy().tolist() == [
        ["srip_placement", "none", 0, 1],
        ["srip_placement", "none", 1, 1],
    ]
    assert found["what"].unique().tolist() == ["the loss became nan in epoch 1"]
    spent = report.compute(root)
    assert spent["runs"].sum() == spent["trainings"].sum() == spent["diverged"].sum() == 2
    assert spent["core_hours"].sum() == pytest.approx(2 * 2 * 0.5)
    assert report.failed(root / "empty").empty


def test_a_training_counts_once(root):
    # The same recipe stands in three sweeps.
    put(root, "srip_placement", pointwise=[0.1, 0.2])
    put(root, "label_smoothing", none=[0.1])
    found = report.compute(root).set_index("sweep")
    assert found.loc["srip_placement", ["runs", "trainings", "shared"]].tolist() == [2, 2, 0]
    assert found.loc["label_smoothing", ["runs", "shared"]].tolist() == [0, 2]
    assert found.at["srip_placement", "core_hours"] == pytest.approx(2 * 2 * 0.5)  # two threads
    assert found["core_hours"].sum() == pytest.approx(2)
    assert found.at["srip_placement", "seeds"] == "0, 1"


def test_the_same_training_by_another_commit_is_another_one(root):
    put(root, "srip_placement", pointwise=[0.1])
    put(root, "label_smoothing", none=[0.1])
    (path,) = root.rglob("none-s0.json")
    again = read(path)
    path.unlink()
    write(replace(again, env=again.env | {"commit": "0000000"}), root)
    assert report.compute(root)["runs"].sum() == 2


def test_the_pages_of_report_and_status_count_the_same():
    spent, machines = report.compute(), status.machines()
    assert spent["runs"].sum() == machines["measurements"].sum()


def test_time_on_a_gpu_is_not_time_of_a_core(root):
    recipe = resolved(SWEEPS["srip_placement"].point("none").recipe, PROFILES["full"])
    made = top1_records("srip_placement", {"none": [0.1]}, "full")[0]
    env = made.env | ENV | {"device": "1x H200"}
    write(replace(made, recipe_id=recipe_id(recipe), env=env), root)
    (row,) = report.compute(root).to_dict("records")
    assert (row["core_hours"], row["gpu_hours"]) == (0, 0.5)


def test_differences_between_recipes_are_those_settings_alone():
    found = report.differences({"paper": PAPER, "code": RELEASED}).set_index("setting")
    assert found.loc["train.cycles"].tolist() == ["1", "4"]
    assert "train.lr" not in found.index
    assert report.differences({"a": PAPER, "b": PAPER}).empty
    budgets = report.budgets(PAPER).set_index("setting")
    assert list(budgets) == ["the recipe", "quick", "day", "full"]
    changed = budgets[budgets["full"] != budgets["the recipe"]]
    assert list(changed.index) == ["train.precision"]
