"""Copies of the chapters in JupyterLab read as on the site, and a changed cell runs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_site import CHAPTERS

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60_000  # milliseconds
RAW = re.compile(r":::+\s*\{|\{(?:cite|term|numref)[:\w]*\}|:class-card:|\bSee \.")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a JupyterLab serves copies of all chapters, and draws all cells of a notebook."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "copies").mkdir()
    for stem in CHAPTERS:
        shutil.copy(ROOT / "book" / f"{stem}.ipynb", folder / "copies")
    settings = folder / "_SETTINGS" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    own = {f"JUPYTER{name}": str(folder / name) for name in ("_CONFIG_DIR", "_DATA_DIR")}
    own |= {
        f"JUPYTERLAB_{name}_DIR": str(folder / f"_{name}") for name in ("SETTINGS", "WORKSPACES")
    }
    flags = ["--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=x"]
    flags.append("--expose-app-in-browser")
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        *flags,
        f"--ServerApp.root_dir={folder}/copies",
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | own, cwd=folder
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


@pytest.fixture(scope="module")
def page(address: str, browser: Any) -> Iterator[Any]:
    """One page of JupyterLab, which shows one notebook after the other."""
    page = browser.new_page(viewport={"width": 1280, "height": 2000})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/lab?token=x&reset")
    page.wait_for_selector(".jp-Launcher")
    yield page
    page.close()


OPEN = """async path => {
  const shown = await jupyterapp.commands.execute('docmanager:open', { path });
  await shown.context.ready;
  await shown.sessionContext.ready;
}"""

RENDERED = """() => [...document.querySelectorAll('.jp-MarkdownCell')].every(cell =>
  cell.classList.contains('jp-mod-rendered') && cell.innerText.trim())"""

CLOSE = """async () => {
  const shown = jupyterapp.shell.currentWidget;
  await shown.sessionContext.shutdown();
  shown.dispose();
}"""


@pytest.mark.parametrize("stem", CHAPTERS)
def test_text_is_rendered_and_a_changed_cell_runs(page: Any, stem: str) -> None:
    page.evaluate(OPEN, f"{stem}.ipynb")
    page.wait_for_selector(".jp-Notebook .jp-MarkdownCell h1")
    page.wait_for_function(RENDERED, polling=500)
    shown = "\n".join(page.locator(".jp-Notebook .jp-MarkdownCell").all_inner_texts())
    assert RAW.findall(shown) == []
    cell = page.locator(".jp-Notebook .jp-CodeCell").first
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+End")
    page.keyboard.type("\nprint(6 * 7)")
    page.keyboard.press("Shift+Enter")
    output = cell.locator(".jp-OutputArea-output")
    output.wait_for()
    assert output.inner_text().strip() == "42"
    page.evaluate(CLOSE)
