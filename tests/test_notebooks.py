"""Every committed notebook keeps the cell rules, was executed cleanly and matches its text twin.

nbval compares the outputs themselves; `make test` runs it over the same files.
"""

import ast
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbconvert import ScriptExporter
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
CHAPTERS = sorted(BOOK.glob("*.ipynb"))

# The kinds of code cell and how many lines of code each may hold.
LINE_LIMITS = {"parameters": 3, "setup": 24, "explain": 20, "source": 1, "run": 8, "show": 10}
IGNORED = "nbval-ignore-output"
# What a script of a notebook needs to know; the version would be the machine's.
LANGUAGE = {"name": "python", "file_extension": ".py", "nbconvert_exporter": "python"}
# What is removed is in the notebook and not on the page.
REMOVED = {"remove-cell", "remove-input"}
HIDDEN = {"hide-input", "hide-output", "hide-cell"}
# What folds a cell's code in JupyterLab.
FOLDED = {"source_hidden": True}
KNOWN_TAGS = {*LINE_LIMITS, *REMOVED, *HIDDEN, IGNORED, "scroll-output"}

# Pages about all methods (chapter zero, those from 90 on, the one for lookers) have no card; the
# second page of a chapter leaves card and exercises to the first.
CARDLESS = {
    p.stem for p in CHAPTERS if re.match(r"00|9|explore|.*_(in_depth|robustness|transfer)$", p.stem)
}
CARD_ENTRIES = (
    *("What", "Paper", "Equation", "Suggested values", "Cost", "Measured effect", "Differences"),
)

ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,16}\b")
MACHINE_PATH = re.compile(
    r"/(?:home|Users|root)/|/tmp/|/private/|/var/folders/|[A-Z]:\\|site-packages|dist-packages|"
    + re.escape(str(ROOT))
)

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


@functools.cache
def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def kind(cell: NotebookNode) -> str | None:
    kinds = [tag for tag in tags(cell) if tag in LINE_LIMITS]
    return kinds[0] if len(kinds) == 1 else None


def name(cell: NotebookNode) -> str:
    """A cell as a failure message names it: its tags and its first line."""
    return f"[{', '.join(tags(cell)) or 'no tag'}] {cell.source.strip().splitlines()[:1]}"


