"""The reviewer's tables: claims with verdicts, comparisons without an effect, seeds and compute.

A verdict follows from printed numbers and committed records alone, by `RULES`. Page `98_report`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from micronet_lib.lab.host.places import MEASURED
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import flat_settings, plain_recipe
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Printed
from micronet_lib.lab.records.comparison import DIVERGED, SAME, UNDECIDED, WITHIN, compared
from micronet_lib.lab.records.record import failures, measurement_key, read_runs
from micronet_lib.lab.records.statistics import gain, runs
from micronet_lib.lab.records.status import REAL
from micronet_lib.lab.records.tables import NOT_RUN, printed_rows
from micronet_lib.scoring.rules import RULE_SETS

CONFIRMED, CONSISTENT = "confirmed", "consistent"
UNSUPPORTED, HERE = "not supported", "not supported at this budget"
UNIDENTIFIED = "cannot be identified"
VERDICTS = (CONFIRMED, CONSISTENT, UNIDENTIFIED, HERE, UNSUPPORTED, NOT_RUN)

RULES = (
    (
        CONFIRMED,
        "Numbers: each agrees in all its printed digits (a sum that the authors add up in 32 bits "
        "to 1e-6), or lies within the spread of our runs at the paper's schedule. Gains: at the "
        "paper's schedule the whole 95 % interval is on the claimed side.",
    ),
    (
        CONSISTENT,
        "Gains: the whole interval is on the claimed side, in trainings shorter than the paper's. "
        "Each interval is taken alone: among many claims a few may be so by chance.",
    ),
    (
        UNIDENTIFIED,
        "Numbers: some agree, and no counting rule of this book gives all of them. Gains: the "
        "trainings are shorter than the paper's, and one network had more of them than the other.",
    ),
    (
        HERE,
        "Gains, in trainings shorter than the paper's: the interval is not on the claimed side "
        "alone; or there is one run, and so no interval; or all runs of one network diverged.",
    ),
    (
        UNSUPPORTED,
        "Gains: the same at the paper's schedule. Numbers: no counting rule gives any of them.",
    ),
    (
        NOT_RUN,
        "There is no record; or, for a printed accuracy, no record at the paper's schedule.",
    ),
)
"""Each verdict and when it is given."""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper.

    Attributes:
        text: as a sentence.
        sweep: that measures it.
        metrics: the printed numbers that must be met, by their names in `data/paper/`.
        point: whose accuracy is claimed to be higher, if the claim is a gain.
        against: higher than this point's.
        printed: the printed numbers behind a gain: `(stem, point, metric)` of the gain, or of the
            higher number and then of the lower.
        above: the gain that is claimed at least, in points.
    """

    text: str
    sweep: str
    metrics: tuple[str, ...] = ()
    point: str = ""
    against: str = ""
    printed: tuple[tuple[str, str, str], ...] = ()
    above: float = 0.0


def _stage(text: str, stage: str, before: str, stem: str, names: tuple[str, str]) -> Claim:
    point = "3.0" if stem == "architecture" else "ratio_3.0"
    printed = tuple((stem, point, f"top1_{name}_percent") for name in names)
    return Claim(text, "stages", point=f"3.0-{stage}", against=f"3.0-{before}", printed=printed)


def _placed(text: str, placement: str) -> Claim:
    printed = (("srip", placement, "gain_percent"),)
    return Claim(text, "srip_placement", point=placement, against="none", printed=printed)


