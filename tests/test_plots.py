"""Every figure draws the committed records, and shows what its table says."""

import io
import re
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from figures import texts
from made_records import top1_table
from matplotlib.figure import Figure
from PIL import Image

from micronet_lib import plots
from micronet_lib.architecture.layers import KINDS
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records import status
from micronet_lib.plots import style
from micronet_lib.plots.style import KIND_STYLES

PUBLISHED = records.measured(SWEEPS["published"])
SAVINGS = records.measured(SWEEPS["free_savings"])


def test_history_goes_up_with_the_counting_and_down_with_the_savings():
    history = plots.history_table(PUBLISHED, SAVINGS, "v1_pr_60")
    scores = list(history["score"])
    assert scores[:3] == sorted(scores[:3])
    assert scores[2:] == sorted(scores[2:], reverse=True)
    fig = plots.score_history(history, "measured somewhere")
    assert all(f"{score:.6f}" in texts(fig) for score in scores)
    assert "measured somewhere" in texts(fig)


def test_bill_is_complete():
    bill = records.bill(SWEEPS["published"], "v1_pr_60")
    row = PUBLISHED.set_index("point").loc["v1_pr_60"]
    assert bill["math_ops"].sum() == pytest.approx(row["published.math_ops"])
    fig = plots.layer_bill(bill, "")
    heights = [sum(bar.get_height() for bar in ax.patches) for ax in fig.axes]
    assert heights[0] == pytest.approx(row["published.math_ops"] / 1e6)
    assert heights[1] == pytest.approx(row["published.param_storage"] / 1e3)


def test_every_kind_of_layer_has_a_label_and_a_colour_of_its_own():
    assert tuple(KIND_STYLES) == KINDS
    assert len(set(KIND_STYLES.values())) == len(dict(KIND_STYLES.values())) == len(KINDS)
    assert len({colour for _, colour in KIND_STYLES.values()}) == len(KINDS)


def test_parameters_by_kind_are_stacked_to_the_networks_size():
    sizes = {"expand": 3000, "fc": 1000, "batch norm, biases": 500}
    fig = plots.weights_by_layer(pd.DataFrame({"v1": sizes, "v2": sizes}))
    assert sum(bar.get_width() for bar in fig.axes[0].patches) == pytest.approx(2 * 4.5)
    assert all(label in texts(fig) for label in ("expand", "classifier", "batch norm, biases"))


def test_bit_widths_are_all_drawn():
    prices = records.measured(SWEEPS["bit_widths"])
    fig = plots.bit_widths(prices, 0.0055, "")
    assert sorted(bar.get_height() for bar in fig.axes[0].patches) == pytest.approx(
        sorted(prices["official.score"])
    )


def test_tables_and_sources_and_the_embedded_set():
    table = pd.DataFrame({"point": ["a", "b"], "score": [0.5, float("nan")]})
    html = plots.show_table(table, {"score": "{:.2f}"}).to_html()
    assert html == plots.show_table(table, {"score": "{:.2f}"}).to_html()
    assert "0.50" in html
    assert "not run" in html
    other = plots.show_table(table.rename(columns={"score": "top-1"})).to_html()
    assert html.split('id="')[1].split('"')[0] != other.split('id="')[1].split('"')[0]
    # The first row of steps shows a dash, a missing one below is not run.
    table = pd.DataFrame({"stage": ["a", "b", "c"], "step": [float("nan"), 0.5, float("nan")]})
    html = plots.show_table(table, {"step": "{:+.1f}"}, steps=["step"]).to_html()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    assert cells == ["a", "–", "b", "+0.5", "c", "not run"]
    assert repr(plots.show_table(table, steps=["step"])).splitlines() == [
        "stage  step", "a      –", "b      0.500000", "c      not run"
    ]  # fmt: skip
    # One run has no spread, and that is another thing than no run.
    table = pd.DataFrame({"point": ["a", "b"], "n": [1, 0], "spread": [float("nan")] * 2})
    assert [line.split()[2:] for line in repr(plots.show_table(table)).splitlines()] == [
        ["spread"], ["–"], ["not", "run"]
    ]  # fmt: skip
    assert "def provenance" in plots.show_source(records.provenance).data
    fig = plots.embedded_set(np.zeros((40, 20, 3), np.uint8), ("discs", "rings"), "")
    assert "discs" in texts(fig)


