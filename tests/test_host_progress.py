"""Durations as people say them, and the line that a terminal shows while a notebook runs."""

import io
import math
import os
import sys

import pytest

from micronet_lib.lab.host.progress import duration, say_place


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"), (0.2, "under 1 s"), (12.3, "12 s"), (59.4, "59 s"), (59.6, "1 min"),
        (244, "4 min"), (3590, "1 h"), (3600 * 3.009393, "3 h 1 min"), (86_370, "1 d"),
        (3335.457406 * 60, "2 d 8 h"), (25 * 3600, "1 d 1 h"), (math.nan, "unknown"),
    ],
)  # fmt: skip
def test_a_duration_has_two_units_at_most(seconds, said):
    assert duration(seconds) == said


class KernelStream(io.StringIO):
    """Stderr of `ipykernel`: text for the notebook, and the file that the kernel began with."""

    def __init__(self, original: int) -> None:
        super().__init__()
        self.original = original

    def fileno(self) -> int:
        return self.original


def test_a_kernel_says_its_place_on_the_terminal_that_started_it(monkeypatch):
    reader, terminal = os.openpty()
    monkeypatch.setattr(sys, "stderr", KernelStream(terminal))
    say_place("06_scoring · free_savings 2/8")
    assert "06_scoring · free_savings 2/8\r\n" in os.read(reader, 1000).decode()
    assert sys.stderr.getvalue() == "micronet: 06_scoring · free_savings 2/8\n"
    os.close(reader)
    os.close(terminal)
    say_place("closed")
    assert sys.stderr.getvalue().endswith("micronet: closed\n")


def test_a_log_file_gets_the_line_once(monkeypatch, tmp_path):
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", KernelStream(log.fileno()))
        say_place("a line")
    assert (tmp_path / "log").read_text() == ""
    assert sys.stderr.getvalue() == "micronet: a line\n"
