"""Bad input through the command line: one clear line, an exit status, and no trace left behind.

Most cases run `main` in this process, because importing torch anew costs seconds. What only a
process of its own can show runs in one: that no library adds a word to stderr, and that folders
without write permission are met as a user meets them (root is stripped of its override first).
"""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pooch import HTTPDownloader
from published_format import pruned_network, published_state, save
from requests.exceptions import ConnectionError
from torch import Tensor
from torchvision.datasets import CIFAR100
from torchvision.models import mobilenet_v3_small

from micronet_lib.__main__ import main
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
        return sorted(
            (str(path.relative_to(self.folder)), path.stat().st_mtime_ns if path.is_file() else 0)
            for path in self.folder.rglob("*")
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


@pytest.fixture(scope="module")
def whole_files(network, tmp_path_factory) -> dict[str, bytes]:
    """A sound checkpoint in both formats."""
    path = tmp_path_factory.mktemp("whole") / "network.t7"
    return {
        kind: save(published_state(network), path, as_zip=kind == "zip").read_bytes()
        for kind in ("zip", "legacy")
    }


# ------------------------------------------------------------------------------------- names


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
    "measure published --profile full": ("kaist/micronet_v1_pr_60.t7", FETCH_KAIST),
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
    "data fetch mnist": ("'mnist'", "cifar100, kaist, policies"),
    "promote nothing.json": ("nothing.json",),
    "data picture sheet": ("sheet", ".png"),
    "data picture nowhere/sheet.png": ("nowhere/sheet.png", ".png"),
}


@pytest.mark.parametrize("argv", WRONG_WORDS)
def test_every_wrong_name_is_answered_with_the_right_ones(place, argv):
    message = place.refusal(*argv.split())
    assert all(word in message for word in WRONG_WORDS[argv]), message


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ("", "required: VERB"),
        ("train", "invalid choice: 'train'"),
        ("data", "required: VERB"),
        ("score", "one of the arguments --checkpoint --model --network is required"),
        ("evaluate", "required: --checkpoint"),
        ("measure expand_ratio", "required: --profile"),
        ("measure expand_ratio --profile smoke --seed one", "invalid int value: 'one'"),
        ("score --model micronet_v1 --colour red", "unrecognized arguments: --colour red"),
    ],
)
def test_a_wrong_command_is_answered_in_one_line_too(place, argv, names):
    message = place.refusal(*argv.split())
    assert names in message
    assert "--help` lists what there is" in message


# ------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("verb", ["score", "evaluate"])
def test_checkpoint_that_is_not_there(place, verb):
    message = place.refusal(verb, "--checkpoint", "nowhere.t7")
    assert "nowhere.t7" in message
    assert FETCH_KAIST in message


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize(
    "cut", [slice(0), slice(1), slice(100), slice(20_000), slice(-1)], ids=lambda cut: str(cut.stop)
)
def test_truncated_checkpoint(place, whole_files, kind, cut):
    path = place.folder / "home" / "cut.t7"
    path.write_bytes(whole_files[kind][cut])
    message = place.refusal("score", "--checkpoint", path)
    assert message.startswith(f"{path} is ")
    assert FETCH_KAIST in message


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("readme.txt", "weights to follow")
    return file.getvalue()


NO_CHECKPOINTS = {
    "web page": b"<html><title>404 not found</title></html>",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "plain pickle": pickle.dumps({"linear.weight": [1.0]}),
    "old pickle": pickle.dumps([1, 2, 3], protocol=0),
    "archive": archive(),
}


@pytest.mark.parametrize("content", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_file_that_is_no_checkpoint(place, content):
    path = place.folder / "home" / "network.t7"
    path.write_bytes(content)
    message = place.refusal("score", "--checkpoint", path)
    assert str(path) in message
    assert FETCH_KAIST in message


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
}


@pytest.mark.parametrize(("alter", "names"), OTHER_NETWORKS.values(), ids=OTHER_NETWORKS)
def test_checkpoint_of_another_network(place, state, alter, names):
    path = save(alter(state), place.folder / "home" / "other.t7")
    message = place.refusal("score", "--checkpoint", path)
    assert message.startswith(str(path))
    assert all(name in message for name in names), message


class Plant:
    """Unpickled without care, it makes a file: what a malicious checkpoint would do worse."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


class Custom:
    """An object of a class of one's own, harmless but only loadable by running code."""


def as_torch_file(content: object, path: Path, as_zip: bool) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)


