"""From a recipe to a trained network: what it is made of, what is kept, what is missing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micronet_lib.lab.running.runs import kept_network, missing_files, ratings, train_recipe
from published_format import pruned_network, published_state, save
from small_networks import single_thread

from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.errors import InputError
from micronet_lib.lab.host.places import policy_path
from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES, Profile
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running import runs
from micronet_lib.lab.running.networks import fresh_network, policies_of, training_data

TINY = Profile(
    *("tiny", "embedded", "tests"),
    epoch_share=1 / 300,
    num_images=48,
    num_validation=100,
    width_mult=0.1,
    batch_size=16,
    bn_momentum=0.2,
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path / "data"))
    with single_thread():
        yield


def test_the_same_seed_makes_the_same_network():
    recipe = TINY.apply(PAPER)
    one, same, other = (fresh_network(recipe, seed).state_dict() for seed in (0, 0, 1))
    assert all(map(torch.equal, one.values(), same.values()))
    assert not torch.equal(one["stem.conv.weight"], other["stem.conv.weight"])
    assert one["stem.conv.weight"].shape[0] == 4  # 32 channels at a tenth of the width, at least 4


def test_the_papers_matrices_start_semi_orthogonal():
    weight = fresh_network(TINY.apply(PAPER), 0).blocks[3].conv_expand.weight.flatten(1)
    torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]), atol=1e-5, rtol=0)


def test_trained_distribution_is_taken_from_the_file_it_names(tmp_path):
    recipe = SWEEPS["spectra"].point("trained_distribution").recipe
    path = tmp_path / "data" / "kaist" / "micronet_v1_pr_60.t7"
    path.parent.mkdir(parents=True)
    source = pruned_network("micronet_v1_released")
    save(published_state(source), path, as_zip=False)
    largest = fresh_network(recipe, 0).blocks[0].conv_expand.weight.abs().max().item()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(3)
    save(published_state(source), path, as_zip=False)
    again = fresh_network(recipe, 0).blocks[0].conv_expand.weight.abs().max().item()
    assert again == pytest.approx(3 * largest, rel=1e-5)


def test_missing_policies_are_replaced_on_drawn_images_only_and_the_record_says_so():
    recipe = Recipe(augment=AugmentConfig(policy="fast_autoaugment"))
    policies, notes = policies_of(recipe, TINY)
    assert policies is not None
    assert notes == ["no file fast_autoaugment_cifar100.json here: random policies instead"]
    with pytest.raises(InputError, match="data fetch policies"):
        policies_of(recipe, PROFILES["quick"])


def test_policies_come_from_their_file(tmp_path):
    path = tmp_path / "data" / "policies" / "fast_autoaugment_cifar100.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"one": [[["Invert", 0.5, 0.0], ["Rotate", 1.0, 1.0]]], "two": []}))
    config = AugmentConfig(policy="fast_autoaugment", policy_set="one")
    policies, notes = policies_of(Recipe(augment=config), PROFILES["quick"])
    assert policies is not None
    assert policies.values[0, 1] == 30
    assert notes == []
    assert policies_of(Recipe(), TINY) == (None, [])
    assert policies_of(Recipe(augment=AugmentConfig(policy="random")), TINY)[1] == []


def test_validation_images_are_held_out_or_not():
    device = torch.device("cpu")
    everything = replace(TINY, num_images=0, num_validation=0)
    held, _ = training_data(everything.apply(PAPER), everything, device)
    whole = replace(PAPER, train=replace(PAPER.train, hold_out=False))
    taken, _ = training_data(everything.apply(whole), everything, device)
    assert (len(held.train), len(held.validation), held.test) == (4500, 500, None)
    assert len(taken.train) == 5000
    watched, _ = training_data(everything.apply(RELEASED), everything, device)
    assert watched.test is not None


def test_a_trained_network_is_kept_and_rated(tmp_path):
    recipe = TINY.apply(replace(PAPER, train=replace(PAPER.train, watch_test=True)))
    trained, _ = train_recipe(recipe, TINY, 0, tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["network.pt"]
    again = kept_network(recipe, 0, tmp_path)
    assert again is not None
    ours = trained.model.state_dict()
    assert all(map(torch.equal, again.state_dict().values(), ours.values()))
    assert kept_network(recipe, 1, tmp_path) is None
    assert kept_network(TINY.apply(RELEASED), 0, tmp_path) is None
    found = ratings(trained, recipe, TINY)
    assert found["top1"] == found["correct"] / 1000
    assert found["best_on_test_top1"] == max(trained.curve["test_top1"]) >= found["top1"]
    assert found["validation_top1"] == trained.curve["validation_top1"][-1]
    trained.best_state = fresh_network(recipe, 7).state_dict()
    assert ratings(trained, recipe, TINY)["selected_top1"] != found["top1"]


def test_what_is_missing_is_named(tmp_path):
    quick, smoke = PROFILES["quick"], PROFILES["smoke"]
    trains = Recipe(train=TrainConfig(epochs=1))
    published = replace(trains, augment=AugmentConfig(policy="fast_autoaugment"))
    assert missing_files(trains, smoke) is None
    assert missing_files(published, smoke) is None
    assert missing_files(trains, quick) == "cifar-100-python/test"
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("test", "train"):
        (folder / name).touch()
    assert missing_files(trains, quick) is None
    assert missing_files(published, quick) == str(policy_path("fast_autoaugment"))
    inspected = SWEEPS["class_similarity"].point("v1_pr_60").recipe
    assert missing_files(inspected, PROFILES["full"]) == str(Path("kaist/micronet_v1_pr_60.t7"))


def test_searched_policies_come_with_the_repository():
    assert policy_path("searched") == runs.SEARCHED_FILE
    assert policy_path("searched").parts[-3:] == ("data", "policies", "searched.json")
