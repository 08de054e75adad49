"""Engines: the same records from tasks on many machines as from one process, whatever happens.

A cluster is Ray's own for tests: machines that are processes of this one. They share a disk; that
nothing depends on it is in `test_tasks`.
"""

import json
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from small_networks import single_thread
from tiny_pipeline import Place, same

from micronet_lib.__main__ import main
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.data import images as data
from micronet_lib.lab.host.machine import code_commit
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.running import engines
from micronet_lib.lab.running.measure import ensure

SCHEDULES, PIPELINE = SWEEPS["prune_schedule"], SWEEPS["pipeline"]
BUDGET = {
    "width_mult": 0.1,
    "train.epochs": 1,
    "train.num_images": 64,
    "train.num_validation": 50,
}
OVERRIDES = [word for item in BUDGET.items() for word in ("--override", "{}={}".format(*item))]
STORE = 100 * 2**20
TOO_BUSY = "timed out during startup"
Started = TypeVar("Started")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    here = Place(tmp_path).made()
    monkeypatch.setenv("MICRONET_RUNS", str(here.runs))
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path / "data"))
    return here


@pytest.fixture
def without_ray(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.fixture
def ray(monkeypatch) -> Iterator[None]:
    """Ray without the processes that nothing here needs, its files under a short name."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'micronet-book[cluster]'")
    from ray._private.parameter import RayParams

    initialize = RayParams.__init__

    def with_less(self, *args, **named):
        initialize(self, *args, **named)
        self.no_monitor, self.include_log_monitor = True, False

    monkeypatch.setattr(RayParams, "__init__", with_less)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # other tests' memory is no reason
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with engines.quick_start():
        yield
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
    place = Place(tmp_path_factory.mktemp("local")).made()
    with pytest.MonkeyPatch.context() as patch, single_thread():
        patch.setenv("MICRONET_RUNS", str(place.runs))
        patch.setenv("MICRONET_DATA", str(place.folder / "data"))
        ensure(SCHEDULES, "smoke", 0, BUDGET, "*-1", progress=False)
        for point in ("dense", "0.15"):
            ensure(PIPELINE, "smoke", 0, BUDGET, point, progress=False)
    return place.outcome()


# ------------------------------------------------------------------------------ without any task


def test_an_unknown_engine_is_answered_with_those_there_are(place):
    with pytest.raises(InputError, match=r"^unknown engine 'slurm'; choose from local, ray$"):
        engines.run(PIPELINE, "smoke", engine="slurm")


def test_without_ray_one_line_says_how_to_get_it(place, without_ray, capsys):
    assert main(["measure", "pipeline", "--profile", "smoke", "--engine", "ray", "--json"]) == 2
    shown = capsys.readouterr()
    line = (
        "the engine ray needs Ray, which is not installed: `pip install 'micronet-book[cluster]'`"
    )
    assert json.loads(shown.out) == {"error": line}
    assert shown.err == f"micronet: {line}\n"


def test_what_is_measured_needs_no_cluster(place, without_ray):
    sweep, rows = SWEEPS["expand_ratio"], None
    for engine in ("local", "local", "ray"):
        rows, before = engines.run(sweep, "smoke", engine=engine, progress=False), rows
    assert (rows["n"] == 1).all()
    assert rows.equals(before)


@pytest.mark.parametrize("gpus", ["-1", "1.5", "nan", "inf", "many"])
def test_an_impossible_share_of_a_gpu_is_refused(place, without_ray, capsys, gpus):
    words = ["measure", "pipeline", "--profile", "smoke", "--engine", "ray", "--json"]
    assert main([*words, f"--gpus-per-point={gpus}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert gpus in line


def test_a_local_run_has_no_share_of_a_gpu(place):
    with pytest.raises(InputError, match="engine ray"):
        engines.run(PIPELINE, "smoke", gpus_per_point=0.5)


def test_a_cluster_that_does_not_answer_is_named(place, ray, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=rf"^no Ray at {address} \(RAY_ADDRESS\): Conn"):
        engines.run(SWEEPS["expand_ratio"], "smoke", engine="ray", progress=False)


def test_the_code_travels_with_our_own_policies(tmp_path):
    folder = engines.copy_code(tmp_path)
    assert (folder / "micronet_lib" / "lab" / "engines.py").is_file()
    assert (folder / "data" / "policies" / "searched.json").is_file()
    assert not list(folder.rglob("__pycache__"))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5e6


def test_tasks_are_told_where_everything_is_and_which_code_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MICRONET_RUNS", "mine")
    monkeypatch.delenv("MICRONET_DATA", raising=False)
    told = engines.variables()
    assert told["MICRONET_RUNS"] == str(tmp_path / "mine")
    assert told["MICRONET_DATA"] == str(data.data_root())
    assert told["MICRONET_COMMIT"] == code_commit()


# ------------------------------------------------------------------------------------- with tasks


def test_on_one_machine_json_is_all_that_is_printed(place, local, ray, capfd):
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
    found = place.outcome()
    assert sorted(found) == ["0.15-s0.json", "dense-s0.json"]
    assert all(same(found[name], local[name]) for name in found)
    for path in place.runs.rglob("*.json"):
        env = records.read(path).env
        assert env["commit"] == code_commit()
        assert env["device"].startswith("1 CPU threads (")


@pytest.mark.slow
def test_a_machine_that_dies_costs_no_point(place, local, ray, monkeypatch):
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
        killer = threading.Thread(target=kill_at_work, args=(cluster, doomed, place, killed))
        killer.start()
        rows = engines.run(SCHEDULES, "smoke", 0, BUDGET, "*-1", "ray", 0.5, progress=False)
        killer.join()
    finally:
        cluster.shutdown()
    assert len(killed) == 1, "nothing was running on the machine that died"
    assert (rows["n"] == 1).all()
    names = ["exponential-1", "linear-0", "linear-1", "one_shot-1"]
    found = place.outcome()
    assert sorted(path.stem for path in place.runs.rglob("*.json")) == [f"{n}-s0" for n in names]
    assert all(same(found[name], local[name]) for name in found)


def kill_at_work(cluster, machine, place: Place, killed: list[str]) -> None:
    """Kill a machine as soon as a point is under way on it and another one is done."""
    (raylet,) = machine.all_processes["raylet"]
    folder, given_up = place.runs / "smoke" / SCHEDULES.name, time.monotonic() + 300
    while time.monotonic() < given_up:
        time.sleep(0.05)
        point = at_work(raylet.process.pid)
        if point and (folder / f"{point}-s0" / "lock").exists() and place.stage():
            cluster.remove_node(machine, allow_graceful=False)
            if not (folder / f"{point}-s0.json").exists():
                killed.append(point)
            return


def at_work(raylet: int) -> str | None:
    """The point of the task that runs in a child of a process: Ray names the child after it."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            title = (path / "cmdline").read_text().strip("\0")
        except OSError:
            continue  # it has ended
        if int(parent) == raylet and title.startswith(f"ray::{SCHEDULES.name}/"):
            return title.partition("/")[2]
    return None
