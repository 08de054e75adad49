"""The three ways to install agree: pyproject's ranges, constraints.txt, environment.yml."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLED_EXTRAS = ("book", "test", "cluster", "runtime")
DIRECT = [
    Requirement(line)
    for line in [
        *PROJECT["dependencies"],
        *(line for extra in INSTALLED_EXTRAS for line in PROJECT["optional-dependencies"][extra]),
    ]
]
PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[0-9][0-9a-z.]*)")


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    found = (PIN.fullmatch(line) for line in constraint_lines())
    return {canonicalize_name(m["name"]): m["version"] for m in found if m}


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def test_a_constraint_is_a_name_and_a_version_once_and_nothing_else() -> None:
    odd = [line for line in constraint_lines() if not PIN.fullmatch(line)]
    assert not odd, "a URL, a hash, an option or a marker does not belong here"
    assert len(constraint_lines()) == len(pins())


def test_the_constraint_of_a_direct_dependency_is_in_its_range() -> None:
    offenders = [
        f"{requirement}: {pinned}"
        for requirement in DIRECT
        if not (pinned := pins().get(canonicalize_name(requirement.name)))
        or not requirement.specifier.contains(pinned)
    ]
    assert offenders == []


def test_no_constraint_follows_from_a_kind_of_gpu() -> None:
    assert not [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_conda_takes_python_and_pip_and_pip_the_project_with_its_extras_and_constraints() -> None:
    dependencies = environment()["dependencies"]
    conda = [Requirement(line) for line in dependencies if isinstance(line, str)]
    assert [line.name for line in conda] == ["python", "pip"]
    assert environment()["channels"] == ["conda-forge"]
    allowed = SpecifierSet(PROJECT["requires-python"])
    minors = [f"3.{minor}" for minor in range(30)]
    offered = [version for version in minors if conda[0].specifier.contains(version)]
    assert offered
    assert all(allowed.contains(version) for version in offered)
    (pip,) = [line["pip"] for line in dependencies if isinstance(line, dict)]
    assert pip == ["-c constraints.txt", f"-e .[{','.join(INSTALLED_EXTRAS)}]"]
    assert set(INSTALLED_EXTRAS) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize(
    ("made_for", "status"), [("{here}", 0), ("/somewhere/else", 1), ("{here}2", 1), ("", 1)]
)
def test_an_environment_of_another_place_is_made_again(tmp_path, made_for, status):
    """`make -q` says whether setup has anything to do."""
    checkout = (tmp_path / "a checkout").resolve()
    (checkout / ".venv").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    text = made_for.format(here=checkout)
    (checkout / ".venv" / ".setup").write_text(text + "\n", encoding="utf-8")
    done = subprocess.run(["make", "-q", ".venv/.setup"], cwd=checkout, check=False)
    assert done.returncode == status


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository")
def test_git_takes_no_file_that_is_no_text_for_text():
    """Whether it looks like text or not: that depends on its bytes."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = [name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()]
    binary = [name for name in names if not _is_text((ROOT / name).read_bytes())]
    assert binary
    words = ["git", "check-attr", "text", "--", *binary]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line for line in said.splitlines() if not line.endswith(": text: unset")] == []


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository")
@pytest.mark.parametrize("autocrlf", ["true", "false", "input"])
@pytest.mark.parametrize("eol", ["crlf", "lf", "native"])
def test_a_clone_has_the_same_bytes_whatever_git_is_told(autocrlf, eol, tmp_path):
    """Shells need LF, and digests of policies are in records."""
    git = ["git", "-c", f"core.autocrlf={autocrlf}", "-c", f"core.eol={eol}"]
    words = ["checkout-index", "--prefix", f"{tmp_path}/", ".ci/run", "Makefile", "README.md"]
    words += ["data/policies/searched.json", "data/paper/srip.csv", "micronet_lib/errors.py"]
    done = subprocess.run([*git, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 6
    assert [path for path in written if b"\r" in path.read_bytes()] == []
    assert (tmp_path / ".ci" / "run").stat().st_mode & 0o100
