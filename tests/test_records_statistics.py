"""Differences of means: against scipy, by hand, and where runs are missing."""

import math

import numpy as np
import pandas as pd
import pytest
from made_records import SWEEP, failed_record, record
from scipy import stats

from micronet_lib.errors import InputError
from micronet_lib.lab import records

VALUES = {"a": [1.0, 2.0, 4.0], "b": [2.0, 3.5, 4.5], "c": [9.0, 9.5, 9.1, 9.2], "one": [5.0]}


def long(values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"point": point, "seed": seed, "top1": value}
        for point, own in values.items()
        for seed, value in enumerate(own)
    ]
    return pd.DataFrame(rows)


def test_runs_have_a_row_each_and_one_where_nothing_was_run(tmp_path):
    for made in (record(seed=1), record(), record("table1_3.0", metrics={"top1": 0.2, "x": 1})):
        records.write(made, tmp_path)
    found = records.runs(SWEEP, "quick", tmp_path)
    assert list(found.columns) == ["point", "seed", "score", "top1", "x"]
    assert list(found["point"]) == ["micronet_v1", "micronet_v1", "micronet_v2", "table1_3.0"]
    assert list(found["seed"].fillna(-1)) == [0, 1, -1, 0]
    assert list(found["score"].fillna(-1)) == [1.5, 2.5, -1, -1]
    assert records.runs(SWEEP, "full", tmp_path)["seed"].isna().all()


def test_a_run_that_failed_is_none_and_its_text_goes_with_the_differences(tmp_path):
    for made in (record(), record(seed=1), failed_record(seed=2), failed_record("micronet_v2")):
        records.write(made, tmp_path)
    found = records.runs(SWEEP, "quick", tmp_path)
    assert list(found["seed"].fillna(-1)) == [0, 1, -1, -1]
    gains = records.gain(found, "micronet_v1").set_index("point")
    assert gains.loc["micronet_v2", ["n", "n_against"]].tolist() == [0, 2]
    assert gains.attrs["diverged"] == {"micronet_v2": "diverged (epoch 1, 1 of 1 seed)"}


def test_welch_is_scipys():
    table = records.gain(long(VALUES), "a").set_index("point")
    assert list(table.index) == ["b", "c", "one"]
    for point in ("b", "c"):
        row, test = table.loc[point], stats.ttest_ind(VALUES[point], VALUES["a"], equal_var=False)
        interval = test.confidence_interval(0.95)
        assert row["gain"] == pytest.approx(np.mean(VALUES[point]) - np.mean(VALUES["a"]))
        assert row[["low", "high"]].tolist() == pytest.approx([interval.low, interval.high])
        assert row["p"] == pytest.approx(test.pvalue)
        assert row[["n", "n_against", "comparisons"]].tolist() == [len(VALUES[point]), 3, 2]


def test_pairs_are_scipys_and_only_of_shared_seeds():
    table = records.gain(long(VALUES), {"b": "a", "c": "a"}, paired=True).set_index("point")
    for point in ("b", "c"):
        test = stats.ttest_rel(VALUES[point][:3], VALUES["a"])
        interval = test.confidence_interval(0.95)
        row = table.loc[point]
        assert row[["n", "n_against"]].tolist() == [3, 3]
        assert row["gain"] == pytest.approx(np.mean(VALUES[point][:3]) - np.mean(VALUES["a"]))
        assert row[["low", "high"]].tolist() == pytest.approx([interval.low, interval.high])
        assert row["p"] == pytest.approx(test.pvalue)


def test_pairing_finds_what_a_shared_parent_hides():
    """The parent moves both alike, so that only the differences of one seed say something."""
    parents = [0.0, 10.0, 20.0]
    runs = long({"a": parents, "b": [p + 1 + 0.1 * i for i, p in enumerate(parents)]})
    assert records.gain(runs, "a", paired=True)["p"].item() < 0.01
    assert records.gain(runs, "a")["p"].item() > 0.8


@pytest.mark.parametrize("paired", [False, True])
def test_what_single_runs_cannot_say_is_missing_and_never_zero(paired):
    values = {"a": [0.1, 0.2], "single": [0.3], "same": [0.2, 0.3], "empty": [math.nan]}
    table = records.gain(long(values), "a", paired=paired).set_index("point")
    unknown = ["low", "high", "p", "p_holm", "detectable"]
    assert table.loc["single", "gain"] == pytest.approx(0.2 if paired else 0.15)
    assert table.loc["single", unknown].isna().all()
    assert table.loc["empty", ["gain", *unknown]].isna().all()
    assert table.loc["empty", "n"] == 0
    if paired:  # the differences are equal but for rounding: no spread to judge by
        assert table.loc["same", "gain"] == pytest.approx(0.1)
        assert table.loc["same", unknown].isna().all()
        assert (table["comparisons"] == 0).all()


def test_two_single_runs_have_no_interval():
    (row,) = records.gain(long({"a": [1.0], "b": [2.0]}), "a").to_dict("records")
    assert (row["gain"], row["comparisons"]) == (1, 0)
    assert all(math.isnan(row[name]) for name in ("low", "high", "p", "p_holm", "detectable"))


def test_holm_by_hand():
    """Sorted p are multiplied by 3, 2, 1, and never fall."""
    values = {"r": [0.0, 1.0, 2.0], "x": [9.0, 10.0, 11.5], "y": [2.0, 3.1, 4.0], "z": [2.1, 3, 4]}
    table = records.gain(long(values), "r").sort_values("p")
    p = table["p"].tolist()
    assert p[0] < 0.05 < p[1]
    by_hand = [3 * p[0], max(3 * p[0], 2 * p[1]), max(3 * p[0], 2 * p[1], p[2])]
    assert table["p_holm"].tolist() == pytest.approx([min(1, each) for each in by_hand])
    assert (table["comparisons"] == 3).all()


def test_scale_multiplies_differences_and_nothing_else():
    plain, points = (records.gain(long(VALUES), "a", scale=scale) for scale in (1, 100))
    for name in ("gain", "low", "high", "detectable"):
        assert points[name].tolist() == pytest.approx((100 * plain[name]).tolist(), nan_ok=True)
    same = ["n", "n_against", "p", "p_holm", "comparisons"]
    pd.testing.assert_frame_equal(points[same], plain[same])


@pytest.mark.parametrize("n", [3, 8])
def test_the_detectable_difference_is_found_in_four_of_five_cases(n):
    arm = np.arange(n) - (n - 1) / 2
    arm /= arm.std(ddof=1)
    (detectable,) = records.gain(long({"a": list(arm), "b": list(arm + 1)}), "a")["detectable"]
    draws = np.random.default_rng(0).normal(size=(2, n, 20_000))
    draws[0] += detectable
    found = (stats.ttest_ind(*draws).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("reference", ["x", {"x": "a"}, {"a": "x"}])
def test_an_unknown_point_is_answered_with_the_known_ones(reference):
    with pytest.raises(InputError, match=r"'x'.*a, b, c, one"):
        records.gain(long(VALUES), reference)
    with pytest.raises(InputError, match=r"'x'.*top1"):
        records.gain(long(VALUES), "a", "x")


def test_detectable_is_that_of_a_gain_with_this_spread():
    values = {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]}  # both with a spread of 1
    row = records.gain(long(values), "a").iloc[0]
    assert records.detectable(1.0, 3) == pytest.approx(row["detectable"])
    assert records.detectable(2.0, 3) == pytest.approx(2 * records.detectable(1.0, 3))
    assert records.detectable(1.0, 10) < records.detectable(1.0, 3)
    assert math.isnan(records.detectable(1.0, 1))
