"""Bad input through the command line: one clear line, an exit status, and no trace left behind.

Most cases run `main` in this process, because importing torch anew costs seconds. What only a
process of its own can show runs in one: that no library adds a word to stderr, and that folders
without write permission are met as a user meets them (root is stripped of its override first).
"""

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from chapter_cells import place as put
from pooch import HTTPDownloader
from published_format import pruned_network, published_state, save
from requests.exceptions import ConnectionError
from torch import Tensor
from torchvision.datasets import CIFAR100
from torchvision.models import mobilenet_v3_small

from micronet_lib.__main__ import _parser, main
from micronet_lib.architecture.micronet import ARCHITECTURES, MicroNet
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.data import downloads
from micronet_lib.lab.data.images import DATA_SETS
from micronet_lib.lab.recipes.profile import PROFILES

ROOT = Path(__file__).resolve().parent.parent
FETCH_KAIST = "`micronet data fetch kaist`"


@dataclass(frozen=True)
class Place:
    """A user's folders, and a way to give commands there that must fail."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def listing(self) -> list[tuple[str, int]]:
        """Every file and folder, and when a file was written, without locks, which stay."""
        paths = set(self.folder.rglob("*"))
        locks = {path for path in paths if path.name == "lock"}
        on_the_way = {folder for lock in locks for folder in lock.parents}
        others = paths - locks - on_the_way | paths & {self.folder / "runs"}
        return sorted(
            (str(path.relative_to(self.folder)), path.stat().st_mtime_ns if path.is_file() else 0)
            for path in others
        )

    def refusal(self, *argv: str | Path) -> str:
        """The one line on stderr. Whatever holds for every refusal is checked here."""
        before = self.listing()
        words = [str(word) for word in argv]
        self.capsys.readouterr()
        status = main(words)
        plain = self.capsys.readouterr()
        as_json_status = main([*words, "--json"])
        as_json = self.capsys.readouterr()
        assert self.listing() == before, "something was left behind"
        assert (status, as_json_status) == (2, 2)
        assert plain.out == ""
        assert as_json.err == plain.err
        return check_line(plain.err, as_json.out)


def check_line(err: str, json_out: str | None = None) -> str:
    """The message of a failed command, from its stderr and, with `--json`, its stdout."""
    assert err.startswith("micronet: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    message = err.removeprefix("micronet: ").strip()
    if json_out is not None:
        assert json.loads(json_out) == {"error": message}
        assert json_out.count("\n") == 1
    return message


@pytest.fixture
def place(tmp_path, monkeypatch, capsys) -> Place:
    for name in ("data", "runs", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path / "home")
    return Place(tmp_path, capsys)


@pytest.fixture(scope="module")
def network() -> MicroNet:
    return pruned_network()


@pytest.fixture
def state(network) -> dict[str, Tensor]:
    return published_state(network)


# ------------------------------------------------------------------------------------- names


SCORE, HELP = "score --network", "--help` lists"
RESNET = f"{SCORE} torchvision.models:resnet18"
# A command, and what the one line has to name: what is wrong, and what would be right.
WRONG_WORDS = {
    "measure width --profile smoke": ("'width'", "expand_ratio, printed_table"),
    "measure expand_ratio --profile huge": ("'huge'", *PROFILES),
    "measure expand_ratio --profile smoke --point 9.9": ("'9.9'", "1.0, 1.5, 2.0"),
    "measure expand_ratio --profile smoke --override training.epochs=2": ("'training'", "train,"),
    "measure expand_ratio --profile smoke --override model": ("'model'", "KEY=VALUE"),
    "measure expand_ratio --profile smoke --override price.weight_bits=eight": ("eight", "int"),
    "measure expand_ratio --profile smoke --override model.name=x": ("'model'",),
    "measure expand_ratio --profile smoke --override model=vgg": ("'vgg'", "micronet_v1"),
    "measure expand_ratio --profile smoke --override checkpoint=mine": (
        "kaist/mine.t7",
        FETCH_KAIST,
    ),
    "measure published --profile smoke": ("'published'", "'smoke'", "full"),
    "measure published --profile full": ("kaist/micronet_v1_pr_60.t7", "fetch kaist cifar100"),
    "list width": ("'width'", "expand_ratio, printed_table"),
    "compare width": ("'width'", "expand_ratio, printed_table"),
    "compare published --profile quick": ("'quick'", "choose from full"),
    "compare --profile smoke": ("'smoke'", "quick, day, full"),
    "compare --profile huge": ("'huge'", *PROFILES),
    "recipe width 1.0 --profile smoke": ("'width'", "expand_ratio, printed_table"),
    "recipe expand_ratio 9.9 --profile smoke": ("'9.9'", "1.0, 1.5, 2.0"),
    "recipe expand_ratio 1.0 --profile huge": ("'huge'", *PROFILES),
    "recipe expand_ratio 1.0 --profile smoke --override lr=1": ("'lr'", "train,"),
    "score --model resnet50": ("'resnet50'", *ARCHITECTURES),
    "score --model micronet_v1 --rules mine": ("'mine'", "first"),
    "score --model micronet_v1 --save air": ("'air'", "dead_gates, dead_channels, sixth"),
    "score --model micronet_v1_released --save dead_channels": ("dead gates", "remove_dead_gates"),
    "score --model micronet_v1 --weight-bits 8 --activation-bits 8": ("'published'", "official"),
    "score --model micronet_v1 --rules official --weight-bits 8": ("together", "32"),
    "score --model micronet_v1 --rules official --accumulator int": ("'int'", "fp32, integer"),
    "export stages net.pt --point 3.0-orn --profile smoke": ("net.pt", ".safetensors"),
    "export stages . --point 3.0-orn --profile smoke": (".safetensors",),
    "data fetch mnist": ("'mnist'", "cifar100, kaist, policies"),
    "data check mnist": ("'mnist'", "cifar100, kaist, policies"),
    "promote nothing.json": ("no record nothing.json", "measure"),
    "data picture sheet": ("sheet", ".png"),
    "data picture nowhere/sheet.png": ("nowhere/sheet.png", ".png"),
    "search-policies --profile huge": ("'huge'", *PROFILES),
    "search-policies --profile smoke --seed -1": ("seed", "-1"),
    "search-policies --profile quick": ("data fetch cifar100",),
    "score --checkpoint nowhere.t7": ("nowhere.t7", FETCH_KAIST),
    "evaluate --checkpoint nowhere.t7": ("nowhere.t7", FETCH_KAIST),
    f"{SCORE} torchvision.models:no_such_network": ("no_such_network",),
    f"{SCORE} no_such_module:network": ("no_such_module",),
    f"{SCORE} torchvision.models": ("torchvision.models",),
    f"{SCORE} collections:OrderedDict": ("OrderedDict",),
    f"{SCORE} torch.nn:GELU": ("gelu",),
    f"{RESNET} --arg num_classes": ("num_classes",),
    f"{RESNET} --arg no_such_argument=1": ("no_such_argument",),
    f"{RESNET} --input 3x": ("3x",),
    f"{RESNET} --input 0x32x32": ("0x32x32",),
    f"{RESNET} --input 1x32x32": ("[1, 1, 32, 32]",),
    f"{RESNET} --rules published": ("relu",),
    f"{RESNET} --save sixth": ("--save",),
    f"{RESNET} --model micronet_v1": ("--model", "--network", HELP),
    "score --model micronet_v1 --arg width_mult=2": ("--arg",),
    "score --model micronet_v1 --input 1x32x32": ("[1, 1, 32, 32]",),
    "": ("VERB", HELP),
    "train": ("'train'", HELP),
    "data": ("VERB", HELP),
    "score": ("--checkpoint", "--model", "--network", HELP),
    "evaluate": ("--checkpoint", HELP),
    "search-policies": ("--profile", HELP),
    "measure expand_ratio": ("--profile", HELP),
    "measure expand_ratio --profile smoke --seed one": ("'one'", HELP),
    "score --model micronet_v1 --colour red": ("--colour red", HELP),
    "measure rounds --point linear-1 --point linear-2 --profile day": ("--point", "'linear-*'"),
    "score --model micronet_v1 --save dead_gates --save sixth": ("--save", "all values after it"),
    "recipe stages 3.0-orn --profile quick --override model=x --override model=y": ("model is",),
    'recipe stages 3.0-orn --profile quick --override train={"epochs":2,"epochs":3}': (
        "'epochs' is given twice",
    ),
    f"{RESNET} --arg num_classes=100 --arg num_classes=10": ("num_classes is given twice",),
}


def test_every_wrong_word_is_answered_with_the_right_ones(place):
    offenders = []
    for argv, names in WRONG_WORDS.items():
        message = place.refusal(*argv.split())
        if not all(name in message for name in names):
            offenders.append((argv, message))
    assert offenders == []


def _verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not below:
        yield parser
    for verb in (verb for each in below for verb in each.choices.values()):
        yield from _verbs(verb)


def test_no_option_silently_takes_the_last_of_two_values(capsys):
    repeated, asked = [], 0
    for verb in _verbs(_parser()):
        for action in verb._actions:
            option = (action.option_strings or [""])[-1]
            if isinstance(action, argparse._AppendAction):
                repeated.append(option)
            elif option and action.nargs != 0:  # else a switch
                words = [*verb.prog.split()[1:], *(option, "1") * 2]
                assert main(words) == 2, words
                assert f"{option} is given twice" in check_line(capsys.readouterr().err)
                asked += 1
    assert asked > 20
    assert set(repeated) == {"--override", "--arg"}


# ------------------------------------------------------------------------------- checkpoints


def test_file_that_is_cut_short_or_no_checkpoint(place, state):
    path, archive = place.folder / "home" / "network.t7", io.BytesIO()
    whole = [save(state, path, as_zip=kind).read_bytes() for kind in (True, False)]
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("readme.txt", "weights to follow")
    contents = [
        *(content[:stop] for content in whole for stop in (0, 1, 100, 20_000, -1)),
        b"<html><title>404 not found</title></html>",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        pickle.dumps({"linear.weight": [1.0]}),
        pickle.dumps([1, 2, 3], protocol=0),
        archive.getvalue(),
    ]
    for content in contents:
        path.write_bytes(content)
        message = place.refusal("score", "--checkpoint", path)
        assert str(path) in message, content[:20]
        assert FETCH_KAIST in message, content[:20]


class Custom:
    """An object of a class of one's own, harmless but only loadable by running code."""


