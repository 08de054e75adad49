"""Sensitivities against brute force, plans against their price, and the networks they lead to."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from integer_networks import NAMES, images, integer_network
from small_networks import seeded

from micronet_lib.beyond.allocation import (
    Allocator,
    allocated,
    apply_allocation,
    cheapest_price,
    output_positions,
    trimmed,
)
from micronet_lib.beyond.changes import Allocate, Quantize
from micronet_lib.beyond.network import IntegerMicroNet, in_integers
from micronet_lib.beyond.sensitivity import Sensitivity, measure_sensitivity
from micronet_lib.errors import InputError
from micronet_lib.pruning.masks import HeldMasks
from micronet_lib.scoring.bill import score_network


@pytest.fixture(scope="module")
def floats() -> IntegerMicroNet:
    return integer_network(widths=None)[1].train()


@pytest.fixture(scope="module")
def sensitivity(floats) -> Sensitivity:
    return measure_sensitivity(floats, images(64))


@pytest.fixture(scope="module")
def allocator(floats, sensitivity) -> Allocator:
    return Allocator(floats, sensitivity, output_positions(floats))


def test_the_fisher_information_of_a_classifier_by_hand(floats, sensitivity):
    """For logits z = W f + b it is the mean of f^2 p (1 - p), in the mean over drawn labels."""
    few = images(64)
    network = copy.deepcopy(floats).eval()
    seen: list[torch.Tensor] = []
    network.head.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        p = network(few).softmax(1)
    features = seen[0]
    wanted = (p * (1 - p)).T @ features.square() / len(few)
    many = [measure_sensitivity(floats, few, seed).weights["head.classifier"] for seed in range(6)]
    found = torch.stack(many).mean(0)
    assert found.sum().item() == pytest.approx(wanted.sum().item(), rel=0.25)
    assert torch.equal(many[0], sensitivity.weights["head.classifier"])


def test_it_predicts_what_a_change_costs(floats, sensitivity):
    """Rounding a layer to 4 bits moves the predictions by about what is said, of two layers too."""
    few = images(64)
    with torch.no_grad():
        before = floats(few).log_softmax(1)
        for name in ("blocks.3.conv_project", "blocks.8.conv_expand", "head.classifier"):
            changed = copy.deepcopy(floats)
            layer = changed.layers[name]
            noise = torch.randn(layer.weight.shape, generator=seeded(1)) * layer.weight.std() * 0.05
            layer.weight += noise
            after = changed(few).log_softmax(1)
            found = F.kl_div(after, before, reduction="batchmean", log_target=True).item()
            said = 0.5 * (sensitivity.weights[name] * noise.square()).sum().item()
            assert said / 4 < found < said * 4, name


def test_sensitivities_leave_the_network_as_it_was(floats):
    before = copy.deepcopy(floats.state_dict())
    measure_sensitivity(floats, images(32))
    assert all(torch.equal(value, before[name]) for name, value in floats.state_dict().items())
    assert floats.training
    assert all(quantizer.tap is None for quantizer in floats.quantizers.values())
    frozen = copy.deepcopy(floats).requires_grad_(False)
    measure_sensitivity(frozen, images(32))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with pytest.raises(ZeroDivisionError), frozen.tapped(lambda _, value: value / (1 // 0)):
        frozen(images(2))
    assert all(quantizer.tap is None for quantizer in frozen.quantizers.values())


def test_more_bits_hurt_less(sensitivity):
    for name, widths in sensitivity.rounding.items():
        losses = [widths[bits] for bits in sorted(widths)]
        assert losses[0] >= losses[-1] >= 0, name
    total = [sum(w[bits] for w in sensitivity.rounding.values()) for bits in (3, 4, 5, 6, 7, 8)]
    assert total == sorted(total, reverse=True)


def test_a_higher_price_buys_a_lower_score(floats, allocator):
    prices = (2.0, 20.0, 200.0, 1000.0)
    plans = [allocator.at(price) for price in prices]
    losses = [sum(plan.predicted.values()) for plan in plans]
    assert losses == sorted(losses)
    kept = [sum(int(mask.sum()) for mask in plan.kept.values()) for plan in plans]
    assert kept == sorted(kept, reverse=True)
    scores = [
        score_network(allocated(floats, allocator, price, images(16)), "official").score
        for price in prices
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.7 * scores[0]


def test_a_plan_keeps_what_is_worth_its_price(floats, sensitivity, allocator):
    price = 100.0
    plan = allocator.at(price)
    for name, layer in floats.layers.items():
        loss = 0.5 * sensitivity.weights[name] * layer.weight.detach().square()
        reads = next((k for k, q in floats.quantizers.items() if q is layer.reads), "")
        bits = plan.widths.inputs.get(reads, 8)
        unit = allocator.unit(name, plan.widths.weights[name], bits)
        kept = plan.kept[name]
        assert (loss[kept] > price * unit).all(), name
        assert not (kept & (layer.weight == 0)).any(), name
        block = int(name.split(".")[1]) if name.startswith("blocks") else -1
        if not len(plan.removed.get(block, ())):
            assert (loss[~kept] <= price * unit).all(), name


@pytest.mark.parametrize("name", NAMES)
def test_positions_are_those_of_the_forward_pass(name):
    network = integer_network(name, widths=None)[1]
    found = {}

    def look(layer_name: str):
        return lambda _, __, out: found.update({layer_name: math.prod(out.shape[2:])})

    for layer_name, layer in network.layers.items():
        layer.register_forward_hook(look(layer_name))
    with torch.no_grad():
        network(images(1))
    assert {k: v for k, v in output_positions(network).items() if k in found} == found


@pytest.mark.parametrize("name", NAMES)
def test_a_trimmed_network_gives_the_same_logits(name):
    network = copy.deepcopy(integer_network(name, widths=None)[1]).eval()
    with torch.no_grad():
        for index, block in enumerate(network.blocks):
            block.conv_project.weight[:, :: 2 + index % 3] = 0
    smaller = trimmed(network)
    few = images(8)
    with torch.no_grad():
        torch.testing.assert_close(smaller(few), network(few), rtol=1e-4, atol=1e-4)
    for before, after in zip(network.blocks, smaller.blocks, strict=True):
        assert after.config.hidden_chs < before.config.hidden_chs


def test_removed_channels_leave_their_mean(floats, sensitivity, allocator):
    plan = allocator.at(500.0)
    assert sum(map(len, plan.removed.values())) > 0
    only = replace(plan, kept={name: layer.weight != 0 for name, layer in floats.layers.items()})
    index, channels = next((i, c) for i, c in plan.removed.items() if len(c))
    made = copy.deepcopy(floats)
    apply_allocation(made, sensitivity, replace(only, removed={index: channels}))
    moved = made.blocks[index].conv_project.bias - floats.blocks[index].conv_project.bias
    weight = floats.blocks[index].conv_project.weight[:, channels, 0, 0]
    assert torch.allclose(moved, weight @ sensitivity.means[index][channels], atol=1e-6)


def test_the_cheapest_price_meets_the_score(floats, allocator):
    full = score_network(allocated(floats, allocator, 5.0, images(8)), "official").score
    target = 0.85 * full
    price = cheapest_price(floats, allocator, target, images(8))
    assert score_network(allocated(floats, allocator, price, images(8)), "official").score <= target
    cheaper = allocated(floats, allocator, price / 1.3, images(8))
    assert score_network(cheaper, "official").score > target
    with pytest.raises(InputError, match="no allocation reaches"):
        cheapest_price(floats, allocator, 1e-7, images(8))


@pytest.mark.parametrize("price", [0.0, -1.0, math.inf, math.nan])
def test_a_price_that_is_none_is_refused(allocator, price):
    with pytest.raises(InputError, match="price"):
        allocator.at(price)


def test_a_rounded_network_has_no_sensitivities():
    rounded = integer_network(widths=8)[1]
    with pytest.raises(InputError, match="in floats"):
        measure_sensitivity(rounded, images(4))
    with pytest.raises(InputError, match="in floats"):
        trimmed(rounded)
    with pytest.raises(InputError, match="no images"):
        measure_sensitivity(integer_network(widths=None)[1], images(4)[:0])


# ---------------------------------------------------------------------------------- changes


def test_the_changes_of_a_recipe():
    plain = integer_network(widths=None)[0]
    change = Quantize(4, 6, 9, 11)
    rounded = change.apply(plain, images(16))
    assert {layer.weight_bits for layer in rounded.layers.values()} == {4}
    assert {quantizer.bits for quantizer in rounded.quantizers.values()} == {6}
    assert rounded.widths.pre == 11
    (hook,) = change.hooks(rounded)
    assert isinstance(hook, HeldMasks)
    whole = score_network(rounded, "official").score
    planned = Allocate(0.8 * whole, num_images=64).apply(plain, images(64))
    assert score_network(planned, "official").score <= 0.8 * whole
    assert not planned.in_floats
    with pytest.raises(InputError, match="no images"):
        change.apply(in_integers(plain), images(4)[:0])


def test_channels_go_only_where_they_may(floats, sensitivity):
    positions = output_positions(floats)
    price = 400.0
    free = Allocator(floats, sensitivity, positions).at(price)
    bound = Allocator(floats, sensitivity, positions, remove_channels=False).at(price)
    assert sum(map(len, free.removed.values())) > 0
    assert not bound.removed
    assert bound.predicted["channels"] == 0
    assert sum(int(kept.sum()) for kept in bound.kept.values()) > sum(
        int(kept.sum()) for kept in free.kept.values()
    )


def test_expand_convolutions_of_one_bit_are_ternary():
    made = Quantize(8, 8, expand_bits=1).apply(integer_network(widths=None)[0], images(16))
    for name, layer in made.layers.items():
        ternary = name.startswith("blocks") and name.endswith("conv_expand") and ".se." not in name
        assert layer.weight_bits == (1 if ternary else 8)
        if ternary:
            assert set(layer.codes().unique().tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_plans_about_the_same(floats, sensitivity):
    network, few = copy.deepcopy(floats).cuda(), images(64).cuda()
    found = measure_sensitivity(network, few)
    for name, wanted in sensitivity.weights.items():
        assert found.weights[name].is_cuda
        assert found.weights[name].sum().item() == pytest.approx(wanted.sum().item(), rel=0.2)
    planner = Allocator(network, found, output_positions(network))
    assert allocated(network, planner, 100.0, few)(few).isfinite().all()
