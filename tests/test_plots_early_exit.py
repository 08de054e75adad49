"""The figures of chapter `07_early_exit` show what their tables say, and say what was not run."""

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from figures import texts
from made_records import ENV

from micronet_lib import plots
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records.record import Record

METRICS = {
    "threshold": 0.9, "exit_rate": 0.3, "top1": 0.79, "official.expected_score": 4.5e-3,
    "official.trunk_score": 5.5e-3,
}  # fmt: skip


def made_table(*points: str) -> pd.DataFrame:
    """The table of made-up records; a point that is not named was not run."""
    made = [Record("early_exit", p, p, {}, "day", 0, "", METRICS, ENV) for p in points]
    return records.table(SWEEPS["early_exit"], made, profile="day")


def made_arrays(*points: str) -> dict[str, Any]:
    """The arrays of made-up records: all leave at 0, half at 0.5, nobody at 1."""
    curves = {"thresholds": [0.0, 0.5, 1.0]}
    curves |= {"exit_rate": [1.0, 0.5, 0.0], "top1": [0.4, 0.7, 0.8]}
    curves |= {"calibrated.exit_rate": [1.0, 0.4, 0.0], "calibrated.top1": [0.4, 0.72, 0.8]}
    choices = {"may_change": [0.01], "exit_rate": [0.2], "top1": [0.795]}
    choices |= {"calibrated.exit_rate": [0.25], "calibrated.top1": [0.79]}
    scores = {"official": [0.006, 0.003], "published": [0.006, 0.003]}
    arrays = {"exit_curves": curves, "exit_choices": choices, "exit_scores": scores}
    return dict.fromkeys(points, arrays)


def test_parts_add_up_and_lie_in_their_order():
    layers = ["trunk.stem.conv", "trunk.blocks.1.conv", "trunk.blocks.10.conv", "trunk.blocks.1.se"]
    layers += ["exit_head.classifier", "trunk.head.pool"]
    costs = plots.part_costs(pd.DataFrame({"layer": layers, "math_ops": [1, 2, 4, 8, 16, 32]}))
    found = dict(zip(costs["part"], costs["math_ops"], strict=True))
    assert found == {"stem": 1, "blocks.1": 10, "blocks.10": 4, "exit_head": 16, "head": 32}
    pictures = [np.zeros((4, 4, 3), np.uint8)] * 2
    fig = plots.exit_picture(costs, "blocks.1", pictures, "somewhere")
    widths = [box.get_width() for box in fig.axes[0].patches if box.get_y() == 0]
    assert widths == pytest.approx([1 / 47, 10 / 47, 4 / 47, 32 / 47])
    assert "somewhere" in texts(fig)


def test_reliability_shows_the_means_of_each_bin():
    sure, boasting = [0.02, 0.08, 0.51, 0.57, 1.0], [0.9, 0.95, 1.0, 1.0, 1.0]
    right = [False, True, True, True, False]
    rows = [
        pd.DataFrame({"confidence": values, "right": right, "kind": kind})
        for kind, values in {"one": sure, "two": boasting}.items()
    ]
    fig = plots.reliability(pd.concat(rows), "somewhere")
    lines = {line.get_label(): line for line in fig.axes[0].lines}
    assert lines["one"].get_xdata() == pytest.approx([5, 54, 100])
    assert lines["one"].get_ydata() == pytest.approx([50, 100, 0])
    assert lines["two"].get_ydata() == pytest.approx([60])
    assert "somewhere" in texts(fig)


def test_curves_are_linear_in_the_exit_rate():
    curves = plots.exit_curves(made_arrays("block_3"))
    plain = curves[~curves["calibrated"].astype(bool)]
    assert plain["score"].tolist() == pytest.approx([0.003, 0.0045, 0.006])
    assert len(curves) == 6
    assert plots.exit_curves({}).empty


def test_choices_name_their_point():
    choices = plots.exit_choices(made_arrays("block_3", "block_6"))
    assert choices["point"].tolist() == ["block_3", "block_6"]
    assert choices["calibrated.exit_rate"].tolist() == [0.25, 0.25]
    assert plots.exit_choices({}).columns.tolist() == choices.columns.tolist()


def test_the_printed_tradeoff_has_four_blocks_and_three_thresholds():
    printed = plots.osi_tradeoff(records.paper("early_exit"))
    assert printed.groupby("block")["threshold"].apply(list).to_dict() == {
        block: [0.85, 0.88, 0.9] for block in (2, 3, 4, 5)
    }
    (row,) = printed.query("block == 4 and threshold == 0.85").to_dict("records")
    assert row["exit_rate"] == pytest.approx(0.3631)
    assert row["top1"] == pytest.approx(0.7994)
    assert row["path"] == pytest.approx(0.3891)


def test_the_tradeoff_marks_what_was_chosen_and_says_what_was_not_run():
    printed = plots.osi_tradeoff(records.paper("early_exit"))
    curves = plots.exit_curves(made_arrays("block_3"))
    fig = plots.exit_tradeoff(curves, made_table("block_3"), printed, "somewhere")
    dots = [line.get_xydata().tolist() for ax in fig.axes for line in ax.lines
            if line.get_marker() == "o"]  # fmt: skip
    assert np.allclose(dots, [[[0.9, 30]], [[30, 79]], [[4.5, 79]]])
    assert "not run" not in texts(fig)
    nothing = plots.exit_tradeoff(plots.exit_curves({}), made_table(), printed, "")
    assert "not run" in texts(nothing)


def test_the_slider_holds_every_threshold():
    curves = plots.exit_curves(made_arrays("block_3", "block_6_joint"))
    trunks = {"block_3": 0.0055, "block_6_joint": 0.0055}
    page = plots.exit_explorer(curves, trunks, "slider", "made up").data
    assert not re.search(r"__[A-Z]+__", page)
    found = re.search(r"const data = (\{.*?\});\n", page)
    assert found
    data = json.loads(found[1])
    assert list(data["points"]) == ["block_3", "block_6_joint"]
    joint = data["points"]["block_6_joint"]
    assert joint["label"] == "block 6 (joint)"
    assert joint["plain"] == [[0, 1, 0.4, 0.003], [0.5, 0.5, 0.7, 0.0045], [1, 0, 0.8, 0.006]]
    assert joint["calibrated"][1][1] == 0.4


def test_a_slider_without_a_record_says_so():
    page = plots.exit_explorer(plots.exit_curves({}), {}, "slider", "not run").data
    assert "not run" in page
    assert "<script" not in page


def test_the_readers_own_runs_are_stars_in_every_panel():
    printed = plots.osi_tradeoff(records.paper("early_exit"))
    curves, mine = plots.exit_curves({}), made_table("block_3")
    fig = plots.exit_tradeoff(curves, made_table(), printed, "", mine=mine)
    stars = [line.get_xydata().tolist() for ax in fig.axes for line in ax.lines
             if line.get_marker() == "*"]  # fmt: skip
    assert np.allclose(stars, [[[0.9, 30]], [[30, 79]], [[4.5, 79]]])
    assert texts(fig).count("yours, day, n=1") == 1
