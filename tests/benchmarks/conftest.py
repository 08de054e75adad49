"""`--record FILE` keeps what the benchmarks measured."""

from pathlib import Path

import pytest
import ratios


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="JSON file for the ratios")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path = session.config.getoption("--record")
    if path and exitstatus == 0:
        ratios.write(path)