def as_pickle(content: object, path: Path, as_zip: bool) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    ("write", "as_zip"),
    [(as_torch_file, True), (as_torch_file, False), (as_pickle, False)],
    ids=["zip", "legacy", "pickle"],
)
@pytest.mark.parametrize("hidden", [False, True], ids=["bare", "among tensors"])
def test_malicious_checkpoint_is_not_run(place, state, write, as_zip, hidden):
    marker, path = place.folder / "planted", place.folder / "home" / "trap.t7"
    plant = Plant(marker)
    write({**state, "linear.bias": plant} if hidden else plant, path, as_zip)
    message = place.refusal("evaluate", "--checkpoint", path)
    assert not marker.exists()
    assert message.startswith(str(path))
    assert FETCH_KAIST in message
    # The trap is a real one: the unrestricted reader walks into it.
    if write is as_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_object_of_a_class_of_ones_own_is_refused(place, state, as_zip):
    path = save({"net": state, "config": Custom()}, place.folder / "own.t7", as_zip=as_zip)
    assert str(path) in place.refusal("score", "--checkpoint", path)


def test_not_a_number_in_the_weights(place, state):
    state["layers.5.conv3.weight"][0, 0] = torch.nan
    path = save(state, place.folder / "home" / "nan.t7")
    message = place.refusal("evaluate", "--checkpoint", path, "--dataset", "embedded")
    assert message.startswith(f"{path}: blocks.5.conv_project.weight")
    assert FETCH_KAIST in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("bn1.weight", 3e38, id="overflow"),
        pytest.param("bn1.running_var", -1.0, id="root of a negative variance"),
    ],
)
def test_not_a_number_in_the_logits(place, state, key, value):
    state[key] = torch.full_like(state[key], value)
    path = save(state, place.folder / "home" / "huge.t7")
    message = place.refusal("evaluate", "--checkpoint", path, "--dataset", "embedded")
    assert "NaN or infinite" in message


# -------------------------------------------------------------------------------------- data


@pytest.fixture
def sound_checkpoint(place, state) -> Path:
    return save(state, place.folder / "home" / "sound.t7")


def test_cifar_that_is_not_there(place, sound_checkpoint):
    message = place.refusal("evaluate", "--checkpoint", sound_checkpoint)
    folder = place.folder / "data" / CIFAR100.base_folder
    assert str(folder) in message
    assert "data fetch cifar100" in message


@pytest.fixture
def cifar(place, monkeypatch) -> Path:
    """A sound folder in the published format with one image, its digests the expected ones."""
    folder = place.folder / "data" / CIFAR100.base_folder
    folder.mkdir()

    def write(name: str, content: dict[str, object]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    image = np.zeros((1, 3072), np.uint8)
    test = write("test", {"data": image, "fine_labels": [0], "coarse_labels": [0]})
    monkeypatch.setattr(CIFAR100, "test_list", [["test", test]])
    names = {"fine_label_names": ["apple"], "coarse_label_names": ["fruit"]}
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": write("meta", names)})
    return folder


@pytest.mark.parametrize("name", ["test", "meta"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(None, "is missing", id="missing"),
        pytest.param(lambda whole: whole[:-1], "is cut short or not the", id="truncated"),
        pytest.param(lambda whole: b"", "is cut short or not the published file (0 ", id="empty"),
        pytest.param(lambda whole: bytes(len(whole)), "is cut short or not the", id="wrong"),
    ],
)
def test_damaged_cifar(place, sound_checkpoint, cifar, name, damage, says):
    path = cifar / name
    whole = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(whole))
    message = place.refusal("evaluate", "--checkpoint", sound_checkpoint)
    assert message.startswith(f"{path} {says}")
    assert "data fetch cifar100" in message


def test_fetch_where_nothing_answers(place, monkeypatch):
    def no_answer(self, url, output_file, pooch):
        raise ConnectionError

    monkeypatch.setattr(downloads, "RETRIES", 0)
    monkeypatch.setattr(HTTPDownloader, "__call__", no_answer)
    message = place.refusal("data", "fetch")
    assert str(place.folder / "data" / "cifar-100-python.tar.gz") in message
    assert all(asset.path in message for asset in downloads.ASSETS)


def test_unknown_data_set(place, sound_checkpoint):
    message = place.refusal("evaluate", "--checkpoint", sound_checkpoint, "--dataset", "mnist")
    assert all(name in message for name in ("'mnist'", *DATA_SETS))