# What is done to a state, and what the one line has to name.
OTHER_NETWORKS = {
    "torchvision's": (
        lambda state: mobilenet_v3_small().state_dict(),
        ("features.0.0.weight",),
    ),
    "wrong shape": (
        lambda state: state | {"layers.3.conv2.weight": torch.ones(48, 1, 5, 5)},
        ("micronet_v1_released", "blocks.3.conv_dw.weight", "(48, 1, 5, 5)", "(96, 1, 3, 3)"),
    ),
    "missing tensor": (
        lambda state: {k: v for k, v in state.items() if k != "linear.bias"},
        ("head.classifier.bias", "absent", "(100,)"),
    ),
    "extra tensor": (
        lambda state: state | {"layers.16.conv1.weight": torch.ones(8, 4, 1, 1)},
        ("blocks.16.conv_expand.weight", "(8, 4, 1, 1)", "absent"),
    ),
    "unknown name": (lambda state: state | {"teacher.weight": torch.ones(1)}, ("teacher.weight",)),
    "two networks": (
        lambda state: {"student": state, "teacher": state},
        ("student, teacher",),
    ),
    "no network": (lambda state: {"epoch": 3, "loss": [1.0]}, (FETCH_KAIST,)),
    "a class of one's own": (lambda state: {"net": state, "config": Custom()}, ()),
    "not a number": (
        lambda state: state | {"linear.bias": torch.full((100,), torch.nan)},
        ("head.classifier.bias", FETCH_KAIST),
    ),
}


