"""The figures of chapter `02_srip` show what their tables say, and say what was not run."""

import numpy as np
import pandas as pd
import pytest
import torch
from figures import texts
from small_networks import network

from micronet_lib import plots
from micronet_lib.architecture.layers import layer_kind, named_kind, weight_kinds
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.srip.penalty import PLACEMENTS, spectrum, srip_weights


def table_of(found: dict, shapes: dict) -> pd.DataFrame:
    return plots.singular_values("x", found, shapes, {name: named_kind(name) for name in shapes})


def of_network(label: str = "v1", run: bool = True) -> pd.DataFrame:
    model = network("micronet_v1_released")
    weights = {name: w.detach() for name, w in srip_weights(model, "all").items()}
    shapes = {name: tuple(w.flatten(1).shape) for name, w in weights.items()}
    found = {name.removesuffix(".weight"): spectrum(w) for name, w in weights.items()}
    return plots.singular_values(label, found if run else {}, shapes, weight_kinds(model))


VALUES = of_network()
NOT_RUN = of_network("v9", run=False)


# ------------------------------------------------------------------------------------- the tables


def test_singular_values_are_all_there_with_their_kind_and_side():
    model = network("micronet_v1_released")
    layers = VALUES.drop_duplicates("layer").set_index("layer")
    assert len(layers) == 86
    assert layers["pointwise"].sum() == len(srip_weights(model, "pointwise"))
    for name, module in model.named_modules():
        kind = layer_kind(name, module)
        if kind is not None:
            row, weight = layers.loc[name], module.weight.detach().flatten(1)
            assert row["kind"] == kind
            assert row["pointwise"] == (kind in PLACEMENTS["pointwise"])
            assert (row["out_chs"], row["fan_in"]) == weight.shape
            assert row["side"] == ("wide" if weight.shape[1] > weight.shape[0] else "tall")
            own = VALUES.loc[VALUES["layer"] == name, "value"]
            assert own.tolist() == pytest.approx(torch.linalg.svdvals(weight).tolist(), rel=1e-4)


def test_names_may_end_in_weight_and_the_order_is_the_networks_whatever_a_record_sorted():
    table = table_of({"stem.conv.weight": [2.0, 1.0]}, {"stem.conv": (4, 9)})
    assert table[["layer", "side"]].to_numpy().tolist() == [["stem.conv", "wide"]] * 2
    shapes = {f"blocks.{i}.conv_expand": (2, 1) for i in range(12)}
    table = table_of({name: [1.0] for name in sorted(shapes)}, shapes)
    assert table["layer"].tolist() == list(shapes)


def test_summary_by_hand_and_of_nothing():
    layers = {f"blocks.{i}.conv_expand": [1.2, 1.05, 0.95, 0.5] for i in range(2)}
    layers["blocks.0.conv_dw"] = [3.0, 1.0]
    table = table_of(layers, dict.fromkeys(layers, (8, 4)))
    found = plots.srip_summary(pd.concat([table, NOT_RUN]), ["x", "v9"])
    pointwise, others, *missing = found.to_dict("records")
    assert pointwise == {
        **{"network": "x", "layers": "pointwise", "matrices": 2},
        **{"smallest": 0.5, "median": 1.0, "largest": 1.2, "near 1": 0.5},
    }
    assert others == {
        **{"network": "x", "layers": "others", "matrices": 1},
        **{"smallest": 1.0, "median": 2.0, "largest": 3.0, "near 1": 0.5},
    }
    assert [row["network"] for row in missing] == ["v9", "v9"]
    for row in missing:
        assert row["matrices"] == 0
        assert np.isnan([row["smallest"], row["median"], row["near 1"]]).all()
    assert plots.show_table(found).to_html().count("not run") == 8


def test_sides_by_hand_and_of_nothing():
    layers = {"blocks.0.conv_project": [1.3, 1.0, 0.65, 0.5], "head.classifier": [9.0]}
    shapes = {"blocks.0.conv_project": (4, 12), "head.classifier": (1, 2)}
    table = table_of(layers, shapes).assign(lower=0.57, upper=1.29)
    (row,) = plots.srip_sides(table).to_dict("records")
    assert row == {
        **{"kind": "project", "side": "wide", "values": 4},
        **{"near 1": 0.25, "near a predicted place": 0.75},
    }
    (row,) = plots.srip_sides(NOT_RUN.assign(lower=[], upper=[])).to_dict("records")
    assert row["values"] == 0
    assert np.isnan(row["near 1"])
    assert np.isnan(row["near a predicted place"])


