"""The figures and the table of the page on one training run."""

import pandas as pd
import pytest
from figures import texts

from micronet_lib import plots
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS


def curves(**points: list[list[float]]) -> pd.DataFrame:
    """Two epochs of each run, with a loss; a point's runs differ in their seed."""
    rows = [
        {"point": point, "seed": seed, "epoch": epoch, "train_loss": loss, "validation_top1": 0.5}
        for point, found in points.items()
        for seed, losses in enumerate(found)
        for epoch, loss in enumerate(losses, start=1)
    ]
    return pd.DataFrame(rows)


def test_each_run_is_drawn_and_the_mean_of_the_runs():
    table = curves(a=[[4.0, 2.0], [2.0, 1.0]], b=[[9.0, 9.0]])
    fig = plots.training_curves(table, {"a": "ours"}, "somewhere")
    drawn = [line.get_ydata().tolist() for line in fig.axes[0].lines]
    assert drawn == [[4, 2], [2, 1], [3, 1.5]]
    assert fig.axes[1].lines[0].get_ydata().tolist() == [50, 50]
    assert "ours, n=2" in texts(fig)
    assert "not run" not in texts(fig)


@pytest.mark.parametrize("empty", [records.curves_of([]), curves(b=[[1.0, 1.0]])])
def test_what_has_no_curve_was_not_run(empty):
    fig = plots.training_curves(empty, {"a": "ours"}, "somewhere")
    assert texts(fig).count("not run") == 2


def test_committed_curves_of_a_sweep_are_drawn():
    table = records.curves(SWEEPS["stages"], "quick")
    labels = {point: point for point in table["point"].unique()}
    fig = plots.training_curves(table, labels, "")
    runs = table.groupby(["point", "seed"]).ngroups
    assert len(fig.axes[0].lines) == runs + len(labels)


def test_a_schedule_is_drawn_from_its_first_value_to_its_last():
    fig = plots.learning_rates(pd.DataFrame({"one": [0.1, 0.05], "two": [0.3, 0.2]}), "somewhere")
    assert [line.get_ydata().tolist() for line in fig.axes[0].lines] == [[0.1, 0.05], [0.3, 0.2]]
    assert all(word in texts(fig) for word in ("one", "two", "0.1", "0.05"))


@pytest.mark.parametrize("sweep", ["pipeline", "label_smoothing", "stages"])
def test_the_legend_covers_no_line(sweep):
    table = records.curves(SWEEPS[sweep], "quick")
    labels = dict.fromkeys(table["point"].unique(), "a stage or round")
    fig = plots.training_curves(table, labels, "")
    fig.canvas.draw()
    (legend,) = fig.legends + [ax.get_legend() for ax in fig.axes if ax.get_legend()]
    for ax in fig.axes:
        for line in ax.lines:
            places = ax.transData.transform(line.get_xydata())
            assert not [place for place in places if legend.get_window_extent().contains(*place)]


def test_every_point_is_drawn_however_many_there_are():
    many = curves(**{f"point {number}": [[2.0, 1.0]] for number in range(9)})
    fig = plots.training_curves(many, {point: point for point in many["point"].unique()}, "")
    means = [line for line in fig.axes[0].lines if line.get_linewidth() == 2]
    assert len({(line.get_color(), line.get_linestyle()) for line in means}) == 9
