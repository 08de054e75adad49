"""Networks of another library go through everything that a MicroNet goes through."""

import copy
from dataclasses import replace

import pytest
import torch
from small_networks import TORCHVISION, single_thread
from test_training_loop import images

from micronet_lib.architecture import build
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import Profile, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running import networks
from micronet_lib.lab.storage.networks import export_network, load_exported
from micronet_lib.lab.training.evaluation import evaluate, logits_of, rate
from micronet_lib.lab.training.loop import Run, TrainingData
from micronet_lib.label_smoothing import PAPER_SMOOTHING
from micronet_lib.pruning.masks import current_masks, prunable_weights
from micronet_lib.pruning.schedules import PruneTo
from micronet_lib.scoring.bill import score_network
from micronet_lib.srip.penalty import SripConfig

RECIPE = Recipe(
    train=TrainConfig(epochs=2, batch_size=8, lr=0.02, bn_momentum=0.2),
    srip=SripConfig(start="warm"),
    smoothing=PAPER_SMOOTHING,
    augment=AugmentConfig(mix="cutmix"),
)
TOY = Profile("toy", "embedded", "tests", num_images=100, num_validation=20, batch_size=50)

each = pytest.mark.parametrize("name", TORCHVISION)


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


def start(name: str) -> Run:
    torch.manual_seed(0)
    change, network = PruneTo(0.5), build(name)
    data = TrainingData(images(16, 0), images(10, 1))
    return Run(change.apply(network), RECIPE, data, 0, change.hooks(network))


@each
def test_training_with_srip_and_masks_resumes_to_the_same_bits(name):
    alone = start(name)
    masks = current_masks(alone.network)
    alone.run_epoch()
    state = copy.deepcopy(alone.state_dict())
    alone.run_epoch()
    resumed = start(name)
    resumed.load_state_dict(state)
    resumed.run_epoch()
    assert resumed.curve == alone.curve
    assert min(alone.curve["srip_penalty"]) > 0
    ours, theirs = resumed.network.state_dict(), alone.network.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    for key, mask in masks.items():
        assert not ours[key][~mask].any()
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    assert pruned == round(0.5 * sum(mask.numel() for mask in masks.values()))


@each
def test_a_recipe_trains_it_and_its_network_is_rated_scored_and_read_again(
    name, tmp_path, monkeypatch
):
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path))
    dense = Recipe(model=name, train=TrainConfig(epochs=1, lr=0.02))
    recipe = resolved(dense, TOY, {"train.num_images": 50})
    networks.train_network(recipe, TOY, 0, "toy", progress=False)
    assert networks.network_path(recipe, TOY, 0).is_file()
    trained = networks.network_of(recipe, TOY, 0)
    assert not trained.training
    data = load_split("embedded", "test").first(100)
    found, plain = evaluate(trained, data), logits_of(trained, data.images)
    assert found.correct == rate(plain, data.targets, 1.0).correct
    torch.testing.assert_close(
        logits_of(fold_batch_norm(trained), data.images), plain, atol=1e-3, rtol=1e-3
    )

    pruned = networks.network_of(Recipe(start=recipe, changes=(PruneTo(0.5),)), TOY, 0)
    less, more = (score_network(each, "official").param_storage for each in (pruned, trained))
    assert less < 0.7 * more

    export_network(trained, tmp_path / "network.safetensors", recipe, top1=found.top1)
    again, metadata = load_exported(tmp_path / "network.safetensors")
    assert metadata["spec"] == {"name": name, "options": {}}
    assert torch.equal(logits_of(again, data.images), plain)


def test_a_chain_of_recipes_prunes_with_a_teacher(tmp_path, monkeypatch):
    """Dense, then pruned and trained again; the dense network is start and teacher."""
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path))
    train = TrainConfig(epochs=1, lr=0.02)
    dense = Recipe(model="torchvision_mobilenet_v2", train=train)
    pruned = Recipe(
        start=dense, changes=(PruneTo(0.6),), teacher=dense, train=replace(train, optimizer="adamw")
    )
    pruned = resolved(pruned, TOY)
    assert pruned.needs == (pruned.start, pruned.teacher) == (TOY.apply(dense),) * 2
    with pytest.raises(InputError, match="measure its point first"):
        networks.train_network(pruned, TOY, 0, "toy", progress=False)
    networks.train_network(pruned.start, TOY, 0, "toy", progress=False)
    networks.train_network(pruned, TOY, 0, "toy", progress=False)
    first, second = (networks.network_of(each, TOY, 0) for each in (pruned.start, pruned))
    masks = current_masks(PruneTo(0.6).apply(first))
    zeros, total = 0, 0
    for key, weight in prunable_weights(second).items():
        assert not weight[~masks[key]].any()
        assert not torch.equal(weight, first.get_parameter(key))
        zeros, total = zeros + int((weight == 0).sum()), total + weight.numel()
    assert zeros == round(0.6 * total)
