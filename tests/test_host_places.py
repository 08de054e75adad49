"""Folders follow the two environment variables, and nothing else moves them."""

import fnmatch
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from micronet_lib.lab.host import places

MOVES = {
    "MICRONET_RUNS": (places.runs_root, places.ROOT / "runs"),
    "MICRONET_DATA": (places.data_root, places.ROOT / "data"),
}


@pytest.mark.parametrize("variable", MOVES)
def test_a_folder_lies_where_its_variable_says(tmp_path, monkeypatch, variable):
    folder, default = MOVES[variable]
    monkeypatch.setenv(variable, str(tmp_path))
    assert folder() == tmp_path
    monkeypatch.setenv(variable, "")
    assert folder() == default
    monkeypatch.delenv(variable)
    assert folder() == default


def test_downloads_lie_in_the_data_folder_and_our_own_result_in_the_repository(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path))
    assert places.checkpoint_path("net") == tmp_path / "kaist" / "net.t7"
    assert places.policy_path("fast_autoaugment").parent == tmp_path / "policies"
    assert places.policy_path("searched").is_file()
    assert places.ROOT in places.policy_path("searched").parents


def test_the_root_is_the_repositorys():
    assert Path(__file__).resolve().parents[1] == places.ROOT
    assert places.MEASURED.is_dir()
    assert places.PAPER_TABLES.is_dir()
    assert places.CIFAR100_CLASSES.is_file()


# ----------------------------------------------------------------- installed without the repository


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What a plain `pip install .` leaves: the package, and nothing beside it."""
    folder = tmp_path_factory.mktemp("site-packages")
    unneeded = shutil.ignore_patterns("__pycache__")
    shutil.copytree(places.ROOT / "micronet_lib", folder / "micronet_lib", ignore=unneeded)
    return folder


def installed(site: Path, tmp_path: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MICRONET_")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env=own | {"PYTHONPATH": str(site)} | more,
        capture_output=True,
        text=True,
        check=False,
    )


def files_of(site: Path) -> set[Path]:
    return {path for path in site.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    "words",
    [
        "measure expand_ratio --profile smoke --point 1.0",
        "measure stages --profile quick --point 3.0-orn",
        "measure published --profile full",
        "data check",
        "search-policies --profile smoke",
        "compare",
        "list",
        "curves stages",
        "agenda --profile day --plan",
    ],
)
def test_a_verb_that_needs_the_repository_says_so_and_writes_nothing(words, site, tmp_path):
    before = files_of(site)
    ran = installed(site, tmp_path, "-m", "micronet_lib", *words.split())
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    assert ran.stderr.count("\n") == 1
    assert "pip install -e ." in ran.stderr
    assert files_of(site) == before
    assert not list(tmp_path.iterdir())


def test_every_table_of_the_repository_is_asked_for_in_one_line(site, tmp_path):
    code = """
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.data.images import load_labels
from micronet_lib.lab.recipes.grids import SWEEPS
calls = [lambda: records.paper("srip"), lambda: records.measured(SWEEPS["stages"], "quick"),
         lambda: records.runs(SWEEPS["stages"], "quick"), records.coverage, records.machines,
         lambda: load_labels("cifar100")]
for call in calls:
    try:
        call()
    except InputError as error:
        print("pip install -e" in str(error), str(error).count("\\n"))
print(load_labels("embedded").class_names[:1] != ())
"""
    ran = installed(site, tmp_path, "-c", code)
    assert ran.stdout.splitlines() == ["True 0"] * 6 + ["True"], ran.stderr


def test_without_the_repository_the_rest_works(site, tmp_path):
    ran = installed(site, tmp_path, "-m", "micronet_lib", "score", "--model", "micronet_v1")
    assert ran.returncode == 0, ran.stderr
    words = ["measure", "expand_ratio", "--profile", "smoke", "--point", "1.0"]
    folders = {"MICRONET_RUNS": str(tmp_path / "r"), "MICRONET_DATA": str(tmp_path / "d")}
    ran = installed(site, tmp_path, "-m", "micronet_lib", *words, **folders)
    assert ran.returncode == 0, ran.stderr
    assert "cannot be promoted" in ran.stderr  # a copy has no commit
    assert len(list((tmp_path / "r").rglob("*.json"))) == 1


def test_what_a_measure_needs_is_asked_for_before_the_work(site, tmp_path):
    """A measure of the new chapters may look into committed records: there may be none."""
    code = """
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running.lineage import cases
from micronet_lib.lab.running.measures.compression import _touches
print([_touches(case) for case in cases(SWEEPS["beyond"], PROFILES["day"])][:2])
"""
    ran = installed(site, tmp_path, "-c", code, MICRONET_RUNS=str(tmp_path / "r"))
    assert ran.stdout == "[1, 1]\n", ran.stderr


def test_the_package_holds_every_file_of_the_library():
    setup = tomllib.loads((places.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    patterns = setup["setuptools"]["package-data"]["micronet_lib"]
    library = places.ROOT / "micronet_lib"
    for path in files_of(library):
        inside = path.relative_to(library)
        if path.is_dir() or path.suffix == ".py":
            package = path if path.is_dir() else path.parent
            assert (package / "__init__.py").is_file(), inside
        else:
            assert any(fnmatch.fnmatchcase(str(inside), pattern) for pattern in patterns), inside
