"""Engines: the same records from tasks on many machines as from one process, whatever happens."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
from small_networks import single_thread
from tiny_lab import chain, outcome, same, tiny_lab

from micronet_lib.__main__ import main
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.data import images as data
from micronet_lib.lab.host.files import only_one
from micronet_lib.lab.host.machine import COMMIT
from micronet_lib.lab.recipes.bases import ORN
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running import engines, measure
from micronet_lib.lab.running.engines import Result, on_ray, perform_with, store
from micronet_lib.lab.running.lineage import Job, cases, jobs
from micronet_lib.lab.running.measure import ensure
from micronet_lib.lab.training.loop import DivergedError

SCHEDULES, PIPELINE = SWEEPS["prune_schedule"], SWEEPS["pipeline"]


@pytest.fixture
def lab(tmp_path):
    with tiny_lab(tmp_path) as lab:
        yield lab


def run(sweep, *engine, overrides=None, point: str | None = None):
    asked = cases(sweep, PROFILES["smoke"], overrides=overrides, point=point)
    return engines.run(asked, jobs(asked), *engine, progress=False)


@pytest.fixture
def without_ray(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


# ------------------------------------------------------------------- machines that share nothing


class Machines:
    """Stands in for Ray: every task runs in a runs folder of its own, when it is asked for."""

    exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ConnectionError)

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        self.started: list[str] = []
        self.lost: set[str] = set()
        self.done: dict[str, Result | Exception] = {}

    def options(self, name: str) -> SimpleNamespace:
        def remote(job: Job, networks: dict[str, bytes], *needed: str) -> str:
            self.started.append(name)
            handle = f"task {len(self.started)} {name}"
            found = [self.done[each] for each in needed]
            with self.monkeypatch.context() as there:
                there.setenv("MICRONET_RUNS", str(self.root / handle))
                if name in self.lost:
                    self.done[handle] = ConnectionError(f"{name}'s machine is gone\nmore")
                else:
                    self.done[handle] = perform_with(job, networks, *found)
            return handle

        return SimpleNamespace(remote=remote)

    def wait(self, handles: list[str], num_returns: int) -> tuple[list[str], list[str]]:
        return handles[-num_returns:], handles[:-num_returns]  # the last one first

    def get(self, handle: str) -> Result:
        result = self.done[handle]
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def machines(tmp_path, monkeypatch) -> Machines:
    return Machines(tmp_path / "machines", monkeypatch)


def on_machines(machines: Machines, sweep, point: str | None = None) -> None:
    ahead = jobs(cases(sweep, PROFILES["smoke"], point=point))
    for result in on_ray(machines, machines, [job for job in ahead if job.does != "nothing"]):
        store(result)


@pytest.mark.parametrize("sweep", [chain(ORN), SCHEDULES], ids=lambda sweep: sweep.name)
def test_records_and_networks_are_those_of_the_local_engine(lab, machines, monkeypatch, sweep):
    point = "*-[01]" if sweep is SCHEDULES else None
    ensure(sweep, "smoke", point=point, progress=False)
    local, done = outcome(lab.runs), list(dict.fromkeys([*lab.trained, *lab.recorded]))
    monkeypatch.setenv("MICRONET_RUNS", str(lab.runs.with_name("driver")))
    on_machines(machines, sweep, point)
    assert same(outcome(lab.runs.with_name("driver")), local)
    assert sorted(machines.started) == sorted(done)
    on_machines(machines, sweep, point)
    assert len(machines.started) == len(done)  # nothing is measured twice


def test_a_network_that_is_there_is_sent_along(lab, machines):
    sweep = chain(ORN)
    ensure(sweep, "smoke", point="half", progress=False)
    on_machines(machines, sweep)
    assert machines.started == ["chain/dense", "chain/more"]


def test_a_task_that_diverges_leaves_those_that_need_it(lab, machines, monkeypatch, capsys):
    real = measure.train_network

    def train(recipe, profile, seed, name, progress):
        if name == "pipeline/0.15":
            error = DivergedError("the loss is NaN", "loss", 1)
            error.content = {"curve": {"lr": []}, "notes": [], "env": {"wall_s": 1.0}}
            raise error
        real(recipe, profile, seed, name, progress)

    monkeypatch.setattr(measure, "train_network", train)
    on_machines(machines, PIPELINE, "[d0]*[e1][n5]*")
    said = capsys.readouterr().err
    assert "pipeline/0.15 seed 0: the loss is NaN: its record says that it failed" in said
    # Its record has come back too, so it is not tried again, and what needs it is skipped.
    found = {path.name: records.read(path).failed for path in lab.runs.rglob("*.json")}
    failed = {"what": "loss", "epoch": 1, "message": "the loss is NaN"}
    assert found == {"dense-s0.json": {}, "0.15-s0.json": failed}
    (job,) = [job for job in jobs(cases(PIPELINE, PROFILES["smoke"], point="0.30")) if job.recorded]
    assert (job.does, job.diverged) == ("impossible", True)
    assert "pipeline/0.30 seed 0 is skipped: pipeline/0.15, which it needs" in job.said


def test_a_task_behind_one_that_diverges_is_not_started(lab, machines, monkeypatch, capsys):
    def train(recipe, profile, seed, name, progress):
        error = DivergedError("the loss is NaN", "loss", 1)
        error.content = {"curve": {"lr": []}, "notes": [], "env": {"wall_s": 1.0}}
        raise error

    monkeypatch.setattr(measure, "train_network", train)
    on_machines(machines, PIPELINE, "[d0]*[e1][n5]*")  # the second needs the first
    said = capsys.readouterr().err
    assert "pipeline/0.15 seed 0: a network that it needs was not trained" in said
    assert [path.name for path in lab.runs.rglob("*.json")] == ["dense-s0.json"]


def test_a_machine_that_stays_lost_is_named_in_one_line(lab, machines, capsys):
    machines.lost.add("pipeline/dense")
    on_machines(machines, PIPELINE, "dense")
    assert (
        capsys.readouterr().err
        == "micronet: pipeline/dense seed 0: pipeline/dense's machine is gone\n"
    )


def test_a_user_error_ends_the_sweep_and_a_fault_of_ours_keeps_its_traceback(
    lab, machines, monkeypatch
):
    for error in (InputError("cannot write: make room"), KeyError("a bug")):

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr(measure, "train_network", fail)
        with pytest.raises(type(error)):
            on_machines(machines, PIPELINE, "dense")


def test_a_machine_without_the_files_says_so(lab, machines, monkeypatch, capsys):
    monkeypatch.setattr(engines, "missing_file", lambda *_: "cifar-100-python/test")
    on_machines(machines, PIPELINE, "dense")
    (line,) = capsys.readouterr().err.splitlines()
    assert "pipeline/dense seed 0: the machine that took it has no cifar-100-python/test" in line


def test_a_network_that_another_process_trains_is_left_to_it(lab, capsys):
    (job,) = jobs(cases(PIPELINE, PROFILES["smoke"], point="dense"))
    with only_one(job.case.folder / "lock", "another process"):
        result = perform_with(job, {})
    assert "another process" in result.reason
    assert not result.fault


def test_what_is_there_is_not_written_again(lab):
    (job,) = jobs(cases(PIPELINE, PROFILES["smoke"], point="dense"))
    result = perform_with(job, {})
    before = job.case.network_path.stat().st_mtime_ns
    store(result)
    assert job.case.network_path.stat().st_mtime_ns == before
    store(Result(job, networks={job.case.id: b"another machine's"}))
    assert job.case.network_path.read_bytes() == b"another machine's"


# ----------------------------------------------------------------------------- without any task


def test_an_unknown_engine_is_answered_with_those_there_are(lab):
    with pytest.raises(InputError, match=r"'slurm'.*local, ray"):
        run(PIPELINE, "slurm")


def test_without_ray_one_line_says_how_to_get_it(lab, without_ray, capsys):
    assert main(["measure", "pipeline", "--profile", "smoke", "--engine", "ray", "--json"]) == 2
    shown = capsys.readouterr()
    line = json.loads(shown.out)["error"]
    assert "[cluster]" in line
    assert shown.err == f"micronet: {line}\n"


def test_what_is_measured_needs_no_cluster(lab, without_ray):
    sweep, rows = SWEEPS["expand_ratio"], None
    for engine in ("local", "local", "ray"):
        rows, before = run(sweep, engine), rows
    assert (rows["n"] == 1).all()
    assert rows.equals(before)


@pytest.mark.parametrize("gpus", ["-1", "1.5", "nan", "inf", "many"])
def test_an_impossible_share_of_a_gpu_is_refused(lab, without_ray, capsys, gpus):
    words = ["measure", "pipeline", "--profile", "smoke", "--engine", "ray", "--json"]
    assert main([*words, f"--gpus-per-point={gpus}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert gpus in line


def test_a_local_run_has_no_share_of_a_gpu(lab):
    with pytest.raises(InputError, match="engine ray"):
        run(PIPELINE, "local", 0.5)


def test_the_code_travels_with_what_measures_read(tmp_path):
    """A task has no repository, so nothing that it needs may stay behind."""
    folder = engines.copy_code(tmp_path)
    code = (
        "from micronet_lib.lab import records\n"
        "from micronet_lib.lab.data.images import load_labels\n"
        "from micronet_lib.lab.recipes.grids import SWEEPS\n"
        "records.arrays(SWEEPS['class_similarity'], 'v1_pr_60')\n"
        "print(len(load_labels('cifar100').superclass_of))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(folder), "MICRONET_DATA": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.stdout == "100\n", done.stderr
    assert (folder / "micronet_lib" / "lab" / "running" / "engines.py").is_file()
    assert (folder / "data" / "policies" / "searched.json").is_file()
    assert not list(folder.rglob("__pycache__"))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5e6


def test_tasks_know_where_everything_is_and_which_code_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MICRONET_RUNS", "mine")
    monkeypatch.delenv("MICRONET_DATA", raising=False)
    variables = engines.variables()
    assert variables["MICRONET_RUNS"] == str(tmp_path / "mine")
    assert variables["MICRONET_DATA"] == str(data.data_root())
    assert variables["MICRONET_COMMIT"] == COMMIT


# ------------------------------------------------------------------------------------- with Ray

BUDGET = {"width_mult": 0.1, "train.epochs": 1, "train.num_images": 64, "train.num_validation": 50}
OVERRIDES = [word for item in BUDGET.items() for word in ("--override", "{}={}".format(*item))]
STORE = 100 * 2**20
TOO_BUSY = "timed out during startup"
Started = TypeVar("Started")


@pytest.fixture
def ray(monkeypatch, tmp_path) -> Iterator[Path]:
    """Ray with its files under a short name, and a runs folder."""
    pytest.importorskip("ray", reason="Ray is not installed")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # other tests' memory is no reason
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path / "data"))
    yield tmp_path / "runs"
    shutil.rmtree(folder, ignore_errors=True)


def started(start: Callable[[], Started]) -> Started:
    """What needs Ray to start, which gives its helpers 15 seconds: too few on a busy machine."""
    for _ in range(3):
        try:
            return start()
        except Exception as error:
            if TOO_BUSY not in str(error):
                raise
    pytest.skip(f"this machine is too busy for Ray: {TOO_BUSY}")


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, object]:
    """What the local engine makes of the points, on one thread as a task has it."""
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch, single_thread():
        patch.setenv("MICRONET_RUNS", str(folder))
        patch.setenv("MICRONET_DATA", str(folder / "data"))
        ensure(SCHEDULES, "smoke", 0, BUDGET, "*-[01]", progress=False)
        ensure(PIPELINE, "smoke", 0, BUDGET, "0.15", progress=False)
    return outcome(folder)


def test_a_cluster_that_does_not_answer_is_named(ray, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=address):
        run(SWEEPS["expand_ratio"], "ray")


def test_on_one_machine_json_is_all_that_is_printed(local, ray, capfd):
    """A chain of two, of which the first comes along unasked."""
    words = ["measure", "pipeline", "--point", "0.15", "--profile", "smoke", "--engine", "ray"]

    def measure() -> str:
        status, shown = main([*words, "--json", *OVERRIDES]), capfd.readouterr()
        if status == 2:
            raise InputError(shown.err)
        assert (status, shown.err) == (0, "")
        return shown.out

    result = json.loads(started(measure))
    assert [(row["point"], row["n"]) for row in result["points"]] == [("0.15", 1)]
    found = outcome(ray)
    assert len(found) == 3  # a record and two networks
    assert all(same(found[name], local[name]) for name in found)
    (path,) = ray.rglob("*.json")
    env = records.read(path).env
    assert env["commit"] == COMMIT
    assert env["device"].startswith("1 CPU threads (")


@pytest.mark.slow
def test_a_machine_that_dies_costs_no_point(local, ray, monkeypatch):
    from ray.cluster_utils import Cluster

    one = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE}
    soon = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
    head = {**one, "include_dashboard": False, "_system_config": soon}
    cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        doomed = started(lambda: cluster.add_node(wait=False, **one))
        cluster.wait_for_nodes(timeout=300)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        killed: list[str] = []
        killer = threading.Thread(target=kill_at_work, args=(cluster, doomed, ray, killed))
        killer.start()
        rows = run(SCHEDULES, "ray", 0.5, overrides=BUDGET, point="*-[01]")
        killer.join()
    finally:
        cluster.shutdown()
    assert len(killed) == 1, "nothing was running on the machine that died"
    assert (rows["n"] == 1).all()
    found = outcome(ray)
    assert all(same(found[name], local[name]) for name in found)
    assert len(list(ray.rglob("*.json"))) == 6


def kill_at_work(cluster, machine, runs: Path, killed: list[str]) -> None:
    """Kill a machine as soon as a task is under way on it and another one is done."""
    (raylet,) = machine.all_processes["raylet"]
    given_up = time.monotonic() + 300
    while time.monotonic() < given_up:
        time.sleep(0.05)
        name = at_work(raylet.process.pid)
        if name and list(runs.rglob("*.json")):
            cluster.remove_node(machine, allow_graceful=False)
            if not (runs / "smoke" / f"{name}-s0.json").exists():
                killed.append(name)
            return


def at_work(raylet: int) -> str | None:
    """The name of the task that runs in a child of a process: Ray names the child after it."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            title = (path / "cmdline").read_text().strip("\0")
        except OSError:
            continue  # it has ended
        if int(parent) == raylet and title.startswith(f"ray::{SCHEDULES.name}/"):
            return title.removeprefix("ray::")
    return None
