"""The bill as an area, to walk into and on paper; the board with what this book rebuilds."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from figures import texts
from made_records import ENV
from matplotlib.patches import Rectangle
from published_data import require

from micronet_lib import plots
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.host.places import ROOT, checkpoint_path
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records.record import Record
from micronet_lib.lab.storage.published import load_published
from micronet_lib.plots.scoring import ENTRIES
from micronet_lib.plots.style import KIND_STYLES
from micronet_lib.scoring.dead_channels import apply_savings


def data_of(html: str) -> dict:
    found = re.search(r"const data = (\{.*?\});\n", html)
    assert found
    return json.loads(found.group(1))


def test_the_area_holds_the_whole_bill_part_by_part():
    items = records.bill(SWEEPS["published"], "v1_pr_60")
    html = plots.bill_area({"v1_pr_60": (items, "somewhere")}, "area").data
    assert html == plots.bill_area({"v1_pr_60": (items, "somewhere")}, "area").data
    assert not re.search(r"__[A-Z]+__|https?://|src=|@import|url\(|fetch\(", html)
    (network,) = data_of(html)["networks"]
    assert (network["label"], network["source"]) == ("v1_pr_60", "somewhere")
    names = [part for part, _ in network["parts"]]
    assert names == ["stem", *(f"block {k}" for k in range(16)), "head"]
    costs = [cost for _, layers in network["parts"] for _, *layer in layers for cost in layer]
    published = records.measured(SWEEPS["published"]).set_index("point")
    score = published.loc["v1_pr_60", "published.score"]
    assert sum(costs) / 1e9 == pytest.approx(score, abs=1e-6)
    first = {name: layer for name, *layer in network["parts"][0][1]}
    assert list(first) == ["conv", "act"]
    assert first["conv"][0] == round(1e9 * 372 / 36.5e6)


def test_the_areas_of_the_mosaic_are_the_shares_of_the_score():
    items = records.bill(SWEEPS["published"], "v1_pr_60")
    fig = plots.score_mosaic(items, "somewhere")
    boxes = [patch for patch in fig.axes[0].patches if isinstance(patch, Rectangle)]
    areas = [box.get_width() * box.get_height() for box in boxes]
    assert sum(areas) == pytest.approx(1)
    storage = items["param_storage"].sum() / 36.5e6
    score = storage + items["math_ops"].sum() / 10.49e9
    assert sum(areas[: len(areas) // 2]) == pytest.approx(storage / score)
    assert f"score {score:.6f}" in texts(fig)
    kinds = {label for label, _ in KIND_STYLES.values()} - {"pointwise", "other"}
    assert all(f"{name} " in texts(fig).replace("\n", " ") for name in (*kinds, "HardSwish"))
    assert "somewhere" in texts(fig)


def test_no_bill_is_refused():
    with pytest.raises(InputError, match="at least one"):
        plots.bill_area({}, "area")


# ------------------------------------------------------------------------------ the leaderboard

PAPER = records.paper("scoring")
PAGE = (ROOT / "book" / "src" / "06_scoring.md").read_text(encoding="utf-8")
EVERY_ENTRY = plots.board_entries(PAPER).rename(columns={"point": "entry"})
BOARD = EVERY_ENTRY.dropna(subset=["top1_percent"])
OURS = plots.board_points(
    records.measured(SWEEPS["published"]), records.measured(SWEEPS["free_savings"])
)


def test_an_entry_has_the_boards_score_and_its_own_repositorys_numbers():
    assert list(EVERY_ENTRY["entry"]) == list(ENTRIES)
    assert set(EVERY_ENTRY["entry"]) - set(BOARD["entry"]) == {"woody"}  # no accuracy is known
    assert f"Above, {('nine', 'ten', 'eleven')[len(BOARD) - 9]} entries" in PAGE
    board = EVERY_ENTRY.set_index("entry")
    assert board.loc["riair"].tolist() == [0.0044, 80.39, 0.0498, 29.4]
    assert board.loc["proxylessnas_ttq"].tolist() == [0.1433, 82.44, 1.01, 1213]
    # Storage and operations as far as the entries print them give the board's score.
    parts = board["param_storage_millions"] / 36.5 + board["math_ops_millions"] / 10490
    own_count = {"riair"}  # its own total is below the score that the board gives it
    off = (parts - board["score"]).drop(index=["woody", *own_count]).abs()
    assert (off < 1e-4).all()


def test_the_scores_are_the_boards_also_where_an_entry_prints_another():
    other = {"point": "osi", "metric": "score", "value": 0.005784, "source": "osi_code"}
    found = plots.board_entries(pd.concat([PAPER, pd.DataFrame([other])]))
    pd.testing.assert_frame_equal(found, plots.board_entries(PAPER))


def test_two_sources_of_one_number_are_refused():
    other = {"point": "osi", "metric": "top1_percent", "value": 80.03, "source": "gale2020"}
    with pytest.raises(ValueError, match="duplicate"):
        plots.board_entries(pd.concat([PAPER, pd.DataFrame([other])]))


def made_tables(**runs: dict[str, tuple[float, float]]) -> dict[str, pd.DataFrame]:
    """Sweep -> the table of made-up records, from point -> score and top-1."""
    tables = {}
    for name in ("early_exit", "ternary", "adjustable_quantization"):
        found = []
        for point, (score, top1) in runs.get(name, {}).items():
            metrics = {"top1": top1, "official.score": score, "official.expected_score": score}
            found.append(Record(name, point, point, {}, "day", 0, "", metrics, ENV))
        tables[name] = records.table(SWEEPS[name], found, profile="day")
    return tables


def test_a_technique_has_its_entries_and_what_was_trained_here():
    tables = made_tables(
        early_exit={"block_6": (0.0055, 0.8)},
        ternary={"rounded": (0.003, 0.01), "ttq": (0.0029, 0.6), "fixed": (0.0027, 0.61)},
        adjustable_quantization={"uniform_5": (0.0034, 0.78)},
    )
    rows = plots.rebuilt_entries(BOARD, tables, {"adjustable_quantization": 0.4678})
    found = rows.groupby(["sweep", "kind"])["label"].agg(list)
    assert found["early_exit", "board"] == ["osi"]
    assert {"msunet_v3", "mb_pm"} < set(found["ternary", "board"])
    assert found["ternary", "measured"] == ["ttq", "fixed"]  # trained
    assert found["adjustable_quantization", "not run"] == ["not run"]
    assert "0.4678 on ImageNet" in found["adjustable_quantization", "imagenet"][0]
    printed = rows.set_index("label").loc["mb_pm"]
    assert (printed["score"], printed["top1_percent"]) == (0.0384, 80.36)


def test_the_board_shows_every_entry_our_points_and_a_row_for_each_technique():
    tables = made_tables(
        early_exit={"block_6": (0.0055, 0.8), "block_10": (0.0054, 0.7941)},
        ternary={"ttq": (0.0029, 0.6), "fixed": (0.0027, 0.61)},
    )
    rows = plots.rebuilt_entries(BOARD, tables, {"adjustable_quantization": 0.4678})
    fig = plots.leaderboard(BOARD, OURS, rows, "measured somewhere")
    shown = texts(fig)
    assert all(name in shown for name in [*OURS["label"], "measured somewhere"])
    assert all(ENTRIES[name] in shown for name in BOARD["entry"])
    for text in ("79.4 to 80.0 %", "60.0 to 61.0 %", "80.04 %", "not run", "0.4678 on ImageNet"):
        assert text in shown
    above, below = fig.axes
    assert above.get_xlim() == below.get_xlim()
    drawn = np.concatenate([each.get_offsets() for each in below.collections])
    assert 0.4678 not in drawn[:, 0]  # of another task
    assert len(drawn) == (rows["kind"].isin(["board", "measured"])).sum()
    assert below.get_xlim()[0] < drawn[:, 0].min() < drawn[:, 0].max() < below.get_xlim()[1]
    full = [each for each in below.collections if each.get_facecolor()[0][:3].max() < 1]
    assert sum(0.0055 in each.get_offsets()[:, 0] for each in full) == 1  # it reached 80 %
    assert sum(0.0054 in each.get_offsets()[:, 0] for each in full) == 0


# --------------------------------------------------------------------- what the page says in words


@pytest.mark.parametrize(("name", "place"), [("v1_pr_60", 0), ("v2_pr_60", 1)])
def test_the_parts_that_stay_are_as_many_as_the_page_says(name, place):
    """Pooled channels that no gate reads, and gates that are constant."""
    path = checkpoint_path(f"micronet_{name}")
    require(path)
    trimmed = apply_savings(load_published(path), ["dead_gates", "dead_channels"])
    gates = [block.se for block in trimmed.blocks if block.se is not None]
    unread = sum(int((se.conv_reduce.weight == 0).all(0).sum()) for se in gates)
    constant = sum(int((se.conv_expand.weight == 0).all(1).sum()) for se in gates)
    said = re.search(
        r"no gate uses \((\d) in `v1_pr_60`, (\d) in `v2_pr_60`\), "
        r"and a gate that is constant \((none|\d) and (none|\d)\)",
        PAGE,
    )
    assert said
    numbers = [0 if word == "none" else int(word) for word in said.groups()]
    assert (unread, constant) == (numbers[place], numbers[place + 2])


def test_a_free_saving_changes_no_answer():
    rows = records.measured(SWEEPS["free_savings"]).dropna(subset=["max_logit_difference"])
    assert len(rows) == 6
    assert (rows["same_predictions"] == rows["num_examples"]).all()
    steps = rows.set_index("point")
    largest = f"{steps['max_logit_difference'].max():.0e}".replace("e-0", "e-")
    stored = [
        f"{steps.at[f'{name}-sixth', 'max_logit_difference_stored']:.1e}".replace("e-0", "e-")
        for name in ("v1_pr_60", "v2_pr_60")
    ]
    assert f"The largest change of a logit is {largest} in float64." in PAGE
    assert f"it is {stored[0]} for `v1_pr_60` and {stored[1]} for `v2_pr_60`" in PAGE


def test_as_stored_16_bits_cost_one_file_the_target():
    rows = records.measured(SWEEPS["published"]).set_index("point")
    short = rows.index[(rows["half.correct"] < 8000) & (rows["correct"] >= 8000)]
    assert list(short) == ["v2_pr_60"]
    assert "As stored, `v2_pr_60` falls below the 8 000 right answers" in PAGE
