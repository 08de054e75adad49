"""The bill as an area, to walk into and on paper; the board with what this book rebuilds."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from figures import texts
from made_records import ENV
from matplotlib.patches import Rectangle

from micronet_lib import plots
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records.record import Record
from micronet_lib.plots.scoring import ENTRIES
from micronet_lib.plots.style import KIND_STYLES


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

BOARD = records.paper_wide("scoring", "micronet_leaderboard").rename(columns={"point": "entry"})
BOARD = BOARD.dropna(subset=["top1_percent"])
OURS = plots.board_points(
    records.measured(SWEEPS["published"]), records.measured(SWEEPS["free_savings"])
)


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
