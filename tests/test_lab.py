"""A chapter's copy in JupyterLab reads as on the site, and a changed cell runs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_site import BROWSER_FLAGS, find_browser

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60_000  # milliseconds
RAW = re.compile(r":::+\s*\{|\{(?:cite|term|numref)[:\w]*\}|:class-card:")

pytestmark = pytest.mark.slow


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where a JupyterLab serves a copy of chapter 06."""
    (tmp_path / "copies").mkdir()
    shutil.copy(ROOT / "book" / "06_scoring.ipynb", tmp_path / "copies")
    own = {f"JUPYTER{name}": str(tmp_path / name) for name in ("_CONFIG_DIR", "_DATA_DIR")}
    own |= {f"JUPYTERLAB_{name}_DIR": str(tmp_path / name) for name in ("SETTINGS", "WORKSPACES")}
    flags = ["--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=x"]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        *flags,
        f"--ServerApp.root_dir={tmp_path}/copies",
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | own, cwd=tmp_path
    ) as server:
        assert server.stderr is not None
        found = None
        for line in server.stderr:
            found = found or re.search(r"http://127\.0\.0\.1:\d+", line)
            if found:
                break
        assert found, "JupyterLab did not start"
        yield found.group()
        server.terminate()
        server.stderr.close()


def test_text_is_rendered_and_a_changed_cell_runs(address: str) -> None:
    executable = find_browser()
    if executable is None:
        pytest.skip("skipped: no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=BROWSER_FLAGS)
        page = chromium.new_page(viewport={"width": 1280, "height": 2000})
        page.goto(f"{address}/lab/tree/06_scoring.ipynb?token=x")
        page.wait_for_selector(".jp-Notebook .jp-MarkdownCell h2", timeout=PATIENCE)
        page.wait_for_selector(
            ".jp-Notebook .jp-MarkdownCell mjx-container, .katex", timeout=PATIENCE
        )
        shown = page.locator(".jp-Notebook").inner_text()
        assert "Method card" in shown
        assert RAW.findall(shown) == []
        page.wait_for_selector(
            ".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=PATIENCE
        )
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.keyboard.press("Control+End")
        page.keyboard.type("\nprint(6 * 7)")
        page.keyboard.press("Shift+Enter")
        output = page.locator(".jp-CodeCell").first.locator(".jp-OutputArea-output")
        output.wait_for(timeout=PATIENCE)
        assert output.inner_text().strip() == "42"
        chromium.close()
