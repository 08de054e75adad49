"""The figures of chapter `08_ternary` show what their tables say, and say what was not run."""

import pandas as pd
import pytest
import torch
from figures import texts
from made_records import ENV
from small_networks import seeded

from micronet_lib import plots
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records.record import Record
from micronet_lib.ternary import threshold_signs


def made_table(**top1: float) -> pd.DataFrame:
    """The table of made-up records; a point that is not named was not run."""
    found = []
    for point, value in top1.items():
        metrics = {"top1": value, "official.score": 0.003, "narrow_sums.score": 0.002}
        found.append(Record("ternary", point, point, {}, "day", 0, "", metrics, ENV))
    return records.table(SWEEPS["ternary"], found, profile="day")


def test_three_bins_hold_all_weights():
    weight = torch.randn(500, generator=seeded(0))
    signs = threshold_signs(weight, 0.3)
    table = pd.DataFrame({"weight": weight.numpy(), "sign": signs.int().numpy()})
    fig = plots.three_bins(table, (0.9, 0.7), "somewhere")
    left, right = fig.axes
    assert sum(bar.get_height() for bar in left.patches) == 500
    heights = {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height()
               for bar in right.patches}  # fmt: skip
    assert heights == {
        value: int((signs == sign).sum()) for value, sign in ((-0.7, -1), (0.0, 0), (0.9, 1))
    }
    assert "somewhere" in texts(fig)


def test_readings_are_two_scores_of_a_way():
    fig = plots.ternary_readings(made_table(ttq=0.6, entropy=0.4), "")
    wide, narrow = (each.get_offsets() for each in fig.axes[0].collections[1:3])
    assert wide[:, 0].tolist() == [0.003] * 2
    assert narrow[:, 0].tolist() == [0.002] * 2
    assert wide[:, 1].tolist() == pytest.approx([60, 40])
    assert "not run" not in texts(fig)
    assert "not run" in texts(plots.ternary_readings(made_table(), ""))


def test_latent_weights_by_bin():
    found = {"minus": [3, 1, 0, 0], "zero": [0, 5, 90, 0], "plus": [0, 0, 1, 4]}
    fig = plots.latent_bins({"ttq": {**found, "scales": [-0.4, 0.5]}}, "")
    heights = [bar.get_height() for bar in fig.axes[0].patches]
    assert heights == [*found["minus"], *found["zero"], *found["plus"]]
    assert fig.axes[0].get_ylim()[1] < 90  # what is exactly 0 is cut off
    assert "not run" in texts(plots.latent_bins({}, ""))


def test_the_readers_own_runs_are_stars():
    fig = plots.ternary_readings(made_table(entropy=0.4), "", mine=made_table(ttq=0.6))
    (star,) = (line for line in fig.axes[0].lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [pytest.approx([0.003, 60])]
    assert "yours, day, n=1" in texts(fig)
