"""The measure of stability: what it counts, on which frames."""

from dataclasses import replace

import pytest
import torch
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.assembled_cnn import PERTURBATIONS, flip_rate, perturb
from micronet_lib.lab.recipes.bases import ORN
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running.lineage import cases
from micronet_lib.lab.running.measure import ensure
from micronet_lib.lab.running.measures import perturbations
from micronet_lib.lab.running.networks import images_of, network_of
from micronet_lib.lab.training.evaluation import logits_of


def test_it_counts_flips_of_the_first_images_of_every_class(tmp_path, monkeypatch):
    few = {name: PERTURBATIONS[name] for name in ("gaussian_noise", "translate")}
    monkeypatch.setattr(perturbations, "PERTURBATIONS", few)
    monkeypatch.setattr(perturbations, "NUM_IMAGES", 60)
    sweep = replace(sweep_of("stable", dense=ORN), measures=("perturbations",))
    with tiny_lab(tmp_path):
        ensure(sweep, "smoke", progress=False)
        (case,) = cases(sweep, PROFILES["smoke"])
        record = case.record()
        network = fold_batch_norm(network_of(case.recipe, case.profile, case.seed))
        test = images_of(case.recipe, case.profile, "test").first(60)
        right = (logits_of(network, test.images).argmax(1) == test.targets).double().mean().item()
        frames = perturb(test.images, "translate", torch.Generator())  # draws nothing
        answers = torch.stack([logits_of(network, film).argmax(1) for film in frames])
    rates = record.arrays["flip_rates"]
    assert list(rates) == list(few)
    assert record.metrics["num_examples"] == 60
    expected = flip_rate(answers, "translate")
    assert rates["translate"] == pytest.approx(expected, abs=0.02)  # near ties, other batches
    assert record.metrics["translate.flip_rate"] == pytest.approx(rates["translate"], abs=1e-5)
    assert record.metrics["flip_rate"] == pytest.approx(sum(rates.values()) / 2, abs=1e-5)
    of_image = [float(text) for text in record.arrays["by_image"].split()]
    assert len(of_image) == 60
    assert sum(of_image) / 60 == pytest.approx(record.metrics["flip_rate"], abs=1e-4)
    assert record.metrics["top1"] == pytest.approx(right, abs=1e-6)
