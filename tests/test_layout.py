"""The house rules that no other tool keeps: where things lie, who imports whom, what is said.

CONTRIBUTING.md explains them; a failure here says which one and what to do.
"""

import ast
import csv
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records.status import status

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "micronet_lib"
BOOK = ROOT / "book"
PAPER = ROOT / "data" / "paper"

MODULES = sorted(LIBRARY.rglob("*.py"))
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem != "00_status"]
TABLES = sorted(PAPER.glob("*.csv"))

MAX_LINES = 330

# Imported inside the function that needs it, everywhere but in plots: training must run on a
# machine that has the library's own dependencies and nothing else.
THE_BOOKS_ALONE = {
    *("matplotlib", "seaborn", "papermill", "jupytext", "nbformat", "IPython", "sphinx"),
    *("ray", "optuna", "safetensors"),
}
NUMERICAL = {"torch", "torchvision", "numpy", "pandas"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parts(path: Path) -> tuple[str, ...]:
    """A module's folders inside the library: () for a method, ("lab",), ("plots",)."""
    return path.relative_to(LIBRARY).parts[:-1]


each_module = pytest.mark.parametrize("path", MODULES, ids=name)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=name)
each_table = pytest.mark.parametrize("path", TABLES, ids=name)


# ------------------------------------------------------------------------------ where things lie


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_notebook_is_numbered_and_has_a_text_twin(path):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    assert (BOOK / "src" / f"{path.stem}.md").is_file(), "run `make sync`"


def test_a_text_twin_has_its_notebook():
    twins = {path.stem for path in (BOOK / "src").glob("*.md")}
    assert twins == {path.stem for path in NOTEBOOKS}, "run `make sync`"


def test_chapter_numbers_are_taken_once():
    numbers = Counter(path.stem[:2] for path in NOTEBOOKS)
    assert max(numbers.values()) == 1, numbers


@each_chapter
def test_the_stem_rule(path):
    """`05_pruning.ipynb` goes with `pruning.py`, `test_pruning.py` and `paper/pruning.csv`."""
    stem = path.stem[3:]
    expected = [LIBRARY / f"{stem}.py", ROOT / "tests" / f"test_{stem}.py", PAPER / f"{stem}.csv"]
    assert [name(file) for file in expected if not file.is_file()] == []


def test_transcribed_numbers_belong_to_a_method():
    assert {path.stem for path in TABLES} <= {path.stem for path in MODULES if not parts(path)}


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=lambda sweep: sweep.name)
def test_every_sweep_is_shown_in_a_chapter(sweep):
    notebook = BOOK / f"{sweep.chapter}.ipynb"
    assert notebook in CHAPTERS
    assert sweep.name in notebook.read_text(encoding="utf-8")


def has_its_own_tests(path: Path) -> bool:
    if parts(path) == ("plots",):  # tests/test_plots.py draws every figure
        return False
    return path.stem not in ("__init__", "__main__", "errors", "progress")


@pytest.mark.parametrize("path", [p for p in MODULES if has_its_own_tests(p)], ids=name)
def test_every_module_has_its_tests(path):
    assert (ROOT / "tests" / f"test_{path.stem}.py").is_file()


def test_no_two_modules_share_their_tests():
    stems = Counter(path.stem for path in MODULES if has_its_own_tests(path))
    assert [stem for stem, count in stems.items() if count > 1] == []


def test_the_command_line_has_its_tests():
    assert (ROOT / "tests" / "test_command_line.py").is_file()


@each_module
def test_a_module_has_one_purpose_that_its_name_tells(path):
    assert not re.search(r"util|helper|common|misc", path.stem), "name what it is for"
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split it by meaning"


# ------------------------------------------------------------------------------ who imports whom


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every imported name in full, and whether the import runs when the module is imported."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "import by the full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for each in names:
            yield each, id(node) not in inside


