"""What every test run shares: plots without a window, notebooks without progress bars."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Set to anything, it would take the inline figures out of every notebook that nbval runs.
os.environ.pop("MPLBACKEND", None)
# A committed notebook holds no stderr, so a compared cell must not write any.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Matrices this small gain nothing from more threads, and lose a lot on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A chapter shows what is computed now, not what an earlier run of this machine left.
os.environ["MICRONET_RUNS"] = tempfile.mkdtemp(prefix="micronet-runs-")
# Git answers for a checkout of another owner too, as in a container.
settings = int(os.environ.get("GIT_CONFIG_COUNT", "0"))
os.environ[f"GIT_CONFIG_KEY_{settings}"] = "safe.directory"
os.environ[f"GIT_CONFIG_VALUE_{settings}"] = str(Path(__file__).resolve().parent.parent)
os.environ["GIT_CONFIG_COUNT"] = str(settings + 1)
atexit.register(shutil.rmtree, os.environ["MICRONET_RUNS"], ignore_errors=True)

try:
    import hypothesis
except ModuleNotFoundError:
    pass
else:  # a machine may measure at the same time
    hypothesis.settings.register_profile("book", deadline=None)
    hypothesis.settings.load_profile("book")

try:
    import matplotlib as mpl

    # The first import builds the font cache, which a notebook would report on stderr.
    import matplotlib.font_manager
except ModuleNotFoundError:
    pass
else:
    mpl.use("agg")


@pytest.fixture(autouse=True)
def fresh_networks_are_the_same() -> None:
    """The same fresh networks in every run: one in forty draws a weight of exactly zero."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def figures_are_closed() -> Iterator[None]:
    """A figure stays open in pyplot until someone closes it."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; tests that need it are skipped where there is none."""
    from browsers import BROWSER_FLAGS, find_browser

    executable = find_browser()
    if executable is None:
        pytest.skip("skipped: no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=BROWSER_FLAGS)
        yield chromium
        chromium.close()
