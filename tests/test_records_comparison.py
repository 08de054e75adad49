"""Paper, committed records and this machine's: every verdict, from records made up here."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_records import ENV, as_json

from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.host.places import PAPER_TABLES
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Printed, Sweep
from micronet_lib.lab.records import tables
from micronet_lib.lab.records.record import Record
from micronet_lib.lab.records.tables import NOT_RUN

TRAIN = TrainConfig(epochs=600)
RECIPES = {
    "file": Recipe(checkpoint="micronet_v1_pr_60"),
    "none": Recipe(model="micronet_v1", train=TRAIN),
    "more": Recipe(model="micronet_v2", train=TRAIN),
}
SWEEP = Sweep(
    name="toy",
    title="A file and two trainings",
    chapter="06_scoring",
    axes={"which": tuple(RECIPES)},
    make=lambda which: RECIPES[which],
    metrics=("top1", "loss", "bit_identical"),
    printed=(
        Printed("toy", "top1_percent", "top1", factor=100),
        Printed("toy", "score", "revised.score", {"file": "a"}),
        Printed("toy", "gain_percent", "top1", factor=100, against="none"),
    ),
)
PAPER = """point,metric,value,source,locator
file,top1_percent,80.07,kim2020,"Table 2, row A"
more,top1_percent,80.0,kim2020,"Table 2, row B"
a,score,0.0120,kim2020,"Table 2, row Score"
more,gain_percent,1.0,kim2020,"Table 6, row more"
"""


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tables, "PAPER_TABLES", tmp_path)
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path / "runs"))
    (tmp_path / "toy.csv").write_text(PAPER)


def add(root: Path, point: str, *top1: float, profile: str = "full", seed: int = 0, **more) -> None:
    """Records of a point: one for each accuracy, with seeds from `seed` on."""
    env = more.pop("env", {})
    recipe = resolved(RECIPES[point], PROFILES[profile])
    for number, value in enumerate(top1, start=seed):
        metrics = {"top1": value, "loss": 0.75, "revised.score": 0.0120, **more}
        found = {**ENV, "isa": "AVX512", "wall_s": 1.0, "date": "2026-11-22T21:00:00Z", **env}
        made = Record("toy", point, recipe_id(recipe), as_json(recipe), profile, number, "cifar100",
                      metrics, found)  # fmt: skip
        records.write(made, root)


def rows(tmp_path, profile="full", everything=True):
    found = records.compared(SWEEP, profile, everything, tmp_path / "measured")
    return found.set_index(["point", "metric"])


def verdict(tmp_path, point="more", metric="top1_percent", profile="full"):
    return rows(tmp_path, profile).loc[(point, metric), "verdict"]


def diverge(root: Path, point: str, *seeds: int) -> None:
    """Records of runs of a point that diverged."""
    for seed in seeds:
        add(root, point, 0.0, seed=seed)
        path = root / "full" / "toy" / f"{point}-s{seed}.json"
        failed = {"what": "loss", "epoch": 1, "message": "the loss became nan in epoch 1"}
        records.write(replace(records.read(path), metrics={}, failed=failed), root)


def test_a_point_that_diverged_is_told_from_one_that_was_not_run(tmp_path):
    add(tmp_path / "measured", "none", 0.70)
    diverge(tmp_path / "measured", "more", 0, 1)
    found = rows(tmp_path)
    said = "diverged (epoch 1, 2 of 2 seeds)"
    of_point = found.loc["more"]
    assert (of_point["diverged"] == said).all()
    assert of_point["committed"].isna().all()
    assert set(of_point["paper_verdict"]) == {"diverged", ""}
    assert set(found.loc["file", "paper_verdict"]) == {NOT_RUN, ""}
    shown = records.side_by_side(found.reset_index())
    assert shown[shown["point"] == "more"]["committed"].tolist() == [said]  # a single row
    told = records.remarks(found.reset_index())
    assert f"  more: {said}" in told
    assert "not run: 1 of 3 points: file" in told


@pytest.mark.parametrize(
    ("committed", "expected"), [("none", "diverged"), ("failed", "same"), ("measured", "outside")]
)
def test_a_run_that_diverges_here_is_judged_by_the_committed_ones(tmp_path, committed, expected):
    if committed == "failed":
        diverge(tmp_path / "measured", "more", 0)
    elif committed == "measured":
        add(tmp_path / "measured", "more", 0.80, 0.81)
    diverge(tmp_path / "runs", "more", 0)
    assert verdict(tmp_path, "more", "loss") == expected
    found = rows(tmp_path).reset_index()
    assert "this machine's more: diverged (epoch 1, 1 of 1 seed)" in records.remarks(found)
    shown = records.side_by_side(found).set_index("point")
    assert "diverged (epoch 1, 1 of 1 seed)" in set(shown.loc[["more"], "mine"])


def test_a_mean_beside_runs_that_diverged_says_so(tmp_path):
    add(tmp_path / "measured", "more", 0.80, 0.81)
    diverge(tmp_path / "measured", "more", 2)
    found = rows(tmp_path).reset_index()
    assert found.set_index("point").loc["more", "n"].max() == 2
    assert "  more: diverged (epoch 1, 1 of 3 seeds)" in records.remarks(found)


# ----------------------------------------------------------------------- the committed records


def test_without_any_record_everything_is_not_run(tmp_path):
    found = rows(tmp_path)
    assert set(found["verdict"]) == {NOT_RUN}
    assert set(found["paper_verdict"]) == {NOT_RUN, ""}
    assert found["n"].sum() == found["n_mine"].sum() == 0
    assert records.side_by_side(found.reset_index()).empty
    assert "not run: 3 of 3 points: file, none, more" in records.remarks(found.reset_index())


def test_a_file_is_the_same_only_if_equal(tmp_path):
    add(tmp_path / "measured", "file", 0.8007)
    for top1, expected in ((0.8007, "same"), (0.8007 + 5e-9, "same"), (0.8008, "outside")):
        add(tmp_path / "runs", "file", top1, env={"isa": "AVX2", "commit": "def5678"})
        assert verdict(tmp_path, "file") == expected
    # A file has no seed.
    (tmp_path / "runs" / "full" / "toy" / "file-s0.json").unlink()
    add(tmp_path / "runs", "file", 0.8007, seed=4)
    assert verdict(tmp_path, "file") == "same"


def test_counts_are_exact(tmp_path):
    add(tmp_path / "measured", "file", 0.8007)
    add(tmp_path / "runs", "file", 0.8007, **{"revised.score": 0.0120 + 1e-9, "loss": 0.75 + 1e-7})
    assert verdict(tmp_path, "file", "score") == "outside"  # though it is near
    assert verdict(tmp_path, "file", "loss") == "same"
    assert ("file", "bit_identical") not in rows(tmp_path).index  # it tells of the machine


def test_a_training_at_the_same_commit_and_instructions_must_be_equal(tmp_path):
    add(tmp_path / "measured", "more", 0.800, 0.802, 0.804)
    add(tmp_path / "runs", "more", 0.800)
    assert verdict(tmp_path) == "same"
    add(tmp_path / "runs", "more", 0.801)
    assert verdict(tmp_path) == "outside"
    assert "must be equal" in rows(tmp_path).loc[("more", "top1_percent"), "reason"]
    for other in ({"isa": "AVX2"}, {"commit": "def5678"}, {"torch": "2.11"}, {"device": "a GPU"}):
        add(tmp_path / "runs", "more", 0.801, env=other)
        assert verdict(tmp_path) == "within", other


def test_elsewhere_a_training_lies_within_the_spread_of_two_runs_or_more(tmp_path):
    """One new run beside three: 2.92 = 4.303 x sqrt(1/3 + 1) times their spread, in points."""
    other = {"isa": "AVX2"}
    add(tmp_path / "measured", "more", 0.800, 0.802, 0.804)  # spread 0.2 points
    limit = 4.303 * (1 / 3 + 1) ** 0.5 * 0.002
    for off, expected in ((0.99, "within"), (1.01, "outside")):
        add(tmp_path / "runs", "more", 0.802 + off * limit, env=other)
        assert verdict(tmp_path) == expected
    for seed in (1, 2):
        (tmp_path / "measured" / "full" / "toy" / f"more-s{seed}.json").unlink()
    assert verdict(tmp_path) == "undecided"
    add(tmp_path / "runs", "more", 0.800, env=other)
    assert verdict(tmp_path) == "same"  # equal is equal, wherever


def test_two_runs_of_ones_own_may_lie_less_far_off(tmp_path):
    add(tmp_path / "measured", "more", 0.800, 0.802, 0.804)
    off = 4.303 * (1 / 3 + 1 / 2) ** 0.5 * 0.002
    for factor, expected in ((0.99, "within"), (1.01, "outside")):
        add(tmp_path / "runs", "more", *[0.802 + factor * off] * 2, env={"isa": "AVX2"})
        assert verdict(tmp_path) == expected


def test_old_records_that_name_no_instruction_set_bind_nobody(tmp_path):
    add(tmp_path / "measured", "more", 0.800, 0.802, env={"isa": None})
    add(tmp_path / "runs", "more", 0.801)
    assert verdict(tmp_path) == "within"


# ------------------------------------------------------------------------------- the paper


def test_a_file_has_the_printed_digits_rounded_or_cut_off(tmp_path):
    for top1, expected in (
        (0.800650001, "same"), (0.80064, "outside"), (0.80079, "same"), (0.80081, "outside")
    ):  # fmt: skip
        add(tmp_path / "measured", "file", top1)
        found = rows(tmp_path).loc[("file", "top1_percent")]
        assert (found["paper"], found["paper_verdict"]) == ("80.07", expected)
        assert found["paper_difference"] == pytest.approx(100 * top1 - 80.07)
        assert found["locator"] == "Table 2, row A"


def test_a_sum_in_32_bits_has_fewer_digits_than_are_printed(tmp_path):
    printed = SWEEP.printed
    exact, summed = (replace(printed[1], tolerance=limit) for limit in (0.0, 1e-3))
    for score, expected in ((0.01201, "within"), (0.01213, "outside"), (0.0120, "same")):
        add(tmp_path / "measured", "file", 0.8007, **{"revised.score": score})
        (tmp_path / "toy.csv").write_text(PAPER.replace("0.0120", "0.012000"))
        for each, said in ((summed, expected), (exact, expected.replace("within", "outside"))):
            sweep = replace(SWEEP, printed=(printed[0], each, printed[2]))
            found = records.compared(sweep, "full", True, tmp_path / "measured")
            found = found.set_index(["point", "metric"]).loc[("file", "score")]
            assert found["paper_verdict"] == said, score
    assert found["verdict"] == NOT_RUN  # the paper judges nothing of this machine


def test_the_committed_records_agree_with_every_number_of_the_authors_notebooks(monkeypatch):
    monkeypatch.setattr(tables, "PAPER_TABLES", PAPER_TABLES)
    found = records.compared(SWEEPS["published"], "full").set_index(["point", "metric"])
    judged = found["paper_verdict"][found["paper_verdict"] != NOT_RUN]
    within = [("v1_pr_60", "score_final"), ("v1_pr_60", "math_ops_final")]
    assert judged[judged != "same"].to_dict() == dict.fromkeys(within, "within")
    said = records.remarks(found.reset_index())
    assert "2 within beside the paper: equal to 1e-06: the authors add up in 32 bits" in said
    assert "outside" not in said


def test_where_the_paper_differs_the_chapter_is_named(monkeypatch):
    monkeypatch.setattr(tables, "PAPER_TABLES", PAPER_TABLES)
    said = records.remarks(records.compared(SWEEPS["expand_ratio"], "full"))
    assert "outside beside the paper" in said
    assert "where paper, README and code differ: 01_architecture" in said


def test_a_training_is_held_against_the_paper_at_its_own_budget_only(tmp_path):
    for profile, expected in (("quick", "undecided"), ("full", "within")):
        add(tmp_path / "measured", "more", 0.790, 0.800, 0.802, profile=profile)
        found = rows(tmp_path, profile).loc[("more", "top1_percent")]
        assert found["paper_verdict"] == expected
        assert (found["paper_difference"] == found["paper_difference"]) == (profile == "full")
    reason = rows(tmp_path, "quick").loc[("more", "top1_percent"), "paper_reason"]
    assert reason == "quick trains 1/150 of the paper's epochs, each of 2000 images"
    add(tmp_path / "measured", "more", 0.700, 0.701, 0.702)
    assert rows(tmp_path).loc[("more", "top1_percent"), "paper_verdict"] == "outside"


def test_one_training_has_no_spread_to_judge_the_paper_by(tmp_path):
    add(tmp_path / "measured", "more", 0.79)
    found = rows(tmp_path).loc[("more", "top1_percent")]
    assert (found["paper_verdict"], found["paper_reason"]) == ("undecided", "one run has no spread")
    assert found["low"] != found["low"]


def test_a_gain_is_a_difference_of_means_with_an_interval(tmp_path):
    add(tmp_path / "measured", "none", 0.790, 0.792)
    add(tmp_path / "measured", "more", 0.800, 0.802)
    found = rows(tmp_path).loc[("more", "gain_percent")]
    assert found[["committed", "n", "paper_verdict"]].tolist() == [pytest.approx(1.0), 2, "same"]
    # Welch with equal spreads: two degrees of freedom, an error of 0.1414 points.
    assert found["high"] - found["committed"] == pytest.approx(4.303 * 0.14142, rel=1e-3)
    assert ("none", "gain_percent") not in rows(tmp_path).index
    add(tmp_path / "runs", "more", 0.81, env={"isa": "AVX2"})
    assert verdict(tmp_path, "more", "gain_percent") == NOT_RUN  # without a reference of one's own
    add(tmp_path / "runs", "none", 0.79, env={"isa": "AVX2"})
    assert verdict(tmp_path, "more", "gain_percent") == "within"


def test_a_point_that_only_this_machine_measured_is_held_against_the_paper(tmp_path):
    add(tmp_path / "runs", "file", 0.8)
    assert verdict(tmp_path, "file") == "outside"
    assert verdict(tmp_path, "file", "loss") == "undecided"
    add(tmp_path / "runs", "file", 0.8007)
    assert verdict(tmp_path, "file") == "same"


# -------------------------------------------------------------------------- what is chosen


def test_a_profile_of_drawn_images_shows_the_nearest_to_the_paper_and_nothing_of_ones_own(tmp_path):
    for profile in ("quick", "day"):
        add(tmp_path / "measured", "more", 0.5, profile=profile)
        add(tmp_path / "runs", "more", 0.5, profile=profile)
    found = rows(tmp_path, "smoke")
    assert set(found["profile"]) == {"day"}
    assert found["n_mine"].sum() == 0
    assert rows(tmp_path, "quick")["n_mine"].sum() > 0
    assert rows(tmp_path, "")["n_mine"].sum() > 0
    with pytest.raises(InputError, match="smoke, quick"):
        rows(tmp_path, "fast")


def test_one_point_of_a_longer_profile_does_not_hide_the_many_of_a_shorter_one(tmp_path):
    for point in ("more", "none"):
        add(tmp_path / "measured", point, 0.5, profile="quick")
    add(tmp_path / "measured", "more", 0.6, profile="day")
    assert set(rows(tmp_path, "smoke")["profile"]) == {"quick"}
    add(tmp_path / "measured", "none", 0.6, profile="day")
    assert set(rows(tmp_path, "smoke")["profile"]) == {"day"}


def test_rows_without_anything_to_compare_are_left_out_unless_asked_for(tmp_path):
    add(tmp_path / "measured", "file", 0.8007)
    few, all_of_them = (rows(tmp_path, "full", everything).index for everything in (False, True))
    assert set(few) < set(all_of_them)
    assert ("file", "loss") not in few
    add(tmp_path / "runs", "file", 0.8007)
    assert ("file", "loss") in rows(tmp_path, "full", False).index


def test_records_of_another_recipe_are_not_compared(tmp_path):
    add(tmp_path / "measured", "more", 0.8)
    add(tmp_path / "runs", "more", 0.8)
    (path,) = (tmp_path / "runs").rglob("*.json")
    records.write(replace(records.read(path), recipe_id="0123456789"), tmp_path / "runs")
    assert verdict(tmp_path) == NOT_RUN


def test_a_page_shows_the_columns_that_say_something(tmp_path):
    add(tmp_path / "measured", "file", 0.8007)
    found = records.compared(SWEEP, "full", root=tmp_path / "measured")
    shown = records.side_by_side(found)
    assert list(shown) == [
        *("point", "metric", "paper", "printed in", "committed", "off the paper", "like the paper")
    ]
    assert shown.iloc[0].tolist() == [
        *("file", "top1_percent", "80.07", "Table 2, row A", "80.070 (n=1)", "0", "same")
    ]
    add(tmp_path / "runs", "file", 0.8)
    add(tmp_path / "measured", "more", 0.79, 0.80)
    found = records.compared(SWEEP, "full", root=tmp_path / "measured")
    shown = records.side_by_side(found).set_index(["point", "metric"])
    first = shown.loc[("file", "top1_percent"), ["mine", "off the committed", "verdict"]]
    assert first.tolist() == ["80.000 (n=1)", "-0.070", "outside"]
    assert shown.loc[("more", "top1_percent"), "committed"] == "79.50 (73.15 to 85.85, n=2)"
    said = records.remarks(found)
    assert "toy: committed · full · 2 CPU threads · torch 2.15.0 · n=1/2 · abc1234" in said
    assert "not run: 1 of 2 points" not in said
    assert "1 outside beside the committed records: needs no training, so it must be equal" in said


@pytest.mark.parametrize("sweep", [s for s in SWEEPS.values() if s.printed], ids=lambda s: s.name)
def test_every_sweep_that_reproduces_something_finds_its_numbers(sweep, monkeypatch):
    monkeypatch.setattr(tables, "PAPER_TABLES", PAPER_TABLES)
    found = records.compared(sweep, "full")
    names = {point.name for point in sweep.points()}
    for each in sweep.printed:
        assert set(each.points or names) <= names
        assert each.against in {"", *names}
        own = found[found["metric"] == each.metric]
        assert len(own) == len(each.points) if each.points else len(own)
    assert (found["paper"] != "").all()


def test_own_runs_are_a_table_where_they_can_stand_beside_others(tmp_path):
    add(tmp_path / "runs", "more", 0.7, 0.8)
    add(tmp_path / "runs", "more", 0.1, profile="smoke")
    found = records.mine(SWEEP, "full").set_index("point")
    assert found["n"].to_dict() == {"file": 0, "none": 0, "more": 2}
    assert found.at["more", "top1"] == pytest.approx(0.75)
    assert (records.mine(SWEEP, "smoke")["n"] == 0).all()  # drawn images say nothing
    assert (records.mine(replace(SWEEP, profiles=("quick",)), "full")["n"] == 0).all()
    with pytest.raises(InputError):
        records.mine(SWEEP, "fully")


def test_corrupted_images_of_another_seed_need_not_give_the_same(tmp_path, monkeypatch):
    """The seed draws the corruptions, and instruction sets round them differently."""
    monkeypatch.setitem(globals(), "SWEEP", replace(SWEEP, measures=("corruptions",)))
    add(tmp_path / "measured", "file", 0.60)
    add(tmp_path / "runs", "file", 0.61, seed=1)
    assert verdict(tmp_path, "file") == "undecided"
