"""Points as tasks of machines that share nothing: the same records, each point once, in order."""

import re
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from micronet_lib.lab.running.tasks import Finished, Left, keep
from small_networks import single_thread
from tiny_pipeline import Place, same

from micronet_lib.architecture.micronet import ARCHITECTURES
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.data.images import load_dataset
from micronet_lib.lab.host.files import only_one
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.optimisation import Schedule
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.running import measure as experiments
from micronet_lib.lab.running import runs, tasks
from micronet_lib.lab.running.lineage import Job
from micronet_lib.lab.running.measure import ensure, perform, resolve
from micronet_lib.lab.training.loop import DivergedError

SWEEP, POINTS = SWEEPS["prune_schedule"], "*-[01]"
TINY = replace(
    PROFILES["smoke"], epoch_share=1 / 600, num_images=32, num_validation=50, width_mult=0.1
)
DENSE = ("linear-0", "exponential-0", "one_shot-0")
ROUNDS = ("linear-1", "exponential-1", "one_shot-1")


@dataclass
class Machines:
    """A pool whose every job has a machine, and so a runs folder, of its own."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    started: list[str] = field(default_factory=list)
    queue: deque[Job] = field(default_factory=deque)

    def start(self, job: Job) -> str:
        self.started.append(job.point)
        self.queue.append(job)
        return job.point

    def next_done(self, handles) -> tuple[str, Finished | Left]:
        job = self.queue.popleft()
        assert job.point in handles
        with self.monkeypatch.context() as there:
            there.setenv("MICRONET_RUNS", str(self.root / job.point))
            return job.point, perform(job)


@pytest.fixture(scope="module", autouse=True)
def shrunk(tmp_path_factory):
    """Two blocks instead of sixteen, a hundred test images, one thread, no downloads."""
    network = ARCHITECTURES["c_efficientnet_3.0"]
    stages = tuple(replace(stage, num_blocks=1) for stage in network.stages[:2])
    images = load_dataset("embedded")
    images = replace(images, test=images.test.first(100))
    with pytest.MonkeyPatch.context() as patch, single_thread():
        patch.setitem(ARCHITECTURES, network.name, replace(network, stages=stages))
        patch.setattr(runs, "load_dataset", lambda name: images)
        patch.setitem(PROFILES, "smoke", TINY)
        patch.setenv("MICRONET_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def local(shrunk, tmp_path_factory) -> dict[str, object]:
    """What the local engine makes of the points."""
    place = Place(tmp_path_factory.mktemp("local")).made()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICRONET_RUNS", str(place.runs))
        ensure(SWEEP, "smoke", point=POINTS, progress=False)
    return place.outcome()


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    here = Place(tmp_path / "driver").made()
    monkeypatch.setenv("MICRONET_RUNS", str(here.runs))
    return here


@pytest.fixture
def machines(tmp_path, monkeypatch) -> Machines:
    return Machines(tmp_path / "machines", monkeypatch)


def schedule(points: str, sweep: Sweep = SWEEP) -> Schedule:
    made = Schedule(sweep, resolve(sweep, TINY, None), TINY, seed=0)
    for point in sweep.matching(points):
        made.add(point.name)
    return made


def job(point: str, patience_s: float = 0.0, sweep: Sweep = SWEEP) -> Job:
    return Job(sweep, point, resolve(sweep, TINY, None), TINY, 0, None, patience_s)


def pretend(monkeypatch, fails: dict[str, Exception]) -> list[str]:
    """Measuring fails at some points."""
    real, measured = experiments.measure, []

    def measure(recipe, sweep, point, *rest, **named):
        measured.append(point)
        if point in fails:
            raise fails[point]
        return real(recipe, sweep, point, *rest, **named)

    monkeypatch.setattr(experiments, "measure", measure)
    return measured


def test_the_records_and_networks_are_those_of_the_local_engine(local, place, machines):
    planned = schedule(POINTS)
    assert sorted(planned.points) == sorted([*DENSE, *ROUNDS])
    assert list(planned.run(machines)) == [3, 1, 1, 1]
    assert machines.started == ["linear-0", *ROUNDS]  # one dense run under three names
    assert same(place.outcome(), local)
    assert len(list(place.runs.rglob("*.json"))) == 6
    assert schedule(POINTS).points == []


def test_a_round_brings_the_rounds_before_it_along(local, place, machines):
    planned = schedule("one_shot-1")
    assert list(planned.run(machines)) == [1, 1]
    assert machines.started == ["linear-0", "one_shot-1"]
    assert same(
        place.outcome(), {f"{name}-s0.json": local[f"{name}-s0.json"] for name in machines.started}
    )


def test_what_is_there_is_not_run_again(local, place, machines):
    ensure(SWEEPS["pipeline"], "smoke", point="dense", progress=False)  # of the same recipe
    planned = schedule(POINTS)
    assert planned.points == list(ROUNDS)
    assert list(planned.run(machines)) == [1, 1, 1]
    assert machines.started == list(ROUNDS)
    assert same({name: place.outcome()[name] for name in local}, local)


def test_a_round_before_whose_network_is_lost_is_run_again(local, place, machines):
    ensure(SWEEP, "smoke", point="linear-0", progress=False)
    network = place.runs / "smoke" / "prune_schedule" / "linear-0-s0" / "network.pt"
    network.write_bytes(network.read_bytes()[:-1])
    assert schedule("linear-0").points == []  # its record will do
    assert list(schedule("linear-1").run(machines)) == [1, 1]
    assert machines.started == ["linear-0", "linear-1"]
    assert same(place.outcome()["linear-1-s0.json"], local["linear-1-s0.json"])


def test_points_that_train_nothing_are_run_one_by_one(place, machines):
    sweep = SWEEPS["expand_ratio"]
    assert list(schedule("*.0", sweep).run(machines)) == [1, 1, 1, 1]
    assert machines.started == ["1.0", "2.0", "3.0", "4.0"]
    assert len(list(place.runs.rglob("*.json"))) == 4


def test_a_sweep_that_the_profile_does_not_have_starts_nothing(place):
    assert schedule("v1_pr_60", SWEEPS["published"]).points == []


def test_a_point_that_diverges_is_left_with_the_rounds_after_it(
    place, machines, monkeypatch, capsys
):
    pretend(monkeypatch, {"linear-1": DivergedError("the loss is NaN")})
    assert list(schedule("linear-[12]").run(machines)) == [1, 2]
    assert machines.started == ["linear-0", "linear-1"]
    assert [path.name for path in place.runs.rglob("*.json")] == ["linear-0-s0.json"]
    assert capsys.readouterr().err.splitlines() == [
        "micronet: prune_schedule/linear-1 seed 0: the loss is NaN",
        "micronet: prune_schedule/linear-2 seed 0: the round before it was not measured",
    ]


def test_a_fault_that_a_user_has_to_mend_ends_the_sweep(place, machines, monkeypatch):
    pretend(monkeypatch, {"linear-0": InputError("cannot write: make room")})
    with pytest.raises(InputError, match=r"^cannot write: make room$"):
        list(schedule(POINTS).run(machines))
    assert machines.started == ["linear-0"]


def test_a_fault_of_ours_keeps_its_traceback(place, machines, monkeypatch):
    pretend(monkeypatch, {"linear-0": KeyError("a bug")})
    with pytest.raises(KeyError):
        list(schedule("linear-0").run(machines))


def test_a_machine_without_the_files_says_so(place, monkeypatch):
    monkeypatch.setattr(experiments, "missing_files", lambda *_: "cifar-100-python/test")
    monkeypatch.setattr(tasks, "missing_files", lambda *_: "cifar-100-python/test")
    left = perform(job("linear-0"))
    assert isinstance(left, Left)
    assert not left.fault
    assert re.fullmatch(
        "prune_schedule/linear-0 seed 0: the machine that took it has no cifar-100-python/test "
        r"under .*data\d*",
        left.reason,
    )


def test_the_lock_of_a_process_that_just_died_is_waited_for(place, monkeypatch):
    folder = experiments.run_folder(SWEEP.name, "linear-0", "smoke", 0)
    with ExitStack() as stack:
        stack.enter_context(only_one(folder / "lock", "the predecessor"))
        busy = "prune_schedule/linear-0 seed 0 is being measured by another process; left to it"
        assert perform(job("linear-0")) == Left(busy)
        monkeypatch.setattr(time, "sleep", lambda _: stack.close())
        assert isinstance(perform(job("linear-0", patience_s=60)), Finished)


def test_a_point_that_another_process_is_at_is_left(place, machines, capsys):
    folder = experiments.run_folder(SWEEP.name, "linear-0", "smoke", 0)
    with only_one(folder / "lock", "another process"):
        assert list(schedule("linear-1").run(machines)) == [2]
    assert "left to it" in capsys.readouterr().err
    assert machines.started == ["linear-0"]
    assert list(place.runs.rglob("*.json")) == []


def test_a_machine_that_lost_a_network_trains_it_again(place, local):
    found = perform(job("linear-0"))
    assert isinstance(found, Finished)
    network = place.runs / "smoke" / "prune_schedule" / "linear-0-s0" / "network.pt"
    network.unlink()
    again = perform(job("linear-0"))
    assert isinstance(again, Finished)
    assert again.network == network.read_bytes()
    assert same(place.outcome()["linear-0-s0.json"], local["linear-0-s0.json"])


def test_what_is_there_is_not_written_again_and_what_differs_is(place):
    found = perform(job("linear-0"))
    assert isinstance(found, Finished)
    record, folder = place.runs / found.record.path, place.runs / found.record.path.with_suffix("")
    before = record.stat().st_mtime_ns, (folder / "network.pt").stat().st_mtime_ns
    keep(found)
    assert (record.stat().st_mtime_ns, (folder / "network.pt").stat().st_mtime_ns) == before
    other = Finished(replace(found.record, notes=["another machine's"]), b"another network")
    keep(other)
    assert records.read(record).notes == ["another machine's"]
    assert (folder / "network.pt").read_bytes() == b"another network"
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "network.pt"]
