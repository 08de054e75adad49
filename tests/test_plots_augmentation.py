"""The figures of chapter 04 show what their tables say, with measurements and without any."""

import json

import numpy as np
import pandas as pd
import pytest
from figures import labels as texts
from made_records import top1_table
from test_augmentation_image_ops import POLICY_FILE

from micronet_lib import plots
from micronet_lib.augmentation.image_ops import OPERATIONS
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS

PRINTED = pd.concat(
    [records.paper(stem) for stem in ("architecture", "srip", "label_smoothing", "augmentation")]
)


# -------------------------------------------------------------------------------------- images


def test_a_grid_holds_every_picture_once_at_its_place():
    pictures = [np.full((3, 4, 4), level, np.uint8) for level in (10, 20, 30, 40, 50)]
    rows = {"one": pictures[:3], "two": [pictures[3], None, pictures[4]]}
    fig = plots.image_grid(rows, ["a", "b", "c"], "some source", gap_after=(1,))
    (image,) = fig.axes[0].get_images()
    sheet = np.asarray(image.get_array())
    for level in (10, 20, 30, 40, 50):
        assert (sheet[..., 0] == level).sum() == 16
    # The gap after column b is the wider one.
    columns = [int(np.flatnonzero(sheet[0, :, 0] == level)[0]) for level in (10, 20, 30)]
    assert columns[2] - columns[1] > columns[1] - columns[0] > 4
    assert {"one", "two", "a", "b", "c", "some source"} <= set(texts(fig))


