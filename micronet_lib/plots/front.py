"""What the front page shows: the challenge's board, and a few large numbers.

Plain HTML, styled by the site (`book/_static/custom.css`): readable on a phone and in the dark.
"""

import math
from html import escape

import pandas as pd
from IPython.display import HTML

from micronet_lib.plots.scoring import ENTRIES
from micronet_lib.scoring.bill import PARAM_BASE

__all__ = ["front_board", "front_numbers"]

REFERENCE_SCORE = 2.0
"""The reference network's, by definition: 1 for its parameters and 1 for its arithmetic."""
FLOAT_BYTES = 4
_TICKS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_LEAST, _MOST = 0.0024, 2.4


def front_board(board: pd.DataFrame, ladder: pd.DataFrame, source: str) -> HTML:
    """Return the final board as a table, best score first, each score a dot on a logarithmic scale.

    Args:
        board: from `board_entries`.
        ladder: measured table of the sweep `beyond`. Networks with a record that reach the
            challenge's accuracy, 80 %, are among the rows.
        source: of both.
    """
    rows = [
        (ENTRIES.get(row.point, row.point), row.score, row.top1_percent, _kind(row.point))
        for row in board.dropna(subset=["score"]).itertuples()
    ]
    own = ladder[(ladder["n"] > 0) & (ladder["top1"] >= 0.8)]
    for point, score, top1, n in zip(
        own["point"], own["official.score"], own["top1"], own["n"], strict=True
    ):
        label = f"this book, {point.replace('_', ' ')}" + (f" (mean of {n})" if n > 1 else "")
        rows.append((label, score, 100 * top1, "own"))
    rows.append(("reference: WRN-28-10", REFERENCE_SCORE, float("nan"), "reference"))
    rows.sort(key=lambda row: row[1])
    lines = "".join(map(_line, *zip(*rows, strict=True)))
    ticks = "".join(f'<span style="left: {_place(tick):.2f}%">{tick:g}</span>' for tick in _TICKS)
    return HTML(
        '<div class="front-board theme-aware"><table><caption>The final board of 2019 for '
        "CIFAR-100, with the entry that this book takes apart (KAIST, blue) and the book's own "
        "networks (orange). Lower is better.</caption>"
        '<thead><tr><th scope="col">entry</th><th scope="col" class="track">score, log scale</th>'
        '<th scope="col">score</th><th scope="col">top-1</th></tr></thead>'
        f"<tbody>{lines}</tbody>"
        '<tfoot aria-hidden="true"><tr><td></td>'
        f'<td class="track"><div class="ticks">{ticks}</div></td><td></td><td></td></tr></tfoot>'
        f'</table><p class="provenance">{escape(source)}</p></div>'
    )


def _kind(entry: str) -> str:
    return "entry" if entry.startswith("kaist") else "other"


def _place(score: float) -> float:
    """Return where a score lies on the scale, in percent."""
    return 100 * math.log(score / _LEAST) / math.log(_MOST / _LEAST)


def _line(label: str, score: float, top1: float, kind: str) -> str:
    accuracy = "–" if math.isnan(top1) else f"{top1:.2f} %"
    digits = "2" if kind == "reference" else f"{score:.4f}"
    return (
        f'<tr class="{kind}"><th scope="row">{escape(label)}</th>'
        '<td class="track" aria-hidden="true"><div>'
        f'<i style="left: {_place(score):.2f}%"></i></div></td>'
        f"<td>{digits}</td><td>{accuracy}</td></tr>"
    )


def front_numbers(
    paper: pd.DataFrame, published: pd.DataFrame, own: pd.DataFrame, source: str
) -> HTML:
    """Return three large numbers of the entry, and one line on this book's own network.

    Args:
        paper: transcribed numbers of `05_pruning`, which has Table 5: point, metric, value, source.
        published: measured table of the sweep `published`, which has the storage of `v1_pr_60`.
        own: single runs (`records.runs`) of one network of the sweep `beyond`.
        source: of the measured numbers.
    """
    printed = paper[(paper["source"] == "kim2020") & (paper["point"] == "prune_60")]
    value = printed.set_index("metric")["value"]
    stored = published[(published["point"] == "v1_pr_60") & (published["n"] > 0)]
    size = "not run"
    for numbers in stored["published.param_storage"] if len(stored) else ():
        size = f"{numbers * FLOAT_BYTES / 1e6:.2f} MB"
    reference = f"{PARAM_BASE * FLOAT_BYTES / 1e6:.0f} MB"
    tiles = (
        (f"{REFERENCE_SCORE / value['score']:.0f}×", "below the score of the reference network"),
        (f"{value['top1_percent']:.2f} %", "of CIFAR-100's test images right"),
        (size, f"to store it; the reference network takes {reference}"),
    )
    shown = "".join(f"<p><b>{number}</b><span>{text}</span></p>" for number, text in tiles)
    return HTML(
        f'<div class="front-numbers theme-aware"><div class="tiles">{shown}</div>'
        f'<p class="own">{_own_line(own)}</p><p class="provenance">{escape(source)}</p></div>'
    )


def _own_line(own: pd.DataFrame) -> str:
    runs = own.dropna(subset=["seed"]).sort_values("seed")
    if runs.empty:
        return "This book's own network: not run."
    first, correct = runs.iloc[0], runs["correct"]
    line = (
        f"This book's own network: <b>{_thousands(first['correct'])} of "
        f"{_thousands(first['num_examples'])}</b> right at score "
        f"<b>{first['official.score']:.6f}</b>"
    )
    if len(runs) == 1:
        return line + " (one run)."
    span = f"{_thousands(correct.min())} to {_thousands(correct.max())}"
    return line + f" (first of {len(runs)} runs, which have {span} right)."


def _thousands(number: float) -> str:
    return f"{number:,.0f}".replace(",", "\u202f")
