"""Records: one measured run each, as a small JSON file.

Tables show three sources and never mix them: `paper` (transcribed, `data/paper/*.csv`), `measured`
(committed records, `data/measured/`) and `this run` (records in this machine's runs folder).
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_origin

from micronet_lib.errors import InputError
from micronet_lib.lab.data.downloads import published_digests
from micronet_lib.lab.host.files import set_aside, sha256_of, write_atomically
from micronet_lib.lab.host.machine import in_history
from micronet_lib.lab.host.places import MEASURED, SEARCHED_POLICIES, of_checkout
from micronet_lib.lab.host.progress import say
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.inputs import all_input_paths
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep

SCHEMA = 1
FAILED = ("what", "epoch", "message")

# Written on one line: a list of numbers, so that a matrix has one line per row, and a row of
# `layers`, the only object in a top-level list, so it is indented by two spaces.
_ONE_LINE = (
    re.compile(r"(?<=\[)\n([-+.,\deE\s]+)(?=\])"),
    re.compile(r"(?<=^  \{)\n((?:   [^{}\[\]]*\n)+)  (?=\})", re.MULTILINE),
)


@dataclass(frozen=True)
class Record:
    """One measured run.

    Attributes:
        recipe: fully resolved, defaults included.
        metrics: finite numbers; fractions in [0, 1].
        env: device, isa, torch, cuda, python, commit, date (UTC), wall_s; commits, if other code
            trained a network that it needs, resumed its training or rated it; no_commit, why it is
            unknown; inputs, name -> sha256 of the files that decided the network, if there are any.
        layers: rows of the per-layer table; only in the sweeps `published`, `ternary` and
            `adjustable_quantization`.
        curve: one number per epoch under each name, of a run that trains.
        arrays: results of the sweep's measures, by name.
        notes: remarks for readers of the numbers.
        failed: of a training that diverged: what became NaN or infinite (`loss`, with the SRIP
            penalty; `weights`; `logits`), epoch (from 1) and message. Such a record has no metrics,
            and the curve ends before that epoch.
        overrides: dotted keys that changed the sweep's recipe. Such a record has a file of its own
            and is in no table.
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
    failed: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for each in fields(self):
            kind: Any = get_origin(each.type) or each.type
            value = getattr(self, each.name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{each.name} is {value!r} and no {kind.__name__}")
        for name in (self.sweep, self.point, self.profile):
            if Path(name).name != name:
                raise ValueError(f"{name!r} cannot be the name of a file")
        if not all(math.isfinite(value) for value in self.metrics.values()):
            raise ValueError("a metric is not finite")
        if self.failed and (self.metrics or set(self.failed) != set(FAILED)):
            raise ValueError(f"a failed run has {', '.join(FAILED)}, and no metrics")

    @property
    def path(self) -> Path:
        """Return the path of the record relative to its root."""
        overridden = self.recipe_id if self.overrides else ""
        return record_path(self.sweep, self.point, self.profile, self.seed, overridden)


def record_path(sweep: str, point: str, profile: str, seed: int, overridden: str = "") -> Path:
    """Return the path of a record relative to its root.

    `overridden` is the identity of the recipe if it is not the sweep's.
    """
    name = f"{point}+{overridden}" if overridden else point
    return Path(profile) / sweep / f"{name}-s{seed}.json"


def write(record: Record, root: Path, unfinished: Path | None = None) -> Path:
    """Write a record atomically and return its path.

    Raises:
        InputError: the folder cannot be written.
    """
    path = root / record.path
    text = json.dumps(asdict(record), indent=1, sort_keys=True, allow_nan=False) + "\n"
    for pattern in _ONE_LINE:
        text = pattern.sub(
            lambda found: " ".join(map(str.strip, found[1].split("\n"))).strip(), text
        )
    what = f"the record {record.path} under {root}"
    write_atomically(path, text.encode(), what, unfinished=unfinished)
    return path


def read(path: Path) -> Record:
    """Read one record. Do not change its dictionaries: whoever reads the file gets the same ones.

    Raises:
        InputError: the file is missing, damaged or of another schema.
    """
    try:
        file = path.stat()
        record = _content(path.absolute(), file.st_mtime_ns, file.st_size, file.st_ino)
    except FileNotFoundError as error:
        raise InputError(f"there is no record {path}; `micronet measure` writes one") from error
    except OSError as error:
        remedy = "name the .json files in it" if path.is_dir() else "make it readable"
        raise InputError(f"{path} is not a record ({error.strerror}): {remedy}") from error
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is not a readable record ({error}): delete it and measure again"
        ) from error
    return record


