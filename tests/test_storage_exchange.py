"""A network leaves as an ONNX file, and OpenVINO predicts from it what we predict."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from small_networks import scrambled, single_thread
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.__main__ import main
from micronet_lib.architecture import build
from micronet_lib.architecture.micronet import Architecture, MicroNet, Stage
from micronet_lib.errors import InputError, NotFiniteError
from micronet_lib.lab.data.images import MEAN, STD, load_split, normalize
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.storage.exchange import OpenVino, load_onnx, onnx_bytes
from micronet_lib.lab.storage.networks import export_network, load_network
from micronet_lib.lab.training.evaluation import evaluate, evaluate_openvino

RECIPE = SWEEPS["stages"].point("3.0-cutmix").recipe
TINY = Architecture("tiny", (Stage(12, 1), Stage(16, 2, 2)), 2.0, stem_chs=8)
IMAGES = load_split("embedded", "test").first(101)
"""One image is left over after batches of 25."""


@pytest.fixture(scope="module")
def model() -> MicroNet:
    """A network with averages and a classifier that are not those of the start."""
    torch.manual_seed(0)
    model = scrambled(MicroNet(TINY))
    torch.nn.init.normal_(model.classifier.weight)
    return model


@pytest.fixture(scope="module")
def runtime() -> None:
    for package in ("openvino", "onnxscript"):
        pytest.importorskip(package, reason=f"no {package}: the extra `runtime` is not installed")


@pytest.fixture(scope="module")
def content(model, runtime) -> bytes:
    return onnx_bytes(model, seed=3)


def said(capsys, *words: str | Path) -> dict:
    status = main([*map(str, words), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == (2 if "error" in found else 0), found
    return found


# ------------------------------------------------------------------------- there, and rated


def same_predictions(network: OpenVino, model: torch.nn.Module) -> None:
    with torch.no_grad():
        expected = model(normalize(IMAGES.images))
    logits = network(normalize(IMAGES.images))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    best = expected.topk(2).values
    apart = best[:, 0] - best[:, 1] > 1e-3
    assert apart.sum() > 90
    assert torch.equal(logits.argmax(1)[apart], expected.argmax(1)[apart])


def test_the_file_predicts_what_the_network_predicts(model, content):
    for threads in (1, torch.get_num_threads()):
        with single_thread():
            torch.set_num_threads(threads)
            same_predictions(OpenVino(content, Path("a.onnx")), model)


def test_any_number_of_images_gets_its_logits(content):
    network = OpenVino(content, Path("a.onnx"))
    for count in (1, 2, 7):
        pixels = normalize(IMAGES.images[:count])
        assert network(pixels).shape == (count, 100)


def test_a_network_of_another_library_and_precision_is_written(runtime):
    torch.manual_seed(0)
    other = build("torchvision_resnet18").eval()
    same_predictions(OpenVino(onnx_bytes(other), Path("a.onnx")), other)


def test_batch_norm_is_folded_and_dead_gates_are_gone(content):
    openvino = pytest.importorskip("openvino")
    kinds = {node.get_type_name() for node in openvino.Core().read_model(content).get_ops()}
    assert {"Convolution", "HSwish"} <= kinds
    assert not [kind for kind in kinds if "BatchNorm" in kind]


def test_it_is_rated_as_our_own_evaluation_does(model, content):
    ours = evaluate(model, IMAGES)
    theirs = evaluate_openvino(OpenVino(content, Path("a.onnx")), IMAGES)
    assert theirs.num_examples == ours.num_examples == 101
    assert theirs.loss == pytest.approx(ours.loss, rel=1e-4)
    assert theirs.correct == pytest.approx(ours.correct, abs=1)


def test_a_file_says_what_is_known_of_its_network(tmp_path, model, runtime):
    path = tmp_path / "a.onnx"
    expected = export_network(model, path, RECIPE, top1=0.5, score={"score": 0.01})
    found = load_onnx(path).metadata
    assert found == {
        **json.loads(json.dumps(expected)),
        "input": {"mean": list(MEAN), "std": list(STD)},
    }
    assert found["spec"] == json.loads(json.dumps(asdict(model.spec)))
    assert found["recipe_id"] == recipe_id(RECIPE)


def test_the_command_line_exports_and_evaluates(tmp_path, monkeypatch, capsys, runtime):
    monkeypatch.setitem(SWEEPS, "toy", sweep_of(plain=RECIPE))
    path, other = tmp_path / "net.onnx", tmp_path / "net.safetensors"
    words = ("--point", "plain", "--profile", "smoke")
    with tiny_lab(tmp_path):
        exported = said(capsys, "export", "toy", path, *words, "--format", "onnx")
        said(capsys, "export", "toy", other, *words)
        ways = [
            said(capsys, "evaluate", "--dataset", "embedded", "--checkpoint", *more)
            for more in ((path,), (other, "--runtime", "openvino"), (other,))
        ]
    assert load_onnx(path).metadata["official_score"] == exported["official_score"]
    assert [each.get("runtime") for each in ways] == ["openvino", "openvino", None]
    for each in ways:
        assert each["model"] == "c_efficientnet_3.0"
        assert each["loss"] == pytest.approx(ways[2]["loss"], rel=1e-4)


# ------------------------------------------------------------------------- what is refused


class Rounding(MicroNet):
    foldable = False


def test_a_network_that_rounds_is_refused_before_anything_is_written(tmp_path, runtime):
    with pytest.raises(InputError, match=r"a\.onnx: .* rounds .*\.safetensors") as caught:
        export_network(Rounding(TINY), tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class Undecided(MicroNet):
    """A network whose way depends on its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.mean() > 0 else -x)


