import os
import platform
import re
import subprocess
import sys

import pytest
import torch

from micronet_lib.lab.host import machine


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def committed(folder):
    """Commit everything and return the commit of the code there."""
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    commit = machine._code_commit()
    assert re.fullmatch("[0-9a-f]{7}", commit)
    return commit


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "micronet_lib").mkdir()
    (tmp_path / "micronet_lib" / "code.py").write_text("x = 1\n")
    (tmp_path / "notes.md").write_text("a\n")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    return tmp_path


def test_environment_says_what_a_record_needs():
    env = machine.environment(wall_s=1.23456)
    assert env["wall_s"] == 1.23
    assert env["torch"] == torch.__version__
    assert type(env["torch"]) is str
    assert env["cuda"] is None
    assert env["device"].startswith(f"{torch.get_num_threads()} CPU threads (")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", env["date"])
    assert env["commit"] == machine.COMMIT
    assert set(env) == {"device", "isa", "torch", "cuda", "python", "commit", "date", "wall_s"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one set only")
def test_environment_names_the_instruction_set_that_computes():
    code = "from micronet_lib.lab.host import machine; print(machine.environment()['isa'])"
    isa = {}
    for capability in ("default", "avx2"):
        variables = os.environ | {"ATEN_CPU_CAPABILITY": capability}
        done = subprocess.run(
            [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
        )
        isa[capability] = done.stdout.strip()
    assert isa["default"] == "DEFAULT"
    assert machine.environment()["isa"] == torch.backends.cpu.get_cpu_capability()


def test_environment_names_every_commit_of_a_resumed_run():
    assert machine.environment(commits=["a"])["commit"] == "a"
    env = machine.environment(commits=["a", "b"])
    assert (env["commit"], env["commits"]) == ("a", ["a", "b"])


def test_commit_carries_a_plus_for_changed_code_and_only_for_code(checkout):
    assert machine._code_commit() == "unknown"  # nothing was committed yet
    commit = committed(checkout)
    (checkout / "notes.md").write_text("b\n")
    assert machine._code_commit() == commit
    (checkout / "micronet_lib" / "code.py").write_text("x = 2\n")
    assert machine._code_commit() == commit + "+"


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine._code_commit() == "unknown"


def test_outside_of_its_repository_the_code_takes_its_commit_from_a_variable(monkeypatch, checkout):
    commit = committed(checkout)
    monkeypatch.setenv("MICRONET_COMMIT", "abc1234")
    assert machine._code_commit() == commit  # git knows better
    copy = checkout / "copy"  # in a repository, but not of it
    (copy / "micronet_lib").mkdir(parents=True)
    monkeypatch.setattr(machine, "ROOT", copy)
    assert machine._code_commit() == "abc1234"
    monkeypatch.delenv("MICRONET_COMMIT")
    assert machine._code_commit() == "unknown"


def test_stamp_names_profile_seed_and_machine():
    stamp = machine.stamp("smoke", 3)
    assert stamp.startswith("this run: profile smoke · seed 3 · torch ")
    assert "device: " in stamp
