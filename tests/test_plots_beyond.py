"""The figures of chapter `11_beyond` show what their tables say, and say what was not run."""

import json
import re

import pandas as pd
import pytest
from figures import texts
from integer_networks import integer_network, random_widths
from made_records import ENV

from micronet_lib import plots
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records.record import Record
from micronet_lib.plots import style
from micronet_lib.scoring.bill import score_network

BOARD = plots.board_entries(records.paper("scoring")).rename(columns={"point": "entry"})
BOARD = BOARD.dropna(subset=["top1_percent"])
PRINTED = plots.published_scores(records.paper("scoring"))
BILL = records.bill(SWEEPS["published"], "v1_pr_60")


def made_table(sweep: str, top1: dict[str, list[float]], score: float = 0.003) -> pd.DataFrame:
    """The table of made-up records, a seed each; a point that is not named was not run."""
    found = []
    for point, values in top1.items():
        for seed, value in enumerate(values):
            metrics = {"top1": value, "correct": 1e4 * value, "official.score": score}
            found.append(Record(sweep, point, point, {}, "day", seed, "", metrics, ENV))
    return records.table(SWEEPS[sweep], found, profile="day")


# ------------------------------------------------------------------------------------- the board


def test_the_printed_scores_are_those_of_two_files():
    assert PRINTED["point"].value_counts().to_dict() == {"v1_pr_60": 3, "v2_pr_60": 1}
    first = PRINTED[PRINTED["point"] == "v1_pr_60"]
    assert list(first["count"]) == ["first", "revised", "final"]
    assert first["score"].is_monotonic_increasing
    assert (first["top1_percent"] == 80.07).all()


def test_the_board_says_that_no_rung_was_run():
    fig = plots.beyond_board(BOARD, PRINTED, made_table("beyond", {}), "somewhere")
    shown = texts(fig)
    assert "this chapter: not run" in shown
    assert all(word in shown for word in ("RIAIR", "this entry", "target missed", "somewhere"))


def test_the_board_draws_the_rungs_that_were_run():
    ladder = made_table("beyond", {"distilled": [0.801, 0.803], "allocated_28": [0.791]})
    fig = plots.beyond_board(BOARD, PRINTED, ladder, "")
    (drawn,) = fig.axes[0].containers
    assert drawn.lines[0].get_ydata().tolist() == pytest.approx([80.2, 79.1])
    shown = texts(fig)
    assert "distilled" in shown
    assert "allocated 28" in shown
    assert "not run" not in shown
    assert fig.axes[0].get_ylim()[0] < 79.1


# ------------------------------------------------------------------------------------------ bills


def test_a_bill_by_kind_is_complete():
    table = plots.kind_bill(BILL)
    total = records.measured(SWEEPS["published"]).set_index("point")["published.score"]
    assert table.to_numpy().sum() == pytest.approx(total["v1_pr_60"])
    assert list(table.columns) == ["param", "mask", "mult", "add"]
    assert table.loc["HardSwish", "param"] == 0
    fig = plots.score_bills({"one": table, "two": table / 2}, "")
    widths = [sum(bar.get_width() for bar in ax.patches) / 1e3 for ax in fig.axes]
    assert widths == pytest.approx([total["v1_pr_60"], total["v1_pr_60"] / 2])


def test_the_bill_of_a_record_is_that_of_its_network():
    network = integer_network(widths=random_widths(3))[1]
    score = score_network(network, "official")
    live = plots.kind_bill(score.table())
    assert live.to_numpy().sum() == pytest.approx(score.score)
    costs = {f"{kind}.{quantity}": value for kind, row in
             {"expand": live.loc["expand"], "relu6": live.loc["HardSwish"]}.items()
             for quantity, value in row.items()}  # fmt: skip
    recorded = plots.recorded_bill(costs)
    pd.testing.assert_frame_equal(recorded, live.loc[["expand", "HardSwish"]])


def test_a_bit_is_worth_its_share_of_the_bill():
    worth = plots.bit_worth(BILL).set_index("what")
    assert worth["score"].sum() == pytest.approx(plots.kind_bill(BILL).to_numpy().sum())
    assert worth["score"].tolist() == pytest.approx((worth["one_bit"] * worth["bits"]).tolist())
    assert worth.loc["additions", "bits"] == 32


# ------------------------------------------------------------------------- rounding and choosing