def test_a_point_that_diverged_says_so_in_place_of_not_run():
    table = pd.DataFrame({"point": ["a", "b", "c"], "top1": [0.5, None, None], "n": [1, 0, 0]})
    table.attrs["diverged"] = {"b": "diverged (epoch 1, 3 of 3 seeds)"}
    shown = table[["point", "top1", "n"]].rename(columns={"top1": "top-1"})
    html = plots.show_table(shown, {"top-1": "{:.1%}"}).to_html()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    lost = ["b", "diverged (epoch 1, 3 of 3 seeds)", "0"]
    assert cells == ["a", "50.0%", "1", *lost, "c", "not run", "0"]

    runs = pd.DataFrame({"point": ["a", "a", "b", "c"], "seed": [0, 1, None, None],
                         "top1": [0.1, 0.2, None, None]})  # fmt: skip
    runs.attrs = table.attrs
    gains = records.gain(runs, {"b": "a", "c": "a", "a": "b"})
    html = plots.show_gains(gains).to_html()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    assert [cells[3], cells[12], cells[21]] == [lost[1], "not run", lost[1]]
    assert plots.said_gains(gains).splitlines() == [
        f"b against a: {lost[1]}", "c against a: not run", f"a against b: {lost[1]}"
    ]  # fmt: skip


def test_a_table_of_gains_tells_one_run_from_none():
    runs = pd.DataFrame(
        [("a", 0, 0.1), ("a", 1, 0.2), ("a", 2, 0.3), ("b", 0, 0.2), ("b", 1, 0.3), ("c", 0, 0.3)],
        columns=["point", "seed", "top1"],
    )
    runs.loc[len(runs)] = ["d", None, float("nan")]
    html = plots.show_gains(records.gain(runs, "a", scale=100)).to_html()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    b, c, d = (cells[start : start + 9] for start in (0, 9, 18))
    assert b[:4] == ["b", "a", "2 / 3", "+5.00"]
    assert all(re.fullmatch(r"[-+]?\d+\.\d+", cell) for cell in b[4:])
    assert c == ["c", "a", "1 / 3", "+10.00", "–", "–", "–", "–", "–"]
    assert d == ["d", "a", "0 / 3", "not run", "–", "–", "–", "–", "–"]


def test_a_small_p_value_is_not_printed_as_zero():
    values = {"a": [10, 10.1, 9.9], "far": [90, 90.1, 89.9], "near": [10.1, 10.2, 9.7]}
    rows = [(p, seed, v) for p, own in values.items() for seed, v in enumerate(own)]
    gains = records.gain(pd.DataFrame(rows, columns=["point", "seed", "top1"]), "a")
    far, near = gains["p"]
    assert 0 < far < 1e-6
    assert near > 0.5
    html = plots.show_gains(gains.assign(p_holm=[0.001, 0.00099])).to_html()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    assert cells[6:8] == ["&lt;0.001", "0.001"]
    assert cells[15:17] == [f"{near:.3f}", "&lt;0.001"]


