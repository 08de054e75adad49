"""The figures of chapter `10_assembled_cnn` show what their tables say."""

import numpy as np
import pandas as pd
import pytest
from figures import texts
from made_records import ENV

from micronet_lib import plots
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records.record import Record


def test_a_ladder_has_both_measures_of_every_rung():
    rungs = pd.DataFrame({"point": ["E0", "E1"], "top1_percent": [76.8, 77.3],
                          "mce_percent": [75.5, 75.7]})  # fmt: skip
    left, right = plots.assembled_ladder(rungs, "somewhere").axes
    assert left.lines[0].get_ydata().tolist() == [76.8, 77.3]
    assert right.lines[0].get_ydata().tolist() == [75.5, 75.7]


def test_steps_are_the_differences_of_a_printed_ladder():
    steps = plots.rung_steps(records.paper("assembled_cnn"), "E").set_index("rung")
    assert list(steps.index) == [f"E{number}" for number in range(13)]
    assert steps.loc["E3", "mCE (points)"] == pytest.approx(68.19 - 74.27)
    assert steps.loc["E5", "top-1 (points)"] == pytest.approx(80.40 - 79.71)
    assert steps.loc["E5", ["network", "regularizers"]].tolist() == [
        "R50D+SE",
        "LS+Mixup+DropBlock",
    ]


def test_rungs_stand_beside_what_is_printed_under_their_names():
    measured = pd.DataFrame({"point": ["T0", "T2"], "n": [3, 0], "top1": [0.6, np.nan]})
    rows = plots.rungs_beside(records.paper("assembled_cnn"), measured).set_index("rung")
    assert list(rows.index) == ["T0", "T2"]
    assert rows.loc["T0"].tolist() == ["R50", "-", 76.87, 60.0, 3]
    assert np.isnan(rows.loc["T2", "here (%)"])
    nothing = plots.rungs_beside(records.paper("assembled_cnn"), measured.drop(columns="top1"))
    assert nothing["here (%)"].isna().all()


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


def test_robustness_draws_what_was_run():
    metrics = {"top1": 0.8, "corrupted_top1": 0.5}
    made = Record("corruptions", "v1_pr_60", "x", {}, "day", 0, "", metrics, ENV)
    table = records.table(SWEEPS["corruptions"], [made], profile="day")
    (ax,) = plots.robustness(table, "").axes
    assert ax.collections[0].get_offsets().tolist() == [pytest.approx([80, 50])]
    nothing = records.table(SWEEPS["corruptions"], [], profile="day")
    assert "not run" in texts(plots.robustness(nothing, ""))
