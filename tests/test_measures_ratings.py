"""Accuracy of the last, selected and best epoch; savings that are free; 16 bits."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from published_format import pruned_network, published_state, save
from small_networks import network
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.recipes.bases import PAPER
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe, with_overrides
from micronet_lib.lab.running import networks
from micronet_lib.lab.running.lineage import Case, cases
from micronet_lib.lab.running.measure import ensure, trained
from micronet_lib.lab.running.measures import MEASURES, ratings
from micronet_lib.lab.running.measures.found import RATINGS
from micronet_lib.lab.running.networks import content_of, images_of, network_of
from micronet_lib.lab.storage.states import save_own
from micronet_lib.lab.training.evaluation import evaluate
from micronet_lib.pruning.schedules import PruneConfig, PruneTo


@pytest.fixture
def lab(tmp_path):
    with tiny_lab(tmp_path) as lab:
        yield lab


def test_a_fresh_network_is_not_rated():
    case = SimpleNamespace(recipe=Recipe(), profile=PROFILES["smoke"])
    assert MEASURES["accuracy"].of(case, network("c_efficientnet_1.0"), False).metrics == {}


def test_confusions_count_every_test_image_once(lab):
    (case,) = cases(sweep_of(fresh=Recipe()), PROFILES["smoke"])
    model = network("c_efficientnet_1.0")
    found = MEASURES["confusions"].of(case, model, False)
    rows = torch.tensor(found.arrays["confusions"])
    test = images_of(case.recipe, case.profile, "test")
    assert rows[:, 2].sum() == len(test)
    true = torch.zeros(100, dtype=torch.int64).index_add_(0, rows[:, 0], rows[:, 2])
    assert torch.equal(true, test.targets.bincount(minlength=100))
    right = rows[rows[:, 0] == rows[:, 1]][:, 2].sum()
    assert right == found.metrics["correct"]
    # Of the classes that a recipe learns.
    recipe = with_overrides(Recipe(), {"train.num_classes": 80})
    found = MEASURES["confusions"].of(replace(case, recipe=recipe), model, False)
    assert found.metrics["num_examples"] == (test.targets < 80).sum()


def test_accuracy_of_the_last_the_selected_and_the_best_epoch(lab):
    recipe = with_overrides(PAPER, {"train.watch_test": True})
    sweep = sweep_of(paper=recipe)
    model = trained(sweep, "paper", "smoke", progress=False)
    (case,) = cases(sweep, PROFILES["smoke"])
    found = MEASURES["accuracy"].of(case, model, False).metrics
    content = content_of(case.recipe, case.profile, case.seed)
    assert set(RATINGS) <= set(found)
    assert found["top1"] == found["correct"] / 100 == found["selected_top1"]
    assert found["best_on_test_top1"] == max(content["curve"]["test_top1"])
    assert found["validation_top1"] == content["curve"]["validation_top1"][-1]
    always_7 = content["best"] | {"head.classifier.bias": 1e6 * torch.eye(100)[7]}
    save_own(case.network_path, case.id, content | {"best": always_7})
    again = MEASURES["accuracy"].of(case, model, False).metrics
    assert again["top1"] == found["top1"]
    sevens = (images_of(case.recipe, case.profile, "test").targets == 7).sum().item()
    assert again["selected_top1"] == sevens / found["num_examples"]


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
    monkeypatch.setattr(networks, "load_split", lambda name, split: few)
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

    found = compared("dead_gates")
    assert found["max_logit_difference"] == found["max_logit_difference_stored"] == 0
    assert found["bit_identical"] == 1
    assert "bit_identical" not in compared()


def test_numbers_of_16_bits_are_rated_as_such(pruned, monkeypatch):
    rated = []

    def keep(rounded, data, progress):
        rated.append(rounded)
        return evaluate(rounded, data, progress)

    monkeypatch.setattr(ratings, "evaluate", keep)
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

    monkeypatch.setattr(ratings, "apply_savings", careless)
    monkeypatch.setattr("micronet_lib.lab.running.networks.apply_savings", careless)
    found = compared("dead_gates")
    assert found["max_logit_difference"] == pytest.approx(0.25, abs=1e-6)
    assert found["max_logit_difference_stored"] == pytest.approx(0.25, abs=1e-6)
    assert found["bit_identical"] == 0
