"""What a record holds of the weights equals what the methods compute."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from published_format import pruned_network
from small_networks import network

from micronet_lib.lab.running.measures import MEASURES
from micronet_lib.label_smoothing import class_similarity
from micronet_lib.scoring.bill import score_network
from micronet_lib.srip.penalty import exact_deviation, srip_weights

NOTHING = SimpleNamespace()  # of a case that a measure does not look at


def test_class_similarity_is_the_classifiers():
    model = network("c_efficientnet_1.0")
    found = MEASURES["class_similarity"].of(NOTHING, model, False)
    expected = class_similarity(model.classifier.weight.detach())
    matrix = torch.tensor(found.arrays["class_similarity"])
    torch.testing.assert_close(matrix, expected, atol=6e-6, rtol=0)
    others = expected[~torch.eye(100, dtype=torch.bool)]
    assert found.metrics["similarity_max"] == others.max().item() < 1
    assert found.metrics["similarity_mean"] == pytest.approx(others.mean().item())


def test_spectra_are_of_every_matrix():
    model = network("c_efficientnet_1.0")
    found = MEASURES["spectrum"].of(NOTHING, model, False)
    values = found.arrays["spectrum"]
    matrices = {name for name, weight in model.named_parameters() if weight.ndim > 1}
    assert {f"{name}.weight" for name in values} == matrices
    weight = model.blocks[0].conv_expand.weight.detach().flatten(1)
    largest = torch.linalg.matrix_norm(weight, 2).item()
    assert values["blocks.0.conv_expand"][0] == pytest.approx(largest, abs=1e-5)
    exact = [
        exact_deviation(w.detach(), "paper") for w in srip_weights(model, "pointwise").values()
    ]
    assert found.metrics["srip_penalty_paper"] == pytest.approx(torch.stack(exact).mean().item())


def test_sparsity_and_bill_are_the_networks():
    model = pruned_network("c_efficientnet_1.0_released", 0.6)
    assert MEASURES["sparsity"].of(NOTHING, model, False).metrics["sparsity"] == pytest.approx(
        0.6, abs=0.01
    )
    layers = MEASURES["bill"].of(NOTHING, model, False).layers
    stored = sum(line["count"] for line in layers if line["quantity"] == "param")
    assert stored == score_network(model).num_params


@pytest.mark.parametrize("name", ["class_similarity", "spectrum", "sparsity", "bill"])
def test_everything_is_plain_json_and_finite(name):
    found = MEASURES[name].of(NOTHING, network("c_efficientnet_1.0"), False)
    assert all(map(math.isfinite, found.metrics.values()))
    for part in (found.arrays, found.layers):
        assert json.loads(json.dumps(part, allow_nan=False)) == part
