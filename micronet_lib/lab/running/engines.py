"""Engines: run jobs in this process one after the other, or as tasks of a Ray cluster.

`ray` makes a task of each job, on one CPU thread. A task gets the networks that it needs from other
tasks, so Ray keeps the order. Its record equals that of `local` on one thread. All records and
networks return to the runs folder of the process that started the tasks, so a sweep can continue
with either engine.

The code is sent with the tasks. Data sets are not: every machine needs them in the folder that
MICRONET_DATA names. If a machine fails, its task starts again on another one. It resumes from the
training state if all machines share the runs folder (MICRONET_RUNS on a shared file system), or if
it returns to the same machine. Otherwise it starts from the beginning.
"""

import logging
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from micronet_lib.errors import InputError, NotFiniteError, check_choice
from micronet_lib.lab.host.files import Busy, write_atomically
from micronet_lib.lab.host.machine import COMMIT
from micronet_lib.lab.host.places import (
    CIFAR100_CLASSES,
    MEASURED,
    ROOT,
    SEARCHED_POLICIES,
    data_root,
    runs_root,
)
from micronet_lib.lab.host.progress import bar, say
from micronet_lib.lab.records.record import Record, write
from micronet_lib.lab.running.lineage import Case, Job, missing_file
from micronet_lib.lab.running.measure import (
    WORK,
    check_measurable,
    perform,
    perform_all,
    this_run,
    warn_without_commit,
)
from micronet_lib.lab.storage.states import load_own

ENGINES = ("local", "ray")

MAX_RETRIES = 3
# Results are a few MB each. By default Ray reserves a third of the memory.
OBJECT_STORE_BYTES = 256 * 2**20