def test_what_a_table_of_gains_allows_to_say():
    values = {"a": [10, 20, 30], "b": [50, 60, 73], "c": [12, 21, 28], "one": [15.5], "none": []}
    rows = [(p, seed, v) for p, own in values.items() for seed, v in enumerate(own)]
    runs = pd.DataFrame([*rows, ("none", None, None)], columns=["point", "seed", "top1"])
    gains = records.gain(runs.astype({"top1": float}), "a")
    b, c, one, none = plots.said_gains(gains).splitlines()
    low, high = gains["low"].iloc[0], gains["high"].iloc[0]
    assert b == f"b against a: {low:.2f} to {high:.2f} points more"
    least = gains["detectable"].iloc[1]
    assert c.startswith(f"c against a: no difference seen; a true one of {least:.2f} points")
    assert one.startswith("one against a: -4.50 points, n=1")
    assert none == "none against a: not run"
    same = [("a", seed, 2.0) for seed in range(3)] + [("b", seed, 1.0) for seed in range(3)]
    equal = records.gain(pd.DataFrame(same, columns=["point", "seed", "top1"]), {"a": "b"})
    said = "a against b: +1.00 points, n=3, no interval: all runs agree exactly"
    assert plots.said_gains(equal) == said
    # One of many: the interval leaves out 0, the correction for so many does not.
    gains["p_holm"] = 0.2
    assert "taken alone; not after 2 comparisons" in plots.said_gains(gains).splitlines()[0]
    fewer = records.gain(runs.astype({"top1": float}), {"a": "b"})
    assert plots.said_gains(fewer) == f"a against b: {low:.2f} to {high:.2f} points less"


def test_the_points_of_a_chapter_are_counted_by_profile():
    covered = status.coverage()
    fig = plots.points_measured(covered, "committed records")
    shown = texts(fig)
    assert "committed records" in shown
    assert all(chapter in shown for chapter in covered["chapter"])
    for (chapter, profile), own in covered.groupby(["chapter", "profile"]):
        count = f"{own['measured'].sum()} of {own['points'].sum()}"
        place = list(dict.fromkeys(covered["chapter"])).index(str(chapter))
        (bars,) = (c for c in fig.axes[0].containers if c.get_label() == profile)
        share = 100 * own["measured"].sum() / own["points"].sum()
        assert bars[place].get_width() == pytest.approx(share)
        assert count in shown


def test_statements_are_counted_and_those_that_do_not_hold_are_named():
    assert plots.said_checks({"a": np.True_}) == "checked: 1 statement holds"
    assert plots.said_checks({"a": True, "b": 1}) == "checked: 2 statements hold"
    some = plots.said_checks({"a": True, "b is a": np.False_, "c": True})
    assert some == "checked: 2 of 3 statements hold\ndoes not hold: b is a"


def test_a_difference_below_the_last_printed_digit_is_none():
    assert plots.show_difference("80.07", 80.07000732) == "equal as printed"
    assert plots.show_difference("0.0054", 0.00536) == "equal as printed"
    assert plots.show_difference("80.07", 80.06) == "-0.01"
    assert plots.show_difference("80.30", 80.34) == "+0.04"
    assert plots.show_difference("100", 150.0) == "+5e+01"
    assert plots.show_difference("80.07", float("nan")) is None


def test_a_figure_ignores_the_readers_matplotlibrc():
    def drawn() -> np.ndarray:
        fig, (axes,) = style.figure()
        axes.plot([1, 2], label="a line")
        axes.legend()
        fig.canvas.draw()
        return np.asarray(fig.canvas.buffer_rgba())

    expected = drawn()
    odd = {"text.usetex": True, "font.size": 30, "axes.facecolor": "black", "figure.dpi": 20}
    with mpl.rc_context(odd):
        assert np.array_equal(drawn(), expected)


def _own(sweep: str, point: str, top1: float) -> pd.DataFrame:
    return top1_table(sweep, {point: [top1]} if point else {}, "quick").assign(source="yours")


def _with_mine(name: str, mine: pd.DataFrame) -> Figure:
    """A figure that shows measured effects, with nothing committed."""
    nothing = top1_table(mine["sweep"].iloc[0], {}, "quick")
    paper = pd.concat([records.paper(s) for s in ("srip", "label_smoothing", "augmentation")])
    if name == "stage_steps":
        tables = {f"ours, {p}": plots.stage_table(nothing, paper) for p in ("day", "quick")}
        return plots.stage_steps(tables, "", mine=mine)
    if name == "augmentation_sweep":
        return plots.augmentation_sweep(nothing, "", mine=mine)
    if name == "srip_placement":
        unknown = dict.fromkeys(("gain", "low", "high"), float("nan"))
        table = nothing.query("point != 'none'")[["point"]].assign(**unknown)
        gains = {"ours, day": table, "ours, quick": table}
        return plots.srip_placement(gains, paper, "", mine)
    if name == "smoothing_sweep":
        forms = {f"ours, {p}": nothing for p in ("day", "quick")}
        return plots.smoothing_sweep(forms, plots.als_gain(paper), "", mine)
    files = plots.pruned_files(PUBLISHED[PUBLISHED["point"].str.startswith("v2")])
    if name == "short_rounds":
        return plots.short_rounds(nothing, files, "", mine=mine)
    printed, rounds = plots.printed_curve(records.paper("pruning")), plots.rounds_table(nothing)
    return plots.pruning_curve(printed, files, rounds, rounds, "", mine=mine)


