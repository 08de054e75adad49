"""What is a weight: by its owner, and as the tensor that runs, in networks of every kind."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_networks import TORCHVISION, seeded, single_thread
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from micronet_lib.architecture import build, weight_kinds
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.initialization import distribution_of, initialize
from micronet_lib.beyond.gates import without_gates
from micronet_lib.beyond.network import in_integers
from micronet_lib.errors import InputError
from micronet_lib.lab.training.hooks import TargetTable
from micronet_lib.label_smoothing import PAPER_SMOOTHING
from micronet_lib.pruning.density import density_table
from micronet_lib.pruning.masks import (
    HeldMasks,
    apply_masks,
    current_masks,
    magnitude_masks,
    prunable_weights,
)
from micronet_lib.scoring.dead_channels import SAVINGS
from micronet_lib.scoring.operations import record_operations
from micronet_lib.srip.penalty import srip_weights


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 1)]),
    "vit": lambda: VisionTransformer(32, 8, 2, 2, 16, 32),
    "swin": lambda: SwinTransformer([2, 2], 8, [1, 1], [2, 2], [2, 2]),
}
"""Networks with tensors of two or more dimensions that are no weights."""


@pytest.mark.parametrize("name", ["micronet_v1", "micronet_v1_released", "micronet_v2"])
def test_in_a_micronet_nothing_changes(name: str) -> None:
    everything_of_two_dimensions(build(name))


@pytest.mark.parametrize("name", TORCHVISION)
def test_in_a_resnet_and_a_mobilenet_nothing_changes(name: str) -> None:
    everything_of_two_dimensions(build(name))


def everything_of_two_dimensions(model: nn.Module) -> None:
    expected = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    found = prunable_weights(model)
    assert list(found) == list(expected) == list(weight_kinds(model))
    assert all(found[name] is weight for name, weight in expected.items())


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OTHERS)
def test_no_scale_token_or_embedding_is_pruned(name: str, seed: int, sparsity: float) -> None:
    torch.manual_seed(seed)
    model = OTHERS[name]()
    owners = dict(model.named_modules())
    weights = prunable_weights(model)
    assert list(weight_kinds(model)) == list(weights)
    assert weights
    for weight in weights:
        owner = owners[weight.rpartition(".")[0]]
        assert isinstance(owner, nn.Conv2d | nn.Linear | nn.MultiheadAttention), weight
    matrices = {n for n, p in model.named_parameters() if p.ndim > 1 and n.endswith("weight")}
    assert weights.keys() == matrices
    for weight in weights.values():
        nn.init.normal_(weight)  # a fresh ViT's head is 0
    rest = {n: p.clone() for n, p in model.named_parameters() if n not in weights}
    assert any(p.ndim > 1 for p in rest.values())
    apply_masks(model, magnitude_masks(weights, sparsity))
    after = dict(model.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in rest.items())
    found = density_table(model)["sparsity"].iloc[-1]
    assert found == pytest.approx(sparsity, abs=1e-3)


def test_a_weight_that_two_layers_share_counts_once() -> None:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    assert list(prunable_weights(nn.Sequential(one, other))) == ["0.weight"]
    parametrize.register_parametrization(one, "weight", Rounded())
    assert list(prunable_weights(nn.Sequential(one, one))) == ["0.weight"]


# ----------------------------------------------------------------------------- the tensor that runs


class Rounded(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight * 16).round() / 16


class Shifted(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + 1


def rounded(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", Rounded())


def at_random(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.6)


def twice(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.ln_structured(layer, "weight", 0.4, n=2, dim=0)


WAYS = [rounded, at_random, twice]


def changed(way: Callable[[nn.Module], None], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    for layer in (model[0], model[3], model[6]):
        way(layer)
    return model


def running(model: nn.Sequential) -> dict[str, torch.Tensor]:
    """The weights that a forward pass uses, seen by the functions that it calls."""
    model(torch.zeros(1, 3, 8, 8))
    return {f"{index}.weight": model[index].weight.detach().clone() for index in (0, 3, 6)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("way", WAYS)
def test_zeros_are_those_of_the_tensor_that_runs(way, seed: int) -> None:
    model = changed(way, seed)
    weights = running(model)
    masks = current_masks(model)
    assert masks.keys() == weights.keys() == weight_kinds(model).keys()
    assert all(torch.equal(masks[name], weight != 0) for name, weight in weights.items())
    table = density_table(model).set_index("layer")
    zeros = {name.removesuffix(".weight"): int((w == 0).sum()) for name, w in weights.items()}
    assert table["num_zeros"].drop("all").to_dict() == zeros
    assert sum(zeros.values()) > 0
    counted = [op for op in record_operations(model, (3, 8, 8)) if op.kind in ("conv", "linear")]
    assert [op.num_weights - op.nonzeros for op in counted] == list(zeros.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", WAYS)
def test_they_are_held_by_the_parameter_behind(way, seed: int) -> None:
    model = changed(way, seed)
    masks = magnitude_masks(prunable_weights(model), 0.8, current_masks(model))
    held = HeldMasks(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-2)
    for number in range(3):
        images = torch.randn(4, 3, 8, 8, generator=seeded(number))
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.arange(4)).backward()
        optimizer.step()
        held.after_step()
        now = current_masks(model)  # before the next forward pass
        assert all(not now[name][~mask].any() for name, mask in masks.items())
        assert all(torch.equal(now[n], weight != 0) for n, weight in running(model).items())


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_rating_folds_only_what_it_can(way, called) -> None:
    """Also where the weight of a hook is as training or `prune` left it, with a graph behind it."""
    model = changed(way, 0).double().eval()
    images = torch.randn(5, 3, 8, 8, generator=seeded(1)).double()
    if called:
        model(images)
    folded = fold_batch_norm(model)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images))


def test_the_table_of_targets_follows_a_computed_classifier() -> None:
    for way in WAYS:
        torch.manual_seed(0)
        classifier = nn.Linear(8, 10)
        way(classifier)
        hook = TargetTable(classifier, PAPER_SMOOTHING)
        before = hook.table.clone()
        with torch.no_grad():
            next(p for p in classifier.parameters() if p.ndim == 2).normal_()
        hook.start_epoch(1)
        assert not torch.equal(hook.table, before)
        classifier(torch.zeros(1, 8))
        assert torch.equal(hook.table, TargetTable(classifier, PAPER_SMOOTHING).table)


def test_what_cannot_be_held_set_or_regularised_is_refused() -> None:
    shifted, normed = nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4))
    parametrize.register_parametrization(shifted, "weight", Shifted())
    for layer in (shifted, normed):
        model = nn.Sequential(layer)
        masks = magnitude_masks(prunable_weights(model), 0.5)
        with pytest.raises(InputError, match="weight is computed from"):
            apply_masks(model, masks)
        assert current_masks(model)["0.weight"].all()  # reading is possible
    for way in WAYS:
        model = changed(way, 0)
        with pytest.raises(InputError, match="weight is computed from"):
            srip_weights(model, "all")
        with pytest.raises(InputError, match="weight is computed from"):
            initialize(model, "released", seeded(0))
        assert set(distribution_of(model).quantiles) == {"conv", "pointwise", "fc"}


@pytest.mark.parametrize("way", WAYS)
def test_what_builds_a_micronet_anew_from_its_tensors_refuses_others(way) -> None:
    """Free savings, the network without gates, and the network in integers."""
    images = torch.zeros(1, 3, 32, 32)
    for name in ("micronet_v1_released", "table1_2.0"):
        model = build(name, width_mult=0.15)
        found = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
        way(found[int(torch.randint(len(found), (), generator=seeded(3)))])
        ways = [*SAVINGS.values(), lambda net: without_gates(net, images)]
        ways += [in_integers] if name == "table1_2.0" else []
        for build_anew in ways:
            with pytest.raises(InputError, match="weight is computed from"):
                build_anew(model)