def test_a_sweep_that_meets_a_fault_leaves_no_record(place, whole_files):
    """The checkpoint is sound, the images are not: nothing is written for any point."""
    for folder in ("kaist", CIFAR100.base_folder):
        (place.folder / "data" / folder).mkdir()
    kaist = place.folder / "data" / "kaist"
    (kaist / "micronet_v1_pr_60.t7").write_bytes(whole_files["legacy"])
    test = place.folder / "data" / CIFAR100.base_folder / "test"
    test.write_bytes(b"cut")
    message = place.refusal("measure", "published", "--profile", "full")
    assert message.startswith(f"{test} is cut short")


def test_a_sweep_that_meets_a_damaged_checkpoint_leaves_no_record(place, whole_files):
    kaist = place.folder / "data" / "kaist"
    kaist.mkdir()
    path = kaist / "micronet_v1_pr_60.t7"
    path.write_bytes(whole_files["legacy"][:-1])
    message = place.refusal("measure", "bit_widths", "--profile", "full")
    assert message.startswith(f"{path} is truncated")


# ----------------------------------------------------------------------------------- records


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"sweep": "expand_ra', id="truncated"),
        pytest.param(b"\xff\xfe\x00", id="binary"),
        pytest.param(b"[1, 2]", id="list"),
        pytest.param(b"{}", id="nothing in it"),
        pytest.param(b'{"colour": "red"}', id="another format"),
    ],
)
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

# Root may write anywhere: it gives up that privilege (CAP_DAC_OVERRIDE, number 1) before it
# becomes the command. Elsewhere there is nothing to give up.
UNPRIVILEGED = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
if os.geteuid() == 0 and sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
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


each_folder = pytest.mark.parametrize(
    ("folder", "argv", "remedy"),
    [
        ("runs", "measure expand_ratio --profile smoke --point 1.0", "MICRONET_RUNS"),
        ("data", "data fetch kaist", "MICRONET_DATA"),
    ],
)


@each_folder
def test_read_only_folder(place, read_only, folder, argv, remedy):
    closed = read_only(place.folder / folder)
    before = place.listing()
    ran = unprivileged("-m", "micronet_lib", *argv.split(), "--json")
    assert place.listing() == before
    assert ran.returncode == 2
    message = check_line(ran.stderr, ran.stdout)
    assert str(closed) in message
    assert "Permission denied" in message
    assert remedy in message


@each_folder
def test_file_in_place_of_a_folder(place, folder, argv, remedy):
    taken = place.folder / folder
    taken.rmdir()
    taken.write_text("not a folder")
    message = place.refusal(*argv.split())
    assert str(taken) in message
    assert remedy in message


@pytest.fixture
def promotable(place) -> Path:
    """A record of this machine that was measured from committed code."""
    words = ["measure", "expand_ratio", "--profile", "quick", "--point", "1.0"]
    assert main(words) == 0
    (path,) = (place.folder / "runs").rglob("*.json")
    record = records.read(path)
    env = record.env | {"commit": "abc1234"}
    return records.write(replace(record, env=env), place.folder / "runs")


def test_promoting_into_a_file(place, promotable):
    measured = place.folder / "measured"
    measured.write_text("not a folder")
    with pytest.raises(InputError, match=r"quick/expand_ratio/1\.0-s0\.json"):
        records.promote(promotable, measured)
    assert measured.read_text() == "not a folder"


def test_promoting_into_a_read_only_folder(place, promotable, read_only):
    (place.folder / "measured").mkdir()
    measured = read_only(place.folder / "measured")
    before = place.listing()
    ran = unprivileged(
        "-c",
        "from pathlib import Path; from micronet_lib.lab.records.record import promote\n"
        f"promote(Path({str(promotable)!r}), Path({str(measured)!r}))",
    )
    assert place.listing() == before
    message = ran.stderr.strip().splitlines()[-1]
    assert message.startswith("micronet_lib.errors.InputError: ")
    assert f"under {measured} (Permission denied)" in message


# ------------------------------------------------------------------------ in a process of its own


def test_a_process_says_one_line_and_no_library_adds_to_it(place):
    marker, path = place.folder / "planted", place.folder / "home" / "trap.t7"
    path.write_bytes(pickle.dumps(Plant(marker), protocol=4))  # torch warns of this protocol
    before = place.listing()
    ran = subprocess.run(
        [sys.executable, "-m", "micronet_lib", "evaluate", "--checkpoint", str(path), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert place.listing() == before
    assert ran.returncode == 2
    assert str(path) in check_line(ran.stderr, ran.stdout)
    assert not marker.exists()