def texts(cell: NotebookNode) -> Iterator[str]:
    """What a cell printed or displayed, except pictures and their `<Figure ...>`."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        data = output.get("data", {})
        if "image/png" not in data:
            for content in data.values():
                yield content if isinstance(content, str) else json.dumps(content)


@each_chapter
def test_cells_equal_the_text_twin(path: Path) -> None:
    twin = jupytext.read(BOOK / "src" / f"{path.stem}.md")

    def content(notebook: NotebookNode) -> list[tuple[str, str, dict]]:
        return [(c.cell_type, c.source.strip(), dict(c.metadata)) for c in notebook.cells]

    assert content(read(path)) == content(twin), "not in step: run `make sync`"


@each_chapter
def test_metadata_tells_nothing_of_the_machine(path: Path) -> None:
    metadata = read(path).metadata
    assert set(metadata) <= {"kernelspec", "language_info", "jupytext"}, "run `make execute`"
    assert metadata.kernelspec.name == "python3"
    assert metadata.get("language_info") == LANGUAGE, "run `make execute`"
    for cell in read(path).cells:
        assert set(cell.metadata) <= {"tags", "mystnb", "jupyter"}, name(cell)
        assert cell.metadata.get("jupyter", FOLDED) == FOLDED, name(cell)


@each_chapter
def test_a_script_of_it_is_python(path: Path) -> None:
    """`jupyter nbconvert --to script` takes the language from the metadata, else it writes text."""
    source, resources = ScriptExporter().from_filename(str(path))
    assert resources["output_extension"] == ".py"
    compile(source, path.name, "exec")


@each_chapter
def test_every_code_cell_has_one_known_kind_and_is_short(path: Path) -> None:
    for cell in code_cells(path):
        unknown = set(tags(cell)) - KNOWN_TAGS
        assert not unknown, f"{name(cell)}: unknown tags {sorted(unknown)}"
        assert kind(cell), f"{name(cell)}: needs exactly one of {', '.join(LINE_LIMITS)}"
        assert "NBVAL_" not in cell.source, f"{name(cell)}: say it with a tag"
        assert not re.search(r"\bprofile\s*(==|!=|in\b)", cell.source), name(cell)
        lines = [line.strip() for line in cell.source.splitlines()]
        code = [line for line in lines if line and not line.startswith("#")]
        limit = LINE_LIMITS[kind(cell) or ""]
        assert 1 <= len(code) <= limit, f"{name(cell)}: {len(code)} lines, at most {limit}"


@each_chapter
def test_jupyterlab_shows_the_parameters_and_folds_the_set_up(path: Path) -> None:
    """A page of the site has one bar for both."""
    parameters, setup, *_ = code_cells(path)
    assert "parameters" in tags(parameters)
    assert "setup" in tags(setup)
    assert "jupyter" not in parameters.metadata
    assert setup.metadata.get("jupyter") == FOLDED


@each_chapter
def test_the_parameters_are_three_plain_literals(path: Path) -> None:
    kinds = [kind(cell) for cell in code_cells(path)]
    assert kinds.count("parameters") == 1
    assert kinds.count("setup") == 1
    assert kinds[0] == "parameters", "papermill injects after this cell, so it comes first"

    values = {}
    for statement in ast.parse(code_cells(path)[0].source).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        (target,) = statement.targets
        assert isinstance(target, ast.Name), ast.unparse(statement)
        values[target.id] = ast.literal_eval(statement.value)
    assert list(values) == ["profile", "seed", "overrides"]
    assert values["profile"] == "smoke", "the committed notebook is the smoke run"
    assert type(values["seed"]) is int
    assert not values["overrides"], "the committed notebook overrides nothing"


@each_chapter
def test_it_was_executed_in_a_fresh_kernel_without_error_stderr_or_path(path: Path) -> None:
    numbered = enumerate(code_cells(path), start=1)
    astray = [name(cell) for number, cell in numbered if cell.execution_count != number]
    assert not astray, "run `make execute`"
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", name(cell)
            assert output.get("name") != "stderr", f"{name(cell)}: {output.get('text')}"
        for text in texts(cell):
            found = MACHINE_PATH.search(text)
            assert not found, f"{name(cell)}: shows {found and found.group()!r}"
            assert not ADDRESS.search(text), f"{name(cell)}: shows an object by its address"
        # Every figure has a number, a caption and an alternative text.
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            settings = cell.metadata.get("mystnb", {})
            figure, image = settings.get("figure", {}), settings.get("image", {})
            for key, value in (("caption", figure), ("name", figure), ("alt", image)):
                assert str(value.get(key, "")).strip(), f"{name(cell)}: mystnb has no {key}"


@each_chapter
def test_its_stamp_names_a_commit_without_changes(path: Path) -> None:
    """A `+` behind the commit says that the page shows what code of no commit printed."""
    printed = "\n".join(text for cell in code_cells(path) for text in texts(cell))
    (stamp,) = re.findall(r"^this run: .*", printed, re.MULTILINE)
    assert re.search(r" · commit [0-9a-f]{7,}$", stamp), f"commit, then `make execute`: {stamp}"


@each_chapter
def test_what_is_not_compared_is_followed_by_an_invariant(path: Path) -> None:
    """A run, or an output that nbval ignores, is answered before the next run begins."""
    unanswered = ""
    for cell in code_cells(path):
        if unanswered and kind(cell) == "run":
            break
        if kind(cell) == "run" or IGNORED in tags(cell):
            unanswered = name(cell)
        elif any(text.strip() for text in texts(cell)):
            unanswered = ""
    assert not unanswered, "no compared output follows this cell"


@each_chapter
def test_it_opens_with_a_title_and_a_method_card(path: Path) -> None:
    cells = read(path).cells
    first_code = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    opening = "\n\n".join(cell.source for cell in cells[:first_code])
    assert re.match(r"# \S", opening), "the first line is the title"
    if path.stem not in CARDLESS:
        # A chapter with a lead picture has its card below it.
        everything = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        assert re.search(r"^:class-card: method-card$", everything, re.MULTILINE)
        for entry in CARD_ENTRIES:
            assert re.search(rf"^{entry}\n: +\S", everything, re.MULTILINE), f"no {entry}"
        assert re.search(r"^## Exercises$", everything, re.MULTILINE)


def sanitized(text: str) -> str:
    plugin = pytest.importorskip("nbval.plugin")
    config = (ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    for pattern, replacement in plugin.get_sanitize_patterns(config):
        text = re.sub(pattern, replacement, text)
    return text


def test_comparison_overlooks_the_machine_and_the_hour_and_no_number_of_the_book() -> None:
    for one, other in (
        ("torch 2.15.0", "torch 2.11.0+cu130"),
        ("python 3.11.7 · numpy 2.4.6", "python 3.13.1 · numpy 2.3.0"),
        ("commit abc1234", "commit 0123456-dirty"),
        ("commit abc1234 · n=1", "commit 4543b48+ · n=1"),
        ("2026-11-22T21:15:03Z", "2027-01-02"),
        ("took 12.3 s", "took 950 ms"),
        ("device: cpu · n=1", "device: 1×H200 · n=1"),
        ("<object at 0x7f00c0ffee00>", "<object at 0x10a2b3c4d>"),
    ):
        assert sanitized(one) == sanitized(other)
    for text in (
        *("num_params 3250058", "sparsity 0.5999", "shape [160, 960, 1, 1]", "score 0.0054"),
        *("top1 80.07 %", "point pointwise-s0", "4 sub-policies, 20 superclasses"),
        "profile smoke · seed 0",
    ):
        assert sanitized(text) == text
