"""The house rules that no other tool keeps: where things lie, who imports whom, what is said.

CONTRIBUTING.md explains them; a failure lists every file that breaks one.
"""

import ast
import csv
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from micronet_lib.lab.host.places import MEASURED, OWN_NETWORKS
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records import EXPECTED
from micronet_lib.lab.records.record import record_path
from micronet_lib.lab.records.status import durations_text

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "micronet_lib"
BOOK = ROOT / "book"
PAPER = ROOT / "data" / "paper"
TESTS = ROOT / "tests"

MODULES = sorted(LIBRARY.rglob("*.py"))
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
# Chapter zero, the pages from 90 on and the page for lookers are about all methods, so they have
# none of their own.
PAGES = [path for path in NOTEBOOKS if path.stem.startswith(("00", "9", "explore"))]
# `11_beyond_in_depth` is the second page of `11_beyond`; `10_assembled_cnn` has two more.
FURTHER = re.compile("_(in_depth|robustness|transfer)$")
SECONDS = [path for path in NOTEBOOKS if FURTHER.search(path.stem)]
CHAPTERS = [path for path in NOTEBOOKS if path not in (*PAGES, *SECONDS)]
STEMS = [path.stem[3:] for path in CHAPTERS]
TABLES = sorted(PAPER.glob("*.csv"))


NUMERICAL = {"torch", "torchvision", "numpy", "pandas"}

# A plot takes a table, so it needs no lab; in the lab, nobody imports from a room to the right.
MAY_IMPORT = {
    "methods": {"methods"},
    "lab": {"methods", "lab"},
    "plots": {"methods", "plots"},
}
ROOMS = ("host", "data", "recipes", "records", "storage", "training", "running", "search")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def dotted(path: Path) -> str:
    """A module's full name; a package's is its folder's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def area(module: str) -> str:
    """Where in the library a full name is from: methods, lab or plots; "" from elsewhere.

    What is neither lab nor plots is a method, `errors` and `hooks` included.
    """
    first, second = (*module.split("."), "")[:2]
    if first != "micronet_lib":
        return ""
    return second if second in ("lab", "plots") else "methods"


def room(module: str) -> str:
    """The room of the lab that a full name is from; "" from elsewhere."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["micronet_lib", "lab"] and len(parts) > 2 else ""


# ------------------------------------------------------------------------------ where things lie


def test_a_notebook_is_numbered_once_and_has_a_text_of_its_name():
    texts = {path.stem for path in (BOOK / "src").glob("*.md")}
    assert texts == {path.stem for path in NOTEBOOKS}, "run `make sync`"
    names = [path.stem for path in NOTEBOOKS if path.stem != "explore"]
    assert [each for each in names if not re.fullmatch(r"\d\d_[a-z0-9_]+", each)] == []
    firsts = set(names) - {path.stem for path in SECONDS}
    assert len({each[:2] for each in firsts}) == len(firsts)
    assert {FURTHER.sub("", each) for each in names} == firsts, "a second page has a first"


def test_the_stem_rule():
    """`02_srip.ipynb` goes with a package or module, tests, figures, numbers and a grid `srip`."""
    offenders = [
        f"{stem}: no {what}"
        for stem in STEMS
        for what, there in {
            f"micronet_lib/{stem}/ or {stem}.py": (LIBRARY / stem).is_dir()
            or (LIBRARY / f"{stem}.py").is_file(),
            f"tests/test_{stem}*.py": any(TESTS.glob(f"test_{stem}*.py")),
            f"micronet_lib/plots/{stem}*.py": any((LIBRARY / "plots").glob(f"{stem}*.py")),
            f"data/paper/{stem}.csv": (PAPER / f"{stem}.csv").is_file(),
            f"lab/recipes/grids/{stem}.py": (
                LIBRARY / "lab" / "recipes" / "grids" / f"{stem}.py"
            ).is_file(),
        }.items()
        if not there
    ]
    assert offenders == []


def test_what_is_named_after_a_chapter_has_one():
    grids = (LIBRARY / "lab" / "recipes" / "grids").glob("[a-z]*.py")
    assert {path.stem for path in grids} <= set(STEMS)
    assert {path.stem for path in TABLES} <= set(STEMS)
    figures = {path.stem for path in (LIBRARY / "plots").glob("[a-z]*.py")}
    pages = {path.stem[3:] for path in PAGES if path.stem != "explore"}
    others = {f for f in figures if not f.startswith(tuple(STEMS))}
    assert others == {*pages, "front", "layouts", "style", "tables"}