@cache
def _content(path: Path, *state: int) -> Record:
    """Return what a file holds. The state of the file says whether it was written again."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    if content.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"it has schema {content['schema']}, this version reads {SCHEMA}")
    return Record(**content)


def set_aside_damaged(path: Path) -> None:
    """Rename a record that cannot be read, and print a line. It will be measured again."""
    if path.is_file() and readable(path) is None:
        aside = set_aside(path)
        say(f"{path} is damaged or of another schema: renamed to {aside.name}, measured again")


def readable(path: Path) -> Record | None:
    """Return a record, or None if it is missing or damaged."""
    try:
        return read(path)
    except InputError:
        return None


def read_sweep(sweep: Sweep, profile: str, root: Path) -> list[Record]:
    """Read the sweep's measurements of one profile: of `read_runs`, those that did not fail."""
    return [record for record in read_runs(sweep, profile, root) if not record.failed]


def failures(sweep: Sweep, profile: str, root: Path) -> list[Record]:
    """Read the sweep's runs that failed, of `read_runs`."""
    return [record for record in read_runs(sweep, profile, root) if record.failed]


def measurement_key(record: Record) -> tuple[str, str, int, str]:
    """Return the key of a measurement: one training counts once, whatever its names.

    A training that another commit repeated is another one. What is not trained counts by its name.
    """
    trained = record.curve or record.failed
    name = record.recipe_id if trained else f"{record.sweep}/{record.point}"
    return record.profile, name, record.seed, str(record.env["commit"])


def diverged(records: Iterable[Record], some: bool = False) -> dict[str, str]:
    """Return the points whose runs failed, each with the words that stand for `not run`.

    Args:
        records: measurements and failures.
        some: also the points of which another run was measured.

    Returns:
        Point -> text, such as `diverged (epoch 1, 3 of 3 seeds)`.
    """
    runs: dict[str, dict[tuple[str, int], Record]] = {}
    for record in records:
        runs.setdefault(record.point, {})[record.profile, record.seed] = record
    found = {}
    for point, own in runs.items():
        epochs = sorted({run.failed["epoch"] for run in own.values() if run.failed})
        failed = sum(bool(run.failed) for run in own.values())
        if failed == len(own) or (some and failed):
            when = f"epoch{'s' * (len(epochs) > 1)} {' and '.join(map(str, epochs))}"
            found[point] = f"diverged ({when}, {failed} of {len(own)} seed{'s' * (len(own) > 1)})"
    return found


def read_runs(sweep: Sweep, profile: str, root: Path) -> list[Record]:
    """Read the sweep's measurements and failures, by point in the sweep's order, then by seed.

    A record of another recipe than today's is left out: its point is to be measured again. If a
    point has no file for a seed, the record of the same training under another name is used. Where
    the seed decides nothing, further seeds are copies and are left out.

    Raises:
        InputError: a file of this sweep is damaged.
    """
    if root == MEASURED:
        of_checkout(root)
    folder = root / profile / sweep.name
    own = [read(path) for path in sorted(folder.glob("*.json"))]
    trained: dict[str, dict[int, Record]] = {}
    found = map(readable, sorted((root / profile).glob("*/*.json")))
    with_curve = [record for record in found if record is not None and record.curve]
    # A run that failed under one name may have been tried again under another.
    for record in sorted(with_curve, key=lambda record: bool(record.failed)):
        trained.setdefault(record.recipe_id, {}).setdefault(record.seed, record)
    rows = []
    for point in sweep.points():
        identity = recipe_id(resolved(point.recipe, PROFILES[profile]))
        mine = {r.seed: r for r in own if (r.point, r.recipe_id) == (point.name, identity)}
        by_seed = trained.get(identity, {}) | mine
        seeds = sorted(by_seed)
        if not (sweep.is_drawn or _takes_seed(point.recipe)):
            seeds = seeds[:1]
        rows += [replace(by_seed[seed], sweep=sweep.name, point=point.name) for seed in seeds]
    return rows


def _takes_seed(recipe: Recipe) -> bool:
    """Return whether the seed decides a network: by training, or by images that a change reads.

    It would also decide the new layers of a change. No sweep leaves such layers untrained.
    """
    reads = any(change.num_images for change in recipe.changes)
    start = recipe.start
    return bool(recipe.train.epochs) or reads or (start is not None and _takes_seed(start))


