"""Does it agree? The printed numbers, the committed records and this machine's records, row by row.

`EXPECTED` says how closely two runs must agree, and `compared` applies exactly that:

- A count is exact, and a published file that is rated again agrees to 1e-6.
- A training is equal if commit, instruction set, device and PyTorch are. Otherwise it lies within
  the spread of the committed runs, which takes two of them. With one, nothing can be decided.
- A training that diverges on this machine is outside if committed ones of its point did not.
- Against the paper, a number that needs no training has the printed digits; a sum that its authors
  add up in 32 bits is within 1e-6 of them. A training is held against it at the paper's schedule
  only.
"""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd

from micronet_lib.errors import InputError
from micronet_lib.lab.host.places import MEASURED, runs_root
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Printed, Sweep
from micronet_lib.lab.records.record import Record, diverged, read_runs
from micronet_lib.lab.records.statistics import LEVEL
from micronet_lib.lab.records.tables import (
    NOT_RUN,
    is_comparable,
    printed_rows,
    provenance,
    table,
)
from micronet_lib.scoring.rules import RULE_SETS

SAME, WITHIN, OUTSIDE, UNDECIDED = "same", "within", "outside", "undecided"
DIVERGED = "diverged"

EXPECTED = (
    ("parameters, operations, scores of a given network", "equal, on every machine"),
    ("a published file, rated on the test images", "equal to 1e-6, on every machine"),
    (
        "a training, or a rounding that looks at images, at the same commit, instruction set, "
        "device and PyTorch",
        "equal to the last digit on a CPU",
    ),
    (
        "the same anywhere else",
        "another draw: within the spread of the committed runs, which takes two seeds or more",
    ),
    ("a short training beside the paper", "nothing: another budget"),
)
"""What is measured again, and what to expect of it."""

# They tell of the machine or of the day, and not of the network.
UNCOMPARED = ("bit_identical", "test_touches")
# What fixes a training to the last digit, in a record's `env`.
FIXED_BY = ("commit", "isa", "device", "torch")
EXACT, RATED, EQUAL = 1e-12, 1e-6, 1e-9
NUM_NAMED = 6  # points that were not run, in a line

_Asked = list[tuple[Printed, dict[str, Any]]]


