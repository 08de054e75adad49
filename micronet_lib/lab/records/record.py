"""Records: where every number of the book comes from, and the tables made of them.

A record is one measured run as a small JSON file. Three sources stand side by side in a table and
are never mixed: `paper` (transcribed, `data/paper/*.csv`), `measured` (committed records,
`data/measured/`) and `this run` (records of this machine, in the runs folder).
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from micronet_lib.errors import InputError
from micronet_lib.lab.host.files import set_aside, write_atomically
from micronet_lib.lab.host.places import MEASURED
from micronet_lib.lab.host.progress import say
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.sweep import Sweep

SCHEMA = 1

# A list of numbers, which goes on one line of a record: a matrix then has a line a row.
_NUMBERS = re.compile(r"\[\n([-+.,\deE\s]+)\]")


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


def write(record: Record, root: Path, unfinished: Path | None = None) -> Path:
    """Write a record atomically: the file is whole or absent, whatever happens.

    Raises:
        InputError: when the folder cannot be written.
    """
    path = root / record.path
    text = json.dumps(asdict(record), indent=1, sort_keys=True, allow_nan=False) + "\n"
    text = _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)
    what = f"the record {record.path} under {root}"
    write_atomically(path, text.encode(), what, unfinished=unfinished)
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


def set_aside_damaged(path: Path) -> None:
    """Rename a record that is there and cannot be read, and say so; it is measured again."""
    if path.is_file() and kept(path) is None:
        aside = set_aside(path)
        say(f"{path} is damaged or of another schema: kept as {aside.name}, measured again")


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
