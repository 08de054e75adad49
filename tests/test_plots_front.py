"""The front page's board and numbers."""

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from micronet_lib import plots
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS

PAPER = records.paper("pruning")
BOARD = plots.board_entries(records.paper("scoring"))
NOT_RUN = pd.DataFrame({"point": ["v1_pr_60"], "n": [0], "published.param_storage": [float("nan")]})


def ladder(*rows: tuple[str, int, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["point", "n", "top1", "official.score"])


def lines(html: str) -> list[list[str]]:
    rows = BeautifulSoup(html, "html.parser").select("tbody tr")
    return [[cell.get_text() for cell in row.select("th, td:not(.track)")] for row in rows]


def test_the_board_is_in_the_order_of_the_score_and_ends_with_the_reference():
    own = ladder(("ours", 3, 0.81, 0.003), ("missed", 1, 0.79, 0.001), ("later", 0, 0.9, 0.002))
    html = plots.front_board(BOARD, own, "from <here>").data
    found = lines(html)
    assert found[0] == ["this book, ours (mean of 3)", "0.0030", "81.00 %"]
    assert found[1] == ["RIAIR", "0.0044", "80.39 %"]
    assert found[-1] == ["reference: WRN-28-10", "2", "–"]
    assert len(found) == BOARD["score"].notna().sum() + 2
    scores = [float(score) for _, score, _ in found]
    assert scores == sorted(scores)
    assert "from &lt;here&gt;" in html
    places = [
        float(dot["style"].removeprefix("left: ").removesuffix("%"))
        for dot in BeautifulSoup(html, "html.parser").select("tbody i")
    ]
    assert places == sorted(places)
    assert 0 <= places[0] < places[-1] <= 100


def test_without_a_record_the_board_is_the_contests():
    found = lines(plots.front_board(BOARD, ladder(("later", 0, float("nan"), 0)), "").data)
    assert found[0][0] == "RIAIR"


def test_the_large_numbers():
    rated = records.measured(SWEEPS["published"])
    own = pd.DataFrame(
        {"point": "ours", "seed": [1, 0], "correct": [8001.0, 8100.0], "num_examples": 10_000.0,
         "official.score": [0.0031, 0.00321]}
    )  # fmt: skip
    html = plots.front_numbers(PAPER, rated, own, "somewhere").data
    numbers = [b.get_text() for b in BeautifulSoup(html, "html.parser").select(".tiles b")]
    assert numbers == ["370×", "80.07 %", "0.43 MB"]
    text = BeautifulSoup(html, "html.parser").get_text().replace("\u202f", " ")
    assert "takes 146 MB" in text
    line = "8 100 of 10 000 right at score 0.003210 (first of 2 runs, which have 8 001 to 8 100"
    assert line in text


@pytest.mark.parametrize("rows", [0, 1])
def test_what_was_not_run_is_said(rows):
    own = pd.DataFrame(
        {"point": ["ours"], "seed": [pd.NA], "correct": float("nan"), "num_examples": 0,
         "official.score": 0}
    ).head(rows)  # fmt: skip
    html = plots.front_numbers(PAPER, NOT_RUN, own, "").data
    text = BeautifulSoup(html, "html.parser").get_text()
    assert text.count("not run") == 2