def imports(path: Path) -> list[tuple[str, bool]]:
    return list(imported(ast.parse(path.read_text(encoding="utf-8"))))


def area(imported_name: str) -> str:
    """Where in the library a name is from: methods, lab, plots or errors; "" from elsewhere."""
    first, second = (*imported_name.split("."), "")[:2]
    if first != "micronet_lib":
        return ""
    return second if second in ("lab", "plots", "errors") else "methods"


# methods -> lab -> records -> plots -> notebook: nobody imports to the right of it.
MAY_IMPORT = {
    (): {"methods", "errors"},
    ("lab",): {"methods", "lab", "errors"},
    ("plots",): {"plots", "errors"},
}


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem != "__main__"], ids=name)
def test_imports_run_one_way(path):
    allowed = MAY_IMPORT[parts(path)]
    wrong = [each for each, _ in imports(path) if area(each) and area(each) not in allowed]
    assert wrong == [], f"{name(path)} may import from {sorted(allowed)} only"


@pytest.mark.parametrize("path", [p for p in MODULES if parts(p) == ()], ids=name)
def test_a_method_knows_tensors_and_nothing_else(path):
    allowed = {*sys.stdlib_module_names, *NUMERICAL, "micronet_lib"}
    tops = {each.split(".")[0] for each, when_imported in imports(path) if when_imported}
    assert tops <= allowed


@pytest.mark.parametrize("path", [p for p in MODULES if parts(p) != ("plots",)], ids=name)
def test_what_only_the_book_needs_is_imported_where_it_is_used(path):
    tops = {each.split(".")[0] for each, when_imported in imports(path) if when_imported}
    assert not tops & THE_BOOKS_ALONE


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem == "__main__"], ids=name)
def test_the_command_line_starts_without_torch(path):
    """Help and a wrong word are answered at once: a verb imports what it needs."""
    tops = {each for each, when_imported in imports(path) if when_imported}
    assert {each.split(".")[0] for each in tops} <= {*sys.stdlib_module_names, "micronet_lib"}
    assert {area(each) for each in tops} <= {"", "errors"}


def own_dependencies() -> set[str]:
    """The distributions that installing the library without extras brings along."""
    found: set[str] = set()
    waiting = ["micronet-book"]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        try:
            needed = [Requirement(line) for line in requires(current) or ()]
        except PackageNotFoundError:
            continue  # for another platform
        waiting += [
            canonicalize_name(requirement.name)
            for requirement in needed
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ]
    return found


IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

REFUSED = set(sys.argv[1].split(","))


class Bare:
    '''The finders that were there, on a machine where the refused packages are not installed.'''

    finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            return None
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec), None)

    def find_distributions(self, *args, **kwargs):
        for finder in self.finders:
            yield from getattr(finder, "find_distributions", lambda *a, **k: ())(*args, **kwargs)


sys.meta_path[:] = [Bare()]
import micronet_lib

count = 0
for module in pkgutil.walk_packages(micronet_lib.__path__, "micronet_lib."):
    if not module.name.startswith("micronet_lib.plots"):
        importlib.import_module(module.name)
        count += 1
print(count)
"""


def test_methods_and_lab_need_only_the_librarys_own_dependencies():
    own = own_dependencies()
    assert {"torch", "numpy", "pandas", "tqdm", "pillow"} <= own
    refused = {
        package
        for package, distributions in packages_distributions().items()
        if not {canonicalize_name(each) for each in distributions} & own
    }
    assert {"matplotlib", "seaborn", "pytest", "sphinx", "papermill"} & refused
    ran = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, ",".join(refused)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stderr
    packages = {path for path in MODULES if parts(path) == ("plots",)}
    top = LIBRARY / "__init__.py"
    # A package counts once, as its `__init__`; the library's own is the one that was walked.
    assert int(ran.stdout) == len(set(MODULES) - packages - {top})


# --------------------------------------------------------------------------------- what is said


def committed_files() -> list[Path]:
    """What git knows or would add; without git, everything but the usual ignored folders."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = [ROOT / line for line in listed.split("\0") if line]
    except (OSError, subprocess.CalledProcessError):
        ignored = {".venv", "runs", "_build", "__pycache__", ".git"}
        found = [path for path in ROOT.rglob("*") if not ignored & set(path.parts)]
    return [path for path in found if path.is_file()]


