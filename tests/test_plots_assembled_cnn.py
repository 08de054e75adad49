"""The figures of chapter `10_assembled_cnn` show what their tables say."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from figures import texts
from made_records import ENV

from micronet_lib import plots
from micronet_lib.lab import records
from micronet_lib.lab.host.places import ROOT
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records.record import Record


def test_a_ladder_has_both_measures_of_every_rung():
    rungs = pd.DataFrame({"point": ["E0", "E1"], "top1_percent": [76.8, 77.3],
                          "mce_percent": [75.5, 75.7]})  # fmt: skip
    left, right = plots.assembled_ladder(rungs, "somewhere").axes
    assert left.lines[0].get_ydata().tolist() == [76.8, 77.3]
    assert right.lines[0].get_ydata().tolist() == [75.5, 75.7]


def test_rungs_stand_beside_what_is_printed_under_their_names():
    paper = records.paper("assembled_cnn")
    measured = pd.DataFrame({"point": ["E0", "E5"], "n": [3, 0], "top1": [0.6, np.nan]})
    rows = plots.rungs_beside(paper, measured).set_index("rung")
    assert list(rows.index) == [f"E{number}" for number in range(13)]
    assert rows.loc["E5", ["network", "regularizers"]].tolist() == ["R50D+SE", "LS+Mixup+DropBlock"]
    assert rows.loc["E3", "mCE"] == pytest.approx(68.19 - 74.27)
    assert rows.loc["E5", "its step"] == pytest.approx(80.40 - 79.71)
    assert rows.loc["E0", ["printed (%)", "here (%)", "n"]].tolist() == [76.87, 60.0, 3]
    assert rows.loc[["E5", "E12"], "here (%)"].isna().all()  # not run, and no point of the sweep
    nothing = plots.rungs_beside(paper, measured.drop(columns="top1"))
    assert nothing["here (%)"].isna().all()


def test_a_rung_that_stands_aside_carries_none():
    measured = pd.DataFrame({"point": ["M0"], "n": [0]})
    paper = records.paper("assembled_cnn")
    usual, rows = (
        plots.rungs_beside(paper, measured, aside=aside).set_index("rung") for aside in ((), ["M1"])
    )
    printed = rows["printed (%)"]
    assert rows.loc["M2", "its step"] == pytest.approx(printed["M2"] - printed["M0"])
    assert rows["its step"].drop("M2").equals(usual["its step"].drop("M2"))


def test_a_step_is_the_difference_of_two_printed_rows():
    paper = records.paper_wide("assembled_cnn", "lee2020assembled")
    found = plots.printed_steps(paper, {"mixup": ("E2", "E3"), "SE": ("E3", "E4")})
    mixup, gate = found.set_index("technique").to_dict("index").values()
    assert (mixup["rows"], mixup["epochs"], mixup["images/s"]) == ("E2 to E3", "120 to 200", 0)
    assert mixup["top-1"] == pytest.approx(79.10 - 78.35)
    assert mixup["mCE"] == pytest.approx(68.19 - 74.27)
    assert gate["epochs"] == "200"
    assert gate["images/s"] == pytest.approx(420 / 493 - 1)


def test_differences_by_kind_go_from_the_largest_loss_to_the_largest_gain():
    rates = {"base": {"fog": 0.3, "snow": 0.2, "frost": 0.4},
             "other": {"fog": 0.25, "snow": 0.3, "frost": 0.41}}  # fmt: skip
    found = plots.gains_by_kind(rates, {"other": "base"})
    assert list(found) == ["other"]
    assert [kind for kind, _ in found["other"]] == ["snow", "frost", "fog"]
    assert [points for _, points in found["other"]] == pytest.approx([-10, -1, 5])


def test_a_ladder_without_mce_has_no_such_column():
    measured = pd.DataFrame({"point": ["T0", "T2"], "n": [1, 1], "top1": [0.5, 0.6]})
    rows = plots.rungs_beside(records.paper("assembled_cnn"), measured)
    assert rows["network"].tolist()[:3] == ["R50", "R50D", "R50D+SK"]
    assert set(rows["regularizers"]) == {"-"}
    assert rows["n"].tolist() == [1, 0, 1, 0, 0, 0]
    assert "mCE" not in rows


def test_speed_and_work_tells_the_families_apart():
    table = pd.DataFrame({"point": ["efficientnet_b0@224", "R50@224", "R50D@224"],
                          "macs_billions": [0.39, 4.1, 4.4],
                          "throughput": [510, 536, 493]})  # fmt: skip
    fig = plots.speed_and_work(table, "")
    first, second = (each.get_offsets().tolist() for each in fig.axes[0].collections)
    assert (first, second) == ([[0.39, 510]], [[4.1, 536], [4.4, 493]])
    assert all(word in texts(fig) for word in ("b0", "R50", "R50D", "EfficientNet"))


def test_pictures_stand_side_by_side_under_their_titles():
    one = np.zeros((4, 4, 3), dtype=np.uint8)
    fig = plots.corruption_pictures({"fog": [one, one + 9], "snow_fall": [one]}, "", columns=2)
    assert [ax.images[0].get_array().shape for ax in fig.axes] == [(4, 8, 3), (4, 4, 3)]
    assert all(word in texts(fig) for word in ("fog", "snow fall"))


def test_measured_speed_stands_beside_what_zeros_would_give():
    assembled = pd.DataFrame({"network": ["R50", "R50D"], "macs": [4.1e9, 4.3e9],
                              "images_per_s": [10.0, 9.0]})  # fmt: skip
    pruned = pd.DataFrame({"network": ["dense", "half", "other", "tenth"],
                           "macs": [40e6, 40e6, 30e6, 30e6],
                           "nonzero_macs": [40e6, 20e6, 30e6, 3e6],
                           "images_per_s": [500.0, 510.0, 600.0, 620.0]})  # fmt: skip
    fig = plots.measured_speed(assembled, pruned, "here")
    left, right = fig.axes
    assert left.collections[0].get_offsets().tolist() == [[4.1, 10.0], [4.3, 9.0]]
    assert right.collections[0].get_offsets().tolist() == [[40.0, 500.0], [20.0, 510.0]]
    assert right.lines[0].get_ydata().tolist() == [500.0, 1000.0]
    assert right.collections[1].get_offsets().tolist() == [[30.0, 600.0], [3.0, 620.0]]
    assert right.lines[1].get_ydata().tolist() == pytest.approx([600.0, 6000.0])
    assert len(right.get_legend().get_texts()) == 2
    assert all(word in texts(fig) for word in ("R50D", "half", "tenth", "here"))
    assert "not run" in texts(plots.measured_speed(assembled, pruned[:0], ""))


def test_names_of_the_kept_speeds_do_not_meet():
    timed = pd.DataFrame(json.loads((ROOT / "data" / "throughput.json").read_text())["rows"])
    small = timed["side"] == 32
    fig = plots.measured_speed(timed[~small], timed[small], "")
    fig.canvas.draw()
    for ax in fig.axes:
        boxes = [text.get_window_extent() for text in ax.texts if text.get_rotation() == 0]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_retrieved_frames_tell_right_from_wrong():
    one = np.zeros((4, 4, 3), dtype=np.uint8)
    fig = plots.retrieved([[one, one, one], [one, one, one]], np.array([[True, False]] * 2), "")
    colours = [ax.spines["left"].get_edgecolor() for ax in fig.axes]
    assert colours[:3] == colours[3:]
    assert len(set(colours)) == 3
    assert all(word in texts(fig) for word in ("query", "nearest 2"))


def test_robustness_draws_what_was_run():
    metrics = {"top1": 0.8, "corrupted_top1": 0.5}
    made = Record("corruptions", "v1_pr_60", "x", {}, "day", 0, "", metrics, ENV)
    table = records.table(SWEEPS["corruptions"], [made], profile="day")
    (ax,) = plots.robustness(table, "").axes
    assert ax.collections[0].get_offsets().tolist() == [pytest.approx([80, 50])]
    nothing = records.table(SWEEPS["corruptions"], [], profile="day")
    assert "not run" in texts(plots.robustness(nothing, ""))


def test_rates_have_a_row_for_each_kind_and_a_marker_for_each_network():
    rates = {"few": {"snow": 0.05, "tilt": 0.03}, "many": {"snow": 0.06, "tilt": 0.02}}
    (ax,) = plots.rates_by_kind(rates, "flips", "").axes
    assert ax.get_xlabel() == "flips (%)"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["tilt", "snow"]
    drawn = {line.get_label(): list(line.get_xdata()) for line in ax.lines}
    assert drawn == {"few": [3.0, 5.0], "many": [2.0, 6.0]}
    assert "not run" in texts(plots.rates_by_kind({}, "flips", ""))


def test_every_network_of_a_sweep_has_a_look_of_its_own():
    points = [point.name for point in SWEEPS["corruptions"].points()]
    (ax,) = plots.rates_by_kind({point: {"snow": 0.1} for point in points}, "wrong", "").axes
    looks = {(line.get_color(), line.get_marker()) for line in ax.lines}
    assert len(looks) == len(points) == 16


def test_the_readers_own_robustness_is_a_star():
    metrics = {"top1": 0.8, "corrupted_top1": 0.5}
    made = Record("corruptions", "v1_pr_60", "x", {}, "day", 0, "", metrics, ENV)
    nothing = records.table(SWEEPS["corruptions"], [], profile="day")
    mine = records.table(SWEEPS["corruptions"], [made], profile="day")
    fig = plots.robustness(nothing, "", mine=mine)
    (star,) = (line for line in fig.axes[0].lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [pytest.approx([80, 50])]
    assert "yours, day, n=1" in texts(fig)
