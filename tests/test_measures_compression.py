"""What a judge asks of a network in integers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from small_networks import network
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.beyond.changes import Quantize
from micronet_lib.distillation import DistillationConfig
from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.bases import ORN
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.lineage import cases
from micronet_lib.lab.running.measure import ensure
from micronet_lib.lab.running.measures import MEASURES
from micronet_lib.lab.running.networks import images_of, network_of
from micronet_lib.lab.training.evaluation import logits_of


def test_a_network_in_integers_says_what_a_judge_asks(tmp_path):
    """A rung that is only rounded, and one that learns from two teachers; each is rated once."""
    base = replace(ORN, model="micronet_v1", width_mult=2.5)  # a stem that the first block narrows
    quantize = Quantize(6, 7, num_images=16)
    rounded = Recipe(start=base, changes=(quantize,))
    learns = replace(base.train, batch_size=16, optimizer="adam", lr=1e-3, min_lr=0.0)
    taught = Recipe(
        start=base,
        changes=(quantize,),
        teacher=base,
        more_teachers=(rounded,),
        distillation=DistillationConfig(temperature=2.0),
        train=replace(learns, initialization="default", relative_lr=True, weight_decay=0.0),
    )
    sweep = replace(sweep_of("rungs", rounded=rounded, taught=taught), measures=("compression",))
    with tiny_lab(tmp_path) as lab:
        ensure(sweep, "smoke", progress=False)
        found = {}
        for case in cases(sweep, PROFILES["smoke"]):
            record = case.record()
            found[case.point] = record
            network_now = network_of(case.recipe, case.profile, case.seed)
            test = images_of(case.recipe, case.profile, "test")
            logits = logits_of(network_now, test.images)
            assert record.metrics["correct"] == int((logits.argmax(1) == test.targets).sum())
            start = fold_batch_norm(network_of(case.recipe.start, case.profile, case.seed))
            answers = logits_of(start, test.images).argmax(1)
            agreed = (logits.argmax(1) == answers).double().mean().item()
            assert record.metrics["agreement"] == pytest.approx(agreed)
            bill = record.arrays["bill"]
            assert sum(bill.values()) == pytest.approx(record.metrics["official.score"], abs=1e-6)
            assert {"depthwise.add", "expand.param", "product.mult"} <= bill.keys()
            assert record.metrics["official_integer.score"] < record.metrics["official.score"]
            assert record.arrays["compliance"]["num_test_images"] == len(test)
            assert record.arrays["compliance"]["starts_from"] == recipe_id(case.recipe.start)
        touches = [found[name].metrics["test_touches"] for name in ("rounded", "taught")]
        assert touches == [1, 2]
        assert len(lab.trained) == 2  # the network that both start from, and the taught one
    curve = found["taught"].curve
    assert found["taught"].metrics["divergence"] == curve["validation_divergence"][-1] > 0
    assert "divergence" not in found["rounded"].metrics
    assert found["rounded"].curve == {}
    floats = SimpleNamespace(name="rungs/floats")
    with pytest.raises(InputError, match=r"rungs/floats.*integers"):
        MEASURES["compression"].of(floats, network("micronet_v1"), False)
