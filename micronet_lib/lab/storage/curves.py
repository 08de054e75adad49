"""Curves of trainings, also of those that still run: a readable file with a line an epoch.

`curve.csv` lies beside the network that is trained. Its first line is a comment with the name of
the run, the second names the columns. A resumed training begins it anew with the epochs of its
state, so no epoch stands in it twice.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from micronet_lib.errors import InputError, check_choice
from micronet_lib.lab.host.places import runs_root
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records.tables import curves as committed_curves
from micronet_lib.lab.records.tables import printed_rows

NAME = "curve.csv"


def begin_curve(folder: Path, name: str, curve: Mapping[str, Sequence[float]]) -> None:
    """Write the curve of a training that begins or goes on.

    Args:
        folder: of the run.
        name: of the run, such as `stages/3.0-orn`.
        curve: one number for each finished epoch under each name.

    Raises:
        InputError: the folder cannot be written.
    """
    lines = [f"# {name}", ",".join(["epoch", *curve])]
    lines += [_line(curve, epoch) for epoch in range(_epochs(curve))]
    _write(folder / NAME, "w", lines)


def append_epoch(folder: Path, curve: Mapping[str, Sequence[float]]) -> None:
    """Append the last epoch of a curve to its file.

    Raises:
        InputError: the folder cannot be written.
    """
    _write(folder / NAME, "a", [_line(curve, _epochs(curve) - 1)])


def _write(path: Path, mode: str, lines: Sequence[str]) -> None:
    # Not atomic: half a line is not read, and the next start writes all of it again.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except OSError as error:
        raise InputError(
            f"cannot write the curve {path.name} ({error.strerror}): make room and get the right "
            "to write there; MICRONET_RUNS names another folder for runs"
        ) from error


def _epochs(curve: Mapping[str, Sequence[float]]) -> int:
    return min(map(len, curve.values()), default=0)


def _line(curve: Mapping[str, Sequence[float]], epoch: int) -> str:
    return ",".join([str(epoch + 1), *(repr(values[epoch]) for values in curve.values())])


def read_curve(path: Path) -> pd.DataFrame:
    """Return one row for each epoch: point (the run's name), seed, id, epoch, then the curves.

    A last line that is not whole yet is left out; of a file that was just begun, there is no row.

    Raises:
        InputError: the file cannot be read, or is no curve.
    """
    try:
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
        name, *lines = whole.splitlines() or [""]
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not a readable curve ({error}): move it away") from error
    found = re.fullmatch(r"(.+)-s(\d+)", path.parent.name)
    identity, seed = (found[1], int(found[2])) if found else (path.parent.name, 0)
    of_search = re.fullmatch(r"s(\d+)", path.parent.parent.name)  # search_policies/sSEED/foldK
    if found is None and of_search is not None:
        seed = int(of_search[1])
    about = {"point": name.removeprefix("# "), "id": identity, "seed": seed}
    return pd.DataFrame(rows, columns=None if rows else ["epoch"]).assign(**about)


def curves_under(folder: Path) -> pd.DataFrame:
    """Return the curves of all runs under a folder; see `read_curve`.

    Recipes that share a name, such as one with overrides, have their id behind it.

    Raises:
        InputError: there is no curve, or one cannot be read.
    """
    paths = sorted(folder.rglob(NAME))
    if not paths:
        raise InputError(
            f"no {NAME} under {folder}: a training writes one into its folder, "
            "runs/PROFILE/networks/ID-sSEED"
        )
    found = pd.concat([read_curve(path) for path in paths], ignore_index=True)
    twice = found.groupby("point")["id"].transform("nunique") > 1
    found.loc[twice, "point"] = found["point"] + " " + found["id"]
    return found


def curves_of_sweep(sweep: Sweep, profile: str = "") -> tuple[str, pd.DataFrame]:
    """Return a profile and the curves of a sweep there: committed ones, and this machine's.

    The point of this machine's ends in `, mine`.

    Args:
        sweep: whose points.
        profile: by default the one nearest to the paper that has curves.

    Raises:
        InputError: no curve.
    """
    for name in [profile] if profile else reversed(sweep.profiles):
        parts = [committed_curves(sweep, name)]
        points: dict[str, str] = {}
        for point in sweep.points():
            identity = recipe_id(resolved(point.recipe, PROFILES[name]))
            points.setdefault(identity, point.name)
        for path in sorted((runs_root() / name / "networks").glob(f"*/{NAME}")):
            identity = path.parent.name.rpartition("-s")[0]
            if identity in points:
                parts.append(read_curve(path).assign(point=f"{points[identity]}, mine"))
        if any(len(part) for part in parts):
            return name, pd.concat([part for part in parts if len(part)], ignore_index=True)
    if not any(point.recipe.train.epochs for point in sweep.points()):
        raise InputError(f"sweep {sweep.name} trains nothing, so it has no curves")
    if profile and profile not in sweep.profiles:
        raise InputError(
            f"sweep {sweep.name} is not defined on the profile {profile}; choose from "
            + ", ".join(sweep.profiles)
        )
    real = [name for name in sweep.profiles if PROFILES[name].dataset != "embedded"]
    where = f"at {profile}" if profile else "at any profile"
    raise InputError(
        f"no curve of {sweep.name} {where}: `micronet measure {sweep.name} --profile "
        f"{profile or real[0]}` writes one while it trains"
    )


def printed_accuracy(sweep: Sweep) -> dict[str, float]:
    """Return the printed top-1 accuracy, a fraction, of each point that has one."""
    found: dict[str, float] = {}
    for each in sweep.printed:
        if each.measured != "top1" or each.against:
            continue
        rows = printed_rows(each.stem).query("metric == @each.metric")
        values = dict(zip(rows["point"], rows["value"].astype(float), strict=True))
        for point in sweep.points():
            name = point.name if each.points is None else each.points.get(point.name)
            if name in values:
                found[point.name] = values[str(name)] / each.factor
    return found


class Curves(NamedTuple):
    """Curves with what a page says of them.

    Attributes:
        table: see `read_curve`.
        printed: point -> top-1 accuracy in the paper, a fraction.
        title: of the page.
        source: where the curves are from.
    """

    table: pd.DataFrame
    printed: dict[str, float]
    title: str
    source: str


def curves_of(what: str, profile: str = "") -> Curves:
    """Return the curves of a folder of runs or of a sweep.

    Args:
        what: a folder, or the name of a sweep.
        profile: of a sweep, see `curves_of_sweep`.

    Raises:
        InputError: neither folder nor sweep, a profile of a folder, an unknown profile, no curve.
    """
    if Path(what).is_dir():
        if profile:
            raise InputError("--profile goes with a sweep; a folder has its own")
        table = curves_under(Path(what))
        sweeps = [s for s in SWEEPS.values() if table["point"].str.startswith(f"{s.name}/").any()]
        printed = {
            f"{sweep.name}/{point}": value
            for sweep in sweeps
            for point, value in printed_accuracy(sweep).items()
        }
        return Curves(table, printed, f"Trainings in {Path(what).name}", "this machine")
    if what not in SWEEPS:
        raise InputError(f"no folder and no sweep {what!r}; sweeps are {', '.join(SWEEPS)}")
    sweep = SWEEPS[what]
    if profile:
        check_choice("profile", profile, PROFILES)
    profile, table = curves_of_sweep(sweep, profile)
    source = f"committed records of the profile {profile}; mine: this machine"
    return Curves(table, printed_accuracy(sweep), f"{sweep.title} · {profile}", source)


def write_events(curves: pd.DataFrame, folder: Path) -> None:
    """Write curves as event files for TensorBoard, a folder for each run.

    Args:
        curves: see `read_curve`.
        folder: gets `<point>/seed_<seed>/`. Event files of an earlier call are removed from there.

    Raises:
        InputError: TensorBoard is not installed, or the folder cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise InputError("event files need TensorBoard: `pip install tensorboard`") from error
    columns = [name for name in curves if name not in ("point", "id", "seed", "epoch")]
    try:
        for (point, seed), run in curves.groupby(["point", "seed"], sort=False):
            place = folder / str(point).replace(", ", "_").replace(" ", "_") / f"seed_{seed}"
            for old in place.glob("events.out.tfevents.*"):
                old.unlink()
            with SummaryWriter(str(place)) as events:
                for name in columns:
                    for epoch, value in run[["epoch", name]].dropna().itertuples(index=False):
                        events.add_scalar(name, value, int(epoch))
    except OSError as error:
        raise InputError(f"cannot write event files under {folder} ({error.strerror})") from error