def test_checkpoint_of_another_network(place, state):
    for what, (alter, names) in OTHER_NETWORKS.items():
        path = save(alter(state), place.folder / "home" / "other.t7")
        message = place.refusal("score", "--checkpoint", path)
        assert message.startswith(str(path)), what
        assert all(name in message for name in names), message


class Plant:
    """Unpickled without care, it makes a file: what a malicious checkpoint would do worse."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("hidden", [False, True], ids=["bare", "among tensors"])
def test_malicious_checkpoint_is_not_run(place, state, kind, hidden):
    marker, path = place.folder / "planted", place.folder / "home" / "trap.t7"
    plant = Plant(marker)
    content = {**state, "linear.bias": plant} if hidden else plant
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        save(content, path, as_zip=kind == "zip")
    message = place.refusal("evaluate", "--checkpoint", path)
    assert not marker.exists()
    assert message.startswith(str(path))
    # A plain pickle is no checkpoint at all; in a checkpoint what it asks for is named.
    assert (FETCH_KAIST if kind == "pickle" else "nothing of it was executed") in message
    # The trap is a real one: the unrestricted reader walks into it.
    if kind == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize(("key", "value"), [("bn1.weight", 3e38), ("bn1.running_var", -1.0)])
def test_not_a_number_in_the_logits(place, state, key, value):
    """By an overflow, or by the root of a negative variance."""
    state[key] = torch.full_like(state[key], value)
    path = save(state, place.folder / "home" / "huge.t7")
    message = place.refusal("evaluate", "--checkpoint", path, "--dataset", "embedded")
    assert "NaN or infinite" in message


# -------------------------------------------------------------------------------------- data


def test_unknown_or_missing_data_sets(place, state):
    """`test_data_images` tells what can be wrong with one that is there."""
    evaluate = ("evaluate", "--checkpoint", save(state, place.folder / "home" / "sound.t7"))
    message = place.refusal(*evaluate, "--dataset", "mnist")
    assert all(name in message for name in ("'mnist'", *DATA_SETS))
    folder = place.folder / "data" / CIFAR100.base_folder
    for says in (str(folder), str(folder / "test")):  # the folder, then a file in it
        message = place.refusal(*evaluate)
        assert says in message
        assert "data fetch cifar100" in message
        folder.mkdir(exist_ok=True)


def test_fetch_where_nothing_answers(place, monkeypatch):
    def no_answer(self, url, output_file, pooch):
        raise ConnectionError

    monkeypatch.setattr(downloads, "RETRIES", 0)
    monkeypatch.setattr(HTTPDownloader, "__call__", no_answer)
    message = place.refusal("data", "fetch")
    assert str(place.folder / "data" / "cifar-100-python.tar.gz") in message
    assert all(asset.path in message for asset in downloads.ASSETS)


def test_a_sweep_that_meets_a_fault_leaves_no_record(place, state):
    """First the checkpoint is cut short, then the images are: nothing is written."""
    checkpoint = place.folder / "data" / "kaist" / "micronet_v1_pr_60.t7"
    test = place.folder / "data" / CIFAR100.base_folder / "test"
    for path in (checkpoint, test):
        path.parent.mkdir()
    whole = save(state, checkpoint, as_zip=False).read_bytes()
    checkpoint.write_bytes(whole[:-1])
    message = place.refusal("measure", "bit_widths", "--profile", "full")
    assert message.startswith(f"{checkpoint} is truncated")
    checkpoint.write_bytes(whole)
    test.write_bytes(b"cut")
    message = place.refusal("measure", "published", "--profile", "full")
    assert message.startswith(f"{test} is cut short")


# ----------------------------------------------------------------------------------- records


@pytest.mark.parametrize("content", [b'{"sweep": "expand_ra', b"\xff\xfe\x00"])
def test_damaged_record(place, content):
    path = place.folder / "runs" / "smoke" / "expand_ratio" / "1.0-s0.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    message = place.refusal("promote", str(path))
    assert message.startswith(str(path))
    assert main(["measure", "expand_ratio", "--profile", "smoke", "--point", "1.0"]) == 0
    assert str(path) in check_line(place.capsys.readouterr().err)
    assert records.read(path).point == "1.0"
    assert path.with_name(f"{path.name}.damaged").read_bytes() == content


# --------------------------------------------------------------------------- read-only folders

# Root may read and write anywhere: it gives up these privileges before it becomes the command.
# Elsewhere there is nothing to give up.
UNPRIVILEGED = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
if os.geteuid() == 0 and sys.platform == "linux":
    for privilege in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, privilege, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def unprivileged(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, *map(str, argv)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def read_only(place):
    """A function that takes the right to write from a folder, until the test is over."""
    closed: list[Path] = []

    def close(folder: Path) -> Path:
        folder.chmod(0o555)
        closed.append(folder)
        probe = unprivileged("-c", f"open({str(folder / 'probe')!r}, 'w')")
        if probe.returncode == 0:
            (folder / "probe").unlink()
            pytest.skip("this user may write anywhere and cannot give that up")
        return folder

    yield close
    for folder in closed:
        folder.chmod(0o755)


WRITING = {
    "runs": ("measure expand_ratio --profile smoke --point 1.0", "MICRONET_RUNS"),
    "data": ("data fetch kaist", "MICRONET_DATA"),
}


@pytest.mark.parametrize("folder", WRITING)
def test_read_only_folder(place, read_only, folder):
    argv, remedy = WRITING[folder]
    closed = read_only(place.folder / folder)
    before = place.listing()
    ran = unprivileged("-m", "micronet_lib", *argv.split(), "--json")
    assert place.listing() == before
    assert ran.returncode == 2
    message = check_line(ran.stderr, ran.stdout)
    assert all(part in message for part in (str(closed), "Permission denied", remedy))


# What a user may not touch, its mode, and the sweep and profile that need it.
CLOSED = {
    "runs": (0o555, "stages/3.0-cutmix", "smoke"),
    "runs/smoke": (0o555, "stages/3.0-cutmix", "smoke"),
    "runs/smoke/stages": (0o555, "stages/3.0-cutmix", "smoke"),
    "runs/smoke/networks": (0o000, "stages/3.0-cutmix", "smoke"),
    "runs/full/published": (0o555, "published/v1_pr_60", "full"),
    "data": (0o000, "stages/3.0-cutmix", "quick"),
    "data/kaist": (0o600, "published/v1_pr_60", "full"),
    "data/kaist/micronet_v1_pr_60.t7": (0o000, "published/v1_pr_60", "full"),
    "data/cifar-100-python/train": (0o000, "stages/3.0-cutmix", "quick"),
    "data/cifar-100-python/test": (0o000, "published/v1_pr_60", "full"),
    "data/policies": (0o600, "stages/3.0-cutmix", "quick"),
}
# As a chapter's setup cell and as a command. One process, because each takes seconds to begin.
TRY_EACH = """
import contextlib, io, json, sys
from pathlib import Path
from micronet_lib.__main__ import _parser, main
from micronet_lib.errors import InputError
from micronet_lib.lab import running

