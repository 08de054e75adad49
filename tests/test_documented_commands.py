"""Every command that the README, the guides and the pages name runs, and prints what they show.

They run in the lab of `chapter_cells`: every profile has a tiny budget, and files made there stand
for the downloads. So the words of a command are what is tested, not its numbers. Outside the README
a `measure` only prints its plan.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from chapter_cells import BOOK, chapter_lab

from micronet_lib.__main__ import main
from micronet_lib.lab import records
from micronet_lib.lab.data import downloads
from micronet_lib.lab.data.downloads import published_digests
from micronet_lib.lab.host.places import OWN_NETWORKS
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records import record

ROOT = BOOK.parent
README = ROOT / "README.md"
TEXTS = [
    README,
    *(ROOT / name for name in ("CONTRIBUTING.md", "data/README.md")),
    *sorted(BOOK.glob("*.md")),
    *sorted((BOOK / "src").glob("*.md")),
]
GROUPS = ("cifar100", "kaist", "policies")
# A block of code. One without a language is what a reader may type or see in a terminal.
FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|[ /])(?:micronet|python -m micronet_lib) ([a-z].*)")
# Names that stand for something, as in `micronet recipe SWEEP POINT --profile P`.
HOLDERS = re.compile(r"\b[A-Z]+\b|[\[…]")
ENDS = {"compare": {0, 1}, "check": {0, 1}}  # the made files agree with nobody's
NEEDS = {"search-policies": "optuna", ".onnx": "openvino", "--tensorboard": "tensorboard"}


def blocks(path: Path) -> list[str]:
    """Blocks for a terminal, with a line for each command."""
    found = FENCE.findall(path.read_text(encoding="utf-8"))
    return [text.replace("\\\n", " ") for _, language, text in found if not language]


def commands(path: Path) -> Iterator[str]:
    """The words after `micronet` of each command in blocks and in running text."""
    for line in "".join(blocks(path)).splitlines():
        found = COMMAND.search(line.removeprefix("$ ").partition("#")[0].rstrip())
        if found and not line.startswith("micronet:"):
            yield " ".join(found[1].split())
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for inline in re.findall(r"`micronet ([a-z][^`]* [^`]*)`", text):
        if not HOLDERS.search(inline):
            yield inline


NAMED = {path: list(dict.fromkeys(commands(path))) for path in TEXTS}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that looks like a checkout to a reader: `data/`, `runs/`, our networks."""
    folder = tmp_path_factory.mktemp("checkout")
    before = Path.cwd()
    with chapter_lab(folder, GROUPS), pytest.MonkeyPatch.context() as patch:
        (folder / "data" / "networks").symlink_to(OWN_NETWORKS)
        patch.setattr(downloads, "fetch", partial(downloads.fetch, assets=[]))
        promote = partial(records.promote, root=folder / "measured")
        patch.setattr(record, "promote", promote)
        patch.setattr(record, "in_history", "abc1234".__eq__)
        patch.setattr("time.sleep", stop)
        os.chdir(folder)
        yield folder
        os.chdir(before)


def stop(seconds: float) -> None:
    """What a reader does who has seen enough of `--watch`."""
    raise KeyboardInterrupt


