"""Tables on a page: the same HTML on every machine, numbers formatted, no index column."""

import ast
import hashlib
import html
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import Code
from pandas.io.formats.style import Styler

__all__ = [
    "Table",
    "said_checks",
    "said_gains",
    "show_difference",
    "show_gains",
    "show_source",
    "show_table",
]


class Table(Styler):
    """A formatted table that is HTML on a page and plain text elsewhere."""

    def __repr__(self) -> str:
        """Return the table as text. The text of pandas holds a memory address instead."""
        lines = html.unescape(self.to_string(delimiter="\t")).splitlines()
        rows = [line.split("\t") for line in lines]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        padded = (map(str.ljust, row, widths) for row in rows)
        return "\n".join("  ".join(row).rstrip() for row in padded)


def show_table(
    table: pd.DataFrame, formats: Mapping[str, str] | None = None, steps: Sequence[str] = ()
) -> Table:
    """Return a table as the page shows it. Missing measurements read `not run`.

    In the row of a point all of whose runs failed, they read `diverged ...`. The `spread` of a
    single run reads as a dash.

    Args:
        table: one row per line; column names are the headings. The first column has the points, if
            `attrs["diverged"]` has the text of some (see `records.table`).
        formats: column -> format string, for example `{"top-1": "{:.2%}"}`.
        steps: columns of differences from the row above; the first row shows a dash.
    """
    styler = Table(table, cell_ids=False).hide(axis="index")
    styler.format(dict(formats or {}), na_rep="not run")
    for row, said in _diverged(table, table.columns[0]).items():
        lacking = list(table.columns[table.loc[row].isna()])
        styler.format(na_rep=said, subset=([row], lacking))
    if {"n", "spread"} <= set(table.columns):
        single = table.index[table["n"].ge(1) & table["spread"].isna()]
        styler.format(na_rep="–", subset=(single, ["spread"]))
    if steps:
        styler.format(lambda _: "–", subset=(table.index[:1], list(steps)))
    left = [{"selector": "", "props": "text-align: left"}]
    texts = table.select_dtypes(include=["object", "string"]).columns
    styler.set_table_styles(dict.fromkeys(texts, left), axis=0)
    # Without a fixed id pandas makes a new one in every run.
    words = [*table.columns, *table.iloc[:, 0]]
    name = hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()[:8]
    return styler.set_uuid(name).set_table_attributes('class="dataframe"')


def _diverged(table: pd.DataFrame, column: str) -> dict[Any, str]:
    """Return the text for the rows in which a column has a point all of whose runs failed."""
    said = table.attrs.get("diverged", {})
    return {row: said[name] for row, name in table[column].items() if name in said}


def show_difference(printed: str, measured: float) -> str | None:
    """Return `measured - printed`, or `equal as printed` where rounding gives the printed digits.

    Return None where nothing was measured, which a table shows as `not run`.
    """
    if pd.isna(measured):
        return None
    if f"{measured:.{len(printed.partition('.')[2])}f}" == printed:
        return "equal as printed"
    return f"{measured - float(printed):+.1g}"


def show_gains(gains: pd.DataFrame, number: str = "{:+.2f}") -> Table:
    """Return a table of `records.gain`: each difference with interval, p and detectable effect.

    Args:
        gains: from `records.gain`.
        number: the format of differences.
    """
    both = gains[["n", "n_against"]].astype(str)
    names = {"point": "point", "against": "against", "n": "n", "gain": "difference",
             "low": "95 % from", "high": "to", "p": "p", "p_holm": "p (Holm)",
             "detectable": "detectable"}  # fmt: skip
    n = both["n"].where(gains["n"] == gains["n_against"], both["n"] + " / " + both["n_against"])
    styler = show_table(
        gains.assign(n=n)[list(names)].rename(columns=names), {"difference": number}
    )
    for row, said in (_diverged(gains, "against") | _diverged(gains, "point")).items():
        styler.format(number, na_rep=said, subset=([row], ["difference"]))
    # A difference of single runs is known and has none of these.
    styler.format(number, na_rep="–", subset=["95 % from", "to"])
    styler.format(_said_p, na_rep="–", subset=["p", "p (Holm)"])
    return styler.format(number.replace("+", ""), na_rep="–", subset=["detectable"])


def _said_p(p: float) -> str:
    """Return a p-value as HTML. None is ever zero, so a small one reads `<0.001`."""
    return f"{p:.3f}" if p >= 0.001 else "&lt;0.001"


def said_checks(held: Mapping[str, Any]) -> str:
    """Return how many statements hold, and name those that do not.

    Args:
        held: statement, in words -> whether it holds.
    """
    failed = [statement for statement, holds in held.items() if not holds]
    count = f"{len(held) - len(failed)} of {len(held)}" if failed else f"{len(held)}"
    word = "statement holds" if len(held) == 1 else "statements hold"
    return "\n".join([f"checked: {count} {word}", *(f"does not hold: {text}" for text in failed)])


def said_gains(gains: pd.DataFrame, unit: str = "points") -> str:
    """Return what a table of `records.gain` allows to say, a line for each comparison.

    Args:
        gains: from `records.gain`.
        unit: of the differences.
    """
    diverged = gains.attrs.get("diverged", {})
    return "\n".join(
        f"{row.point} against {row.against}: {_said(row, unit, diverged)}"
        for row in gains.itertuples()
    )


def _said(row: Any, unit: str, diverged: Mapping[str, str]) -> str:
    if min(row.n, row.n_against) == 0:
        return next(
            (diverged[each] for each in (row.point, row.against) if each in diverged), "not run"
        )
    if pd.isna(row.low):
        n = str(row.n) if row.n == row.n_against else f"{row.n} against {row.n_against}"
        if min(row.n, row.n_against) > 1:
            return f"{row.gain:+.2f} {unit}, n={n}, no interval: all runs agree exactly"
        return f"{row.gain:+.2f} {unit}, n={n}, no interval; another run may say otherwise"
    if row.low <= 0 <= row.high:
        return (
            f"no difference seen; a true one of {row.detectable:.2f} {unit} "
            "would have shown in four of five cases"
        )
    near, far = sorted((abs(row.low), abs(row.high)))
    more = "more" if row.gain > 0 else "less"
    alone = "" if row.p_holm < 0.05 else f", taken alone; not after {row.comparisons} comparisons"
    return f"{near:.2f} to {far:.2f} {unit} {more}{alone}"


def show_source(function: Callable[..., Any]) -> Code:
    """Return the library's code of a function, highlighted, without its docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.FunctionDef)
    if ast.get_docstring(definition) is not None:
        lines, text = source.splitlines(), definition.body[0]
        del lines[text.lineno - 1 : text.end_lineno]
        source = "\n".join(lines)
    return Code(source, language="python")