def test_a_network_without_a_fixed_way_is_refused_in_one_line(runtime, capsys):
    with pytest.raises(InputError, match=r"tiny cannot be written|cannot be written as") as caught:
        onnx_bytes(Undecided(TINY))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_missing_damaged_or_foreign_file_is_refused_in_one_line(tmp_path, capsys, content):
    path = tmp_path / "a.onnx"
    wrong = {
        b"": "damaged or no",
        b"no network": "damaged or no",
        content[:-100]: "damaged or no",
        foreign(): "another library",
    }
    for given, reason in wrong.items():
        path.write_bytes(given)
        error = said(capsys, "evaluate", "--checkpoint", path, "--dataset", "embedded")["error"]
        assert "a.onnx" in error
        assert reason in error
    path.unlink()
    error = said(capsys, "evaluate", "--checkpoint", path)["error"]
    assert "no network at" in error


def foreign() -> bytes:
    helper = pytest.importorskip("onnx.helper")
    kind = pytest.importorskip("onnx").TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, [1, 3, 32, 32]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    return helper.make_model(graph).SerializeToString()


def test_only_openvino_runs_such_a_file(tmp_path, capsys, content):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    for words in (["score", "--checkpoint", path], ["evaluate", "--checkpoint", path, "--runtime"]):
        more = ["torch"] if words[-1] == "--runtime" else []
        assert "micronet evaluate" in said(capsys, *words, *more)["error"]
    with pytest.raises(InputError, match=r"a\.onnx .* OpenVINO"):
        load_network(path)


def test_logits_that_are_not_finite_are_refused(model):
    class Broken:
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 100), torch.nan)

    with pytest.raises(NotFiniteError):
        evaluate_openvino(Broken(), IMAGES)


def test_without_the_extra_one_line_says_what_installs_it(tmp_path, monkeypatch, capsys, model):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    path = tmp_path / "a.onnx"
    other = tmp_path / "a.safetensors"
    export_network(model, other)
    install = "pip install -e '.[runtime]'"
    words = ("export", "stages", path, "--point", "3.0-orn", "--profile", "smoke")
    assert install in said(capsys, *words)["error"]
    path.write_bytes(b"")
    assert install in said(capsys, "evaluate", "--checkpoint", path)["error"]
    ours = ("evaluate", "--checkpoint", other, "--runtime", "openvino", "--dataset", "embedded")
    assert install in said(capsys, *ours)["error"]


def test_a_format_that_the_name_denies_is_refused(tmp_path, capsys):
    path = tmp_path / "a.onnx"
    words = ("export", "stages", path, "--point", "3.0-orn", "--profile", "smoke", "--format")
    assert "choose from safetensors, mnet, onnx" in said(capsys, *words, "t7")["error"]
    assert "end it in .mnet" in said(capsys, *words, "mnet")["error"]
