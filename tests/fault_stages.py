"""How each fault of CONTRIBUTING.md is staged: a function that takes a fresh trial."""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path

from fault_trial import CannotStage, Trial, at_write, die
from tiny_pipeline import CASES, COMMAND, Place, end, run, signalled, start

from micronet_lib.lab.host import machine

DAY_S = 86_400
ONE_STAGE = (*COMMAND, "--point", CASES[0].point)
RETRAIN = (*COMMAND, "--retrain")


# ------------------------------------------------------------------------------------------ kill -9


def killed_at_random(trial: Trial) -> None:
    """Kills at random moments, until the pipeline is through."""
    while trial.more:
        if signalled(trial.place, signal.SIGKILL, trial.some_time()) != -signal.SIGKILL:
            break
        trial.survived.append(True)
        trial.hit.append(f"stage {trial.place.stage()}")
    trial.finish()


def killed_in_a_file_operation(trial: Trial) -> None:
    """Kills before a sync (half is written), a rename or a removal, until it is through."""

    def at_operation(number: int) -> Callable[[], None]:
        def meddle() -> None:
            count = 0

            def before(name: str) -> None:
                whole = getattr(os, name)

                def operation(*args: object, **words: object) -> None:
                    nonlocal count
                    count += 1
                    if count == number:
                        if name == "fsync":
                            os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                        what = "a new file" if name == "fsync" else Path(args[-1]).name
                        os.write(2, f"{name} {what}".encode())
                        die()
                    whole(*args, **words)

                setattr(os, name, operation)

            for name in ("fsync", "replace", "unlink"):
                before(name)

        return meddle

    while trial.more:
        if run(trial.place, at_operation(trial.random.randint(5, 12))) != -signal.SIGKILL:
            break
        trial.survived.append(True)
        trial.hit += trial.place.said()[-1:]
    trial.finish()


# -------------------------------------------------------------------------------- no room, no right