CLAIMS = (
    Claim("The published networks have the printed accuracy.", "published",
          ("top1_percent", "top5_percent", "loss")),
    Claim("The final counter gives the printed score.", "published",
          ("score_final", "param_storage_final", "math_ops_final")),
    Claim("The earlier counters give the printed score.", "published",
          ("score_first", "score_revised")),
    Claim("Table 2: storage by expansion ratio.", "expand_ratio", ("param_storage_millions",)),
    Claim("Table 2: operations by expansion ratio.", "expand_ratio", ("math_ops_millions",)),
    Claim("Table 2: score by expansion ratio.", "expand_ratio", ("score",)),
    Claim("Table 1 is the network whose storage Table 2 has.", "printed_table",
          ("param_storage_millions",)),
    Claim("Tables 2 to 4: accuracy of every stage and ratio.", "stages",
          tuple(f"top1_{s}_percent" for s in ("vanilla", "no_bias_decay", "orn", "als",
                                              "fast_autoaugment", "cutmix"))),
    _stage("Leaving biases out of weight decay helps.", "no_bias_decay", "vanilla", "architecture",
           ("no_bias_decay", "vanilla")),
    _stage("Orthonormal regularisation helps further.", "orn", "no_bias_decay", "srip",
           ("orn", "stacked")),
    _stage("Adaptive label smoothing helps further.", "als", "orn", "label_smoothing",
           ("als", "orn")),
    _stage("Fast AutoAugment helps further.", "fast_autoaugment", "als", "augmentation",
           ("fast_autoaugment", "stacked")),
    _stage("CutMix helps further.", "cutmix", "fast_autoaugment", "augmentation",
           ("cutmix", "fast_autoaugment")),
    _placed("SRIP on the classifier helps.", "fc"),
    _placed("SRIP on depthwise convolutions helps.", "depthwise"),
    _placed("SRIP on pointwise convolutions helps.", "pointwise"),
    _placed("SRIP on all layers helps.", "all"),
    Claim("SRIP on pointwise convolutions is better than on all layers.", "srip_placement",
          point="pointwise", against="all",
          printed=(("srip", "pointwise", "gain_percent"), ("srip", "all", "gain_percent"))),
    Claim("Table 5: accuracy, storage, operations and score of each round.", "pipeline",
          ("top1_percent", "param_storage_millions", "math_ops_millions", "score")),
    Claim("Pruning 60 % costs less than one point of top-1.", "pipeline",
          point="0.60", against="dense",
          printed=(("pruning", "prune_60", "top1_percent"), ("pruning", "prune_0", "top1_percent")),
          above=-1.0),
)  # fmt: skip
"""What the paper claims, and what this book has to say about it."""

# What each point of a sweep is compared with, to look for a gain in accuracy.
_REFERENCES: dict[str, str | Mapping[str, str]] = {
    "stages": {c.point: c.against for c in CLAIMS if c.sweep == "stages" and c.point},
    "srip_placement": "none",
    "srip_fc": {
        name: name.replace("-fc", "-none")
        for name in (point.name for point in SWEEPS["srip_fc"].points())
        if name.endswith("-fc")
    },
    "label_smoothing": "none",
    "augmentation": "standard",
}


def claims(root: Path = MEASURED) -> pd.DataFrame:
    """Return each claim with its verdict.

    Args:
        root: of the committed records.

    Returns:
        Columns claim, chapter, sweep, printed (numbers and where they stand), profile, evidence and
        verdict, one of `VERDICTS`.
    """
    return pd.DataFrame([judged(claim, root) for claim in CLAIMS])


def judged(claim: Claim, root: Path = MEASURED) -> dict[str, str]:
    """Return a claim's row of `claims`."""
    profile, printed, evidence, verdict = (_gained if claim.point else _met)(claim, root)
    sweep = SWEEPS[claim.sweep]
    return {
        "claim": claim.text,
        "chapter": sweep.chapter,
        "sweep": sweep.name,
        "printed": printed,
        "profile": profile,
        "evidence": evidence,
        "verdict": verdict,
    }


def _met(claim: Claim, root: Path) -> tuple[str, str, str, str]:
    """Judge printed numbers, one by one."""
    rows = compared(SWEEPS[claim.sweep], root=root)
    rows = rows[(rows["paper"] != "") & rows["metric"].isin(claim.metrics)]
    profile = str(rows["profile"].iloc[0])
    tables = dict.fromkeys(text.partition(",")[0] for text in rows["locator"])
    printed = f"{len(rows)} numbers; {'; '.join(tables)}"
    found = rows[rows["paper_verdict"] != NOT_RUN]
    # A training at another budget is no evidence about a printed accuracy.
    unsaid = [UNDECIDED] if PROFILES[profile].epoch_share >= 1 else [UNDECIDED, DIVERGED]
    run = found[~found["paper_verdict"].isin(unsaid)]
    if run.empty:
        below = (
            "" if found.empty else f"{len(found)} run at {profile}, none at the paper's schedule"
        )
        return profile, printed, below or "no record", NOT_RUN
    agree = run["paper_verdict"].isin([SAME, WITHIN])
    good, missing = int(agree.sum()), len(rows) - len(run)
    evidence = f"{good} of {len(run)} agree" + (f"; {missing} not run" if missing else "")
    if good == len(run):
        return profile, printed, evidence, CONFIRMED
    best, rule = _best_rule(claim, profile, root)
    evidence += f"; at best {best}, with the rule set {rule}"
    verdict = CONFIRMED if best == len(run) else UNIDENTIFIED if best else UNSUPPORTED
    return profile, printed, evidence, verdict


