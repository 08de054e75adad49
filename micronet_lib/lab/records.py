"""Records: where every number of the book comes from, and the tables made of them.

A record is one measured run as a small JSON file. Three sources stand side by side in a table and
are never mixed: `paper` (transcribed, `data/paper/*.csv`), `measured` (committed records,
`data/measured/`) and `this run` (records of this machine, in the runs folder).
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from micronet_lib.errors import InputError
from micronet_lib.lab.files import write_atomically
from micronet_lib.lab.recipes import SWEEPS
from micronet_lib.lab.settings import PROFILES, Recipe
from micronet_lib.lab.sweeps import Sweep

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "data" / "paper"
MEASURED = ROOT / "data" / "measured"
NOT_RUN = "not run"

# A list of numbers, which goes on one line of a record: a matrix then has a line a row.
_NUMBERS = re.compile(r"\[\n([-+.,\deE\s]+)\]")


def runs_root() -> Path:
    """Where this machine's records and checkpoints go: `$MICRONET_RUNS` or `runs/`."""
    return Path(os.environ.get("MICRONET_RUNS") or ROOT / "runs")


@dataclass(frozen=True)
class Record:
    """One measured run.

    Attributes:
        recipe: fully resolved, defaults included.
        metrics: finite numbers; fractions in [0, 1].
        env: device, torch, cuda, commit, date (UTC), wall_s.
        layers: rows of a per-layer table, where the run makes one.
        curve: one number an epoch under each name, of a run that trains.
        arrays: what `Recipe.inspect` asked for, by its name.
        notes: what a reader of the numbers has to know besides.
    """

    sweep: str
    point: str
    recipe_id: str
    recipe: dict[str, Any]
    profile: str
    seed: int
    dataset: str
    metrics: dict[str, float]
    env: dict[str, Any]
    layers: list[dict[str, Any]] = field(default_factory=list)
    curve: dict[str, list[float]] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    schema: int = SCHEMA

    @property
    def path(self) -> Path:
        """Where the record lies under its root."""
        return record_path(self.sweep, self.point, self.profile, self.seed)


def record_path(sweep: str, point: str, profile: str, seed: int) -> Path:
    """The place of a record under its root."""
    return Path(profile) / sweep / f"{point}-s{seed}.json"


def recipe_id(recipe: Recipe) -> str:
    """Ten hex digits that name a recipe: a digest of its non-default fields, sorted.

    A field that a later version adds with a default leaves every older name as it was.
    """
    changed = _changed(asdict(recipe), asdict(Recipe()))
    canonical = json.dumps(changed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def run_key(recipe: Recipe, seed: int) -> str:
    """Recipe and seed of a run, so that no file of another run is taken for this one's."""
    return f"{recipe_id(recipe)}-s{seed}"


def _changed(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ, level by level."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            value = _changed(value, defaults[name])
            if value:
                found[name] = value
        elif value != defaults[name]:
            found[name] = value
    return found


def write(record: Record, root: Path) -> Path:
    """Write a record atomically: the file is whole or absent, whatever happens.

    Raises:
        InputError: when the folder cannot be written.
    """
    path = root / record.path
    text = json.dumps(asdict(record), indent=1, sort_keys=True, allow_nan=False) + "\n"
    text = _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)
    folder = path.with_suffix("")  # of a run that trains; its lock clears it of unfinished files
    what = f"the record {record.path} under {root}"
    write_atomically(path, text.encode(), what, unfinished=folder if folder.is_dir() else None)
    return path


def read(path: Path) -> Record:
    """Read one record.

    Raises:
        InputError: when the file is missing, damaged or of another schema.
    """
    try:
        content = json.loads(path.read_text())
        record = Record(**content)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is not a readable record ({error}): delete it and measure again"
        ) from error
    if record.schema != SCHEMA:
        raise InputError(
            f"{path} has schema {record.schema}, this version reads {SCHEMA}: delete it and "
            "measure again"
        )
    return record


def kept(path: Path) -> Record | None:
    """A record of this machine, where one that is missing or damaged can be measured again."""
    try:
        return read(path)
    except InputError:
        return None


def read_sweep(sweep: Sweep, profile: str, root: Path) -> list[Record]:
    """The sweep's records of one profile, for the points it has today, in their order."""
    order = {point.name: rank for rank, point in enumerate(sweep.points())}
    found = [read(path) for path in sorted((root / profile / sweep.name).glob("*.json"))]
    known = [record for record in found if record.point in order]
    return sorted(known, key=lambda record: (order[record.point], record.seed))


def find(root: Path, profile: str, identity: str, seed: int) -> Record | None:
    """A record of that recipe id and seed, whichever sweep it was measured for; or None."""
    found = map(kept, sorted((root / profile).glob(f"*/*-s{seed}.json")))
    return next((record for record in found if record and record.recipe_id == identity), None)


def promote(path: Path, root: Path = MEASURED) -> Path:
    """Copy a record of this machine to the committed ones.

    Raises:
        InputError: when it is not a record, belongs to no sweep or point of today, or was measured
            from another recipe than the one the point has now or from uncommitted code.
    """
    record = read(path)
    sweep = SWEEPS.get(record.sweep)
    if sweep is None:
        raise InputError(f"{path}: there is no sweep {record.sweep!r} any more")
    resolved = PROFILES[record.profile].apply(sweep.point(record.point).recipe)
    if record.recipe_id != recipe_id(resolved):
        raise InputError(f"{path} was measured from another recipe; measure the point again")
    if not re.fullmatch(r"[0-9a-f]{7,40}", str(record.env.get("commit"))):
        raise InputError(f"{path} was measured from uncommitted code; commit it and measure again")
    if PROFILES[record.profile].dataset == "embedded":
        raise InputError(f"{path} is a {record.profile} run, which proves nothing on real images")
    return write(record, root)


