"""Ctrl-C before, within and after a verb, tried in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Ran(NamedTuple):
    """How a process ended."""

    status: int
    out: str
    err: str


SCRIPT = "import sys\nfrom micronet_lib.__main__ import main\nsys.exit(main())\n"


def started(folder: Path, how: str, *words: str | Path) -> Ran:
    """The command with Ctrl-C as in a terminal, whose imports look into a folder first."""
    (folder / "micronet").write_text(SCRIPT)  # as pip installs it
    start = [str(folder / "micronet")] if how == "script" else ["-m", "micronet_lib"]
    done = subprocess.run(
        [sys.executable, *start, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("how", ["module", "script"])
@pytest.mark.parametrize("name", ["signal", "argparse"])  # before and after our handler is there
def test_an_interrupt_before_main_is_one_line_too(how, name, tmp_path):
    code = f"import os, time\nos.kill(os.getpid(), {signal.SIGINT:d})\ntime.sleep(1)\n"
    (tmp_path / f"{name}.py").write_text(code)
    assert started(tmp_path, how, "list") == Ran(130, "", "micronet: stopped\n")


@pytest.mark.parametrize("words", [["list", "pipeline"], ["--help"]], ids=["verb", "help"])
def test_an_interrupt_after_the_result_changes_nothing(words, tmp_path):
    code = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    ran = started(tmp_path, "module", *words)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out


def test_a_second_interrupt_ends_what_caught_the_first(tmp_path):
    (tmp_path / "deaf.py").write_text(
        "import os, signal\n"
        "def network():\n"
        "    for _ in range(2):\n"
        "        try:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            [0]\n"
        "        except BaseException:\n"
        "            pass\n"
    )
    ran = started(tmp_path, "module", "score", "--network", "deaf:network")
    assert ran == Ran(130, "", "micronet: stopped\n")


def test_a_process_that_is_not_the_command_keeps_its_own_ctrl_c():
    code = (
        "import signal, micronet_lib.__main__\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