@dataclass(frozen=True)
class Promoted:
    """A record among the committed ones.

    Attributes:
        path: its place there.
        before: the record of another measurement that was there, if any.
        record: the record that is there now.
    """

    path: Path
    before: Record | None
    record: Record

    @property
    def changes(self) -> dict[str, tuple[float | None, float | None]]:
        """The metrics that differ from the record before: old and new value, None for missing."""
        return _changes(self.before, self.record) if self.before else {}


def promote(
    paths: Iterable[Path], root: Path = MEASURED, replacing: bool = False
) -> list[Promoted]:
    """Copy records of this machine to the committed ones: all, or none if one may not be.

    Args:
        paths: of the records.
        root: of the committed records.
        replacing: whether they may take the place of other measurements.

    Raises:
        InputError: see `check_promotable`; or two of them would come to the same place.
    """
    checked = [check_promotable(path, root=root, replacing=replacing) for path in paths]
    given: dict[Path, Record] = {}
    for record, _ in checked:
        if given.setdefault(record.path, record) != record:
            raise InputError(f"{record.path} is given twice, as two measurements: choose one")
    return [Promoted(_put(record, root), before, record) for record, before in checked]


def _put(record: Record, root: Path) -> Path:
    """Write a record, unless it is there already. A committed file keeps its bytes."""
    path = root / record.path
    return path if path.is_file() and read(path) == record else write(record, root)


def check_promotable(
    path: Path, root: Path = MEASURED, replacing: bool = False
) -> tuple[Record, Record | None]:
    """Return a record that may be promoted, and the one in whose place it would come, if any.

    Args:
        path: of the record.
        root: as in `promote`.
        replacing: as in `promote`.

    Raises:
        InputError: not a record; its sweep or point does not exist any more; it was measured from
            another recipe, from uncommitted code, on drawn images, or with other files than the
            published ones; another measurement is in its place.
    """
    place = of_checkout(root) if root == MEASURED else root
    record = read(path)
    sweep = SWEEPS.get(record.sweep)
    if sweep is None:
        raise InputError(f"{path}: there is no sweep {record.sweep!r} any more")
    recipe = resolved(sweep.point(record.point).recipe, PROFILES[record.profile])
    if record.recipe_id != recipe_id(recipe):
        raise InputError(f"{path} was measured from another recipe; measure the point again")
    for commit in record.env.get("commits") or [record.env.get("commit")]:
        if re.fullmatch(r"[0-9a-f]{7,40}", str(commit)):
            if in_history(str(commit)):
                continue
            raise InputError(
                f"{path} was measured at commit {commit}, which is not in this history: "
                "bring that branch in, or measure again"
            )
        if str(commit).endswith("+"):
            raise InputError(f"{path} was measured from uncommitted code: commit, measure again")
        reason = record.env.get("no_commit", "it was not known when the code was loaded")
        raise InputError(f"{path} names no commit of its code: {reason}; then measure again")
    if PROFILES[record.profile].dataset == "embedded":
        raise InputError(f"{path} is a {record.profile} run, which proves nothing on real images")
    known, read_then = published_digests(), record.env.get("inputs", {})
    for file in all_input_paths(recipe):
        expected = known.get(file.name)
        if file == SEARCHED_POLICIES and file.is_file():
            expected = sha256_of(file)
        if expected is None or read_then.get(file.name) != expected:
            raise InputError(
                f"{path} was not measured with the published {file.name}, or does not say so: "
                "`micronet data fetch` gets it; then measure the point again"
            )
    file = place / record.path
    before = read(file) if file.is_file() else None
    if before == record:
        before = None
    if before is not None and not replacing:
        changes = "; ".join(
            f"{name} {old} -> {new}" for name, (old, new) in _changes(before, record).items()
        )
        raise InputError(
            f"{record.path} is another measurement, of {before.env.get('date')} at commit "
            f"{before.env.get('commit')}; --replace would put the new one in its place and change "
            f"{changes or 'no number'}"
        )
    return record, before


def _changes(before: Record, after: Record) -> dict[str, tuple[float | None, float | None]]:
    """Return the metrics in which two records differ: old and new value, None for missing."""
    old, new = before.metrics, after.metrics
    names = dict.fromkeys([*old, *new])
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}