def test_the_staircase_shows_both_directions():
    table = pd.DataFrame(
        {"x": [0.0, 0.4, 0.6], "rounded": [0, 0, 1], "clipped": [0, 0.4, 0.6], "slope": [1, 1, 1]}
    )
    left, right = plots.rounding_staircase(table, "here").axes
    assert [list(line.get_ydata()) for line in left.lines] == [[0, 0.4, 0.6], [0, 0, 1]]
    assert [list(line.get_ydata()) for line in right.lines] == [[0, 0, 0], [1, 1, 1]]


def test_prices_show_score_and_both_losses():
    parts = {"weights": [1.0, 2.0], "activations": [1.0, 1.0], "zeros": [0, 3], "channels": [0, 4]}
    table = pd.DataFrame({"price": [10, 100], "score": [4e-3, 3e-3], "found": [2.0, 20.0], **parts})
    left, right = plots.plan_prices(table, "here").axes
    assert list(left.lines[0].get_ydata()) == pytest.approx([4, 3])
    drawn = {line.get_label(): list(line.get_ydata()) for line in right.lines}
    assert drawn["predicted in all"] == [2, 10]
    assert drawn["found"] == [2, 20]


def test_width_maps_have_a_cell_for_every_layer():
    network = integer_network(widths=random_widths(1))[1]
    rows = [(name, each.weight_bits, each.activation_bits) for name, each in network.layers.items()]
    widths = pd.DataFrame(rows, columns=["layer", "weights", "inputs"])
    fig = plots.width_maps(widths, "here")
    for ax, name in zip(fig.axes, ("weights", "inputs"), strict=False):
        numbers = sorted(int(text.get_text()) for text in ax.texts)
        assert numbers == sorted(widths[name])
        assert ax.images[0].get_array().count() == len(widths)  # not masked


# ----------------------------------------------------------------------------------------- tables


def test_a_table_without_a_record_is_one_line():
    columns, formats = {"point": "rung", "n": "n", "top1": "top-1"}, {"top-1": "{:.1%}"}
    nothing = made_table("beyond", {})
    assert plots.measured_table(nothing, columns, formats, "not run").data.count("not run") == 1
    some = plots.measured_table(made_table("beyond", {"rounded": [0.8]}), columns, formats, "src")
    assert "80.0%" in some.data
    assert "not run" in some.data  # the other rungs
    assert ">src<" in some.data


def test_thinned_networks_by_zeros_and_bits():
    table = plots.thinned_top1(made_table("zeros_and_bits", {"0.60-8": [0.8], "0.80-4": [0.1]}))
    assert list(table["zeros"]) == [0.6, 0.65, 0.7, 0.75, 0.8]
    assert table["8 bits"].iloc[0] == 0.8
    assert table["4 bits"].iloc[-1] == 0.1
    assert list(table["n"]) == [1, 0, 0, 0, 1]


# ---------------------------------------------------------------------------------------- sliders


def sliders(top1: dict[str, list[float]]) -> str:
    """The two sliders over made-up points with made-up bills."""
    grid = made_table("zeros_and_bits", top1)
    bills = {
        point: {"expand.param": 1e-3, "expand.mask": 1e-4, "relu6.mult": 5e-4, "pool.add": 1e-5}
        for point in top1
    }
    return plots.zeros_and_bits(grid, bills, ("winner", 0.0044), "sliders", "made up").data


def test_sliders_without_a_record_say_so():
    assert "not run" in sliders({})
    assert "<script" not in sliders({})


def test_sliders_hold_the_measured_points():
    page = sliders({"0.60-8": [0.8, 0.802], "0.65-7": [0.75]})
    assert not re.search(r"__[A-Z]+__", page)
    found = re.search(r"const data = (\{.*?\});\n", page)
    assert found
    data = json.loads(found[1])
    assert data["sparsities"] == ["0.60", "0.65", "0.70", "0.75", "0.80"]
    assert data["bits"] == [4, 5, 6, 7, 8]
    assert data["kinds"] == ["expand", "HardSwish", "gates, sums"]
    assert set(data["points"]) == {"0.60-8", "0.65-7"}
    assert data["points"]["0.60-8"]["top1"] == pytest.approx(0.801)
    assert data["points"]["0.60-8"]["bill"]["expand"] == pytest.approx([1.1e-3, 0, 0])


def test_a_component_is_one_text_without_a_way_out():
    page = style.component(
        "zeros_and_bits.html", "some-class", "some-name", {"a": "</script>"}
    ).data
    assert page.count("</script>") == 1
    assert 'id="some-name"' in page
    assert ".some-class [hidden]" in page
    assert not re.search(r"(?:src|href)=|https?://(?!www\.w3\.org/2000/svg)", page)
