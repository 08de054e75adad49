"""A file is whole or absent, and one process at a time holds a lock."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from micronet_lib.errors import InputError
from micronet_lib.lab.host.files import Busy, is_held, only_one, set_aside, write_atomically

HOLD = """
import sys
import threading
import time
from pathlib import Path
from micronet_lib.lab.host.files import only_one
with only_one(Path(sys.argv[1]), "toy/point"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_folder_is_made_and_the_file_holds_everything(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"one", "the file")
    write_atomically(path, b"other", "the file")
    assert path.read_bytes() == b"other"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_fault_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fault):
    path = tmp_path / "file"
    write_atomically(path, b"old", "the file")

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((InputError, KeyboardInterrupt)) as caught:
        write_atomically(path, b"new", "the file")
    if isinstance(fault, OSError):
        assert "No space left on device" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_file_was_before_is_kept_once_the_new_one_is_whole(tmp_path, monkeypatch):
    path, previous = tmp_path / "file", tmp_path / "previous"
    for content in (b"one", b"two", b"three"):
        write_atomically(path, content, "the file", previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"three", b"two")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_atomically(path, b"four", "the file", previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"three", b"two")


def test_what_is_set_aside_takes_no_name_that_is_there(tmp_path):
    path = tmp_path / "file"
    for content in ("one", "two", "three"):
        path.write_text(content)
        assert set_aside(path).read_text() == content
    assert not path.exists()
    assert sorted(p.read_text() for p in tmp_path.iterdir()) == ["one", "three", "two"]


def test_whoever_gets_the_lock_clears_the_folder_of_what_was_half_written(tmp_path):
    folder, path = tmp_path / "run", tmp_path / "record.json"
    folder.mkdir()
    kill = "import os; from pathlib import Path; os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
    write = f"write_atomically(Path({str(path)!r}), b'x', '', unfinished=Path({str(folder)!r}))"
    script = f"{kill}from micronet_lib.lab.host.files import write_atomically\n{write}"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert len(list(folder.iterdir())) == 1
    with only_one(folder / "lock", "toy"), only_one(tmp_path / "other", "toy"):
        assert [p.name for p in folder.iterdir()] == ["lock"]
    assert not path.exists()


def test_a_lock_that_cannot_be_made_is_the_users_fault_and_no_fault_of_the_body_is(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="File exists"),
        only_one(tmp_path / "file" / "lock", "toy"),
    ):
        pass
    with pytest.raises(PermissionError), only_one(tmp_path / "lock", "toy"):
        raise PermissionError


def test_a_lock_is_held_by_one_process_and_let_go_when_it_is_killed(tmp_path):
    path = tmp_path / "folder" / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(Busy, match="toy/point"),
            only_one(path, "toy/point"),
        ):
            pass
        other.kill()
        other.wait()
    with only_one(path, "toy/point"):
        assert Path(path).exists()


@pytest.mark.parametrize("watchers", [1, 4])
def test_who_looks_at_a_lock_is_never_taken_for_its_holder(tmp_path, watchers):
    """Neither by others who look, nor by one that wants it."""
    path, done, seen = tmp_path / "lock", threading.Event(), []

    def look() -> None:
        while not done.is_set():
            seen.append(is_held(path))

    path.touch()
    threads = [threading.Thread(target=look, daemon=True) for _ in range(watchers)]
    for thread in threads:
        thread.start()
    try:
        while len(seen) < 2000:
            assert any(thread.is_alive() for thread in threads)
            time.sleep(0.001)
        assert not any(seen)
        for _ in range(50):
            with only_one(path, "toy"):  # is not Busy
                assert is_held(path)
    finally:
        done.set()
    for thread in threads:
        thread.join()
    assert not is_held(path)