def paper(stem: str) -> pd.DataFrame:
    """Transcribed numbers of one chapter: point, metric, value, source, locator."""
    return pd.read_csv(PAPER / f"{stem}.csv", dtype={"point": str, "value": float})


def paper_wide(stem: str, source: str) -> pd.DataFrame:
    """The transcribed numbers of one source: a row a point in the file's order, a column a metric.

    Args:
        stem: of the chapter.
        source: a key of the bibliography, for example `kim2020`.
    """
    rows = paper(stem).query("source == @source")
    wide = rows.pivot_table(index="point", columns="metric", values="value", sort=False)
    return wide.reset_index().rename_axis(columns=None)


def compare(rows: pd.DataFrame, stem: str, pairs: Mapping[str, tuple[str, float]]) -> pd.DataFrame:
    """Paper and measurement side by side, for points that have both.

    Args:
        rows: a `table` of measured records.
        stem: of the chapter whose transcribed numbers are taken.
        pairs: for each metric of the paper the measured metric and the factor that brings it to
            the paper's unit.

    Returns:
        Columns point, metric, paper, measured, difference, n, source, locator.
    """
    lines = []
    for quoted in paper(stem).itertuples():
        found = rows[(rows["point"] == quoted.point) & (rows["n"] > 0)]
        if quoted.metric in pairs and len(found):
            name, factor = pairs[quoted.metric]
            value = found[name].iloc[0] * factor
            lines.append(
                {
                    "point": quoted.point,
                    "metric": quoted.metric,
                    "paper": quoted.value,
                    "measured": value,
                    "difference": value - quoted.value,
                    "n": found["n"].iloc[0],
                    "source": quoted.source,
                    "locator": quoted.locator,
                }
            )
    return pd.DataFrame(lines)


def table(
    sweep: Sweep, records: Iterable[Record], source: str = "measured", profile: str = "full"
) -> pd.DataFrame:
    """One row a point and profile: mean, spread and number of runs of each metric.

    Columns: sweep, point, profile, source, n, device, torch, commit, then each metric that a record
    has, those of the sweep first, and `<metric>_std` (`NaN` for a single run). A point without a
    record has `n` 0 and `NaN`. `profile` labels the rows of a sweep without any record.
    """
    records = list(records)
    metrics = list(dict.fromkeys([*sweep.metrics, *(m for r in records for m in r.metrics)]))
    rows = []
    for name in dict.fromkeys([r.profile for r in records]) or [profile]:
        for point in sweep.points():
            runs = [r for r in records if r.point == point.name and r.profile == name]
            row: dict[str, Any] = {
                "sweep": sweep.name,
                "point": point.name,
                "profile": name,
                "source": source,
                "n": len(runs),
            }
            for key in ("device", "torch", "commit"):
                row[key] = ", ".join(sorted({str(run.env[key]) for run in runs}))
            values = pd.DataFrame([run.metrics for run in runs], columns=metrics, dtype=float)
            row |= values.mean().to_dict() | values.std().add_suffix("_std").to_dict()
            rows.append(row)
    return pd.DataFrame(rows)


def measured(sweep: Sweep, profile: str = "full") -> pd.DataFrame:
    """The committed records of a sweep as a `table`."""
    return table(sweep, read_sweep(sweep, profile, MEASURED), profile=profile)


def bill(sweep: Sweep, point: str, profile: str = "full") -> pd.DataFrame:
    """The committed per-layer table of one point: layer, kind, quantity, count, bits and costs.

    Raises:
        InputError: when the point has no record, or its record has no such table.
    """
    for record in read_sweep(sweep, profile, MEASURED):
        if record.point == point and record.layers:
            return pd.DataFrame(record.layers)
    raise InputError(f"no record of {sweep.name}/{point} at {profile} holds a per-layer table")


def arrays(sweep: Sweep, point: str, profile: str = "full") -> dict[str, Any]:
    """What the committed record of a point keeps by `Recipe.inspect`, as numpy arrays.

    Raises:
        InputError: when the point has no record.
    """
    for record in read_sweep(sweep, profile, MEASURED):
        if record.point == point:
            return {name: _as_arrays(value) for name, value in record.arrays.items()}
    raise InputError(f"{sweep.name}/{point} has no record at {profile}")


def _as_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_arrays(entry) for name, entry in value.items()}
    return np.asarray(value)


def curves(sweep: Sweep, profile: str, root: Path = MEASURED) -> pd.DataFrame:
    """What every epoch of a sweep's training runs came to: point, seed, epoch, then the curves."""
    rows = [
        pd.DataFrame(record.curve).assign(
            point=record.point, seed=record.seed, epoch=range(1, len(record.curve["lr"]) + 1)
        )
        for record in read_sweep(sweep, profile, root)
        if record.curve
    ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def provenance(rows: pd.DataFrame) -> str:
    """The footer of a figure or table: source, profile, hardware, version, n and commit."""
    run = rows[rows["n"] > 0]
    if run.empty:
        return NOT_RUN
    each = {  # a cell lists what its runs differ in
        name: " + ".join(dict.fromkeys(part for cell in run[name] for part in cell.split(", ")))
        for name in ("source", "profile", "device", "torch", "commit")
    }
    counts = "/".join(str(n) for n in sorted(set(run["n"])))
    where = f"{each['device']} · torch {each['torch']} · n={counts} · {each['commit']}"
    return f"{each['source']} · {each['profile']} · {where}"
