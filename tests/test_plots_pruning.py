"""The figures of chapter `05_pruning` show what their tables say, and say what was not run."""

import numpy as np
import pandas as pd
import pytest
from figures import texts
from made_records import top1_records, top1_table
from matplotlib.colors import to_rgba

from micronet_lib import plots
from micronet_lib.architecture import build
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.plots.style import BLUE, ORANGE
from micronet_lib.pruning.density import density_table
from micronet_lib.pruning.schedules import README_PRUNING, SCHEDULES

PAPER = records.paper("pruning")
PUBLISHED = records.measured(SWEEPS["published"])


# --------------------------------------------------------------------------------- masks, density


def test_mask_panels_tell_kept_from_new_and_old_zeros():
    first = np.array([[True, False], [True, True]])
    second = np.array([[True, False], [False, True]])
    fig = plots.mask_rounds({"30%": first, "60%": second}, "blocks.8", "somewhere")
    one, two = (ax.images[0] for ax in fig.axes)
    colours = [image.cmap(image.norm(image.get_array())) for image in (one, two)]
    assert tuple(colours[0][0, 1]) == to_rgba(ORANGE)  # pruned now
    assert tuple(colours[0][1, 0]) == to_rgba(BLUE)  # kept
    assert tuple(colours[1][1, 0]) == to_rgba(ORANGE)
    assert tuple(colours[1][0, 1]) not in (to_rgba(ORANGE), to_rgba(BLUE))  # pruned before
    shown = texts(fig)
    assert all(word in shown for word in ("30%", "60%", "blocks.8", "kept", "somewhere"))


def test_zeros_by_kind_of_published_files():
    sizes = density_table(build("micronet_v1_released"), "kind")
    table = plots.zeros_by_kind(PAPER, sizes).set_index("kind")
    assert table.loc["all", "sparsity"] == pytest.approx(0.6, abs=1e-5)
    assert table.loc["fc", "sparsity"] == pytest.approx(599 / 10_600)
    assert table.loc["expand", "sparsity"] == pytest.approx(0.693, abs=5e-4)
    assert table["num_zeros"].drop("all").sum() == table.loc["all", "num_zeros"]
    sizes = density_table(build("micronet_v2_released"), "kind")
    both = plots.zeros_by_kind(PAPER, sizes, ["v2_pr_30", "v2_pr_60"])
    whole = both[both["kind"] == "all"].set_index("network")["sparsity"]
    assert whole.to_dict() == pytest.approx({"v2_pr_30": 0.3, "v2_pr_60": 0.6}, abs=1e-5)


def test_density_bars_are_the_tables():
    zeros = pd.DataFrame(
        {
            "network": ["a"] * 3 + ["b"] * 2,
            "kind": ["expand", "fc", "all", "fc", "expand"],
            "sparsity": [0.7, 0.1, 0.6, 0.2, 0.5],
        }
    )
    fig = plots.density_by_kind(zeros, "counted somewhere")
    ax = fig.axes[0]
    bars = {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}
    assert bars == {"a": pytest.approx([70, 10]), "b": pytest.approx([50, 20])}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["expand", "fc"]
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx([60])  # b has no `all`
    assert "counted somewhere" in texts(fig)


def test_histograms_tell_what_goes_from_what_stays():
    weights = np.array([-0.9, -0.2, 0.1, 0.15, 0.3, 0.8, 0.0, 0.0])
    fig = plots.weight_histograms({"now": (weights, 0.2), "later": (weights, 0)}, "somewhere")
    now, later = fig.axes
    colours = {to_rgba(bar.get_facecolor()) for bar in later.patches}
    assert colours == {to_rgba(BLUE)}
    for bar in now.patches:
        goes = abs(bar.get_x() + bar.get_width() / 2) < 0.2
        assert to_rgba(bar.get_facecolor()) == to_rgba(ORANGE if goes else BLUE)
    assert sorted(line.get_xdata()[0] for line in now.lines) == [-0.2, 0.2]
    assert not later.lines
    assert all(word in texts(fig) for word in ("now", "later", "25% are 0", "somewhere"))


# -------------------------------------------------------------------------------------- schedules