def compared(
    sweep: Sweep, profile: str = "", everything: bool = False, root: Path = MEASURED
) -> pd.DataFrame:
    """Return paper, committed records and this machine's records side by side.

    Only records of today's recipes count, so runs with overrides do not appear.

    Args:
        sweep: to compare.
        profile: whose records; by default of the one with committed records of most points, and of
            equals the one nearest to the paper. So too for a profile of drawn images, which is
            never held against the paper, or one that the sweep is not defined on; then nothing of
            this machine is shown.
        everything: keep rows that have neither a printed number nor a record of this machine.
        root: of the committed records.

    Returns:
        One row for each point and metric. sweep, chapter, point, profile, metric. paper (text, as
        printed), source, locator. committed (mean, in the printed unit), low and high (its 95 %
        interval), n, paper_difference, paper_verdict and paper_reason. mine, n_mine, difference
        (mine minus committed), verdict and reason, which judge the records of this machine.
        diverged and mine_diverged: the text of the runs that diverged, if any. device, torch and
        commit of the committed runs. Verdicts are `same`, `within`, `outside`, `undecided`,
        `diverged` (all runs), `not run`; `paper_verdict` is empty where nothing is printed.

    Raises:
        InputError: unknown profile, or a damaged record.
    """
    own = bool(profile) and is_comparable(sweep, profile)
    shown = profile if own else _fullest(sweep, root)
    committed, failed = _read(sweep, shown, root)
    mine, mine_failed = _read(sweep, shown, runs_root()) if own or not profile else ([], {})
    about = table(sweep, committed, profile=shown).set_index("point")
    quoted = {each.stem: printed_rows(each.stem) for each in sweep.printed}
    rows = []
    for point in sweep.points():
        context = {"sweep": sweep.name, "chapter": sweep.chapter}
        context |= {"point": point.name, "profile": shown}
        for what, printed in _asked(sweep, point.name, quoted):
            ours, theirs = _parts(mine, point.name, what), _parts(committed, point.name, what)
            said, mine_said = failed.get(point.name, ""), mine_failed.get(point.name, "")
            if not (everything or printed or mine_said or not math.isnan(_mean(ours))):
                continue
            judge = _Judge(sweep, point.recipe, shown, what)
            value, average = _mean(ours), _mean(theirs)
            margin = _margin(theirs, [math.inf] * len(theirs))
            paper_verdict, paper_reason = judge.beside_paper(theirs, printed.get("value", ""))
            verdict, reason = judge.beside_committed(ours, theirs, mine, committed, point.name)
            if verdict == UNDECIDED and math.isnan(average) and printed:
                verdict, reason = judge.beside_paper(ours, printed["value"])
            if printed and said and theirs[0].empty:
                paper_verdict = DIVERGED
            if mine_said and ours[0].empty:
                verdict, reason = _of_diverged(mine_said, said, theirs[0].empty)
            comparable = paper_verdict not in ("", NOT_RUN, DIVERGED) and not judge.other_budget
            rows.append(
                context
                | {
                    "metric": what.metric,
                    "paper": printed.get("value", ""),
                    "source": printed.get("source", ""),
                    "locator": printed.get("locator", ""),
                    "committed": average,
                    "low": average - margin,
                    "high": average + margin,
                    "n": min(map(len, theirs)),
                    "paper_difference": average - float(printed["value"])
                    if comparable
                    else math.nan,
                    "paper_verdict": paper_verdict,
                    "paper_reason": paper_reason,
                    "mine": value,
                    "n_mine": min(map(len, ours)),
                    "difference": value - average,
                    "verdict": verdict,
                    "reason": reason,
                    "diverged": said,
                    "mine_diverged": mine_said,
                    **about.loc[point.name, ["device", "torch", "commit"]],
                }
            )
    return pd.DataFrame(rows, columns=_COLUMNS)


_COLUMNS = (
    *("sweep", "chapter", "point", "profile", "metric", "paper", "source", "locator"),
    *("committed", "low", "high", "n", "paper_difference", "paper_verdict", "paper_reason"),
    *("mine", "n_mine", "difference", "verdict", "reason", "diverged", "mine_diverged"),
    *("device", "torch", "commit"),
)


def _read(sweep: Sweep, profile: str, root: Path) -> tuple[list[Record], dict[str, str]]:
    """Return a sweep's measurements, and what is said of each point of which a run failed."""
    found = read_runs(sweep, profile, root)
    return [record for record in found if not record.failed], diverged(found, some=True)


def _of_diverged(said: str, committed: str, alone: bool) -> tuple[str, str]:
    """Return verdict and reason of a point all of whose runs diverged on this machine.

    Args:
        said: of these runs.
        committed: of the committed runs that diverged, if any.
        alone: whether the point has no committed measurement.
    """
    if not alone:
        return OUTSIDE, f"{said}, and committed runs did not"
    return (SAME, "diverged, as the committed runs did") if committed else (DIVERGED, "")


def profiles_of_records(sweep: Sweep) -> list[str]:
    """Return the profiles of real images at which a sweep has records; the last one if none has."""
    real = [name for name in sweep.profiles if PROFILES[name].dataset != "embedded"]
    roots = (MEASURED, runs_root())
    found = [name for name in real if any(any(_read(sweep, name, each)) for each in roots)]
    return found or real[-1:]


def _fullest(sweep: Sweep, root: Path) -> str:
    """Return the profile with committed records of most points; the nearest if several."""
    real = [name for name in sweep.profiles if PROFILES[name].dataset != "embedded"]

    def num_points(profile: str) -> int:
        measured, failed = _read(sweep, profile, root)
        return len({record.point for record in measured} | set(failed))

    return max(reversed(real), key=num_points)