@contextmanager
def own_disk(place: Place, size: str) -> Iterator[Callable[[str], None]]:
    """A small disk under the place; yields a function that mounts it anew with other options."""

    def mount(*options: str) -> None:
        command = ["mount", *options, str(place.disk)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CannotStage("mounting a small disk takes Linux and root") from error

    mount("-t", "tmpfs", "-o", f"size={size}", "none")
    try:
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", str(place.disk)], check=True)


def full_disk(trial: Trial) -> None:
    """A disk that is too small from the start, then one that others fill at a certain moment."""
    ballast = trial.place.disk / "ballast"

    def fill(leaving: int) -> None:
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            except OSError:
                file.truncate(max(0, file.tell() // 4096 * 4096 - leaving))

    with own_disk(trial.place, "40k") as remount:
        for larger in ("250k", "4m"):
            trial.refused(None, "No space left")
            remount(f"size={larger}")
        for write, leaving in ((1, 8192), (2, 0), (2, 8192), (2, 4096), (2, 0), (2, 0), (4, 8192)):
            if not trial.more:
                break
            trial.refused(at_write(write, lambda leaving=leaving: fill(leaving)), "No space left")
            ballast.unlink()
        trial.finish()


def file_that_may_not_grow(trial: Trial) -> None:
    """As a full disk, for users who cannot have one: a limit on the size of a file."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))

    for write in (1, 4, 2, 2, 5):
        if not trial.more:
            break
        trial.refused(at_write(write, limit), "File too large")
    trial.finish()


def give_up_privileges() -> None:
    """Root may write anywhere, so it becomes like anyone else."""
    if sys.platform == "linux":
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capset(header, data)


def read_only_folder(trial: Trial) -> None:
    """The right to write is taken from the runs, from a run, from a sweep and from a lock."""
    place = trial.place

    def refused(path: Path, write: int, mode: int = 0o555) -> None:
        def meddle() -> None:
            give_up_privileges()
            if write:
                at_write(write, lambda: path.chmod(mode))()
            else:
                path.chmod(mode)
                if os.access(path, os.W_OK, effective_ids=True):
                    os.write(2, b"unstaged")

        trial.refused(meddle, "Permission denied")
        path.chmod(0o755 if path.is_dir() else 0o644)
        if place.said()[:1] == ["unstaged"]:
            raise CannotStage("this user may write anywhere and cannot give that up")

    refused(place.disk, 0)
    refused(place.of_run(0, ""), 2)
    refused(place.record(0).parent, 4)
    refused(place.of_run(0, "lock"), 0, 0o444)
    refused(place.of_run(1, ""), 3)
    trial.finish()


def read_only_disk(trial: Trial) -> None:
    """A disk mounted read-only, before the first file and in the middle."""
    with own_disk(trial.place, "4m") as remount:
        for _ in range(min(3, trial.wanted)):
            remount("ro")
            trial.refused(None, "Read-only file system")
            remount("rw")
            signalled(trial.place, signal.SIGKILL, trial.some_time())
        trial.finish()


# ------------------------------------------------------------------------------------------- damage

DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "flipped bit": lambda content: content[:-99] + bytes([content[-99] ^ 4]) + content[-98:],
    "zeros": lambda content: bytes(len(content)),
}


def damage(path: Path, how: str) -> None:
    path.write_bytes(DAMAGES[how](path.read_bytes()))


def is_set_aside(path: Path, content: bytes) -> bool:
    """Whether what was damaged is kept beside its place."""
    return content in [p.read_bytes() for p in path.parent.glob(f"{path.name}.damaged*")]


def damaged_checkpoint(trial: Trial) -> None:
    """In each stage: the newest state, then both states or the network that it began with.

    A network that has its record and is damaged or gone is trained again with `--retrain` only.
    """
    place = trial.place

    def until(stage: int) -> Callable[[], None]:
        """For a child: it dies in that stage as soon as there are two states."""

        def meddle() -> None:
            whole = os.replace

            def replace(source: str | Path, target: str | Path) -> None:
                second = Path(target).name == "state.previous.pt" and Path(target).exists()
                if second and place.stage() == stage:
                    die()
                whole(source, target)

            os.replace = replace

        return meddle

    def noticed() -> bool:
        """Whether the last process said so of every damaged file, and kept it."""
        said = "\n".join(place.said())
        return all(
            f"{path} is damaged" in said and is_set_aside(path, content)
            for path, content in damaged.items()
        )

    def left_alone(stage: int) -> bool:
        """Whether the plain command says that a stage's network is lost, and does nothing."""
        before = place.files()
        status, said = run(place), place.said()
        one_line = len(said) == 1 and CASES[stage].name in said[0] and "--retrain" in said[0]
        return status == 1 and one_line and place.files() == before

    kinds = list(DAMAGES)
    damaged: dict[Path, bytes] = {}
    for stage in range(min(len(CASES), trial.wanted)):
        for part in range(2):
            died = run(place, until(stage), RETRAIN) == -signal.SIGKILL
            if stage or part:
                trial.survived.append(died and noticed())
            how = kinds[(stage + part) % len(kinds)]
            paths = [place.of_run(stage, "state.pt")]
            if part == 1 and stage % 2:
                paths = [place.of_run(stage - 1, "network.pt")]
            elif part == 1:
                paths.append(place.of_run(stage, "state.previous.pt"))
            for path in paths:
                damage(path, how)
            damaged = {path: path.read_bytes() for path in paths}
            trial.hit.append(f"{' and '.join(p.name for p in paths)} in stage {stage}: {how}")
            if part == 1 and stage == 3:
                paths[0].unlink()
                damaged, trial.hit[-1] = {}, "the network of stage 2: gone"
            if part == 1 and stage % 2 and not left_alone(stage - 1):
                trial.hit[-1] += ", not left alone"
                trial.survived.append(False)
    trial.finish(RETRAIN)
    trial.survived.append(noticed())


def damaged_record(trial: Trial) -> None:
    """Of a pipeline that is through; then one whose network is gone, and that of a lost parent."""
    place = trial.place
    run(place)

    def noticed(stage: int, content: bytes) -> None:
        path = place.record(stage)
        path.write_bytes(content)
        status, said = run(place), place.said()
        one_line = len(said) == 1 and f"{path} is damaged" in said[0]
        kept = is_set_aside(path, content)
        trial.survived.append(status == 0 and one_line and kept and trial.as_undisturbed())
        trial.hit.append(f"stage {stage}: {content[:12]!r}")

    for number, alter in enumerate(list(DAMAGES.values())[: trial.wanted]):
        stage = number % len(CASES)
        noticed(stage, alter(place.record(stage).read_bytes().replace(b'"sweep"', b'"x"', 1)))
    other_schema = json.loads(place.record(4).read_text()) | {"schema": 99}
    for content in (b"\xff\xfe\x00", b"[]", b"{}", json.dumps(other_schema).encode()):
        if not trial.more:
            break
        noticed(4, content)
    place.of_run(3, "network.pt").unlink()
    noticed(3, b"{")
    place.record(3).unlink()
    noticed(2, b"{")
    trial.finish()


# ---------------------------------------------------------------------------------- clock, Ctrl-C


def clock_that_jumps_back(trial: Trial) -> None:
    """At every reading, between two processes, and files that are older or younger than now."""
    real, jumps = time.time, 0

    def backwards() -> None:
        def now_s() -> float:
            nonlocal jumps
            jumps += 1
            return real() - jumps * DAY_S

        class Clock(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:
                return datetime.fromtimestamp(now_s(), tz)

        time.time, machine.datetime = now_s, Clock

    for meddle, age in ((backwards, 0), (None, -DAY_S), (None, real()), (backwards, DAY_S)):
        status = signalled(trial.place, signal.SIGKILL, trial.some_time(), meddle)
        for path in trial.place.runs.rglob("*"):
            os.utime(path, (real() - age, real() - age))
        trial.survived.append(status in (0, -signal.SIGKILL))
    trial.survived.append(run(trial.place, backwards) == 0)
    trial.finish()


def interrupted(trial: Trial) -> None:
    """Ctrl-C at random moments in a fork."""
    while trial.more:
        status = signalled(trial.place, signal.SIGINT, trial.some_time())
        if status == 0:
            break
        stopped = status == 130 and trial.place.said() == ["micronet: stopped"]
        trial.survived.append(stopped)
        trial.hit.append(f"stage {trial.place.stage()}")
    trial.finish()


def interrupted_command(trial: Trial) -> None:
    """Ctrl-C in a process of its own: early and late in the imports, and while it trains."""
    place = trial.place
    environment = os.environ | {"MICRONET_RUNS": str(place.runs)}

    def process() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "micronet_lib", *ONE_STAGE],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def waits_for(words: str) -> Callable[[int], bool]:
        return lambda child: words in Path(f"/proc/{child}/maps").read_text()

    if not Path("/proc/self/maps").is_file():
        raise CannotStage("there is no /proc to see how far a process is")
    moments = {
        "PyTorch is imported": waits_for("libtorch"),
        "pandas is imported": waits_for("/pandas/"),
        "training": lambda child: place.of_run(0, "lock").is_file(),
    }
    for moment, reached in list(moments.items())[-trial.wanted :]:
        with process() as child:
            while not reached(child.pid) and child.poll() is None:
                time.sleep(0.01)
            child.send_signal(signal.SIGINT)
            _, said = child.communicate()
        trial.survived.append((child.returncode, said) == (130, "micronet: stopped\n"))
        trial.hit.append(f"{moment}: {child.returncode} {said}")
    with process() as child:
        child.communicate()
    if child.returncode or not trial.as_undisturbed():
        trial.survived = [False] * len(trial.survived)


def two_at_once(trial: Trial) -> None:
    """A second process comes while the first one is at it; in half of the cases that is killed."""
    first = start(trial.place)
    time.sleep(trial.some_time())
    second = start(trial.place)
    if trial.random.random() < 0.5:
        os.kill(first, signal.SIGKILL)
    trial.survived.append(end(first) in (0, 1, -signal.SIGKILL) and end(second) in (0, 1))
    trial.finish()
