"""The measure of robustness: what it counts, on which images."""

from dataclasses import replace

import pytest
import torch
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.assembled_cnn import CORRUPTIONS, corrupt
from micronet_lib.lab.recipes.bases import ORN
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running.lineage import cases
from micronet_lib.lab.running.measure import ensure
from micronet_lib.lab.running.measures import corruptions
from micronet_lib.lab.running.networks import images_of, network_of
from micronet_lib.lab.training.evaluation import logits_of


def test_it_counts_wrong_answers_of_each_severity(tmp_path, monkeypatch):
    few = {name: CORRUPTIONS[name] for name in ("contrast", "gaussian_noise")}
    monkeypatch.setattr(corruptions, "CORRUPTIONS", few)
    sweep = replace(sweep_of("robust", dense=ORN), measures=("corruptions",))
    with tiny_lab(tmp_path):
        ensure(sweep, "smoke", progress=False)
        (case,) = cases(sweep, PROFILES["smoke"])
        record = case.record()
        network = fold_batch_norm(network_of(case.recipe, case.profile, case.seed))
        test = images_of(case.recipe, case.profile, "test")
        images = corrupt(test.images, "contrast", 5, torch.Generator())  # draws nothing
        right = (logits_of(network, test.images).argmax(1) == test.targets).double().mean().item()
        wrong = (logits_of(network, images).argmax(1) != test.targets).double().mean().item()
    errors = record.arrays["corrupted"]
    assert list(errors) == list(few)
    assert errors["contrast"][4] == pytest.approx(wrong, abs=1e-6)
    tops = {name: 1 - sum(row) / 5 for name, row in errors.items()}
    for name, top1 in tops.items():
        assert record.metrics[f"{name}.top1"] == pytest.approx(top1, abs=1e-5)
    assert record.metrics["corrupted_top1"] == pytest.approx(sum(tops.values()) / 2, abs=1e-5)
    of_image = [float(text) for text in record.arrays["by_image"].split()]
    assert len(of_image) == len(test)
    assert sum(of_image) / len(test) == pytest.approx(record.metrics["corrupted_top1"], abs=1e-4)
    assert record.metrics["top1"] == pytest.approx(right, abs=1e-6)