def _asked(sweep: Sweep, point: str, quoted: Mapping[str, pd.DataFrame]) -> _Asked:
    """Return what is compared of a point: the printed numbers, then the sweep's other metrics.

    With each number goes its row in print, as text, or nothing.
    """
    printed: _Asked = []
    for each in sweep.printed:
        name = point if each.points is None else each.points.get(point)
        rows = quoted[each.stem]
        found = rows[(rows["point"] == name) & (rows["metric"] == each.metric)]
        printed += [(each, row) for row in found.to_dict("records")]
    covered = {each.measured for each, _ in printed if not each.against}
    rest = [m for m in sweep.metrics if m not in covered and m not in UNCOMPARED]
    return [*printed, *((Printed("", metric, metric), {}) for metric in rest)]


def _parts(records: Sequence[Record], point: str, what: Printed) -> list[pd.Series]:
    """Return the numbers of a point by seed, and those of its reference if a gain is printed."""
    return [
        pd.Series(
            {
                run.seed: run.metrics[what.measured] * what.factor
                for run in records
                if run.point == name and what.measured in run.metrics
            },
            dtype=float,
        )
        for name in (point, what.against)
        if name
    ]


def _mean(parts: Sequence[pd.Series]) -> float:
    """Return the mean, or the difference of two means; NaN without runs."""
    first, *others = (float(part.mean()) for part in parts)
    return first - sum(others)


def _margin(parts: Sequence[pd.Series], new_runs: Sequence[float]) -> float:
    """Return how far another mean of so many runs may lie from this one, in 95 % of cases.

    By the t distribution, from the spread of the runs; with infinitely many new runs it is half the
    interval of the mean. NaN if a part has a single run.
    """
    if min(map(len, parts)) < 2:
        return math.nan
    squares = [
        (part.var() * (1 / len(part) + 1 / new), len(part) - 1)
        for part, new in zip(parts, new_runs, strict=True)
    ]
    error = sum(square for square, _ in squares)
    if error <= EQUAL**2 * max(part.abs().max() for part in parts) ** 2:
        return 0.0  # the rest is rounding
    try:
        from scipy import stats
    except ModuleNotFoundError as missing:
        raise InputError("intervals need scipy: `pip install scipy`") from missing
    freedom = error**2 / sum(square**2 / free for square, free in squares)
    return float(stats.t.isf(LEVEL / 2, freedom) * error**0.5)