def run(
    asked: Sequence[Case],
    ahead: Sequence[Job],
    engine: str = "local",
    gpus_per_point: float | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Do the jobs of some points with an engine, and return this run's table.

    Args:
        asked: the points, of one sweep.
        ahead: their `jobs`.
        engine: a name of `ENGINES`. For `ray`, the environment variable RAY_ADDRESS names the
            cluster. Without it the tasks run on this machine, one per CPU.
        gpus_per_point: for `ray`; with a fraction several points share a GPU. By default one if the
            cluster has any.
        progress: show bars on stderr.

    Raises:
        InputError: as `perform_all`; an unknown engine, an impossible share of a GPU, or a cluster
            that does not answer.
    """
    check_engine(engine, gpus_per_point)
    if engine == "local":
        perform_all(ahead, progress)
    else:
        _perform_on_ray(ahead, gpus_per_point, progress)
    return this_run(asked)


def _perform_on_ray(ahead: Sequence[Job], gpus_per_point: float | None, progress: bool) -> None:
    for job in ahead:
        if job.said:
            say(job.said)
    todo = [job for job in ahead if job.does in WORK]
    check_measurable(todo)
    warn_without_commit(todo)
    if todo:
        name = todo[0].case.sweep.name
        with _ray(gpus_per_point) as (ray, task), bar(todo, name, "pt", progress) as shown:
            for result in on_ray(ray, task, todo):
                store(result)
                shown.update(1)


def check_engine(engine: str, gpus_per_point: float | None) -> None:
    """Raise an error for an unknown engine, or GPUs per point that it cannot have.

    Raises:
        InputError: as it says.
    """
    check_choice("engine", engine, ENGINES)
    if gpus_per_point is None:
        return
    if engine == "local":
        raise InputError("GPUs per point are for the engine ray; a local run takes the first")
    if not _possible(gpus_per_point):
        raise InputError(
            f"{gpus_per_point:g} GPUs per point: choose a fraction of one, such as 0.25, or a "
            "whole number"
        )


@dataclass(frozen=True)
class Result:
    """The result of a job.

    Attributes:
        job: the finished job.
        record: if the job has one, or its training failed.
        networks: bytes of `network.pt` of the trained network, by its identity.
        reason: why nothing was done; otherwise empty.
        fault: bad user input, which stops the whole sweep.
    """

    job: Job
    record: Record | None = None
    networks: Mapping[str, bytes] = field(default_factory=dict)
    reason: str = ""
    fault: bool = False


def perform_with(job: Job, networks: Mapping[str, bytes], *needed: Result) -> Result:
    """Do a job on this machine, and return its result.

    Args:
        job: to do.
        networks: bytes of needed networks that existed before, by identity.
        needed: results of the jobs whose networks it needs.
    """
    label = f"{job.case.name} seed {job.case.seed}"
    for result in needed:
        if result.reason:
            return Result(job, reason=f"{label}: a network that it needs was not trained")
        networks = {**networks, **result.networks}
    trains = job.does == "train"
    try:
        for name, content in networks.items():
            _place(job, name, content)
        missing = missing_file(job.case, trains)
        if missing is not None:
            reason = f"{label}: the machine that took it has no {missing} under {data_root()}"
            return Result(job, reason=reason)
        perform(job, progress=False)
    except (Busy, NotFiniteError) as error:
        found = job.case.record()  # of a training that failed
        return Result(job, found if found and found.failed else None, reason=f"{label}: {error}")
    except InputError as error:
        return Result(job, reason=str(error), fault=True)
    own = {job.case.id: job.case.network_path.read_bytes()} if trains else {}
    return Result(job, job.case.record() if job.recorded else None, own)


def store(result: Result) -> None:
    """Write a result into this machine's runs folder, or print why there is none.

    Raises:
        InputError: bad user input, here or where the job ran.
    """
    if result.fault:
        raise InputError(result.reason)
    if result.reason:
        say(result.reason)
    for name, content in result.networks.items():
        _place(result.job, name, content)
    if result.record is not None and result.job.may_write:
        write(result.record, runs_root())


def _place(job: Job, name: str, content: bytes) -> None:
    """Write a network to its address, unless it is there already."""
    path = job.case.folder.parent / name / "network.pt"
    if not path.is_file() or path.read_bytes() != content:
        load_own(path)  # renames a damaged file, so that it is not overwritten
        write_atomically(path, content, f"the network {name}")


def on_ray(ray: Any, task: Any, ahead: Sequence[Job]) -> Iterator[Result]:
    """Start all jobs as tasks, and yield their results as they end.

    Args:
        ray: the module, connected to a cluster.
        task: `perform_with` as a remote function.
        ahead: jobs; needed ones come first.
    """
    handles: dict[str, Any] = {}  # identity of a network -> the task that trains it
    running: dict[Any, Job] = {}
    for job in ahead:
        needed = [handles[name] for name in job.needs if name in handles]
        folder = job.case.folder.parent
        there = {
            name: (folder / name / "network.pt").read_bytes()
            for name in job.needs
            if name not in handles
        }
        handle = task.options(name=job.case.name).remote(job, there, *needed)
        running[handle] = job
        if job.does == "train":
            handles[job.case.id] = handle
    while running:
        (handle, *_), _ = ray.wait(list(running), num_returns=1)
        job = running.pop(handle)
        try:
            yield ray.get(handle)
        except ray.exceptions.RayTaskError:
            raise  # a bug, with its traceback
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            yield Result(job, reason=f"{job.case.name} seed {job.case.seed}: {reason}")


def _remote(job: Job, networks: Mapping[str, bytes], *needed: Result) -> Result:
    torch.set_num_threads(1)  # the task has one CPU
    return perform_with(job, networks, *needed)


@contextmanager
def _ray(gpus_per_point: float | None) -> Iterator[tuple[Any, Any]]:
    """Connect to RAY_ADDRESS or start Ray on this machine; yield Ray and the remote function.

    Raises:
        InputError: Ray is not installed, the cluster does not answer, or this machine has too few
            GPUs.
    """
    # A job submitted to a cluster has its own environment; ours is added to it.
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "the engine ray needs Ray, which is not installed: `pip install -e '.[cluster]'`"
        ) from error
    address = os.environ.get("RAY_ADDRESS") or "local"
    _knock(address)
    mine: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    with tempfile.TemporaryDirectory() as code:
        try:
            ray.init(
                address=address,
                runtime_env={"working_dir": str(copy_code(Path(code))), "env_vars": variables()},
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(mine if address == "local" else {}),
            )
        except Exception as error:  # Ray has no exception class for a failed start
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"no Ray at {address} (RAY_ADDRESS): {reason}") from error
        try:
            gpus = _gpus(ray, gpus_per_point, address)
            options: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus, "max_retries": MAX_RETRIES}
            if gpus == 0:  # else PyTorch would use GPUs that Ray did not assign
                options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
            yield ray, ray.remote(**options)(_remote)
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """Find out within seconds that nobody answers at `host:port`; Ray takes over five minutes.

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


def _gpus(ray: Any, gpus_per_point: float | None, address: str) -> float:
    """Return the share of a GPU for each point.

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
    """Return the environment variables of the tasks."""
    return {
        "MICRONET_DATA": str(data_root().absolute()),
        "MICRONET_RUNS": str(runs_root().absolute()),
        "MICRONET_COMMIT": COMMIT,
        "OMP_NUM_THREADS": "1",
    }


def copy_code(folder: Path) -> Path:
    """Copy the library, and what its measures read of the repository, into a folder for the tasks.

    That is our own augmentation policies, the names of the classes, and the class similarities of
    the published networks, with which `label_smoothing` compares.
    """
    unneeded = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "micronet_lib", folder / "micronet_lib", ignore=unneeded)
    similarities = sorted((MEASURED / "full" / "class_similarity").glob("*.json"))
    for file in (SEARCHED_POLICIES, CIFAR100_CLASSES, *similarities):
        if file.is_file():
            place = folder / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    return folder