FOREIGN = {
    "a path of one machine": re.compile(r"(?<![\w.~/-])/(?:work|root|home|Users)/[\w.-]+"),
    "the host of a package registry": re.compile(
        r"\b(?:pypi\.(?:org|python)|pythonhosted\.org|(?:conda\.)?anaconda\.org|npmjs\.(?:org|com)|"
        r"download\.pytorch\.org|\bartifactor(?:y)|nexus\.)",
        re.IGNORECASE,
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_no_file_names(what):
    files = committed_files()
    assert ROOT / "pyproject.toml" in files
    found = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{name(path)}: {match.group()}" for match in FOREIGN[what].finditer(text)]
    assert found == []


def test_the_search_for_foreign_names_finds_them():
    slash = "/"
    path, host = FOREIGN.values()
    for text in ("work/x", "home/ann/data", "root/.cache", "Users/ann"):
        assert path.search(f"see {slash}{text}")
    for text in ("https://a.org/home/x", "../home/x", "runs/root/x"):
        assert not path.search(text)
    assert host.search("https://files.python" + "hosted.org/x")


# --------------------------------------------------------------------------- transcribed numbers


def bibliography() -> set[str]:
    text = (BOOK / "references.bib").read_text(encoding="utf-8")
    return set(re.findall(r"^@\w+\{([^,\s]+),", text, re.MULTILINE))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@each_table
def test_transcribed_numbers_have_these_columns(path):
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["point", "metric", "value", "source", "locator"]
    assert len(lines) > 1
    assert {len(line) for line in lines} == {5}


@each_table
def test_a_transcribed_number_says_where_it_stands(path):
    known = bibliography()
    for row in rows(path):
        where = f"{row['point']}, {row['metric']}"
        assert re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", row["value"]), where
        assert row["source"] in known, f"{where}: {row['source']} is not in book/references.bib"
        assert row["locator"].strip(), where
        assert row["point"].strip() == row["point"] != "", where
        assert re.fullmatch(r"[a-z0-9_.]+", row["metric"]), where


@each_table
def test_a_number_is_transcribed_once(path):
    keys = Counter((row["point"], row["metric"], row["source"]) for row in rows(path))
    assert [key for key, count in keys.items() if count > 1] == []


# ----------------------------------------------------------------------------------- the README


def readme_rows() -> list[list[str]]:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in lines
        if line.lstrip().startswith("|")
    ]


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=lambda sweep: sweep.name)
def test_the_readme_says_what_is_measured(sweep):
    covered = status().set_index(["sweep", "profile"])
    counts = [
        f"{covered.at[place, 'measured']} of {covered.at[place, 'points']}"
        if (place := (sweep.name, profile)) in covered.index
        else "-"
        for profile in ("quick", "full")
    ]
    stem = sweep.chapter[3:]
    rule = (
        f"README.md needs a table row `{sweep.chapter}` | `{stem}` | `{sweep.name}` | "
        f"{' | '.join(counts)} (points with a committed record at quick and at full)"
    )
    found = [row for row in readme_rows() if len(row) == 5 and row[2] == f"`{sweep.name}`"]
    assert len(found) == 1, rule
    chapter, module, _, *said = found[0]
    assert sweep.chapter in chapter, rule
    assert stem in module, rule
    assert said == counts, rule


def test_the_readme_lists_no_sweep_that_is_gone():
    listed = [row for row in readme_rows() if len(row) == 5 and " of " in row[3] + row[4]]
    assert {row[2].strip("`") for row in listed} == set(SWEEPS)
