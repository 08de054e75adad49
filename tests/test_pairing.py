"""A chapter opens in JupyterLab, and keeps its text, after any order of pull, execute and sync."""

import contextlib
import os
import random
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from chapter_cells import BOOK, CHAPTERS
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from jupytext.cli import jupytext as command_line


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """A chapter, notebook and text, in a folder of its own; equal in content."""
    stem = random.SystemRandom().choice(CHAPTERS)
    notebook, text = tmp_path / "book" / f"{stem}.ipynb", tmp_path / "book" / "src" / f"{stem}.md"
    text.parent.mkdir(parents=True)
    shutil.copy(BOOK.parent / "jupytext.toml", tmp_path)
    shutil.copy(BOOK / "src" / f"{stem}.md", text)
    sync(text)
    return notebook, text


def sync(path: Path) -> None:
    root = next(each for each in path.parents if (each / "jupytext.toml").is_file())
    with contextlib.chdir(root):  # jupytext looks for its settings from here
        command_line(["--quiet", "--sync", str(path.relative_to(root))])


def opened(notebook: Path) -> dict:
    """What JupyterLab gets when the notebook is opened."""
    manager = jupytext.build_sync_jupytext_contents_manager_class(LargeFileManager)()
    manager.root_dir = str(notebook.parent.parent)
    manager.log.setLevel("CRITICAL")
    return manager.get(f"book/{notebook.name}")["content"]


def execute(notebook: Path) -> None:
    """Write other outputs, as an execution in place does."""
    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("stream", text=str(random.random()))]
    nbformat.write(content, notebook)


def test_it_opens_and_keeps_its_text_after_any_order_of_steps(pair):
    notebook, text = pair
    before = text.read_text(encoding="utf-8")
    now = text.stat().st_mtime
    for step in random.SystemRandom().choices(("pull", "execute", "sync"), k=8):
        match step:
            case "pull":  # files get the times at which git wrote them
                for path in pair:
                    time = now + random.SystemRandom().uniform(-1000, 1000)
                    os.utime(path, (time, time))
            case "execute":
                execute(notebook)
            case "sync":
                sync(random.SystemRandom().choice(pair))
        assert len(opened(notebook)["cells"]) > 10, step
        assert text.read_text(encoding="utf-8") == before, step


def test_saving_changes_no_text(pair):
    notebook, text = pair
    before = text.read_text(encoding="utf-8")
    manager = jupytext.build_sync_jupytext_contents_manager_class(LargeFileManager)()
    manager.root_dir = str(notebook.parent.parent)
    manager.log.setLevel("CRITICAL")
    path = f"book/{notebook.name}"
    model = {"type": "notebook", "format": "json", "content": manager.get(path)["content"]}
    manager.save(model, path)
    assert text.read_text(encoding="utf-8") == before
    assert opened(notebook)["cells"]


@pytest.mark.parametrize("stem", CHAPTERS)
def test_the_text_is_named_and_filtered_alike_in_every_chapter(stem):
    header = jupytext.read(BOOK / "src" / f"{stem}.md").metadata["jupytext"]
    assert "-jupytext.text_representation.jupytext_version" in header["notebook_metadata_filter"]