# ------------------------------------------------------------------------------------ the figures


def test_ellipse_is_the_circle_that_a_matrix_makes_with_its_singular_values():
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    path = np.stack([turn @ np.diag(values) for values in ([2, 0.5], [1.5, 0.75], [1, 1])])
    fig = plots.srip_ellipse(path, [0, 2], "computed somewhere")
    before, after, values = fig.axes
    assert [before.get_title(), after.get_title()] == ["before", "after 2 steps"]
    assert [before.get_xlabel(), after.get_xlabel()] == ["2.00 and 0.50", "1.00 and 1.00"]
    circle, ellipse, longest, shortest = (np.stack(line.get_data()) for line in before.lines)
    assert np.linalg.norm(circle, axis=0) == pytest.approx(1)
    assert np.abs(ellipse).max(axis=1) == pytest.approx([0.5, 2])  # turned by a right angle
    assert [np.linalg.norm(axis[:, 1]) for axis in (longest, shortest)] == [2, 0.5]
    (inputs,) = before.collections
    across, up = np.asarray(inputs.get_offsets()).T
    angles = np.arange(20) * np.pi / 10
    assert across == pytest.approx(-0.5 * np.sin(angles))
    assert up == pytest.approx(2 * np.cos(angles))
    assert [line.get_ydata().tolist() for line in values.lines[1:3]] == [
        pytest.approx([2, 1.5, 1]),
        pytest.approx([0.5, 0.75, 1]),
    ]
    assert "computed somewhere" in texts(fig)


def test_floor_draws_both_definitions_and_marks_the_matrices():
    ratios = [0.25, 1.0, 4.0]
    lines = [
        (definition, ratio, 1.0 + rank, 0.5 + rank, 0.1)
        for definition in ("released", "paper")
        for rank, ratio in enumerate(ratios)
    ]
    norms = pd.DataFrame(lines, columns=["definition", "ratio", "exact", "mean", "std"])
    norms.loc[norms["definition"] == "paper", "exact"] = 7.0
    fig = plots.srip_floor(norms, VALUES.drop_duplicates("layer"))
    paper, released = fig.axes
    assert "paper" in paper.get_title()
    assert list(paper.lines[0].get_ydata()) == [7, 7, 7]
    assert list(released.lines[0].get_ydata()) == [1, 2, 3]
    marks = sum(len(each.get_offsets()) for each in paper.collections[1:])
    assert marks == 68  # the pointwise matrices and no other


def test_descent_has_a_line_a_value_and_a_dashed_one_a_prediction():
    steps, indices = range(3), range(4)
    rows = [
        (start, shape, step, index, 1 + 0.1 * (index - 1.5) + 0.01 * step)
        for start in ("fresh", "warm")
        for shape in ("tall", "wide")
        for step in steps
        for index in indices
    ]
    paths = pd.DataFrame(rows, columns=["start", "shape", "step", "index", "value"])
    fig = plots.srip_descent(paths, {"tall": (1.0,), "wide": (0.6, 1.3)})
    titles = [ax.get_title() for ax in fig.axes]
    assert titles == [
        f"{shape}, {start} start" for start in ("fresh", "warm") for shape in ("tall", "wide")
    ]
    assert [len(ax.lines) for ax in fig.axes] == [5, 6, 5, 6]
    assert fig.axes[1].lines[2].get_ydata().tolist() == pytest.approx([1.05, 1.06, 1.07])
    dashed = [line.get_ydata()[0] for line in fig.axes[1].lines if line.get_linestyle() == "--"]
    assert dashed == [0.6, 1.3]


CURVE = pd.DataFrame({"ratio": [0.5, 1.0, 4.0], "lower": [1, 1, 0.56], "upper": [1, 1, 1.3]})


def test_resting_places_tell_dead_gates_from_the_rest():
    dead = [f"blocks.{index}.se" for index in (2, 7, 12)]
    fig = plots.srip_resting_places(VALUES, CURVE, dead, "measured somewhere")
    alive, silent = fig.axes[0].collections
    assert len(silent.get_offsets()) == 2 * (8 + 18 + 20)
    assert len(alive.get_offsets()) + len(silent.get_offsets()) == VALUES["pointwise"].sum()
    assert "measured somewhere" in texts(fig)
    assert "not run" not in texts(fig)
    fig = plots.srip_resting_places(NOT_RUN, CURVE, dead, "")  # the prediction alone
    assert "published network: not run" in texts(fig)
    assert len(fig.axes[0].lines) == 2