def _best_rule(claim: Claim, profile: str, root: Path) -> tuple[int, str]:
    """Return how many numbers agree by the counting rules that fit best, and their name."""
    sweep, counts = SWEEPS[claim.sweep], dict[str, int]()
    for rule in RULE_SETS:
        printed = tuple(_by(rule, each) for each in sweep.printed if each.metric in claim.metrics)
        rows = compared(replace(sweep, printed=printed), profile, root=root)
        rows = rows[rows["paper"] != ""]
        counts[rule] = int(rows["paper_verdict"].isin([SAME, WITHIN]).sum())
    best = max(counts, key=lambda rule: counts[rule])
    return counts[best], best


def _by(rule: str, printed: Printed) -> Printed:
    measured = f"{rule}.{printed.measured.partition('.')[2]}"
    return replace(printed, measured=measured)


def _gained(claim: Claim, root: Path) -> tuple[str, str, str, str]:
    """Judge a gain by its interval."""
    sweep = SWEEPS[claim.sweep]
    profile, gains = _best_gain(claim, root)
    quoted = [_printed(*each) for each in claim.printed]
    value = float(quoted[0]["value"]) - sum(float(each["value"]) for each in quoted[1:])
    printed = f"{value:+.2f} points; {quoted[0]['locator'].partition(', row')[0]}"
    (row,) = gains.to_dict("records")
    whole = PROFILES[profile].epoch_share >= 1
    good, bad = (CONFIRMED, UNSUPPORTED) if whole else (CONSISTENT, HERE)
    for name in (claim.point, claim.against):
        if name in gains.attrs["diverged"]:
            return profile, printed, f"{name} {gains.attrs['diverged'][name]}", bad
    if math.isnan(row["gain"]):
        return profile, printed, "no record", NOT_RUN
    evidence = f"{row['gain']:+.2f} points"
    if not math.isnan(row["low"]):
        evidence += f" ({row['low']:+.2f} to {row['high']:+.2f})"
    evidence += f", n={min(row['n'], row['n_against'])}"
    longer = [
        len(sweep.point(name).recipe.prune.sparsities) for name in (claim.point, claim.against)
    ]
    if not whole and longer[0] != longer[1]:
        more = f"{evidence}; it had {longer[0] - longer[1]} trainings more"
        return profile, printed, more, UNIDENTIFIED
    verdict = good if row["low"] > claim.above else bad
    return profile, printed, evidence, verdict


def _best_gain(claim: Claim, root: Path) -> tuple[str, pd.DataFrame]:
    """Return the profile nearest to the paper at which the gain has an interval, and the gain.

    A network that diverged has none, and says as much. Without either it is the nearest profile
    with both networks, and else the shortest. So a single run of one network at a longer profile
    does not hide the runs of both at a shorter one.
    """
    sweep, against = SWEEPS[claim.sweep], {claim.point: claim.against}
    found = [
        (profile, gain(runs(sweep, profile, root), against, scale=100))
        for profile in reversed(REAL)
        if profile in sweep.profiles
    ]
    for column in ("low", "gain"):
        for profile, gains in found:
            diverged = {claim.point, claim.against} & gains.attrs["diverged"].keys()
            if diverged or gains[column].notna().any():
                return profile, gains
    return found[-1]


def _printed(stem: str, point: str, metric: str) -> dict[str, Any]:
    rows = printed_rows(stem)
    (row,) = rows[(rows["point"] == point) & (rows["metric"] == metric)].to_dict("records")[:1]
    return row