def test_every_sweep_is_shown_in_its_chapter():
    """Or on its further pages, or on the page for lookers, `explore`, which belongs to all."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (BOOK / "src").glob("*.md")}

    def shown(chapter: str) -> str:
        return "".join(texts[stem] for stem in texts if stem.startswith((chapter, "explore")))

    assert [s.name for s in SWEEPS.values() if f'"{s.name}"' not in shown(s.chapter)] == []


@cache
def imported_by(tests: str) -> set[str]:
    """Every full name that the test files of that pattern import."""
    return {each for path in TESTS.glob(tests) for each, _ in imports(path)}


def test_every_module_has_its_tests():
    """`tests/test_<package>_<module>.py`, or another file of that package's that imports it.

    What is named after a chapter may also be imported by a test of that chapter.
    """
    offenders = []
    for path in MODULES:
        package = "" if path.parent == LIBRARY else f"_{path.parent.name}"
        # tests/test_plots*.py draw every figure, tests/test_recipes_grids.py reads every grid.
        elsewhere = package in ("_plots", "_grids")
        if elsewhere or path.stem in ("__init__", "__main__", "errors", "progress"):
            continue
        there = (TESTS / f"test{package}_{path.stem}.py").is_file()
        used = imported_by(f"test{package}*.py")
        if path.stem in STEMS:
            used |= imported_by(f"test_{path.stem}*.py")
        if not there and not any(f"{each}.".startswith(f"{dotted(path)}.") for each in used):
            offenders.append(f"{name(path)}: no tests/test{package}*.py imports it")
    assert offenders == []
    assert (TESTS / "test_command_line.py").is_file()


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


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    return list(imported(ast.parse(path.read_text(encoding="utf-8"))))


def tops(path: Path) -> set[str]:
    """The packages that importing a module imports."""
    return {each.split(".")[0] for each, when_imported in imports(path) if when_imported}


def test_imports_run_one_way():
    """Methods, then lab, then plots; in the lab from room to room in the order of `ROOMS`."""
    assert {path.parent.name for path in (LIBRARY / "lab").glob("*/__init__.py")} == set(ROOMS)
    offenders = []
    for path in MODULES:
        own = dotted(path)
        for each, _ in imports(path):
            beyond = area(each) and area(each) not in MAY_IMPORT[area(own)]
            back = room(own) and room(each) and ROOMS.index(room(each)) > ROOMS.index(room(own))
            if path.stem != "__main__" and (beyond or back):
                offenders.append(f"{name(path)}: {each}")
    assert offenders == []


def test_a_method_imports_nothing_but_numerical_packages():
    allowed = {*sys.stdlib_module_names, *NUMERICAL, "micronet_lib"}
    methods = [p for p in MODULES if area(dotted(p)) == "methods" and p.stem != "__main__"]
    assert {name(path): tops(path) - allowed for path in methods if tops(path) - allowed} == {}


def test_the_command_line_starts_without_torch():
    """Help and a wrong word are answered at once: a verb imports what it needs."""
    at_once = {each for each, now in imports(LIBRARY / "__main__.py") if now}
    assert {each.split(".")[0] for each in at_once} <= {*sys.stdlib_module_names, "micronet_lib"}
    inside = {each for each in at_once if area(each)}
    light = ("micronet_lib.errors", "micronet_lib.interrupt")
    assert all(each.startswith(light) for each in inside), inside
    assert tops(LIBRARY / "interrupt.py") <= set(sys.stdlib_module_names)


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

sys.modules |= dict.fromkeys(sys.argv[1].split(","))  # None: as if it were not installed
import micronet_lib

names = [module.name for module in pkgutil.walk_packages(micronet_lib.__path__, "micronet_lib.")]
names = [name for name in names if not name.startswith("micronet_lib.plots")]
print(len([importlib.import_module(name) for name in names]))
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
    expected = {path for path in MODULES if area(dotted(path)) != "plots"}
    # A package counts once, as its `__init__`; the library's own is the one that was walked.
    assert int(ran.stdout) == len(expected - {LIBRARY / "__init__.py"})


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


def test_no_file_names_what_is_foreign():
    files = committed_files()
    assert ROOT / "pyproject.toml" in files
    found = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for what, pattern in FOREIGN.items():
            found += [f"{name(path)} names {what}: {m.group()}" for m in pattern.finditer(text)]
    assert found == []


def test_the_search_for_foreign_names_finds_them():
    slash = "/"
    path, host = FOREIGN.values()
    for text in ("work/x", "home/ann/data", "root/.cache", "Users/ann"):
        assert path.search(f"see {slash}{text}")
    for text in ("https://a.org/home/x", "../home/x", "runs/root/x"):
        assert not path.search(text)
    assert host.search("https://files.python" + "hosted.org/x")


def messages() -> Iterator[str]:
    """Every text in the library; what is filled in later is a character that no message has."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(getattr(part, "value", "")) if isinstance(part, ast.Constant)
                              else "\0" for part in node.values)  # fmt: skip


