"""What a record keeps of the weights equals what the methods compute from them."""

import json
import math

import pytest
import torch
from micronet_lib.lab.running.inspection import INSPECTIONS
from small_networks import network

from micronet_lib.label_smoothing import class_similarity
from micronet_lib.srip.penalty import exact_deviation, srip_weights


def test_class_similarity_is_the_classifiers():
    model = network("c_efficientnet_1.0")
    metrics, matrix = INSPECTIONS["class_similarity"](model)
    expected = class_similarity(model.head.classifier.weight.detach())
    torch.testing.assert_close(torch.tensor(matrix), expected, atol=6e-6, rtol=0)
    others = expected[~torch.eye(100, dtype=torch.bool)]
    assert metrics["similarity_max"] == others.max().item() < 1
    assert metrics["similarity_mean"] == pytest.approx(others.mean().item())


def test_spectra_are_of_every_matrix():
    model = network("c_efficientnet_1.0")
    metrics, values = INSPECTIONS["spectrum"](model)
    matrices = {name for name, weight in model.named_parameters() if weight.ndim > 1}
    assert {f"{name}.weight" for name in values} == matrices
    weight = model.blocks[0].conv_expand.weight.detach().flatten(1)
    largest = torch.linalg.matrix_norm(weight, 2).item()
    assert values["blocks.0.conv_expand"][0] == pytest.approx(largest, abs=1e-5)
    exact = [
        exact_deviation(w.detach(), "paper") for w in srip_weights(model, "pointwise").values()
    ]
    assert metrics["srip_penalty_paper"] == pytest.approx(torch.stack(exact).mean().item())


@pytest.mark.parametrize("name", INSPECTIONS)
def test_everything_is_plain_json_and_finite(name):
    metrics, array = INSPECTIONS[name](network("c_efficientnet_1.0"))
    assert all(map(math.isfinite, metrics.values()))
    assert json.loads(json.dumps(array, allow_nan=False)) == array
