"""What a record may hold besides the score equals what the methods compute."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from published_format import pruned_network, published_state, save
from small_networks import network
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.beyond.changes import Quantize
from micronet_lib.distillation import DistillationConfig
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.recipes.bases import ORN, PAPER
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe, with_overrides
from micronet_lib.lab.running import measures
from micronet_lib.lab.running.lineage import Case, cases
from micronet_lib.lab.running.measure import ensure, trained
from micronet_lib.lab.running.measures import MEASURES
from micronet_lib.lab.running.networks import content_of, network_of
from micronet_lib.lab.storage.states import save_own
from micronet_lib.lab.training.evaluation import evaluate, fold_batch_norm, logits_of
from micronet_lib.label_smoothing import class_similarity
from micronet_lib.pruning.schedules import PruneConfig, PruneTo
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


# ---------------------------------------------------------------------------------------- accuracy


@pytest.fixture
def lab(tmp_path):
    with tiny_lab(tmp_path) as lab:
        yield lab


def test_a_fresh_network_is_not_rated():
    case = SimpleNamespace(recipe=Recipe(), profile=PROFILES["smoke"])
    assert MEASURES["accuracy"].of(case, network("c_efficientnet_1.0"), False).metrics == {}


def test_accuracy_of_the_last_the_selected_and_the_best_epoch(lab):
    recipe = with_overrides(PAPER, {"train.watch_test": True})
    sweep = sweep_of(paper=recipe)
    model = trained(sweep, "paper", "smoke", progress=False)
    (case,) = cases(sweep, PROFILES["smoke"])
    found = MEASURES["accuracy"].of(case, model, False).metrics
    content = content_of(case.recipe, case.profile, case.seed)
    assert found["top1"] == found["correct"] / 100 == found["selected_top1"]
    assert found["best_on_test_top1"] == max(content["curve"]["test_top1"])
    assert found["validation_top1"] == content["curve"]["validation_top1"][-1]
    always_7 = content["best"] | {"head.classifier.bias": 1e6 * torch.eye(100)[7]}
    save_own(case.network_path, case.id, content | {"best": always_7})
    again = MEASURES["accuracy"].of(case, model, False).metrics
    assert again["top1"] == found["top1"]
    sevens = (measures.load_split("embedded", "test").targets == 7).sum().item()
    assert again["selected_top1"] == sevens / 100


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "overrides",
    [{}, {"train.watch_test": True}, {"train.ema_decay": 0.5}, {"train.precision": "bf16"}],
    ids=lambda overrides: "".join(overrides) or "plain",
)
@pytest.mark.parametrize("point", ["paper", "half", "rounds"])
def test_no_accuracy_of_images_that_were_trained_on(lab, monkeypatch, point, overrides, seed):
    overrides = overrides | {"train.hold_out": False, "train.epochs": 2}
    base = with_overrides(PAPER, {"train.hold_out": False})
    sweep = sweep_of(
        paper=base,
        half=replace(base, start=base, changes=(PruneTo(0.5),)),
        rounds=replace(base, prune=PruneConfig((0.5,), threshold_from="last_epoch")),
    )
    ensure(sweep, "smoke", seed, overrides, point, progress=False)
    (case,) = cases(sweep, PROFILES["smoke"], seed, overrides, point)
    record = case.record()
    assert any("validation" in note for note in record.notes)
    assert not [name for name in record.metrics if "validation" in name or "selected" in name]
    assert set(record.curve) - {"test_top1"} == {"lr", "train_loss", "srip_penalty"}
    assert ("best_on_test_top1" in record.metrics) == ("train.watch_test" in overrides)
    content = content_of(case.recipe, case.profile, case.seed)
    assert all(torch.equal(value, content["best"][n]) for n, value in content["model"].items())
    held = replace(case.recipe, train=replace(case.recipe.train, hold_out=True))
    assert recipe_id(held) != recipe_id(case.recipe)


# ------------------------------------------------------------------------------------- same logits


@pytest.fixture
def pruned(tmp_path, monkeypatch) -> MicroNet:
    """A network, its file of the published format where `ours` looks for it, and 40 images."""
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path))
    model = pruned_network("c_efficientnet_1.0_released")
    path = tmp_path / "kaist" / "ours.t7"
    path.parent.mkdir()
    save(published_state(model), path, as_zip=False)
    few = load_split("embedded", "test").subset(torch.arange(40))
    monkeypatch.setattr(measures, "load_split", lambda name, split: few)
    return model


def compared(*savings: str) -> dict[str, float]:
    recipe = Recipe(checkpoint="ours", savings=savings)
    case = Case(sweep_of(ours=recipe), "ours", recipe, PROFILES["smoke"], 0)
    model = network_of(recipe, case.profile, 0)
    return MEASURES["same_logits"].of(case, model, False).metrics


def test_free_savings_leave_the_logits(pruned):
    found = compared("dead_gates", "dead_channels")
    assert found["num_examples"] == 40
    assert 0 <= found["max_logit_difference"] < 1e-12
    assert 0 <= found["max_logit_difference_stored"] < 1e-4
    assert found["bit_identical"] in (0, 1)

    found = compared("dead_gates")
    assert found["max_logit_difference"] == found["max_logit_difference_stored"] == 0
    assert found["bit_identical"] == 1
    assert "bit_identical" not in compared()


def test_numbers_of_16_bits_are_rated_as_such(pruned, monkeypatch):
    rated = []

    def keep(rounded, data, progress):
        rated.append(rounded)
        return evaluate(rounded, data, progress)

    monkeypatch.setattr(measures, "evaluate", keep)
    recipe = Recipe(checkpoint="ours")
    case = Case(sweep_of(ours=recipe), "ours", recipe, PROFILES["smoke"], 0)
    model = network_of(recipe, case.profile, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = MEASURES["half_precision"].of(case, model, False).metrics
    assert list(found) == ["half.correct", "half_folded.correct"]
    few = load_split("embedded", "test").subset(torch.arange(40))
    assert list(found.values()) == [evaluate(each, few, False).correct for each in rated]
    for each in rated:
        values = [v for v in each.state_dict().values() if v.is_floating_point()]
        assert all(torch.equal(value, value.half().float()) for value in values)
    as_it_is, folded = rated
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in as_it_is.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_saving_that_is_not_free_is_found_out(pruned, monkeypatch):
    def careless(model: MicroNet, names: tuple[str, ...]) -> MicroNet:
        with torch.no_grad():
            model.classifier.bias[7] += 0.25
        return model

    monkeypatch.setattr(measures, "apply_savings", careless)
    monkeypatch.setattr("micronet_lib.lab.running.networks.apply_savings", careless)
    found = compared("dead_gates")
    assert found["max_logit_difference"] == pytest.approx(0.25, abs=1e-6)
    assert found["max_logit_difference_stored"] == pytest.approx(0.25, abs=1e-6)
    assert found["bit_identical"] == 0


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
            test = measures.load_split("embedded", "test")
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
