"""The machine and the code: device, settings of PyTorch, and their description for records."""

import ctypes
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from micronet_lib.lab.host.given import as_seed
from micronet_lib.lab.host.places import ROOT


def default_device() -> torch.device:
    """Return the first GPU, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_up(device: torch.device) -> None:
    """Make PyTorch fast and exact for training on a device, for the whole process.

    Called before training, rating and timing. On a GPU, float32 convolutions do not use TF32, and
    cuDNN benchmarks its algorithms, because shapes do not change. On a CPU, the allocator keeps
    freed memory. The only other setting of the whole process is the compiler's limit of
    recompilations, which `training.captured` raises when it compiles on a GPU.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    else:
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Let the allocator reuse freed memory instead of asking the system for it at every step.

    On Linux, large tensors may be mapped anew each time. At batches of 128 images, filling the
    pages took up to a third of a training step on a CPU, depending on the state of the heap. Other
    systems ignore the call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_mmap_max, 0)


def stamp(profile: str, seed: int) -> str:
    """Return the line under a chapter's imports: profile, seed, versions, device and commit.

    Raises:
        InputError: no valid seed.
    """
    env = environment(default_device())
    why = f" ({NO_COMMIT})" if NO_COMMIT else ""
    return (
        f"this run: profile {profile} · seed {as_seed(seed)} · torch {env['torch']} · "
        f"python {env['python']} · device: {env['device']} · commit {env['commit']}{why}"
    )


def environment(
    device: torch.device | str = "cpu",
    wall_s: float = 0.0,
    commits: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the description of machine and code for a record.

    Args:
        device: that computed.
        wall_s: duration in seconds.
        commits: of all code that had a part in the run; by default that of this process.
        inputs: name -> sha256 of the files that decided the network, if there are any.
    """
    commits = list(dict.fromkeys(commits)) or [COMMIT]
    if torch.device(device).type == "cuda":
        hardware = f"1x {torch.cuda.get_device_name(device)}"
    else:
        hardware = f"{torch.get_num_threads()} CPU threads ({_processor()})"
    return {
        "device": hardware,
        "isa": torch.backends.cpu.get_cpu_capability(),  # other instructions, other rounding
        "torch": str(torch.__version__),  # its own class is not plain text
        "cuda": torch.version.cuda if torch.device(device).type == "cuda" else None,
        "python": platform.python_version(),
        "commit": commits[0],
        **({"no_commit": NO_COMMIT} if commits[0] == COMMIT and NO_COMMIT else {}),
        **({"commits": commits} if len(commits) > 1 else {}),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "wall_s": round(wall_s, 2),
        **({"inputs": dict(inputs)} if inputs else {}),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _code_commit() -> tuple[str, str]:
    """Return the short hash of the running code, with `+` for uncommitted changes, and "".

    Where the code has no repository, as on the machines of a cluster, it is MICRONET_COMMIT.
    Otherwise return "unknown", and the reason in words.
    """
    reason = f"{ROOT} is in no git repository"

    def git(*args: str) -> str:
        nonlocal reason
        done = _git(*args)
        if done.returncode and (ROOT / ".git").exists():
            reason = f"git refuses to read {ROOT} ({(done.stderr.splitlines() or ['?'])[0]})"
            if "dubious ownership" in done.stderr:
                reason += f"; {_allow()}"
        elif not done.returncode and not done.stdout:
            reason = f"micronet_lib at {ROOT} is a copy that is in no commit"
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        ours = git("ls-files", "micronet_lib")  # a copy may lie inside another repository
        commit = git("rev-parse", "--short=7", "HEAD") if ours else ""
        changed = git("status", "--porcelain", "micronet_lib") if commit else ""
    except OSError as error:
        commit, changed = "", ""
        reason = f"git cannot be called ({error.strerror})"
    found = (commit + "+" * bool(changed)) or os.environ.get("MICRONET_COMMIT")
    return (found, "") if found else ("unknown", reason)


def _allow() -> str:
    """Return what lets git read a checkout of another owner; without a home, no file can say it."""
    home = os.environ.get("HOME", "")
    if home and os.access(home, os.W_OK):
        return f"`git config --global --add safe.directory {ROOT}` allows it"
    return (
        "set GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory "
        f"GIT_CONFIG_VALUE_0={ROOT} in the environment to allow it, or HOME to a folder of yours"
    )


def _git(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *args],
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def in_history(commit: str) -> bool:
    """Return whether the running code's history has a commit; true where there is no history."""
    try:
        ours = _git("ls-files", "micronet_lib").stdout  # a copy may lie inside another repository
        if not ours or _git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
            return True
        return _git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0
    except OSError:
        return True


# Read when the code is loaded. A commit made later is not the code that runs.
COMMIT, NO_COMMIT = _code_commit()
