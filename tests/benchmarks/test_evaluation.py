"""Rating a network on one thread: the plain eager loop, the library's, and OpenVINO.

The baseline is how such code is usually written: NCHW tensors, batch norm as a layer of its own,
HardSwish in four operations, 100 images a batch.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from plain_step import plain
from published_data import IMAGES, require
from ratios import KEPT, compare
from small_networks import single_thread
from torch import Tensor, nn

from micronet_lib.architecture import build
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.lab.host.places import data_root
from micronet_lib.lab.storage.exchange import OpenVino, onnx_bytes
from micronet_lib.lab.storage.published import load_published
from micronet_lib.lab.training.evaluation import evaluate_openvino, logits_of

TARGET = 5
PUBLISHED = ("micronet_v1_pr_60", "micronet_v2_pr_60")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


@torch.no_grad()
def plain_logits(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(normalize(batch)) for batch in images.split(100)])


def test_evaluation() -> None:
    pytest.importorskip("openvino", reason="the extra `runtime` is not installed")
    torch.manual_seed(0)
    model = build("micronet_v1_released").eval()
    nn.init.normal_(model.classifier.weight)  # so that no two logits are nearly equal
    test = load_split("embedded", "test").first(500)
    images = test.images
    baseline, exchanged = plain(model), OpenVino(onnx_bytes(model), Path("net.onnx"))
    against, library = "eager NCHW, HardSwish in four operations, batch 100", "library: folded"
    ways = {
        against: lambda: plain_logits(baseline, images),
        "channels_last, F.hardswish, batch 25": lambda: logits_of(
            model.to(memory_format=torch.channels_last), images
        ),
        library: lambda: logits_of(fold_batch_norm(model), images),
        "OpenVINO": lambda: evaluate_openvino(exchanged, test),
    }
    rows = {library: "rating a network", "OpenVINO": "rating a network, `--runtime openvino`"}
    medians = compare(ways, len(images), "images", rows=rows)
    expected = plain_logits(baseline, images).argmax(1)
    assert torch.equal(logits_of(fold_batch_norm(model), images).argmax(1), expected)
    assert medians[against] > TARGET * medians["OpenVINO"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_openvino_predicts_what_the_eager_network_predicts(name: str) -> None:
    pytest.importorskip("openvino", reason="the extra `runtime` is not installed")
    checkpoint = data_root() / "kaist" / f"{name}.t7"
    require(IMAGES, checkpoint)
    test, model = load_split("cifar100", "test"), load_published(checkpoint)
    exchanged = OpenVino(onnx_bytes(model), Path("net.onnx"))
    same = correct = 0
    for images, targets in zip(test.images.split(25), test.targets.split(25), strict=True):
        with torch.no_grad():
            eager = model(normalize(images)).argmax(1)
        found = exchanged(normalize(images)).argmax(1)
        same += int((found == eager).sum())
        correct += int((found == targets).sum())
    print(f"\n  {name}: {same} of {len(test.targets)} predictions equal, {correct} right")
    row = {"network": name, "images": len(test.targets), "same": same, "correct": correct}
    KEPT["predictions"].append(row)
    assert same == len(test.targets)
