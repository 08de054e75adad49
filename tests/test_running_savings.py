"""The proof that a saving is free: what a record says of it, and that it finds a careless one."""

import pytest
import torch
from published_format import pruned_network, published_state, save

from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running import measure as experiments
from micronet_lib.lab.running import savings
from micronet_lib.lab.running.measure import measure
from micronet_lib.scoring.bill import score_network
from micronet_lib.scoring.dead_channels import apply_savings


@pytest.fixture(autouse=True)
def pruned(tmp_path, monkeypatch) -> MicroNet:
    """A network, and its file of the published format where the recipe `ours` looks for it."""
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path))
    network = pruned_network("c_efficientnet_1.0_released")
    path = tmp_path / "kaist" / "ours.t7"
    path.parent.mkdir()
    save(published_state(network), path, as_zip=False)
    return network


@pytest.fixture
def forty_images(monkeypatch) -> None:
    """Few enough that a comparison in float64 is quick."""
    few = load_split("embedded", "test").subset(torch.arange(40))
    for module in (experiments, savings):
        monkeypatch.setattr(module, "load_split", lambda name, split: few)


def measure_savings(*names: str) -> dict[str, float]:
    recipe = Recipe(checkpoint="ours", savings=names)
    return measure(recipe, "free_savings", "ours", PROFILES["smoke"], 0, False).metrics


def test_record_of_free_savings_compares_the_logits(pruned, forty_images):
    found = measure_savings("dead_gates", "dead_channels")
    assert found["num_examples"] == 40
    smaller = apply_savings(pruned, ("dead_gates", "dead_channels"))
    assert found["published.score"] == score_network(smaller).score
    assert 0 <= found["max_logit_difference"] < 1e-12
    assert 0 <= found["max_logit_difference_stored"] < 1e-4
    assert found["bit_identical"] in (0, 1)

    found = measure_savings("dead_gates")
    assert found["max_logit_difference"] == found["max_logit_difference_stored"] == 0
    assert found["bit_identical"] == 1


def test_a_saving_that_is_not_free_is_found_out(forty_images, monkeypatch):
    def careless(model: MicroNet, names: tuple[str, ...]) -> MicroNet:
        with torch.no_grad():
            model.head.classifier.bias[7] += 0.25
        return model

    for module in (experiments, savings):
        monkeypatch.setattr(module, "apply_savings", careless)
    found = measure_savings("dead_gates")
    assert found["max_logit_difference"] == pytest.approx(0.25, abs=1e-6)
    assert found["max_logit_difference_stored"] == pytest.approx(0.25, abs=1e-6)
    assert found["bit_identical"] == 0