def test_schedules_show_what_a_round_takes_of_the_rest():
    schedules = {name: make(0.6, 4) for name, make in SCHEDULES.items()}
    fig = plots.sparsity_rounds(schedules | {"README": README_PRUNING.sparsities}, "data")
    left, right = fig.axes
    gone = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    taken = {line.get_label(): list(line.get_ydata()) for line in right.lines}
    assert gone["linear"] == pytest.approx([0, 15, 30, 45, 60])
    assert taken["linear"] == pytest.approx([15, 1500 / 85, 1500 / 70, 1500 / 55])
    assert taken["exponential"] == pytest.approx([100 * (1 - 0.4**0.25)] * 4, abs=1e-6)
    assert taken["one_shot"] == pytest.approx([60, 0, 0, 0])
    assert gone["README"][-1] == pytest.approx(65)
    assert len(taken["README"]) == 8
    assert "data" in texts(fig)


# --------------------------------------------------------------------------- accuracy and its price


def test_files_have_the_sparsity_in_their_names():
    table = plots.pruned_files(PUBLISHED).set_index("file")
    assert table["sparsity"].to_dict() == {
        "v1_pr_60": 0.6, "v2_pr_15": 0.15, "v2_pr_30": 0.3, "v2_pr_45": 0.45, "v2_pr_60": 0.6,
    }  # fmt: skip
    assert table.loc["v1_pr_60", "top1"] == pytest.approx(0.8007)
    assert table.loc["v1_pr_60", "score"] == pytest.approx(0.0054454, abs=1e-7)


def test_rounds_table_has_mean_spread_and_no_sparsity_for_what_was_not_run():
    table = plots.rounds_table(top1_table("pipeline", {"dense": [0.2], "0.15": [0.24, 0.26, 0.25]}))
    rows = table.set_index("point")
    assert rows.loc["dense", "sparsity"] == 0
    assert rows.loc["0.15", ["sparsity", "top1", "spread"]].tolist() == pytest.approx(
        [0.15, 0.25, 0.01]
    )
    assert rows.loc["0.60", ["sparsity", "top1", "spread", "score"]].isna().all()
    assert plots.rounds_table(top1_table("pipeline", {}))["sparsity"].isna().all()
    table = plots.rounds_table(top1_table("rewind", {"initial-srip-2": [0.2]})).set_index("point")
    assert table.loc["initial-srip-2", "srip"] == 0.5
    table = plots.rounds_table(top1_table("prune_schedule", {"linear-4": [0.2]}))
    assert len(table) == 15
    assert "score" in table


def test_our_rounds_stand_in_the_row_of_their_sparsity():
    printed = plots.printed_curve(PAPER)
    assert list(printed["sparsity"]) == [0, 0.15, 0.3, 0.45, 0.6]
    assert list(printed["top1_percent"]) == [80.92, 80.72, 80.82, 80.75, 80.07]
    assert list(printed["drop"].round(2)) == [0, 0.20, 0.10, 0.17, 0.85]
    full = plots.rounds_table(top1_table("pipeline", {"dense": [0.8], "0.60": [0.7, 0.8]}, "full"))
    table = plots.table_5(printed, full)
    assert list(table["paper (%)"]) == list(printed["top1_percent"])
    assert list(table["n"].fillna(0)) == [1, 0, 0, 0, 2]
    assert list(table["ours"].dropna()) == pytest.approx([0.8, 0.75])
    assert table["official score"].iloc[4] == 0.02
    nothing = plots.table_5(printed, plots.rounds_table(top1_table("pipeline", {})))
    assert nothing["ours"].isna().all()


def test_curve_is_drawn_with_whatever_was_measured():
    printed, files = plots.printed_curve(PAPER), plots.pruned_files(PUBLISHED)
    nothing = plots.rounds_table(top1_table("pipeline", {}))
    everything = {point.name: [0.2, 0.3] for point in SWEEPS["pipeline"].points()}
    for top1 in ({}, {"0.30": [0.3]}, everything):
        rows = plots.rounds_table(top1_table("pipeline", top1))
        fig = plots.pruning_curve(printed, files, nothing, rows, "measured somewhere")
        left, middle, right = fig.axes
        shown = texts(fig)
        assert shown.count("not run") == (not top1)
        assert "measured somewhere" in shown
        heights = [c.lines[0].get_ydata() for c in right.containers]
        expected = [[100 * np.mean(values) for values in top1.values()]] if top1 else []
        assert [list(h) for h in heights] == [pytest.approx(e) for e in expected]
        assert not left.containers  # short runs never stand beside the paper's
        assert not middle.containers
    # Full runs do, by sparsity and score.
    full = plots.rounds_table(top1_table("pipeline", {"dense": [0.8], "0.60": [0.79]}, "full"))
    left, middle, _ = plots.pruning_curve(printed, files, full, nothing, "").axes
    points = left.containers[0].lines[0]
    assert list(points.get_xdata()) == pytest.approx([0, 60])
    assert list(points.get_ydata()) == pytest.approx([80, 79])
    assert list(middle.containers[0].lines[0].get_xdata()) == pytest.approx([0.01, 0.01])
    diamonds = {line.get_label(): line for line in left.lines}
    assert list(diamonds["v1 files, measured"].get_ydata()) == pytest.approx([80.07])
    assert list(diamonds["v2 files, measured"].get_xdata()) == pytest.approx([15, 30, 60])