def run(command: str) -> tuple[int, str]:
    """How a command ends, and what it prints."""
    words = shlex.split(command)
    if words[0] == "search-policies":  # its budget is the profile's own
        words = ["smoke" if word == "quick" else word for word in words]
    if words[0] == "measure" and command not in NAMED[README]:
        words = [*(word for word in words if word != "--plan"), "--plan"]
    if words[0] == "promote":
        (pattern,) = words[1:]
        words = ["promote", *map(str, promotable(pattern)), "--replace"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as ended:  # argparse ends the program after --help
            status = int(ended.code or 0)
    return status, out.getvalue() + err.getvalue()


def promotable(pattern: str) -> list[Path]:
    """Records that could be promoted whatever the state of the code, and the files, under test."""
    paths = sorted(Path().glob(pattern))
    for path in paths:
        made = records.read(path)
        inputs = {name: published_digests()[name] for name in made.env["inputs"]}
        env = made.env | {"commit": "abc1234", "inputs": inputs}
        records.write(replace(made, env=env), Path("runs"))
    return paths


def prepare(command: str) -> None:
    """Do what a reader has done before: measured a point, exported a network."""
    words = shlex.split(command)
    if words[0] == "promote":
        _, profile, sweep, _ = words[1].split("/")
        assert main(["measure", sweep, "--profile", profile, "--point", "v1_pr_60"]) == 0
    if words[0] == "curves":
        sweep = words[1] if words[1] in SWEEPS else "stages"
        point = SWEEPS[sweep].points()[0].name
        assert main(["measure", sweep, "--profile", "quick", "--point", point]) == 0
    if words[0] == "export":
        point = words[words.index("--point") + 1]
        profile = words[words.index("--profile") + 1]
        assert main(["measure", words[1], "--profile", profile, "--point", point]) == 0
    for word in words:
        if word.startswith("net.") and words[0] != "export" and not Path(word).exists():
            (export,) = (each for each in NAMED[README] if "export" in each and word in each)
            prepare(export)
            assert run(export)[0] == 0


def test_the_texts_name_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    verbs = set(re.findall(r"^    ([a-z-]+) ", capsys.readouterr().out, re.MULTILINE))
    named = {command.partition(" ")[0] for found in NAMED.values() for command in found}
    assert verbs - {"agenda"} <= named  # which `make day` runs


def test_a_command_is_found_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "text.md"
    path.write_text(
        "As `micronet list` and `micronet data check`, not `micronet recipe SWEEP POINT`.\n"
        "```\n$ .venv/bin/micronet score --model a \\\n    --layers   # a bill\nmicronet: no\n"
        "A=b python -m micronet_lib measure a --profile b\n```\n"
    )
    expected = ["score --model a --layers", "measure a --profile b", "data check"]
    assert list(commands(path)) == expected


@pytest.mark.parametrize(
    ("path", "command"),
    [
        pytest.param(path, command, id=f"{path.stem}: {command}")
        for path, found in sorted(NAMED.items(), key=lambda item: TEXTS.index(item[0]))
        for command in found
    ],
)
def test_a_named_command_runs(path: Path, command: str, place: Path) -> None:
    for part, package in NEEDS.items():
        if part in command:
            pytest.importorskip(package)
    prepare(command)
    status, printed = run(command)
    shown = [block for block in blocks(path) if block.startswith("$ ") and command in tidy(block)]
    refused = shown and "\nmicronet: " in shown[0]
    expected = {2} if refused else {130} if "--watch" in command else {0}
    for word, ends in ENDS.items():
        expected = ends if word in command.split() else expected
    assert status in expected, printed
    for block in shown:
        told = block.partition("\n")[2]
        if "--checkpoint" in command:  # numbers of the published file
            assert first_words(printed) == first_words(told)
        else:
            assert printed == told


def tidy(block: str) -> str:
    return " ".join(block.split())


def first_words(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()]


# ------------------------------------------------------------------------------- make and pip


def test_every_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    unknown = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        lines = [line for block in blocks(path) for line in block.splitlines()]
        lines += re.findall(r"`(make [^`]+)`", FENCE.sub("", text))
        for line in lines:
            words = re.match(r"make ([a-z-]+)(.*?)(?:  |#|$)", line)
            if words is None:
                continue
            chapter = re.search(r"CH=(\w+)", words[2])
            if words[1] not in targets or (chapter and not (BOOK / f"{chapter[1]}.ipynb").exists()):
                unknown.append(f"{path.name}: {line}")
    assert unknown == []


def test_the_readmes_make_commands_are_understood() -> None:
    named = [
        shlex.split(line)[1:]
        for block in blocks(README)
        for line in block.splitlines()
        if line.startswith("make ")
    ]
    assert ["book"] in named
    for words in named:
        done = subprocess.run(
            ["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_an_extra_that_is_named_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "".join(path.read_text(encoding="utf-8") for path in TEXTS)
    named = set(re.findall(r"-e '?\.\[([a-z,]+)\]", text))
    assert named
    assert {extra for each in named for extra in each.split(",")} <= {
        *project["optional-dependencies"]
    }
