"""The ladders of chapter 10: every rung takes real steps, and what is asked of its networks."""

from dataclasses import replace

import pytest
import torch
from small_networks import seeded, single_thread
from test_training_loop import images

from micronet_lib.augmentation.policies import autoaugment_policies
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.records import paper
from micronet_lib.lab.running.networks import fresh_network
from micronet_lib.lab.training.loop import Run, TrainingData

LADDERS = ("tweaks", "assembled", "mobilenet")
RUNGS = {point.name: point.recipe for name in LADDERS for point in SWEEPS[name].points()}
ROBUSTNESS = ("corruptions", "perturbations")


@pytest.mark.parametrize("rung", RUNGS)
def test_every_rung_trains_at_the_size_of_smoke(rung):
    """Three steps: the first has a learning rate of 0, zero-gamma stops gradients in the second."""
    recipe = resolved(RUNGS[rung], PROFILES["smoke"])
    recipe = replace(recipe, train=replace(recipe.train, batch_size=8, epochs=1))
    taught = None if recipe.teacher is None else torch.randn(24, 100, generator=seeded(0))
    policies = None if recipe.augment.policy == "none" else autoaugment_policies()
    data = TrainingData(images(24, 0), None, policies=policies, taught=taught)
    with single_thread():
        run = Run(fresh_network(recipe, 0), recipe, data, 0)
        before = run.network.classifier.weight.clone()
        run.run_steps(3)
    assert torch.isfinite(run.step.loss)
    assert run.step.loss > 0
    assert not torch.equal(run.network.classifier.weight, before)
    for name, value in run.network.named_parameters():
        assert value.isfinite().all(), name
        assert value.grad.any(), name


def test_the_ladders_have_the_printed_rows():
    """Of Table 6 without T4, and of Table 7 without E12; their names say so on the page."""
    names = {each for each in paper("assembled_cnn")["point"] if each[0] in "TEM" and len(each) < 4}
    assert set(RUNGS) == names - {"T4", "E12"}


@pytest.mark.parametrize("name", ROBUSTNESS)
def test_robustness_is_measured_of_networks_of_every_page(name):
    points = {point.name: point.recipe for point in SWEEPS[name].points()}
    ladder = [point.name for point in SWEEPS["tweaks"].points()]
    trained = {
        f"trained_{point.name}": point.recipe
        for point in (*SWEEPS["tweaks"].points(), *SWEEPS["regularizers"].points())
        if point.name not in ladder[1:-1]
    }
    quantized = {point.name: point.recipe for point in SWEEPS["beyond"].points()}
    started = {each: recipe for each, recipe in points.items() if not recipe.checkpoint}
    assert started == {each: Recipe(start=r) for each, r in (trained | quantized).items()}
    assert len(points) - len(started) == 5