def test_boxes_are_drawn_around_their_pixels():
    picture = np.zeros((3, 8, 8), np.uint8)
    fig = plots.image_grid({"row": [picture, picture]}, ["", ""], "", boxes={(0, 1): (2, 3, 5, 8)})
    frames = {(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in fig.axes[0].patches}
    assert frames == {(10 + 2 - 0.5, 3 - 0.5, 3, 5)}


# ------------------------------------------------------------------------------------ policies


def test_policy_statistics_are_all_drawn():
    table = pd.DataFrame({"share": [0.5, 0.3, 0.2], "probability": 0.4, "level": [0.1, 0.5, 0.9]})
    table.insert(0, "operation", ["Color", "Rotate", "Cutout"])
    other = table.assign(share=[1.0, 0.0, 0.0], probability=[0.7, np.nan, np.nan])
    both = pd.concat([table.assign(kind="published"), other.assign(kind="searched")])
    fig = plots.policy_statistics(both, "counted")
    shares, probabilities, levels = (
        {line.get_label(): list(line.get_xdata()) for line in ax.lines[1:]} for ax in fig.axes
    )
    assert shares == {"published": [50, 30, 20], "searched": [100, 0, 0]}
    assert probabilities["searched"][0] == 0.7
    assert levels["published"] == [0.1, 0.5, 0.9]
    assert {"Color", "Rotate", "Cutout", "counted"} <= set(texts(fig))


@pytest.mark.skipif(
    not POLICY_FILE.is_file(), reason="no policies: python -m micronet_lib data fetch policies"
)
def test_the_transcribed_statistics_are_the_files():
    sets = json.loads(POLICY_FILE.read_text(encoding="utf-8"))
    counted = records.paper_wide("augmentation", "micronet_code").set_index("point")
    for name, sub_policies in [*sets.items(), ("all_sets", [s for v in sets.values() for s in v])]:
        assert counted.loc[name, "sub_policies"] == len(sub_policies)
        different = {json.dumps(sub_policy) for sub_policy in sub_policies}
        assert counted.loc[name, "different_sub_policies"] == len(different)
    steps = [step for v in sets.values() for sub_policy in v for step in sub_policy]
    assert counted["steps"].sum() == len(steps)
    for operation in OPERATIONS:
        used = np.array([step[1:] for step in steps if step[0] == operation])
        assert counted.loc[operation, "steps"] == len(used)
        for column, metric in enumerate(("mean_probability", "mean_level")):
            assert counted.loc[operation, metric] == pytest.approx(used[:, column].mean(), abs=5e-5)


def test_a_search_shows_its_trials_and_its_controls():
    trials = pd.DataFrame(
        {
            "fold": [0, 0, 0, 1, 1, 1],
            "trial": [0, 1, 2] * 2,
            "loss": [5.0, 4.0, 4.5, 6.0, 3.0, 2.0],
            "plain": [3.5] * 3 + [2.5] * 3,
            "startup": 2,
        }
    )
    controls = pd.DataFrame(
        {"fold": [0, 1] * 3, "policies": ["none"] * 2 + ["random"] * 2 + ["searched"] * 2}
    ).assign(loss=[3.5, 2.5, 5.0, 4.0, 3.6, 2.6])
    fig = plots.search_trials(trials, controls, "searched somewhere")
    left, right = fig.axes
    lines = [list(line.get_ydata()) for line in left.lines]
    assert [5.0, 4.0, 4.0] in lines
    assert [6.0, 3.0, 2.0] in lines
    assert [list(line.get_xdata()) for line in right.lines] == [[3.5, 2.5], [3.6, 2.6], [5.0, 4.0]]
    assert {"as they are", "searched", "random", "searched somewhere"} <= set(texts(fig))


def test_weights_before_and_after():
    draws = pd.DataFrame({"before": np.linspace(0.01, 0.99, 99), "after": 0.995})
    fig = plots.box_weights(draws, "computed")
    scatter, histogram = fig.axes
    assert list(scatter.lines[0].get_ydata()) == [0.995] * 99
    means = [line.get_xdata()[0] for line in histogram.lines if line.get_linestyle() == "--"]
    assert means == pytest.approx([0.5, 0.995])


# -------------------------------------------------------------------------------------- sweeps


def test_the_sweep_shows_what_was_run():
    top1 = {"standard": [0.2, 0.2], "random": [0.17], "cutmix": [0.22, 0.24]}
    fig = plots.augmentation_sweep(top1_table("augmentation", top1), "measured somewhere")
    shown = texts(fig)
    assert shown.count("not run") == 2 * (len(SWEEPS["augmentation"].points()) - 3)
    assert "measured somewhere" in shown
    left, right = ([c.lines[0].get_xdata()[0] for c in ax.containers] for ax in fig.axes)
    assert left == pytest.approx([20, 17, 23])
    assert right == [3.5] * 3


def test_stages_stand_beside_the_papers():
    run = {"3.0-vanilla": [0.1], "3.0-no_bias_decay": [0.12], "3.0-orn": [0.19, 0.21]}
    rows = top1_table("stages", run | {"2.0-als": [0.9]})
    table = plots.stage_table(rows, PRINTED).set_index("stage")
    assert table["paper"].to_list() == [72.87, 73.02, 78.90, 79.31, 80.12, 80.92]
    assert table["paper_step"].to_list()[1:] == pytest.approx([0.15, 5.88, 0.41, 0.81, 0.80])
    assert table["top1"].to_list()[:3] == pytest.approx([10, 12, 20])
    assert table["top1"].isna().sum() == 3
    assert table["spread"].to_list()[2] == pytest.approx(2**0.5)
    assert table["n"].to_list() == [1, 1, 2, 0, 0, 0]
    rows = table.reset_index()
    nothing = rows.assign(top1=np.nan, spread=np.nan)
    fig = plots.stage_steps({"long": nothing, "short": rows}, "")
    assert texts(fig).count("not run") == 3 + 6
    paper, long, short = fig.axes
    assert [ax.get_title() for ax in (long, short)] == ["long", "short"]
    drawn = [container.lines[0].get_xdata()[0] for container in short.containers]
    assert drawn == pytest.approx([10, 12, 20])
    assert len(paper.containers) == 6


def test_nothing_measured_is_no_fault():
    """As a clone has it before anything was measured: points with n 0, and NaN."""
    rows = records.table(SWEEPS["augmentation"], [], profile="quick")
    shown = texts(plots.augmentation_sweep(rows, records.provenance(rows)))
    assert shown.count("not run") >= 2 * len(rows)
    table = plots.stage_table(records.table(SWEEPS["stages"], []), PRINTED)
    assert (table["n"] == 0).all()
    assert table["top1"].isna().all()
    fig = plots.stage_steps({"ours": table}, "")
    assert texts(fig).count("not run") == len(table)
