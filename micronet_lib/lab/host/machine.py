"""What a record or a chapter says of the machine it ran on and of the code that ran."""

import ctypes
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from micronet_lib.lab.host.places import ROOT


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_up(device: torch.device) -> None:
    """Make PyTorch fast and exact on a device that is about to train, for the whole process.

    On a GPU, float32 convolutions are float32 and not TF32, and cuDNN tries its algorithms, since
    shapes stay the same.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    else:
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Let the allocator keep what tensors free, instead of asking the system for it every step.

    On Linux, large tensors may be mapped anew each time. At batches of 128 images, filling the
    pages took from nothing to a third of a training step on a CPU, depending on what happened to
    lie on the heap; with this call it takes nothing. Elsewhere the call does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_mmap_max, 0)


def stamp(profile: str, seed: int) -> str:
    """The line under a chapter's imports: what executes it, where."""
    env = environment(default_device())
    return (
        f"this run: profile {profile} · seed {seed} · torch {env['torch']} · "
        f"python {env['python']} · device: {env['device']} · commit {env['commit']}"
    )


def environment(
    device: torch.device | str = "cpu", wall_s: float = 0.0, commits: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what a record says of the machine and of the code that ran.

    Args:
        device: that computed.
        wall_s: seconds that it took.
        commits: of a run that several processes trained, each with its code; by default this one's.
    """
    commits = commits or (COMMIT,)
    if torch.device(device).type == "cuda":
        hardware = f"1x {torch.cuda.get_device_name(device)}"
    else:
        hardware = f"{torch.get_num_threads()} CPU threads ({_processor()})"
    return {
        "device": hardware,
        "torch": str(torch.__version__),  # a class of its own, which no file of ours may hold
        "cuda": torch.version.cuda if torch.device(device).type == "cuda" else None,
        "python": platform.python_version(),
        "commit": commits[0],
        **({"commits": list(commits)} if len(commits) > 1 else {}),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "wall_s": round(wall_s, 2),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _code_commit() -> str:
    """The short hash of the code that runs; `+` behind it for uncommitted changes to the code.

    Where the code lies outside of its repository, as on the machines of a cluster that it was
    copied to, MICRONET_COMMIT tells it.
    """

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        ours = git("ls-files", "micronet_lib")  # a copy may lie inside of another repository
        commit = git("rev-parse", "--short=7", "HEAD") if ours else ""
        changed = git("status", "--porcelain", "micronet_lib") if commit else ""
    except FileNotFoundError:
        commit, changed = "", ""
    return (commit + "+" * bool(changed)) or os.environ.get("MICRONET_COMMIT") or "unknown"


# Read when the code is loaded: what a commit made meanwhile says is not what runs.
COMMIT = _code_commit()
