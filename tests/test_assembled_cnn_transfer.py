"""Transfer: what a new classifier keeps, and which classes and labels a recipe learns."""

from dataclasses import replace

import pytest
import torch
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.architecture import Wrapped, build
from micronet_lib.assembled_cnn import NewClassifier
from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.bases import PLAIN
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.records import paper
from micronet_lib.lab.running.lineage import cases
from micronet_lib.lab.running.measure import ensure
from micronet_lib.lab.running.networks import content_of, network_of

TRAIN = replace(PLAIN.train, labels="superclass")
COARSE = replace(PLAIN, options={"num_classes": 20}, train=TRAIN)
FINE = replace(PLAIN.train, lr=0.01, freeze=("stem", "blocks"))


@pytest.mark.parametrize("model", ["c_efficientnet_1.0", "resnet"])
def test_a_new_classifier_is_drawn_and_the_rest_stays(model):
    torch.manual_seed(0)
    options = {"width_mult": 0.25} | ({"blocks": [1, 1]} if model == "resnet" else {})
    old = build(model, num_classes=20, **options)
    new = NewClassifier(100).apply(old)
    assert new.classifier.out_features == 100
    assert build(new.spec).classifier.out_features == 100
    before, after = old.state_dict(), new.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "classifier" in name}
    torch.manual_seed(5)
    other = NewClassifier(100).apply(old)
    assert not torch.equal(other.classifier.weight, new.classifier.weight)


def test_what_a_new_classifier_refuses():
    with pytest.raises(InputError, match="has 1 classes"):
        NewClassifier(1)
    network = build("c_efficientnet_1.0", width_mult=0.25)
    wrapped = Wrapped(torch.nn.Sequential(network), "0.head.classifier")
    wrapped.spec = replace(network.spec, name="early_exit")
    with pytest.raises(InputError, match="no option num_classes"):
        NewClassifier(10).apply(wrapped)


def test_superclasses_are_learned_first_and_classes_after_them(tmp_path):
    tuned = Recipe(start=COARSE, changes=(NewClassifier(),), train=replace(FINE, epochs=600))
    sweep = sweep_of("transfer", tuned=tuned)
    with tiny_lab(tmp_path) as lab:
        ensure(sweep, "smoke", progress=False)
        (case,) = cases(sweep, PROFILES["smoke"])
        record = case.record()
        coarse = network_of(case.recipe.start, case.profile, 0)
        fine = network_of(case.recipe, case.profile, 0)
        curve = content_of(case.recipe.start, case.profile, 0)["curve"]
    assert len(lab.trained) == 2
    assert coarse.classifier.out_features == 20
    assert fine.classifier.out_features == 100
    assert torch.equal(coarse.stem.conv.weight, fine.stem.conv.weight)  # frozen
    assert curve["train_loss"][-1] < 4  # of 20 superclasses; of 100 classes it starts at 4.6
    assert record.metrics["num_examples"] == 100


def test_a_network_without_enough_logits_is_refused(tmp_path):
    few = replace(PLAIN, options={"num_classes": 20})
    with tiny_lab(tmp_path), pytest.raises(InputError, match="20 classes apart, and 32"):
        ensure(sweep_of("few", few=few), "smoke", progress=False)


def test_accuracy_is_of_the_classes_that_were_learned(tmp_path):
    train = replace(PLAIN.train, num_classes=30)
    some = replace(PLAIN, options={"num_classes": 30}, train=train)
    sweep = sweep_of("some", some=some, coarse=COARSE)
    with tiny_lab(tmp_path):
        ensure(sweep, "smoke", progress=False)
        records = {case.point: case.record() for case in cases(sweep, PROFILES["smoke"])}
    assert records["some"].metrics["num_examples"] == 30
    assert records["coarse"].metrics["num_examples"] == 100


def test_fine_tuning_has_the_papers_rates_and_the_released_schedule():
    rows = paper("assembled_cnn").query("point == 'fine_tuning'").set_index("metric")["value"]
    train = SWEEPS["transfer"].point("fine_tuned").recipe.train
    assert (train.lr, train.weight_decay, train.min_lr) == tuple(
        rows[["lr", "weight_decay", "min_lr"]]
    )
    assert train.warm_up * train.epochs == pytest.approx(rows["warm_up_epochs"])
    assert train.schedule == "cosine"


def test_the_margin_is_the_papers():
    rows = paper("assembled_cnn").query("point == 'arcface' and source == 'lee2020assembled'")
    assert SWEEPS["retrieval"].point("resnet").recipe.arcface.margin == rows["value"].item()