class _Judge:
    """How one row is judged.

    Args:
        sweep: of the point.
        recipe: of the point, before the profile's budget.
        profile: of the records.
        what: the number that is compared.
    """

    def __init__(self, sweep: Sweep, recipe: Recipe, profile: str, what: Printed) -> None:
        counted = what.measured.partition(".")[0] in RULE_SETS
        # The seed draws the changes to the images, and instruction sets round them differently.
        self.exact = _is_exact(recipe) and (counted or not sweep.is_drawn)
        self.printed_to = what.tolerance
        self.seeded = not recipe.checkpoint and what.measured.partition(".")[0] not in RULE_SETS
        self.tolerance = (EXACT if counted else RATED) if self.exact else EQUAL
        self.share = PROFILES[profile].epoch_share
        self.other_budget = not _is_exact(recipe) and self.share < 1
        self.profile = profile

    def beside_paper(self, parts: Sequence[pd.Series], printed: str) -> tuple[str, str]:
        """Return verdict and reason of runs against a printed number."""
        value = _mean(parts)
        if not printed:
            return "", ""
        if math.isnan(value):
            return NOT_RUN, ""
        if self.other_budget:
            share = f"{Fraction(self.share).limit_denominator(10_000)} of the paper's epochs"
            images = PROFILES[self.profile].num_images
            few = f", each of {images} images" if images else ""
            return UNDECIDED, f"{self.profile} trains {share}{few}"
        unit, off = 10.0 ** -_decimals(printed), value - float(printed)
        # Digits may be rounded or cut off; where one ends and the other begins is rounding itself.
        if -unit / 2 - EQUAL * unit <= off <= unit * (1 - EQUAL):
            return SAME, ""
        if self.exact and abs(off) <= self.printed_to * abs(float(printed)):
            return WITHIN, f"equal to {self.printed_to:g}: the authors add up in 32 bits"
        if self.exact:
            return OUTSIDE, "not the printed digits"
        margin = _margin(parts, [1] * len(parts))
        if math.isnan(margin):
            return UNDECIDED, "one run has no spread"
        inside = abs(off) <= margin + unit / 2
        return (WITHIN if inside else OUTSIDE), "by the spread of the runs"

    def beside_committed(
        self,
        ours: Sequence[pd.Series],
        theirs: Sequence[pd.Series],
        mine: Sequence[Record],
        committed: Sequence[Record],
        point: str,
    ) -> tuple[str, str]:
        """Return verdict and reason of this machine's runs against the committed ones."""
        if math.isnan(_mean(ours)):
            return NOT_RUN, ""
        if math.isnan(_mean(theirs)):
            return UNDECIDED, "no committed record"
        expected = theirs[0].reindex(ours[0].index)
        if self.exact:
            expected = expected if self.seeded else expected.fillna(theirs[0].mean())
            if expected.isna().any():
                return UNDECIDED, "no committed run of this seed"
            good = self._agree(ours[0], expected).all()
            return (SAME, "") if good else (OUTSIDE, "needs no training, so it must be equal")
        if len(ours) > 1:
            if abs(_mean(ours) - _mean(theirs)) <= self.tolerance:
                return SAME, ""
        else:
            agree = self._agree(ours[0], expected)
            if agree.all():
                return SAME, ""
            if not agree[_fixed_seeds(mine, committed, point)].all():
                return OUTSIDE, "same commit, instruction set, device and PyTorch: must be equal"
        margin = _margin(theirs, [len(part) for part in ours])
        if math.isnan(margin):
            return UNDECIDED, "one committed run on another machine or commit has no spread"
        inside = abs(_mean(ours) - _mean(theirs)) <= margin
        return (WITHIN if inside else OUTSIDE), "by the spread of the committed runs"

    def _agree(self, ours: pd.Series, theirs: pd.Series) -> pd.Series:
        size = theirs.abs() if self.tolerance != RATED else theirs.abs().clip(lower=1)
        return (ours - theirs).abs() <= self.tolerance * size


def _is_exact(recipe: Recipe) -> bool:
    """Return whether a network is given by its recipe alone: fresh or published, not worked on."""
    start = recipe.start
    return not (recipe.train.epochs or recipe.changes) and (start is None or _is_exact(start))


def _fixed_seeds(mine: Sequence[Record], committed: Sequence[Record], point: str) -> list[int]:
    """Return the seeds of a point whose two runs must be equal to the last digit."""
    envs = {run.seed: run.env for run in committed if run.point == point}
    return [
        run.seed
        for run in mine
        if run.point == point
        and run.seed in envs
        and not run.env.get("cuda")
        and all(run.env.get(key) == envs[run.seed].get(key, "unknown") for key in FIXED_BY)
    ]


def _decimals(printed: str) -> int:
    """Return the number of decimals of a printed number."""
    return max(0, -int(Decimal(printed).as_tuple().exponent))


# --------------------------------------------------------------------------------- for readers


