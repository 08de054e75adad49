"""The measure of retrieval: which images are searched, and what is found."""

from dataclasses import replace

import pytest
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.assembled_cnn import Embed, Embeddings, recall_at_k
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.recipes.bases import PLAIN
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running.lineage import cases
from micronet_lib.lab.running.measure import ensure
from micronet_lib.lab.running.measures import retrieval as measure
from micronet_lib.lab.running.networks import network_of
from micronet_lib.lab.training.evaluation import logits_of


def test_the_measure_rates_the_classes_that_were_left_out(tmp_path):
    """On all test images of the embedded set: the small lab has one of a class."""
    train = replace(PLAIN.train, num_classes=80)
    recipe = replace(PLAIN, options={"num_classes": 80}, train=train, changes=(Embed("gem"),))
    untrained = replace(recipe, train=replace(train, epochs=0))
    sweep = sweep_of("found", gem=recipe, untrained=untrained)
    sweep = replace(sweep, measures=("accuracy", "retrieval"))
    whole = load_split("embedded", "test")
    with tiny_lab(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "load_split", lambda name, split: whole)
        ensure(sweep, "smoke", progress=False)
        records = {case.point: case.record() for case in cases(sweep, PROFILES["smoke"])}
        case = next(iter(cases(sweep, PROFILES["smoke"])))
        network = network_of(case.recipe, case.profile, case.seed)
        with pytest.raises(InputError, match="needs the change Embed"):
            measure.retrieval(case, network.trunk, False)
    unseen = whole.subset((whole.targets >= 80).nonzero().flatten())
    rows = logits_of(fold_batch_norm(Embeddings(network)), unseen.images)
    found = records["gem"].metrics
    assert found["num_queries"] == len(unseen) == 200
    assert found["num_examples"] == 80
    assert found["recall_at_1"] == pytest.approx(recall_at_k(rows, unseen.targets), abs=0.02)
    recalls = [found[f"recall_at_{k}"] for k in (1, 2, 4, 8)]
    assert recalls == sorted(recalls)
    assert "top1" not in records["untrained"].metrics
    assert records["untrained"].dataset == "embedded"
