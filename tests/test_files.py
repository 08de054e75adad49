"""A file is whole or absent, and one process at a time holds a lock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from micronet_lib.errors import InputError
from micronet_lib.lab.files import Busy, only_one, write_atomically

HOLD = """
import sys
from pathlib import Path
from micronet_lib.lab.files import only_one
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
        assert "cannot write the file (No space left on device)" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_lock_is_held_by_one_process_and_let_go_when_it_is_killed(tmp_path):
    path = tmp_path / "folder" / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(Busy, match="toy/point is being measured by another process"),
            only_one(path, "toy/point"),
        ):
            pass
        other.kill()
        other.wait()
    with only_one(path, "toy/point"):
        assert Path(path).exists()