said = {}
for name, (mode, asked, profile) in json.loads(sys.argv[1]).items():
    path, (sweep, point) = Path(name), asked.split("/")
    if not path.exists():
        path.mkdir(parents=True)  # where runs go
    usual = path.stat().st_mode
    path.chmod(mode)
    err, lines = io.StringIO(), []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            running.begin(profile, records=[asked])
        except InputError as error:
            lines.append(str(error))
        if main(["measure", sweep, "--point", point, "--profile", profile, "--json"]) == 2:
            lines.append(err.getvalue())
    path.chmod(usual)
    said[name] = lines
print(json.dumps(said))
"""


def test_what_a_user_may_not_touch_is_named_before_anything_runs(place, read_only):
    put(place.folder / "data", ["cifar100", "kaist", "policies"])
    read_only(place.folder / "home")  # or skip
    closed = {str(place.folder / name): needed for name, needed in CLOSED.items()}
    ran = unprivileged("-c", TRY_EACH, json.dumps(closed))
    assert "Traceback" not in ran.stderr
    for path, lines in json.loads(ran.stdout).items():
        assert len(lines) == 2, path
        for line in lines:
            assert line.strip().count("\n") == 0, line
            assert path in line
            assert "Permission denied" in line, line
    assert not [path for path in (place.folder / "runs").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "argv",
    ["measure expand_ratio --profile smoke", "list", "data fetch", "promote a.json", "compare"],
)
@pytest.mark.parametrize("below", ["", "book", "runs/smoke"])
def test_another_checkouts_command_is_refused(place, monkeypatch, argv, below):
    """A copied environment runs the library of the place where it was made, and writes there."""
    copy = place.folder / "home" / "a copy"
    (copy / "micronet_lib").mkdir(parents=True)
    (copy / "micronet_lib" / "__init__.py").touch()
    (copy / below).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(copy / below)
    message = place.refusal(*argv.split())
    assert str(ROOT) in message
    assert f"`make setup` in {copy}" in message


def test_file_in_place_of_a_folder(place):
    for folder, (argv, remedy) in WRITING.items():
        taken = place.folder / folder
        taken.rmdir()
        taken.write_text("not a folder")
        message = place.refusal(*argv.split())
        assert str(taken) in message
        assert remedy in message


@pytest.mark.parametrize(
    "argv",
    [
        "export stages {} --point 3.0-orn --profile smoke",
        "search-policies --profile smoke --output {}",
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(place, argv):
    (place.folder / "home" / "taken").write_text("not a folder")
    (place.folder / "home" / "folder.safetensors").mkdir()
    for name in ("taken/net.safetensors", "taken/a/b.safetensors", "folder.safetensors"):
        assert name.split("/")[0] in place.refusal(*argv.format(name).split())


def test_promoting_into_a_file(place):
    assert main(["measure", "expand_ratio", "--profile", "quick", "--point", "1.0"]) == 0
    (path,) = (place.folder / "runs").rglob("*.json")
    measured_here = records.read(path)
    env = measured_here.env | {"commit": "abc1234"}
    records.write(replace(measured_here, env=env), place.folder / "runs")
    measured = place.folder / "measured"
    measured.write_text("not a folder")
    with pytest.raises(InputError, match=r"quick/expand_ratio/1\.0-s0\.json"):
        records.promote([path], measured)
    assert measured.read_text() == "not a folder"


# ------------------------------------------------------------------------ in a process of its own


def test_a_process_says_one_line_and_no_library_adds_to_it(place):
    marker, path = place.folder / "planted", place.folder / "home" / "trap.t7"
    path.write_bytes(pickle.dumps(Plant(marker), protocol=4))  # torch warns of this protocol
    before = place.listing()
    ran = unprivileged("-m", "micronet_lib", "evaluate", "--checkpoint", path, "--json")
    assert place.listing() == before
    assert ran.returncode == 2
    assert str(path) in check_line(ran.stderr, ran.stdout)
    assert not marker.exists()