@pytest.mark.parametrize(
    ("name", "sweep", "point", "top1", "places"),
    [
        ("stage_steps", "stages", "3.0-als", 0.3, {2: (30, 3)}),
        ("augmentation_sweep", "augmentation", "random", 0.3, {0: (30, 2), 1: (3.5, 2)}),
        ("srip_placement", "srip_placement", "pointwise", 0.3, {2: (2, 5)}),
        ("smoothing_sweep", "label_smoothing", "paper", 0.3, {2: (30, 2)}),
        ("short_rounds", "rounds", "linear-2", 0.7, {0: (45, 70)}),
        ("pruning_curve", "pipeline", "0.30", 0.7, {2: (30, 70)}),
        ("pruning_curve", "pipeline", "0.30", 0.8, {0: (30, 80), 1: (0.01, 80)}),
    ],
)
def test_the_readers_own_runs_are_a_third_marker(name, sweep, point, top1, places):
    mine = _own(sweep, point, top1)
    if sweep == "srip_placement":  # its figure shows gains
        mine.loc[mine["point"] == "none", ["n", "top1"]] = [1, 0.25]
    if sweep == "rounds":
        mine["sparsity"] = 0.45
    fig = _with_mine(name, mine)
    found = {
        at: line
        for at, ax in enumerate(fig.axes)
        for line in ax.lines
        if str(line.get_label()).startswith("yours")
    }
    assert {at: (line.get_xdata()[0], line.get_ydata()[0]) for at, line in found.items()} == {
        at: pytest.approx(place) for at, place in places.items()
    }
    for at, (x, y) in places.items():
        ax = fig.axes[at]
        assert min(ax.get_xlim()) <= x <= max(ax.get_xlim())
        assert min(ax.get_ylim()) <= y <= max(ax.get_ylim())
        assert len(ax.get_xticks())
        assert len(ax.get_yticks())
    assert {line.get_label() for line in found.values()} == {"yours, quick, n=1"}
    assert "yours, quick, n=1" in texts(fig)
    assert "yours" not in texts(_with_mine(name, _own(sweep, "", top1)))


def test_a_page_gets_two_pixels_for_one_and_a_chart_few_colours():
    fig, (axes,) = style.figure()
    axes.plot([1, 2])
    data, shown = style.sharp_png(fig)
    chart = Image.open(io.BytesIO(data))
    assert chart.mode == "P"
    assert [pixels // 2 for pixels in chart.size] == [shown["width"], shown["height"]]
    assert shown["width"] == pytest.approx(fig.get_figwidth() * fig.dpi, rel=0.1)
    axes.imshow(np.random.default_rng(0).random((64, 64, 3)), aspect="auto")
    data, _ = style.sharp_png(fig)
    assert Image.open(io.BytesIO(data)).mode == "RGB"


def test_figures_appear_in_a_notebook_whatever_the_backend(monkeypatch):
    asked, drawn_by = [], {}
    png = SimpleNamespace(for_type=drawn_by.__setitem__)
    formatter = SimpleNamespace(formatters={"image/png": png})
    shell = SimpleNamespace(
        kernel=object(), enable_matplotlib=asked.append, display_formatter=formatter
    )
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    style.show_inline()
    assert asked == ["inline"]
    assert drawn_by == {Figure: style.sharp_png}
    monkeypatch.setattr("IPython.get_ipython", lambda: None)  # a script, or a test
    style.show_inline()
    assert asked == ["inline"]