def test_the_troubleshooting_page_quotes_messages_of_the_code():
    page = (BOOK / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [m[2] for m in re.finditer(r"^(`+) ?(.+?) ?\1\n: ", page, re.MULTILINE)]
    assert len(quoted) == page.count("\n: ") > 20
    known = list(messages())
    missing = []
    for message in quoted:
        parts = [re.escape(part.strip()) for part in re.split(r"…", message)]
        pattern = re.compile(r"\s*'?\0'?\s*".join(parts), re.DOTALL)
        if not any(pattern.search(text) for text in known):
            missing.append(message)
    assert missing == []


# --------------------------------------------------------------------------- transcribed numbers


def bibliography() -> set[str]:
    text = (BOOK / "references.bib").read_text(encoding="utf-8")
    return set(re.findall(r"^@\w+\{([^,\s]+),", text, re.MULTILINE))


def test_a_transcribed_number_says_where_it_stands_and_stands_once():
    known, offenders = bibliography(), []
    for path in TABLES:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        assert header == ["point", "metric", "value", "source", "locator"], name(path)
        assert lines, name(path)
        keys: Counter[tuple[str, ...]] = Counter()
        for line in lines:
            point, metric, value, source, locator = line
            keys[point, metric, source] += 1
            good = {
                "point": point.strip() == point != "",
                "metric": re.fullmatch(r"[a-z0-9_.]+", metric),
                "value": re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", value),
                "source": source in known,
                "locator": locator.strip(),
                "copy": keys[point, metric, source] == 1,
            }
            offenders += [f"{name(path)}: {line}: {what}" for what, ok in good.items() if not ok]
    assert offenders == []


# ----------------------------------------------------------------------------------- the README


def test_the_readmes_first_results_stand_in_its_first_two_screens():
    """Nothing but what leads there comes before the commands: a screen has some 250 words."""
    before = (ROOT / "README.md").read_text(encoding="utf-8").partition("micronet measure ")[0]
    assert "make book\nmake test\n" in before
    assert len(before.split()) < 2 * 250


def test_the_readme_says_what_to_expect():
    """The rules that `micronet compare` applies."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = "".join(f"| {again} | {expected} |\n" for again, expected in EXPECTED)
    heading = "## What to expect when you run it\n\n| measured again | what to expect |\n"
    assert f"{heading}|---|---|\n{rows}" in text


def test_the_readme_says_how_long_it_takes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert durations_text() in text, f"records have other times; README needs\n{durations_text()}"


def test_the_readmes_first_result_on_real_data_takes_two_minutes_at_most():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"micronet measure (\S+) --point (\S+) --profile (\S+)", text)
    assert first is not None
    record = MEASURED / record_path(first[1], first[2], first[3], 0)
    assert json.loads(record.read_text())["env"]["wall_s"] < 120


def test_the_readmes_own_networks_are_those_of_the_records():
    """A row `name, ours | top-1 | top-5 | cross-entropy | score`, each digit as recorded."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `allocated")
    ]
    assert len(rows) == len(list(OWN_NETWORKS.glob("*.mnet")))
    for name, top1, top5, loss, score in rows:
        path = MEASURED / record_path("beyond", name.partition(",")[0].strip("`"), "day", 0)
        metrics = json.loads(path.read_text())["metrics"]
        assert top1 == f"{metrics['top1']:.2%}".replace("%", " %")
        assert top5 == f"{metrics['top5']:.2%}".replace("%", " %")
        assert (loss, score) == (f"{metrics['loss']:.6f}", f"{metrics['official.score']:.7f}")