# ------------------------------------------------------------------------------------ short rounds


def short_runs(top1, profile="day"):
    made = top1_records("rounds", top1, profile)
    rows = [{"point": r.point, "seed": r.seed, **r.metrics} for r in made]
    rest = [{"point": p.name} for p in SWEEPS["rounds"].points() if p.name not in top1]
    return pd.DataFrame([*rows, *rest]).astype({"seed": "Int64"})


def test_a_file_stands_beside_every_seed_of_ours():
    files = plots.pruned_files(PUBLISHED)
    beside = {"v2_pr_30": "linear-1", "v2_pr_60": "linear-3", "v2_pr_45": "linear-2"}
    against = {ours: file for file, ours in beside.items()}
    top1 = {"linear-1": [0.80, 0.81, 0.808], "linear-2": [0.8]}
    runs = plots.runs_beside_files(short_runs(top1), files, beside)
    table = records.gain(runs, against, paired=True, scale=100).set_index("point")
    assert table["n"].to_dict() == {"linear-1": 3, "linear-3": 0, "linear-2": 0}  # 45 % has no file
    differences = pd.Series(top1["linear-1"]) - 0.8108
    row = table.loc["linear-1"]
    assert row["gain"] == pytest.approx(100 * differences.mean())
    margin = 4.3027 * differences.std() / 3**0.5  # of t at two degrees of freedom
    assert row["high"] - row["gain"] == pytest.approx(100 * margin, rel=1e-4)


def test_accuracy_stands_over_the_images_that_were_seen():
    runs = pd.DataFrame(
        [("short", 20_000, 0.2, 0.01, 3), ("short", 10_000, 0.1, 0.01, 2),
         ("long", 700_000, 0.6, float("nan"), 1)],
        columns=["label", "images", "top1", "top1_std", "n"],
    )  # fmt: skip
    printed = pd.DataFrame({"images": [30e6, 60e6], "top1_percent": [80.9, 80.8]})
    fig = plots.images_seen(runs, printed, "somewhere")
    (ax,) = fig.axes
    drawn = {each.get_label(): each.lines[0] for each in ax.containers}
    assert list(drawn["short, n=2/3"].get_xdata()) == [10_000, 20_000]
    assert list(drawn["short, n=2/3"].get_ydata()) == pytest.approx([10, 20])
    assert list(drawn["long, n=1"].get_ydata()) == pytest.approx([60])
    assert ax.get_xscale() == "log"
    assert "paper, Table 5" in {line.get_label() for line in ax.lines}
    assert "30 M" in texts(fig)
    many = pd.concat([runs.assign(label=f"{number}") for number in range(8)])
    (ax,) = plots.images_seen(many, printed, "").axes
    assert len(ax.containers) == 8  # more than there are colours


def test_short_rounds_begin_at_the_published_network():
    files = plots.pruned_files(PUBLISHED)
    of_v2 = files[files["file"].str.startswith("v2")]
    measured = top1_table("rounds", {"linear-1": [0.80, 0.81], "linear-2": [0.79]}, "day")
    measured["sparsity"] = measured["point"].str[-1].astype(float) * 0.15 + 0.15
    fig = plots.short_rounds(measured, of_v2, "somewhere")
    lines = {line.get_label(): line for line in fig.axes[0].lines}
    ours = lines["linear, n=1/2"]
    assert list(ours.get_xdata()) == pytest.approx([15, 30, 45])
    assert list(ours.get_ydata()) == pytest.approx([80.91, 80.5, 79])
    assert list(lines["published files"].get_xdata()) == pytest.approx([15, 30, 60])
    assert "not run: exponential, one_shot, no_srip, teacher" in lines
    shown = texts(plots.short_rounds(top1_table("rounds", {}, "day"), of_v2, ""))
    assert "not run: linear, exponential" in shown
