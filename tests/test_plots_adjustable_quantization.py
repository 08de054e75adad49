"""The figures of chapter `09_adjustable_quantization` show their tables, and what was not run."""

import numpy as np
import pandas as pd
import pytest
from figures import texts
from made_records import ENV
from matplotlib.collections import LineCollection, PathCollection

from micronet_lib import plots
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records.record import Record

SWEEP = SWEEPS["adjustable_quantization"]


def made_table(**top1: float | list[float]) -> pd.DataFrame:
    """The table of made-up records; a point that is not named was not run."""
    found = []
    for point, values in top1.items():
        for seed, value in enumerate(values if isinstance(values, list) else [values]):
            metrics = {"top1": value, "official.score": 0.003}
            found.append(Record(SWEEP.name, point, point, {}, "day", seed, "", metrics, ENV))
    return records.table(SWEEP, found, profile="day")


def test_learned_beside_uniform():
    fig = plots.learned_and_uniform(made_table(learned_4=0.8, uniform_4=0.7, uniform_3=0.6), "")
    points = {
        each.get_label(): each.get_offsets()[:, 1].tolist()
        for each in fig.axes[0].collections
        if isinstance(each, PathCollection)
    }
    assert points["uniform"] == pytest.approx([70, 60])
    assert points["learned"] == pytest.approx([80])
    assert "not run" in texts(plots.learned_and_uniform(made_table(), ""))
    drawn = [list(line.get_ydata()) for line in fig.axes[0].lines]
    assert pytest.approx([70, 80]) in drawn  # joined


def test_several_runs_have_a_bar_and_single_ones_none():
    fig = plots.learned_and_uniform(made_table(learned_4=[0.8, 0.82], uniform_4=0.7), "")
    bars = [each for each in fig.axes[0].collections if isinstance(each, LineCollection)]
    ends = [segment[:, 1] for bar in bars for segment in bar.get_segments() if len(segment)]
    (drawn,) = (each for each in ends if not np.isnan(each).any())
    assert drawn == pytest.approx([81 - 2**0.5, 81 + 2**0.5])


def test_widths_are_shares_of_channels():
    found = {"weights": [0, 0, 3, 0, 1, 0, 0, 0, 0], "activations": [0, 0, 0, 0, 0, 0, 0, 0, 5]}
    fig = plots.widths_of_channels({"learned_4": found}, "")
    heights = [bar.get_height() for bar in fig.axes[0].patches]
    assert heights == [0, 0, 75, 0, 25, 0, 0, 0, 0, *[0] * 8, 100]
    assert "not run" in texts(plots.widths_of_channels({}, ""))


def test_a_panel_for_each_range():
    rows = [{"title": t, "x": x, "rounded": round(x)} for t in ("a", "b") for x in (0.2, 0.7)]
    fig = plots.adjusted_ranges(pd.DataFrame(rows), "somewhere")
    assert [ax.get_title() for ax in fig.axes] == ["a", "b"]
    assert fig.axes[0].lines[1].get_ydata().tolist() == [0, 1]
    assert "somewhere" in texts(fig)


def test_the_readers_own_runs_are_stars():
    fig = plots.learned_and_uniform(made_table(), "", mine=made_table(learned_4=0.8))
    (star,) = (line for line in fig.axes[0].lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [pytest.approx([0.003, 80])]
    assert "yours, day, n=1" in texts(fig)
    assert "yours" not in texts(plots.learned_and_uniform(made_table(), "", mine=made_table()))