def test_starts_draw_every_draw_and_step():
    draws = pd.DataFrame({"value": [0.5, 0.7], "cosine": [0.2, 0.3], "running": [0.2, 0.4]})
    warm = pd.DataFrame({"value": [0.6, 0.8, 0.9], "cosine": [0.3, 0.8, 1.0]})
    left, right = plots.srip_starts(draws, warm, 0.9).axes
    shown = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in left.lines}
    assert shown["fresh, each draw"] == [0.5, 0.7]
    assert shown["fresh, mean"] == pytest.approx([0.6, 0.6])
    assert shown["exact"] == [0.9, 0.9]
    assert shown["warm"] == [0.6, 0.8, 0.9]
    assert right.lines[-1].get_ydata().tolist() == [0.3, 0.8, 1.0]


def test_spectra_draw_every_matrix_and_say_which_network_was_not_run():
    fig = plots.srip_spectra(pd.concat([VALUES, NOT_RUN]), ["v1", "v9"], "footer text")
    first, second = fig.axes
    bars = [segment for each in first.collections for segment in each.get_segments()]
    assert len(bars) == 86
    assert max(bar[1][1] for bar in bars) == pytest.approx(VALUES["value"].max())
    assert not second.collections
    assert "not run" in texts(fig)
    assert "footer text" in texts(fig)
    low, high = first.get_ylim()
    assert high > VALUES["value"].max()
    assert low >= 0.02
    assert texts(plots.srip_spectra(NOT_RUN, ["v8", "v9"])).count("not run") == 2


def test_placement_shows_what_was_measured_and_what_was_not():
    runs = pd.DataFrame(
        [
            ("none", 0, 0.19), ("none", 1, 0.21), ("fc", 0, 0.19), ("all", None, np.nan),
            ("pointwise", 0, 0.21), ("pointwise", 1, 0.22),
        ],
        columns=["point", "seed", "top1"],
    )  # fmt: skip
    gains = records.gain(runs, "none", scale=100)
    tables = {"ours, day": gains.assign(gain=np.nan, high=np.nan), "ours, quick": gains}
    fig = plots.srip_placement(tables, records.paper("srip"), "measured somewhere")
    left, middle, right = fig.axes
    assert [ax.get_title() for ax in fig.axes[1:]] == list(tables)
    assert [text.get_text() for text in middle.texts] == ["not run"] * 3
    assert [bar.get_height() for bar in left.patches] == [3.56, 3.35, 6.05]
    heights = [bar.get_height() for bar in right.patches]
    assert [heights[0], heights[2]] == pytest.approx([-1.0, 1.5])  # a negative effect stays
    (errors,) = (lines.get_segments() for lines in right.collections)
    assert [segment[:, 1].tolist() for segment in errors] == [
        pytest.approx(gains[["low", "high"]].iloc[2].tolist())  # one run has no interval
    ]
    assert [text.get_text() for text in right.texts] == ["not run"]
    assert "measured somewhere" in texts(fig)


def test_placement_tells_what_diverged_from_what_was_not_run():
    runs = pd.DataFrame(
        [("none", 0, 0.2), ("fc", None, np.nan), ("all", None, np.nan)],
        columns=["point", "seed", "top1"],
    )
    runs.attrs["diverged"] = {"fc": "diverged (epoch 1, 3 of 3 seeds)"}
    gains = {"quick": records.gain(runs, "none")}
    shown = texts(plots.srip_placement(gains, records.paper("srip"), ""))
    assert shown.count("not run") == 1
    assert shown.count("diverged") == 1


def test_placement_of_nothing_and_of_what_is_committed():
    sweep, paper = SWEEPS["srip_placement"], records.paper("srip")
    for profile in ("quick", "full"):
        gains = records.gain(records.runs(sweep, profile), "none")
        missing = int(gains["gain"].isna().sum()) - len(gains.attrs["diverged"])
        fig = plots.srip_placement({profile: gains}, paper, "")
        assert texts(fig).count("not run") == missing
        assert len(fig.axes[0].patches) == 4
