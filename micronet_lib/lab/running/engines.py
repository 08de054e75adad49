"""Where the points of a sweep run: in this process, or as tasks of a Ray cluster.

`local` is `experiments.ensure`. `ray` makes a task of each point that has to be measured, on one
CPU thread; the task calls the same `experiments.ensure_point`, so its record is the one that
`local` makes under one thread. All records and networks come back into the runs folder of the
process that started the tasks; a sweep that was begun with one engine goes on with the other.

The code travels with the tasks. Data sets do not: MICRONET_DATA names a folder that every machine
has under that path. A task whose machine fails is started again elsewhere. Where all machines see
the runs folder (MICRONET_RUNS on a shared file system), it goes on from the training state that is
there; otherwise it trains its point anew, unless it comes to the same machine again.
"""

import logging
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from micronet_lib.errors import InputError, unknown
from micronet_lib.lab.host.machine import code_commit
from micronet_lib.lab.host.places import ROOT, SEARCHED_POLICIES, data_root, runs_root
from micronet_lib.lab.host.progress import bar, say
from micronet_lib.lab.recipes.profile import get_profile
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.running.measure import ensure, resolve, this_run
from micronet_lib.lab.running.tasks import Finished, Job, Left, Schedule, perform

ENGINES = ("local", "ray")

MAX_RETRIES = 3
# Results are a few MB each; Ray would take a third of the memory.
OBJECT_STORE_BYTES = 256 * 2**20


def run(
    sweep: Sweep,
    profile: str,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    point: str | None = None,
    engine: str = "local",
    gpus_per_point: float | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what is missing of a sweep with an engine, and return this run's table.

    Args:
        sweep: what to run.
        profile: a name of `PROFILES`.
        seed: of the runs.
        overrides: dotted keys that change every recipe, and so its id.
        point: only those whose names match, such as `3.0-*`.
        engine: a name of `ENGINES`. For `ray`, the environment variable RAY_ADDRESS names the
            cluster; without it, the tasks run on this machine, one a CPU.
        gpus_per_point: of `ray`; a fraction lets several points share a GPU. By default a whole
            one if the cluster has any.
        progress: bars on stderr.

    Raises:
        InputError: as `ensure`; also an unknown engine, an impossible share of a GPU, and a cluster
            that does not answer.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "local":
        if gpus_per_point is not None:
            raise InputError("GPUs per point are for the engine ray; a local run takes the first")
        return ensure(sweep, profile, seed, overrides, point, progress)
    if gpus_per_point is not None and not _possible(gpus_per_point):
        raise InputError(
            f"{gpus_per_point:g} GPUs per point: choose a fraction of one, such as 0.25, or a "
            "whole number"
        )
    chosen = get_profile(profile)
    points = [p.name for p in sweep.matching(point)]
    schedule = Schedule(sweep, resolve(sweep, chosen, overrides), chosen, seed)
    for name in points:
        schedule.add(name)
    if schedule.points:
        with (
            _ray(gpus_per_point) as pool,
            bar(schedule.points, sweep.name, "pt", progress) as shown,
        ):
            for num_done in schedule.run(pool):
                shown.update(num_done)
    return this_run(sweep, profile, points, filter(None, map(schedule.kept, points)))


class _Ray:
    """Jobs as tasks of the cluster that this process is connected to."""

    def __init__(self, ray: Any, gpus: float) -> None:
        self._ray = ray
        self._points: dict[Any, str] = {}
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus, "max_retries": MAX_RETRIES}
        if gpus == 0:  # PyTorch would find those that Ray did not give
            options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        self._task = ray.remote(**options)(_perform)

    def start(self, job: Job) -> Any:
        handle = self._task.options(name=f"{job.sweep.name}/{job.point}").remote(job)
        self._points[handle] = f"{job.sweep.name}/{job.point} seed {job.seed}"
        return handle

    def next_done(self, handles: Collection[Any]) -> tuple[Any, Finished | Left]:
        (handle, *_), _ = self._ray.wait(list(handles), num_returns=1)
        try:
            return handle, self._ray.get(handle)
        except self._ray.exceptions.RayTaskError:
            raise  # a fault of ours, with its traceback
        except self._ray.exceptions.RayError as error:
            return handle, Left(f"{self._points[handle]}: {str(error).strip().splitlines()[0]}")


def _perform(job: Job) -> Finished | Left:
    torch.set_num_threads(1)  # of the one CPU that the task was given
    return perform(job)


@contextmanager
def _ray(gpus_per_point: float | None) -> Iterator[_Ray]:
    """Ray, at RAY_ADDRESS or on this machine for as long as it takes.

    Raises:
        InputError: Ray is not installed, the cluster does not answer, or this machine has too few
            GPUs.
    """
    # A job that was submitted to a cluster has an environment of its own, which ours adds to.
    told = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
    for name, value in told.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "the engine ray needs Ray, which is not installed: "
            "`pip install 'micronet-book[cluster]'`"
        ) from error
    address = os.environ.get("RAY_ADDRESS") or "local"
    _knock(address)
    mine: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    with tempfile.TemporaryDirectory() as code, quick_start():
        try:
            ray.init(
                address=address,
                runtime_env={"working_dir": str(copy_code(Path(code))), "env_vars": variables()},
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(mine if address == "local" else {}),
            )
        except Exception as error:  # what Ray raises when it cannot start has no class of its own
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"no Ray at {address} (RAY_ADDRESS): {reason}") from error
        try:
            yield _Ray(ray, _gpus(ray, gpus_per_point, address))
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """Find out within seconds that nobody answers at `host:port`; Ray takes minutes.

    Raises:
        InputError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"no Ray at {address} (RAY_ADDRESS): {error.strerror or error}") from error


@contextmanager
def quick_start() -> Iterator[None]:
    """Let the processes that Ray starts on this machine import without a package of Jupyter's.

    With it, `jsonschema` builds a grammar for seconds when it is imported, in each of Ray's half
    a dozen processes; on two busy cores they then miss the deadlines that they have for each other.
    """
    before = os.environ.get("PYTHONPATH")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rfc3987_syntax.py").write_text("raise ImportError\n")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, before)))
        try:
            yield
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before


def _gpus(ray: Any, gpus_per_point: float | None, address: str) -> float:
    """The share of a GPU that a point gets.

    Raises:
        InputError: this machine has too few.
    """
    counts = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
    most = max(counts, default=0)
    gpus = min(1, most) if gpus_per_point is None else gpus_per_point
    if gpus > most:
        lack = f"{gpus:g} GPUs per point, and no machine has more than {most:g}"
        if address == "local":
            raise InputError(lack)
        say(f"{lack} yet: waiting for one")
    return gpus


def _possible(gpus: float) -> bool:
    return math.isfinite(gpus) and (0 <= gpus <= 1 or gpus == int(gpus) > 0)


def variables() -> dict[str, str]:
    """What the tasks have to know of this process."""
    return {
        "MICRONET_DATA": str(data_root().absolute()),
        "MICRONET_RUNS": str(runs_root().absolute()),
        "MICRONET_COMMIT": code_commit(),
        "OMP_NUM_THREADS": "1",
    }


def copy_code(folder: Path) -> Path:
    """What a task needs of this repository: the library and our own augmentation policies."""
    unneeded = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "micronet_lib", folder / "micronet_lib", ignore=unneeded)
    if SEARCHED_POLICIES.is_file():
        place = folder / SEARCHED_POLICIES.relative_to(ROOT)
        place.parent.mkdir(parents=True)
        shutil.copy(SEARCHED_POLICIES, place)
    return folder
