"""The transcribed numbers of all chapters: each has its own source, and stands in one place.

`test_layout.py` checks the form of every row; here it is what the rows say.
"""

import pytest
from torch import nn

from micronet_lib.architecture.micronet import table1
from micronet_lib.lab import records
from micronet_lib.lab.host.places import PAPER_TABLES, ROOT
from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE, score_network

STEMS = [path.stem for path in sorted(PAPER_TABLES.glob("*.csv"))]
SCORING = records.paper("scoring").set_index(["point", "metric"])["value"]
PAGE = (ROOT / "book" / "src" / "06_scoring.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("stem", STEMS)
def test_what_an_entry_says_of_itself_is_not_put_on_the_organisers(stem):
    rows = records.paper(stem).query("source == 'micronet_leaderboard'")
    said = rows["locator"].str.contains(r"README|\w+\.md\b|notebook,|output", regex=True)
    assert rows[said].to_dict("records") == []
    assert rows["locator"].str.contains("leaderboard|scoring page", regex=True).all()


def test_table_5_stands_with_the_chapter_of_pruning_only():
    of_kim = {stem: records.paper(stem).query("source == 'kim2020'") for stem in STEMS}
    found = {stem: rows["locator"].str.startswith("Table 5").sum() for stem, rows in of_kim.items()}
    assert {stem for stem, n in found.items() if n} == {"pruning"}
    assert found["pruning"] == 4 * 5  # accuracy, NP, MO and score of five rounds


def test_table_1_is_the_network_that_the_book_builds_from_it():
    rows = records.paper("architecture").query("locator.str.startswith('Table 1,')")
    stages = rows.pivot_table(index="point", columns="metric", values="value")
    assert list(stages.index) == [f"stage_{n}" for n in range(1, 10)]
    built = table1(3.0)
    side, printed = 32, []
    for block in built.blocks:
        side //= block.stride
        printed.append((block.out_chs, side))
    inner = stages.iloc[1:-1]  # between stem and head
    expected = [
        (row.channels, row.resolution) for row in inner.itertuples() for _ in range(int(row.layers))
    ]
    assert printed == expected
    assert (stages["kernel"].iloc[:-1] == 3).all()
    stem, head = stages.iloc[0], stages.iloc[-1]
    assert (stem["channels"], stem["layers"]) == (built.blocks[0].in_chs, 1)
    assert (head["channels"], head["resolution"]) == printed[-1]


def test_the_gates_have_the_printed_share_of_the_channels():
    rows = records.paper("architecture").set_index(["point", "metric"])["value"]
    share = rows["main_block", "se_ratio"]
    assert all(block.se_chs == int(share * block.out_chs) for block in table1(3.0).blocks)


def test_equation_1_divides_by_the_reference_network():
    printed = SCORING["equation_1"]
    assert (printed["param_storage_base"], printed["math_ops_base"]) == (PARAM_BASE, OPS_BASE)
    reference = 1e6 * SCORING["wrn_28_10"]
    assert reference["param_storage_millions"] == pytest.approx(PARAM_BASE)
    assert reference["math_ops_millions"] == pytest.approx(OPS_BASE)


def test_the_abstract_agrees_with_itself():
    entry = SCORING["entry"]
    assert round(2 / entry["score"]) == entry["times_below_baseline"]
    assert entry["storage_within_percent"] == entry["computation_within_percent"] == 10
    assert f"{entry['times_below_baseline']:.0f} x better than the baseline" in PAGE


def test_a_hard_swish_costs_what_the_authors_code_says_and_not_its_readme():
    found = score_network(nn.Hardswish(), "published", (3, 8, 8))
    elements = 3 * 8 * 8
    code, readme = SCORING["hard_swish_code"], SCORING["hard_swish_readme"]
    assert (found.num_mults, found.num_adds) == (
        elements * code["num_mults"],
        elements * code["num_adds"],
    )
    says = "README: {num_adds:.0f} additions and {num_mults:.0f} multiplication |".format(**readme)
    does = "code: {num_adds:.0f} addition and {num_mults:.0f} multiplications |".format(**code)
    assert f"| HardSwish | {says} {does}" in PAGE


@pytest.mark.parametrize(("entry", "file"), [("kaist_v1", "v1_pr_60"), ("kaist_v2", "v2_pr_60")])
def test_the_entrys_own_counts_are_those_of_its_files(entry, file):
    printed = records.printed_rows("scoring").query("point == @entry").set_index("metric")["value"]
    counted = records.measured(SWEEPS["published"]).set_index("point").loc[file]
    for name in ("param_storage", "math_ops"):
        text = printed[f"{name}_millions"]
        decimals = len(text.partition(".")[2])
        assert f"{counted[f'published.{name}'] / 1e6:.{decimals}f}" == text
    assert f"{100 * counted['top1']:.2f}" == printed["top1_percent"]
    assert f"{counted['published.score']:.4f}" == printed["score"]


def test_the_recipes_have_the_printed_cutmix_and_dropout():
    rows = records.paper("pruning").set_index(["point", "metric", "source"])["value"]
    for source in ("kim2020", "micronet_code"):
        assert rows["training", "cutmix_alpha", source] == PAPER.augment.mix_alpha
    assert rows["released", "cutmix_alpha", "micronet_code"] == RELEASED.augment.mix_alpha
    assert rows["released", "dropout", "micronet_code"] == RELEASED.train.dropout


def test_every_row_of_the_board_names_a_repository_with_an_address():
    bibliography = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    board = records.paper("scoring")
    entries = board.query("source == 'micronet_leaderboard' and metric == 'score'")["point"]
    for source in set(board[board["point"].isin(entries)]["source"]):
        entry = bibliography.partition(f"{{{source},")[2].partition("\n}")[0]
        assert "url" in entry, source