def without_effect(root: Path = MEASURED) -> pd.DataFrame:
    """Return the comparisons of trainings with an interval that shows no gain in top-1.

    Returns:
        The columns of `gain` in points, after sweep and profile; only rows whose 95 % interval
        reaches 0 or less. `p_holm` is adjusted within each sweep and profile, rows that are left
        out included. Trainings that several sweeps compare stand under the first.
    """
    found = []
    for name, reference in _REFERENCES.items():
        for profile in REAL:
            rows = gain(runs(SWEEPS[name], profile, root), reference, scale=100)
            rows.insert(0, "profile", profile)
            rows.insert(0, "sweep", name)
            found.append(rows[rows["low"] <= 0])
    # Two sweeps may show the same trainings.
    same = ["profile", "n", "n_against", "gain", "low"]
    return pd.concat(found).drop_duplicates(same).reset_index(drop=True)


def failed(root: Path = MEASURED) -> pd.DataFrame:
    """Return every run whose training failed: sweep, profile, point, seed, epoch and what happened.

    A training that several sweeps show stands under the first of them.
    """
    found = {
        (profile, record.recipe_id, record.seed): record
        for sweep in reversed(SWEEPS.values())
        for profile in sweep.profiles
        for record in failures(sweep, profile, root)
    }
    order = {name: place for place, name in enumerate(SWEEPS)}
    rows = [
        {
            **{name: getattr(record, name) for name in ("sweep", "profile", "point", "seed")},
            "epoch": record.failed["epoch"],
            "what": record.failed["message"],
        }
        for record in sorted(found.values(), key=lambda each: order[each.sweep])
    ]
    return pd.DataFrame(rows, columns=["sweep", "profile", "point", "seed", "epoch", "what"])


def compute(root: Path = MEASURED) -> pd.DataFrame:
    """Return runs, seeds and hours of each sweep and profile that has a record.

    A training that several sweeps show counts in the first of them only. What needs no training is
    measured by each sweep for itself.

    Returns:
        Columns chapter, sweep, profile, runs, trainings (of the runs), diverged (of the trainings),
        shared (runs that an earlier row counts), seeds, core_hours and gpu_hours. The runs add up
        to all measurements.
    """
    seen: set[tuple[str, str, int, str]] = set()
    rows = []
    for sweep in SWEEPS.values():
        for profile in (each for each in REAL if each in sweep.profiles):
            found = {measurement_key(r): r for r in read_runs(sweep, profile, root)}
            if not found:
                continue
            new = [record for key, record in found.items() if key not in seen]
            seen |= set(found)
            hours = [(_cores(r.env["device"]), r.env["wall_s"] / 3600) for r in new]
            rows.append(
                {
                    "chapter": sweep.chapter,
                    "sweep": sweep.name,
                    "profile": profile,
                    "runs": len(new),
                    "trainings": sum(bool(record.curve) for record in new),
                    "diverged": sum(bool(record.failed) for record in new),
                    "shared": len(found) - len(new),
                    "seeds": ", ".join(str(s) for s in sorted({r.seed for r in found.values()})),
                    "core_hours": sum(cores * time for cores, time in hours),
                    "gpu_hours": sum(time for cores, time in hours if not cores),
                }
            )
    return pd.DataFrame(rows, columns=_COMPUTE)


_COMPUTE = ("chapter", "sweep", "profile", "runs", "trainings", "diverged", "shared", "seeds",
            "core_hours", "gpu_hours")  # fmt: skip


def _cores(device: str) -> int:
    """Return the CPU threads that a record's device names; 0 for a GPU."""
    found = re.match(r"(\d+) CPU threads", device)
    return int(found[1]) if found else 0


def differences(recipes: Mapping[str, Recipe]) -> pd.DataFrame:
    """Return the settings in which recipes differ: a row a setting, a column a recipe, as text."""
    settings = {name: flat(recipe) for name, recipe in recipes.items()}
    keys = dict.fromkeys(key for each in settings.values() for key in each)
    rows = [
        {"setting": key} | {name: str(each.get(key, "–")) for name, each in settings.items()}
        for key in keys
        if len({str(each.get(key, "–")) for each in settings.values()}) > 1
    ]
    return pd.DataFrame(rows, columns=["setting", *recipes])


def budgets(recipe: Recipe) -> pd.DataFrame:
    """Return what each profile of real images changes in a recipe; see `differences`."""
    here = {name: resolved(recipe, PROFILES[name]) for name in REAL}
    return differences({"the recipe": recipe, **here})


def flat(recipe: Recipe) -> dict[str, Any]:
    """Return every setting of a recipe under its dotted name."""
    return flat_settings(plain_recipe(recipe))