def side_by_side(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a `compared` that have a record, as text for a page or a terminal.

    A point all of whose runs diverged has one row. Columns in which nothing was run or can be said
    are left out.
    """
    run = rows[rows["committed"].notna() | rows["mine"].notna() | _first_diverged(rows)]
    lines = [
        {
            "point": row["point"],
            "metric": row["metric"],
            "paper": row["paper"] or "–",
            "printed in": row["locator"] or "–",
            "committed": _with_interval(row),
            "off the paper": _signed(row, "paper_difference", row["paper_verdict"]),
            "like the paper": row["paper_verdict"] or "–",
            "mine": f"{_number(row, row['mine'])} (n={row['n_mine']})"
            if row["n_mine"]
            else row["mine_diverged"] or "–",
            "off the committed": _signed(row, "difference", row["verdict"]),
            "verdict": row["verdict"].replace(NOT_RUN, "–"),
        }
        for row in run.to_dict("records")
    ]
    found = pd.DataFrame(lines, columns=None if lines else ["point", "metric"])
    return found[[n for n in found if n in ("point", "metric") or (found[n] != "–").any()]]


def _first_diverged(rows: pd.DataFrame) -> pd.Series:
    """Return which rows are the first of a point without a number, because its runs diverged."""
    told = (rows["diverged"] != "") & rows["committed"].isna()
    told |= (rows["mine_diverged"] != "") & rows["mine"].isna()
    return told & ~rows["point"].where(told).duplicated()


def comparison_text(rows: pd.DataFrame, columns: int) -> str:
    """Return `side_by_side` and `remarks` of a `compared` for a terminal of so many columns.

    Where the table is wider, the places in print stand below it.
    """
    shown, place = side_by_side(rows), "printed in"
    text = "" if shown.empty else f"{shown.to_string(index=False)}\n"
    if place in shown and len(text.partition("\n")[0]) > columns:
        quoted = shown[shown[place] != "–"].drop_duplicates(["metric", place])
        width = quoted["metric"].str.len().max()
        lines = [f"  {row['metric']:{width}}  {row[place]}" for row in quoted.to_dict("records")]
        text = shown.drop(columns=place).to_string(index=False)
        text = "\n".join([text, "printed in:", *lines, ""])
    return f"{text}{remarks(rows)}\n"


def remarks(rows: pd.DataFrame) -> str:
    """Return the lines under a `compared`: where the records are from, and what they leave open.

    Points that diverged or have no record at all are named here, and reasons of verdicts given.
    """
    lines = []
    for name, own in rows.groupby("sweep", sort=False):
        run = own[own["committed"].notna()]
        lines.append(f"{name}: {provenance(run.assign(source='committed'))}")
        known = {*own["point"][own["committed"].notna() | own["mine"].notna()]}
        for said, whose in (("diverged", ""), ("mine_diverged", "this machine's ")):
            told = own[own[said] != ""].drop_duplicates("point")
            lines += [f"  {whose}{row['point']}: {row[said]}" for row in told.to_dict("records")]
            known |= {*told["point"]}
        missing = [point for point in own["point"].unique() if point not in known]
        if missing:
            more = f" and {len(missing) - NUM_NAMED} more" if len(missing) > NUM_NAMED else ""
            count = f"{len(missing)} of {own['point'].nunique()} points"
            lines.append(f"  not run: {count}: {', '.join(missing[:NUM_NAMED])}{more}")
        for verdict, reason, of in (
            ("paper_verdict", "paper_reason", "the paper"),
            ("verdict", "reason", "the committed records"),
        ):
            given = own[own[reason] != ""].groupby([verdict, reason], sort=False).size()
            lines += [f"  {n} {kind} beside {of}: {why}" for (kind, why), n in given.items()]
        if (own["paper_verdict"] == OUTSIDE).any():
            lines.append(f"  where paper, README and code differ: {own['chapter'].iloc[0]}")
    return "\n".join(lines)


def _number(row: Mapping[str, Any], value: float) -> str:
    return f"{value:.{_decimals(row['paper']) + 1}f}" if row["paper"] else f"{value:.6g}"


def _with_interval(row: Mapping[str, Any]) -> str:
    if not row["n"]:
        return str(row["diverged"] or NOT_RUN)
    low, high = (_number(row, row[name]) for name in ("low", "high"))
    equal = "all equal, " if row["n"] > 1 and row["low"] == row["high"] else ""
    between = f"{low} to {high}, " if low != high else equal
    return f"{_number(row, row['committed'])} ({between}n={row['n']})"


def _signed(row: Mapping[str, Any], name: str, verdict: str) -> str:
    """Return a difference, and 0 for one that is only rounding."""
    value = row[name]
    if math.isnan(value):
        return "–"
    if verdict == SAME:
        return "0"
    return f"{value:+.{_decimals(row['paper']) + 1}f}" if row["paper"] else f"{value:+.2g}"
