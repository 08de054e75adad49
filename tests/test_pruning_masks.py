"""Which weights go: exactly as many as asked for, nested, and the same on every run."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from small_networks import flat, network, seeded
from torch import nn

from micronet_lib.errors import InputError
from micronet_lib.pruning.masks import (
    apply_masks,
    magnitude_masks,
    prunable_weights,
    weight_groups,
)


def num_pruned(masks) -> int:
    return int((~flat(masks)).sum())


# ---------------------------------------------------------------------------------- which ones go


def test_the_smallest_go_by_hand():
    weights = {"a": torch.tensor([[3.0, -1.0], [0.5, -4.0]]), "b": torch.tensor([[2.0, -0.25]])}
    masks = magnitude_masks(weights, 0.5)
    assert masks["a"].tolist() == [[True, False], [False, True]]
    assert masks["b"].tolist() == [[True, False]]
    assert all(mask.dtype == torch.bool for mask in masks.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.0, 0.15, 0.3, 0.6, 0.999, 0.999999, 1.0])
def test_the_count_is_exact_and_no_kept_weight_is_smaller_than_a_pruned_one(dtype, sparsity):
    weights = prunable_weights(network(dtype=dtype))
    masks = magnitude_masks(weights, sparsity)
    size, kept = flat(weights).abs(), flat(masks)
    assert num_pruned(masks) == round(sparsity * 450_456)
    if kept.any() and not kept.all():
        assert size[kept].min() >= size[~kept].max()
    assert masks.keys() == weights.keys()
    assert all(masks[name].shape == weight.shape for name, weight in weights.items())


def test_of_equal_magnitudes_the_first_go_and_zeros_before_all():
    weights = {"a": torch.full((3, 5), -2.0), "b": torch.full((4, 5), 2.0)}
    for sparsity in (0.2, 0.5, 0.9):
        expected = torch.arange(35) >= round(sparsity * 35)
        assert torch.equal(flat(magnitude_masks(weights, sparsity)), expected)
    weights = {"a": torch.rand(4, 5, generator=seeded(0)) + 1, "b": torch.zeros(4, 5)}
    for sparsity in (0.25, 0.5, 0.75):
        masks = magnitude_masks(weights, sparsity)
        assert num_pruned({"b": masks["b"]}) == min(20, round(sparsity * 40))
        assert num_pruned(masks) == round(sparsity * 40)


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=6, max_size=60), st.floats(0, 1))
def test_any_weights_against_a_stable_sort(values, sparsity):
    values = values[: len(values) // 3 * 3]
    weight = torch.tensor(values, dtype=torch.float32).view(3, -1)
    order = np.argsort(np.abs(values), kind="stable")
    expected = np.ones(len(values), dtype=bool)
    expected[order[: round(sparsity * len(values))]] = False
    assert flat(magnitude_masks({"w": weight}, sparsity)).tolist() == expected.tolist()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.integers(0, 2**31))
def test_rounds_are_nested_and_exact_whatever_the_weights_become(sparsities, seed):
    generator, before = seeded(seed), None
    for sparsity in sorted(sparsities):
        weights = {  # few values, so that many are equal, and pruned ones that came back large
            name: torch.randint(-3, 4, shape, generator=generator).float()
            for name, shape in (("a", (4, 6)), ("b", (5, 1, 3, 3)))
        }
        masks = magnitude_masks(weights, sparsity, before)
        assert num_pruned(masks) == round(sparsity * 69)
        if before is not None:
            assert not (flat(masks) & ~flat(before)).any()
        before = masks


def test_precisions():
    """Double decides where single sees a tie; mixed ones share one threshold."""
    weight = torch.tensor([[1.0 + 1e-12, 1.0]], dtype=torch.float64)
    assert magnitude_masks({"w": weight}, 0.5)["w"].tolist() == [[True, False]]
    assert magnitude_masks({"w": weight.float()}, 0.5)["w"].tolist() == [[False, True]]
    weights = {"a": torch.tensor([[0.1, 3.0]]).bfloat16(), "b": torch.tensor([[0.2, 4.0]]).double()}
    assert flat(magnitude_masks(weights, 0.5)).tolist() == [False, True, False, True]


def test_neither_memory_format_nor_a_second_run_changes_the_masks():
    model = network()
    with torch.no_grad():  # one decimal, so that ties are everywhere
        for weight in prunable_weights(model).values():
            weight.copy_((weight * 100).round() / 100)
    first = magnitude_masks(prunable_weights(model), 0.6)
    again = magnitude_masks(prunable_weights(model), 0.6)
    other = magnitude_masks(prunable_weights(model.to(memory_format=torch.channels_last)), 0.6)
    assert num_pruned(first) == 270_274
    assert torch.equal(flat(first), flat(again))
    assert torch.equal(flat(first), flat(other))


def test_the_released_percentile_agrees_where_nothing_is_equal():
    weights = prunable_weights(network())
    size = flat(weights).abs()
    for sparsity in (0.15, 0.3, 0.45, 0.6):
        kept = size > torch.tensor(np.percentile(size.numpy(), 100 * sparsity))
        assert (kept ^ flat(magnitude_masks(weights, sparsity))).sum() <= 1
    same = torch.ones(10, 10)
    assert not (same > float(np.percentile(same.numpy(), 60))).any()  # all of them, not 60 %
    assert num_pruned(magnitude_masks({"w": same}, 0.6)) == 60


@pytest.mark.parametrize("scope", ["global", "kind", "layer"])
def test_every_group_has_its_own_exact_count(scope):
    model = network()
    weights, groups = prunable_weights(model), weight_groups(model, scope)
    half = magnitude_masks(weights, 0.3, groups=groups)
    masks = magnitude_masks(weights, 0.6, half, groups)
    assert list(masks) == list(weights)
    assert len(set(groups.values())) == {"global": 1, "kind": 7, "layer": 86}[scope]
    for group in set(groups.values()):
        members = {name: mask for name, mask in masks.items() if groups[name] == group}
        assert num_pruned(members) == round(0.6 * len(flat(members)))
    assert not (flat(masks) & ~flat(half)).any()
    if scope != "global":
        assert not torch.equal(flat(masks), flat(magnitude_masks(weights, 0.6)))
    other = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 5))
    assert list(weight_groups(other, "kind").values()) == ["other", "pointwise", "fc"]


def test_biases_and_batch_norm_are_never_pruned():
    model = network()
    weights = prunable_weights(model)
    spared = {name: p.clone() for name, p in model.named_parameters() if name not in weights}
    assert len(weights) == 86
    assert {name.split(".")[-1] for name in weights} == {"weight"}
    assert not any("bn" in name.split(".")[-2] for name in weights)
    apply_masks(model, magnitude_masks(weights, 0.999))
    assert (flat(prunable_weights(model)) != 0).sum() == 450_456 - round(0.999 * 450_456)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in spared.items())
    assert sum(name.endswith("bias") for name in spared) > 80


# --------------------------------------------------------------------------------- what is refused


def test_what_cannot_be_meant_is_refused_and_changes_nothing():
    weights = {"a": torch.rand(2, 5)}
    half = magnitude_masks(weights, 0.5)
    for sparsity in (60, -0.1, float("nan")):
        with pytest.raises(InputError, match=f"{sparsity}.*not in"):
            magnitude_masks(weights, sparsity)
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(InputError, match=r"^b "):
            magnitude_masks({"a": torch.ones(2, 2), "b": torch.tensor([[1.0, bad]])}, 0.5)
    with pytest.raises(InputError, match="5 of 10 weights"):
        magnitude_masks(weights, 0.4, half)
    with pytest.raises(InputError, match="b is in one"):
        magnitude_masks(weights, 0.6, {**half, "b": half["a"]})
    with pytest.raises(InputError, match=r"a is \[2, 5\], its mask \[5, 2\]"):
        magnitude_masks(weights, 0.6, {"a": half["a"].T})
    with pytest.raises(InputError, match="groups"):
        magnitude_masks(weights, 0.6, groups={"b": "all"})
    with pytest.raises(InputError, match="no weights"):
        magnitude_masks({}, 0.5)
    with pytest.raises(InputError, match="no convolution and no linear layer"):
        prunable_weights(nn.BatchNorm2d(3))
    model = network()
    with pytest.raises(InputError, match="choose from global, kind, layer"):
        weight_groups(model, "per_layer")
    masks = magnitude_masks(prunable_weights(model), 0.5)
    before = flat(prunable_weights(model))
    with pytest.raises(InputError, match="another network"):
        apply_masks(model, {**masks, "head.classifier.weight": torch.ones(2, 2)})
    assert torch.equal(flat(prunable_weights(model)), before)
