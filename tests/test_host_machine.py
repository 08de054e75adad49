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
    commit = machine._code_commit()[0]
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
    variables = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "DEFAULT"


def test_environment_names_every_commit_of_a_resumed_run():
    assert machine.environment(commits=["a"])["commit"] == "a"
    env = machine.environment(commits=["a", "b"])
    assert (env["commit"], env["commits"]) == ("a", ["a", "b"])


def test_commit_carries_a_plus_for_changed_code_and_only_for_code(checkout):
    assert machine._code_commit()[0] == "unknown"  # nothing was committed yet
    commit = committed(checkout)
    (checkout / "notes.md").write_text("b\n")
    assert machine._code_commit()[0] == commit
    (checkout / "micronet_lib" / "code.py").write_text("x = 2\n")
    assert machine._code_commit()[0] == commit + "+"


def test_a_commit_that_is_made_later_is_not_that_of_the_code_that_runs(checkout):
    later = committed(checkout)
    assert machine.environment()["commit"] == machine.COMMIT != later


@pytest.mark.parametrize("home", ["none", "not writable", "writable"])
def test_what_git_is_said_to_need_for_a_checkout_of_another_owner_works(
    home, checkout, monkeypatch, tmp_path_factory
):
    commit = committed(checkout)
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    if home != "none":
        folder = tmp_path_factory.mktemp("home")
        monkeypatch.setenv("HOME", str(folder if home == "writable" else folder / "absent"))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    found, reason = machine._code_commit()
    if found == commit:
        pytest.skip("this git does not look at the owner")
    assert (found, "dubious ownership" in reason) == ("unknown", True)
    variables = re.findall(r"(GIT_CONFIG_[A-Z_0]+)=(\S+)", reason)
    command = re.search("`(git config .*)`", reason)
    assert bool(command) == (home == "writable") == (not variables)
    for name, value in variables:
        monkeypatch.setenv(name, value)
    if command:
        subprocess.run(command[1].split(), check=True)
    assert machine._code_commit() == (commit, "")


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine._code_commit()[0] == "unknown"


def refuse(folder, message, status=128):
    """A git that says this and fails, first in the PATH."""
    fake = folder / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nprintf '%s\\n' \"{message}\" >&2\nexit {status}\n")
    fake.chmod(0o755)
    return str(fake.parent)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("fatal: detected dubious ownership in repository at 'x'", "safe.directory"),
        ("fatal: unknown repository extension found", "unknown repository extension"),
        ("fatal: bad config line 1 in file .git/config", "bad config line"),
        ("", "refuses"),
    ],
)
def test_a_git_that_refuses_says_why(message, said, checkout, monkeypatch, tmp_path_factory):
    committed(checkout)
    monkeypatch.setenv("PATH", refuse(tmp_path_factory.mktemp("fake"), message))
    commit, reason = machine._code_commit()
    assert commit == "unknown"
    assert said in reason
    assert "\n" not in reason
    monkeypatch.setattr(machine, "COMMIT", commit)
    monkeypatch.setattr(machine, "NO_COMMIT", reason)
    assert reason in machine.stamp("smoke", 0)
    assert machine.environment()["no_commit"] == reason
    assert "no_commit" not in machine.environment(commits=["abc1234"])


def test_every_other_unknown_commit_has_its_reason(checkout, monkeypatch, tmp_path_factory):
    reasons = {machine._code_commit()[1]}  # nothing was committed yet
    committed(checkout)
    copy = checkout / "copy"  # in a repository, but not of it
    (copy / "micronet_lib").mkdir(parents=True)
    outside = tmp_path_factory.mktemp("outside")
    for folder in (copy, outside):
        monkeypatch.setattr(machine, "ROOT", folder)
        reasons.add(machine._code_commit()[1])
    monkeypatch.setenv("PATH", "")
    reasons.add(machine._code_commit()[1])
    monkeypatch.setattr(machine, "ROOT", checkout)
    assert len(reasons) == 4
    assert "" not in reasons
    assert all("\n" not in reason for reason in reasons)


def test_outside_of_its_repository_the_code_takes_its_commit_from_a_variable(monkeypatch, checkout):
    commit = committed(checkout)
    monkeypatch.setenv("MICRONET_COMMIT", "abc1234")
    assert machine._code_commit()[0] == commit  # git knows better
    copy = checkout / "copy"  # in a repository, but not of it
    (copy / "micronet_lib").mkdir(parents=True)
    monkeypatch.setattr(machine, "ROOT", copy)
    assert machine._code_commit()[0] == "abc1234"
    monkeypatch.delenv("MICRONET_COMMIT")
    assert machine._code_commit()[0] == "unknown"


def test_only_commits_of_this_history_are_in_it(monkeypatch, checkout, tmp_path_factory):
    commit = committed(checkout)
    assert machine.in_history(commit)
    assert not machine.in_history("0" * 40)
    copy = checkout / "copy"  # in a repository, but not of it
    (copy / "micronet_lib").mkdir(parents=True)
    monkeypatch.setattr(machine, "ROOT", copy)
    assert machine.in_history("0" * 40)
    monkeypatch.setattr(machine, "ROOT", tmp_path_factory.mktemp("outside"))
    assert machine.in_history("0" * 40)  # nothing can be known
    monkeypatch.setenv("PATH", "")
    assert machine.in_history("0" * 40)


def test_stamp_names_profile_seed_and_machine():
    stamp = machine.stamp("smoke", 3)
    assert stamp.startswith("this run: profile smoke · seed 3 · torch ")
    assert "device: " in stamp
