"""Learned ranges and widths by hand, their gradients, the network in integers, and its price."""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from integer_networks import NAMES, images, integer_network
from published_data import require
from small_networks import seeded
from tiny_lab import sweep_of, tiny_lab
from torch import Tensor

from micronet_lib.adjustable_quantization import Steer, adjusted, learned_bits, price, shared_max
from micronet_lib.adjustable_quantization.layers import (
    FINEST,
    TOLERANCE,
    ChannelQuantizer,
    ChannelSums,
)
from micronet_lib.adjustable_quantization.network import Adjust, AdjustableMicroNet
from micronet_lib.adjustable_quantization.price import Ranges, fixed_price, reading_positions
from micronet_lib.adjustable_quantization.ranges import zero_code
from micronet_lib.architecture import MicroNet, build
from micronet_lib.beyond.arithmetic import (
    GATE_BITS,
    GATE_UNIT,
    LOGIT_UNIT,
    STREAM_BITS,
    saturated,
)
from micronet_lib.beyond.changes import Quantize
from micronet_lib.beyond.conversion import network_bytes
from micronet_lib.beyond.layers import Quantizer
from micronet_lib.beyond.network import _swished, in_integers
from micronet_lib.distillation import DistillationConfig
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.lab.recipes.bases import ORN
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.grids.adjustable_quantization import UNIFORM_SCORES
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.lineage import cases, missing_files
from micronet_lib.lab.running.measure import ensure
from micronet_lib.lab.running.measures.adjustable_quantization import adjustable_quantization
from micronet_lib.lab.running.networks import network_of
from micronet_lib.lab.storage.networks import pack, restore
from micronet_lib.pruning.schedules import PruneTo
from micronet_lib.scoring import record_operations, score_network
from micronet_lib.ternary import Ternarize

PAPER = records.paper("adjustable_quantization").set_index(["point", "metric"])["value"]


# ------------------------------------------------------------------------------ ranges by hand


def test_rounding_in_a_range_by_hand():
    """Three bits from -1 to 2.5: eight integers, half a unit apart, from -2 to 5."""
    x = torch.tensor([-1.4, -0.8, -0.1, 0.3, 1.1, 2.4, 9.0])
    step, low, top = torch.tensor([0.5]), torch.tensor([-1.0]), torch.tensor([7.0])
    assert zero_code(low, step, top).item() == -2
    assert adjusted(x, step, low, top).tolist() == [-1.0, -1.0, 0.0, 0.5, 1.0, 2.5, 2.5]


@pytest.mark.parametrize(("low", "zero"), [(0.7, 0), (-9.0, -7), (-1.2, -2), (0.0, 0)])
def test_the_range_always_holds_0(low, zero):
    found = zero_code(torch.tensor([low]), torch.tensor([0.5]), torch.tensor([7.0]))
    assert found.item() == zero


def test_widths_are_whole_clipped_and_have_a_gradient():
    scale = torch.tensor([0.01, 0.3, 0.44, 1.0, 1.7], requires_grad=True)
    bits = learned_bits(scale)
    assert bits.tolist() == [2, 2, 4, 8, 8]
    bits.sum().backward()
    assert scale.grad is not None
    assert scale.grad.tolist() == [8.0] * 5


def gradients(x: float, bound_gradient: bool) -> dict[str, float]:
    """The gradients of a number that is rounded in the range from -1 with step 0.5 and top 7."""
    values = {"x": x, "step": 0.5, "low": -1.0, "top": 7.0}
    leaves = {name: torch.tensor([v], requires_grad=True) for name, v in values.items()}
    adjusted(**leaves, bound_gradient=bound_gradient).backward()  # type: ignore[arg-type]
    return {n: 0.0 if leaf.grad is None else leaf.grad.item() for n, leaf in leaves.items()}


@pytest.mark.parametrize("bounds", [False, True])
def test_gradients_by_hand(bounds):
    # Inside: straight through; the step's is what rounding has added, in steps.
    inside = gradients(1.1, bounds)
    assert inside == pytest.approx({"x": 1, "step": 2 - 2.2, "low": 0, "top": 0}, abs=1e-6)
    # Outside: nothing to the number. -1 is low itself, so the step changes nothing.
    assert gradients(-3.0, bounds) == pytest.approx({"x": 0, "step": 0, "low": 1, "top": 0})
    # 2.5 = low + top * step.
    above = {"x": 0, "step": 7, "low": 1, "top": 0.5 if bounds else 0}
    assert gradients(4.0, bounds) == pytest.approx(above)


def test_a_range_that_is_moved_to_hold_0_keeps_its_own_gradients():
    """A convention: from 0.7 on, the integers are 0 to 7, but gradients are of 0.7 + 0.5 n."""
    x, g = torch.tensor([-3.0, 0.9, 9.0]), torch.tensor([1.0, 10.0, 100.0])
    step, low, top = (torch.tensor([v], requires_grad=True) for v in (0.5, 0.7, 7.0))
    found = adjusted(x, step, low, top)
    assert found.tolist() == [0.0, 1.0, 3.5]
    found.backward(g)
    assert low.grad is not None
    assert step.grad is not None
    assert low.grad.item() == pytest.approx(1 + 100)  # as if the ends were low and low + 7 steps
    by_hand = 1 * (0 - 1.4) + 10 * (2 - 1.8) + 100 * (7 - 1.4)
    assert step.grad.item() == pytest.approx(by_hand, rel=1e-5)


def of_bits(x: float, bits: float, bounds: bool) -> Tensor:
    """A number in the range from 0 to 3, with a gradient to the width."""
    width = torch.tensor([bits], dtype=torch.float64, requires_grad=True)
    top = 2**width - 1
    low = torch.zeros(1, dtype=torch.float64)
    adjusted(torch.tensor([x], dtype=torch.float64), 3 / top, low, top, None, bounds).backward()
    assert width.grad is not None
    return width.grad


def test_a_clipped_number_does_not_depend_on_the_width_and_the_entrys_gradient_says_so_not():
    assert of_bits(7.0, 4, bounds=True).item() == pytest.approx(0, abs=1e-12)
    assert of_bits(7.0, 4, bounds=False).item() == pytest.approx(-3 * math.log(2) * 16 / 15)


def test_a_broadcast_gradient_is_the_sum_over_its_channel():
    x = torch.randn(3, 4, 5, 5, generator=seeded(0), dtype=torch.float64)
    shape, grad = (1, 4, 1, 1), torch.randn(3, 4, 5, 5, generator=seeded(1), dtype=torch.float64)
    ends = [torch.full(shape, v, dtype=torch.float64) for v in (0.2, -0.9, 7.0)]
    leaves = [each.clone().requires_grad_() for each in ends]
    adjusted(x, *leaves).backward(grad)
    singles = [each.expand(3, 4, 5, 5).clone().requires_grad_() for each in ends]
    adjusted(x, *singles).backward(grad)
    for leaf, single in zip(leaves[:2], singles[:2], strict=True):
        assert single.grad is not None
        torch.testing.assert_close(leaf.grad, single.grad.sum((0, 2, 3), keepdim=True))


def test_the_wider_one_shares_its_gradient():
    weights = torch.tensor([[2.0], [6.0]], requires_grad=True)  # two filters
    inputs = torch.tensor([[3.0, 4.0, 8.0]], requires_grad=True)  # three channels
    wider = shared_max(weights, inputs, 0.7)
    assert wider.tolist() == [[3, 4, 8], [6, 6, 8]]
    wider.sum().backward()
    torch.testing.assert_close(weights.grad, torch.full((2, 1), 3 * 0.3))
    torch.testing.assert_close(inputs.grad, torch.full((1, 3), 2 * 0.7))


# ------------------------------------------------------------------------------ the network

IMAGES = images(32)


def plain(name: str = "micronet_v1") -> MicroNet:
    """A small pruned network, to be changed."""
    return copy.deepcopy(integer_network(name, widths=None)[0])


@pytest.fixture(scope="module", params=["micronet_v1", "micronet_v2"])
def mixed(request) -> AdjustableMicroNet:
    """A network whose channels have every width."""
    made = Adjust(target=0.002).apply(plain(request.param), IMAGES).eval()
    generator = seeded(11)
    with torch.no_grad():
        for each in (*made.layers.values(), *made.quantizers.values()):
            each.bit_scale.uniform_(0.2, 1, generator=generator)
    return made


def test_eight_bits_are_near_the_folded_network():
    network = plain()
    floats = network(IMAGES).detach()
    made = Adjust().apply(network, IMAGES).eval()
    with torch.no_grad():
        logits = made(IMAGES)
        for other in (floats, made.rounded_floats(IMAGES)):
            assert (logits - other).square().mean() / floats.var() < 0.05


def test_zeros_stay_zeros_and_filters_hold_their_width(mixed):
    for layer in mixed.layers.values():
        codes, bits = layer.codes(), layer.filter_bits().detach()
        assert (codes[layer.weight == 0] == 0).all()
        assert torch.equal(codes, codes.round())
        rows = codes.flatten(1)
        assert (rows.amin(1) >= -(2 ** (bits - 1))).all()
        assert (rows.amax(1) <= 2 ** (bits - 1) - 1).all()
        weight = layer.rounded()[0].detach()  # what training computes with
        scale = layer.scales().detach().view(-1, *[1] * (codes.ndim - 1))
        torch.testing.assert_close(weight, codes * scale)


def both_ways(network: AdjustableMicroNet, images: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Layer by layer: its outputs as integers, and those of the rounded floats in the same unit.

    Both read the integers that the floats before that layer are rounded to.
    """
    sums, point, stream = network.sums(), network._point, dict[str, Tensor]()
    for name, quantizer in network.quantizers.items():
        quantizer.tap = lambda _, y, name=name: stream.setdefault(name, y.clone())
    network.rounded_floats(images)
    for quantizer in network.quantizers.values():
        quantizer.tap = None
    owners = {id(quantizer): name for name, quantizer in network.quantizers.items()}

    def after_hard_swish(name: str, codes: Tensor, floats: Tensor, after: Any) -> Iterator[Any]:
        grid = after.grid()
        assert grid.three * grid.unit >= FINEST
        rounded = (after(floats) / grid.step.float()).round()
        yield name, _swished(sums[name], codes, after), rounded

    def in_units(name: str, codes: Tensor, floats: Tensor, unit: float, bits: int) -> Iterator[Any]:
        yield name, sums[name].outputs(codes, unit, bits), saturated((floats / unit).round(), bits)

    centred = network.stem.pixels.centred(images)
    first = network.quantized_blocks()[0].quant_input
    yield from after_hard_swish("stem.conv", centred, network.stem(images), first)
    blocks = {f"blocks.{i}": block for i, block in enumerate(network.quantized_blocks())}
    for name, layer in network.layers.items():
        if name == "stem.conv":
            continue
        place, _, leaf = name.rpartition(".")
        block: Any = blocks.get(place.removesuffix(".se"))
        grid, y = layer.reads.grid(), stream[owners[id(layer.reads)]]
        ends: Any = (grid.step.float(), grid.low, grid.high)
        step, low, high = (end.view(-1, *[1] * (y.ndim - 2)) for end in ends)
        codes = (y / step).round().clamp(low, high)
        floats = layer(codes * step)
        if name == "head.classifier":
            yield from in_units(name, codes, floats, LOGIT_UNIT, STREAM_BITS)
        elif place.endswith(".se"):
            if leaf == "conv_reduce":
                yield from after_hard_swish(name, codes, floats, block.se.quant_expand)
            else:
                yield from in_units(name, codes, floats, GATE_UNIT, GATE_BITS)
        elif leaf in ("conv_project", "conv_shortcut"):
            yield from in_units(name, codes, floats, point, STREAM_BITS)
        else:
            after = block.quant_dw if leaf == "conv_expand" else block.quant_project
            yield from after_hard_swish(name, codes, floats, after)


def checked_within_the_last_bit(network: AdjustableMicroNet, images: Tensor) -> int:
    """How many outputs of its layers, all of them, are at most one integer apart."""
    checked, seen, sums = 0, [], network.sums()
    with torch.no_grad():
        for name, whole, rounded in both_ways(network, images):
            assert (rounded - whole).abs().max() <= 1, name
            assert whole.unique().numel() > 1, name
            assert sums[name].width <= 32
            checked += whole.numel()
            seen.append(name)
    assert set(seen) == set(network.layers)
    return checked


@pytest.mark.parametrize("bits", [None, 8, 4], ids=["mixed", "8", "4"])
@pytest.mark.parametrize("name", NAMES[:2])
def test_integers_follow_the_rounded_floats_within_the_last_bit(name, bits):
    """Stem, all convolutions of blocks, gates and classifier, with widths of their own or alike."""
    network, generator = Adjust(target=0.002).apply(plain(name), IMAGES).eval(), seeded(11)
    for each in (*network.layers.values(), *network.quantizers.values()):
        if bits is None:
            each.bit_scale.data.uniform_(0.2, 1, generator=generator)
        else:
            each.bit_scale.data.fill_(bits / 8)
    assert checked_within_the_last_bit(network, IMAGES) > 10_000
    kinds = {layer.rpartition(".")[2] for layer in network.layers}
    assert {"conv", "conv_project", "conv_shortcut", "conv_reduce", "classifier"} <= kinds


@pytest.mark.slow
def test_they_follow_on_real_images_too():
    """The published network with every width, on test images of CIFAR-100."""
    case = cases(SWEEPS["adjustable_quantization"], PROFILES["day"], point="learned_4")[0]
    require(*missing_files(case, trains=True))
    untrained = replace(case.recipe, train=TrainConfig(epochs=0), teacher=None)
    network = network_of(untrained, case.profile, 0)
    generator = seeded(7)
    with torch.no_grad():
        for each in (*network.layers.values(), *network.quantizers.values()):
            each.bit_scale.uniform_(0.2, 1, generator=generator)
    shown = normalize(load_split("cifar100", "test").images[:16])
    assert checked_within_the_last_bit(network, shown) > 1_000_000


@pytest.mark.parametrize("hard_swish", [False, True])
def test_a_step_becomes_hardly_smaller_and_at_most_twice_as_large(hard_swish):
    """Of channels that are not far smaller than the largest."""
    quantizer = Quantizer(hard_swish)
    quantizer.pre_bits = 12
    made = ChannelQuantizer(quantizer, 200, Adjust(4, 4))
    made.width.uniform_(1, 20, generator=seeded(12))
    low, step, top = (each.detach() for each in made.ends())
    unit, shifts, *_ = made.steps(low, step, top)
    ratios = unit * 2**shifts / step
    assert 2**-TOLERANCE - 0.01 < ratios.min() < 0.95
    assert ratios.max() < 2.02


def test_sums_are_the_products_one_by_one(mixed):
    """Of unsigned inputs and shifted weights, and inside the proven range."""
    for name, sums in mixed.sums().items():
        assert isinstance(sums, ChannelSums)
        if not sums.stride or sums.weight.shape[-1] > 1:
            continue
        tops = sums.tops.double()
        unsigned = (torch.rand(len(tops), generator=seeded(3)) * (tops + 1)).floor()
        counted = (unsigned - sums.zeros.double()).view(1, -1, 1, 1).float()
        found = sums(counted).double().flatten()
        by_hand = sums.weight.double().flatten(1) @ unsigned.double() + sums.start
        assert torch.equal(found, by_hand), name
        low, high = sums.reach
        assert (found >= low).all()
        assert (found <= high).all()


def test_a_file_and_a_copy_compute_the_same(mixed):
    content = pack(mixed)
    again = restore(json.loads(json.dumps(content["spec"])), content["model"])
    with torch.no_grad():
        logits = mixed(IMAGES)
        assert torch.equal(again(IMAGES), logits)
        assert torch.equal(copy.deepcopy(mixed)(IMAGES), logits)


# ------------------------------------------------------------------------------ what it costs


def test_the_price_is_the_counters_score_whatever_the_widths(mixed):
    network = copy.deepcopy(mixed)
    fixed = fixed_price(network)
    for low, high in ((0.2, 1.0), (0.25, 0.3), (0.9, 1.0)):
        for each in (*network.layers.values(), *network.quantizers.values()):
            each.bit_scale.data.uniform_(low, high, generator=seeded(4))
        found = price(network, fixed).item()
        assert found == pytest.approx(score_network(network, "official").score, rel=1e-5)


def test_the_bill_of_a_layer_by_hand(mixed):
    name = "blocks.1.conv_project"
    layer = mixed.layers[name]
    bill = score_network(mixed, "official").table().query("layer == @name")
    kept = (layer.codes() != 0).flatten(1)
    positions = reading_positions(mixed)[name]
    wider = torch.maximum(layer.filter_bits()[:, None], layer.input_bits()[None]).detach()
    by_width = {int(w): int((kept * (wider == w)).sum()) * positions for w in wider.unique()}
    mults = bill.query("quantity == 'mult'").groupby("bits")["count"].sum().to_dict()
    assert mults.pop(16) == 2 * positions * len(kept)  # a sum of 32 bits times its scale
    assert mults == {w: n for w, n in by_width.items() if n}
    adds = bill.query("quantity == 'add'")["count"].sum()
    assert adds == positions * int((kept.sum(1) - 1).clamp_min(0).sum() + len(kept))
    stored = bill.query("quantity == 'param'")["param_storage"].sum() * 32
    by_hand = (kept.sum(1) * layer.filter_bits()).sum().item()
    by_hand += len(kept) * (5 + 3 + layer.bias_bits)  # scale, width, bias
    by_hand += 2 * 32 + 40  # units of scales and biases, unit and zero of the inputs
    by_hand += kept.shape[1] * (3 + 3 + 8)  # width, k and zero of a channel
    assert stored == pytest.approx(by_hand)


def test_a_strict_reading_costs_more_and_proven_sums_less(mixed):
    official = score_network(mixed, "official").score
    assert score_network(mixed.counted(shifted=True), "official").score > official
    assert score_network(mixed, "official_integer").score < official


def test_mean_widths_are_those_of_stored_weights_and_read_activations():
    made = Adjust(5, 6).apply(plain(), IMAGES)
    assert made.mean_bits() == pytest.approx((5, 6))


# ------------------------------------------------------------------------------ steering


@pytest.mark.parametrize("factor", [0.9, 1.2])
def test_steering_moves_widths_to_the_target(factor):
    made = Adjust(5, 5, target=1.0).apply(plain(), IMAGES).train()
    learned = [each.bit_scale for each in (*made.layers.values(), *made.quantizers.values())]
    for scale in learned:  # not all change together
        scale.data.uniform_(0.5, 0.75, generator=seeded(5))
    start = score_network(made, "official").score
    target = factor * start
    hook, ranges = Steer(made, target, 1.0, 0.7), Ranges(made)
    optimizer = torch.optim.Adam(learned, lr=0.015, betas=(0.0, 0.9))
    for _ in range(20):
        optimizer.zero_grad()
        assert hook.after_backward(None) is None
        optimizer.step()
        ranges.after_step()
    found = score_network(made, "official").score
    assert abs(found - target) < 0.6 * abs(start - target)
    assert all(scale.min() >= 0.25 and scale.max() <= 1 for scale in learned)


def test_widths_are_not_learned_without_a_target():
    made = Adjust(4, 4).apply(plain(), IMAGES)
    names = {n for n, p in made.named_parameters() if not p.requires_grad}
    assert names == {n for n, _ in made.named_parameters() if n.endswith("bit_scale")}
    hooks = Adjust(4, 4).hooks(made)
    assert not any(isinstance(hook, Steer) for hook in hooks)
    assert any(isinstance(h, Steer) for h in Adjust(target=0.1).hooks(made))


def test_a_share_of_the_score_before_training_is_a_target(monkeypatch):
    observed, honest = [], AdjustableMicroNet.observe
    monkeypatch.setattr(
        AdjustableMicroNet,
        "observe",
        lambda own, *given: observed.append(own) or honest(own, *given),
    )
    change = Adjust(5, 5, target_share=0.9)
    made = change.apply(plain(), IMAGES).train()
    assert len(observed) == 1
    same = Adjust(5, 5, target=made.settings.target).apply(plain(), IMAGES).train()
    assert pack(made)["spec"] == pack(same)["spec"]
    assert all(map(torch.equal, made.state_dict().values(), same.state_dict().values()))
    start = score_network(made, "official").score
    assert made.settings.target == pytest.approx(0.9 * start)
    assert made.layers["blocks.0.conv_dw"].bit_scale.requires_grad
    (steer,) = (hook for hook in change.hooks(made) if isinstance(hook, Steer))
    assert steer._target == made.settings.target
    content = pack(made)  # a training state holds the target
    again = restore(json.loads(json.dumps(content["spec"])), content["model"])
    assert isinstance(again, AdjustableMicroNet)
    assert again.settings.target == made.settings.target


def test_ranges_are_held():
    made = Adjust(target=0.1).apply(plain(), IMAGES)
    quantizer = made.quantizers["blocks.0.quant_dw"]
    with torch.no_grad():
        for name, value in (("range_scale", 9.0), ("range_shift", -9.0), ("bit_scale", 9.0)):
            getattr(quantizer, name).fill_(value)
    Ranges(made).after_step()
    found = (quantizer.range_scale, quantizer.range_shift, quantizer.bit_scale)
    assert [each.max().item() for each in found] == pytest.approx([1.3, -0.2, 1.0])


def test_recipes_train_and_measure(tmp_path):
    learns = replace(ORN.train, initialization="default")
    base = replace(ORN, model="micronet_v1", width_mult=2.5, train=learns)
    pruned = Recipe(start=base, changes=(PruneTo(0.4),))
    train = replace(
        base.train, optimizer="adam", lr=0.01, min_lr=0.0, relative_lr=True,
        lr_factors={"*.range_shift": 1000.0, "*.bit_scale": 40.0},
    )  # fmt: skip
    learned = Recipe(
        start=pruned,
        changes=(Adjust(target=1e-4, num_images=16),),
        teacher=base,
        distillation=DistillationConfig(temperature=2.0),
        train=train,
    )
    rounded = Recipe(start=pruned, changes=learned.changes)
    sweep = sweep_of("toy", rounded=rounded, learned=learned)
    sweep = replace(sweep, measures=("accuracy", "adjustable_quantization"))
    with tiny_lab(tmp_path) as lab:
        ensure(sweep, "smoke", progress=False)
        before, after = cases(sweep, PROFILES["smoke"])
        assert len(lab.trained) == 2
        assert before.record().metrics["weight_bits"] == 8
        found, network = after.record(), network_of(after.recipe, after.profile, 0)
        assert found.metrics["weight_bits"] < 8
        assert found.metrics["activation_bits"] < 8
        assert found.metrics["official.score"] < before.record().metrics["official.score"]
        assert 0 <= found.metrics["same_answer"] <= 1
        assert [row["layer"] for row in found.layers] == list(network.layers)
        filters = sum(len(layer.weight) for layer in network.layers.values())
        assert sum(found.arrays["histogram"]["weights"]) == filters
        start = dict(network_of(after.recipe.start, after.profile, 0).named_parameters())
        name = "blocks.0.conv_project"
        kept = start[f"{name}.weight"] != 0
        assert (network.layers[name].codes()[~kept] == 0).all()


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"weight_bits": 0}, "weight_bits is 0; give 2 to 8 bits"),
        ({"activation_bits": 33}, "activation_bits is 33; give 2 to 8 bits"),
        ({"weight_bits": 4.5}, "weight_bits is 4.5; give a whole number"),
        ({"target": -0.1}, "target is -0.1; give a score above 0"),
        ({"target": math.nan}, "target is nan"),
        ({"strength": -1.0}, "strength is -1.0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"bias_bits": 0}, "bias_bits is 0"),
        ({"num_images": 0}, "num_images is 0"),
        ({"bias_bits": 2.5}, "bias_bits is 2.5; give a whole number"),
        ({"bias_bits": True}, "bias_bits is True; give a whole number"),
        ({"num_images": 1.5}, "num_images is 1.5"),
        ({"num_images": True}, "num_images is True"),
        ({"target": True}, "target is True; give a score above 0"),
        ({"target": "0.003"}, "target is '0.003'; give a score above 0"),
        ({"strength": "1"}, "strength is '1'"),
        ({"share": None}, "share is None"),
        ({"target_share": 0}, "target_share is 0; give a fraction"),
        ({"target_share": 1.5}, "target_share is 1.5; give a fraction"),
        ({"target": 0.003, "target_share": 0.5}, "give one of them"),
    ],
)
def test_settings_that_are_none_are_refused(settings, match):
    with pytest.raises(InputError, match=match):
        Adjust(**settings)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("resnet", {"blocks": [1, 1], "width_mult": 0.125, "stem": "cifar"}, "only a MicroNet"),
        ("mobilenet_v1", {"width_mult": 0.25}, "only a MicroNet"),
        ("torchvision_mobilenet_v2", {"width_mult": 0.15}, "only a MicroNet"),
        ("micronet_v1_released", {}, "gates and drops them: remove them first"),
    ],
)
def test_it_is_for_micronets_whose_gates_are_used(name, options, why):
    with pytest.raises(InputError, match=why) as refused:
        Adjust().apply(build(name, **options), IMAGES)
    assert "\n" not in str(refused.value)


def test_networks_and_files_that_do_not_fit():
    with pytest.raises(InputError, match="no images to calibrate with"):
        Adjust().apply(plain(), IMAGES[:0])
    with pytest.raises(InputError, match="TernaryNetwork is quantised already"):
        Adjust().apply(Ternarize().apply(plain()), IMAGES)
    made = Adjust().apply(plain(), IMAGES)
    with pytest.raises(InputError, match="AdjustableMicroNet is quantised already"):
        Adjust().apply(made, IMAGES)
    with pytest.raises(InputError, match="this is a AdjustableMicroNet"):
        Quantize().apply(made, IMAGES)
    with pytest.raises(InputError, match="only a network in integers can be packed"):
        network_bytes(made)
    of_another = in_integers(plain()).state_dict()
    words = r"tensors of another network than adjustable_micronet: \d+ of them missing, such as '"
    with pytest.raises(InputError, match=words) as refused:
        restore({"name": made.spec.name, "options": made.spec.options}, of_another)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="AdjustableMicroNet is quantised already"):
        Ternarize().apply(made)


def test_the_measure_is_for_adjustable_networks():
    with pytest.raises(InputError, match=r"toy/floats.*adjustable channels"):
        adjustable_quantization(SimpleNamespace(name="toy/floats"), plain(), False)


# ------------------------------------------------------------------------------ the entry's scores

PARAM_BASE, OPS_BASE = 6.9e6, 1.17e9
"""The ImageNet task's reference network [micronet_leaderboard]."""


@pytest.fixture(scope="module")
def efficientnet() -> dict[str, float]:
    """What EfficientNet-B0 counts at 224 x 224, dropout and stochastic depth aside."""
    torchvision = pytest.importorskip("torchvision")
    operations = record_operations(torchvision.models.efficientnet_b0().eval(), (3, 224, 224))
    dots = [op for op in operations if op.kind in ("conv", "linear")]
    whole = score_network(torchvision.models.efficientnet_b0(), "official", (3, 224, 224))
    return {
        "weights": sum(op.num_weights for op in dots),
        "biases": sum(op.bias + op.folded_bias for op in dots),
        "macs": sum(op.dense_macs for op in dots),
        "swish": sum(op.num_outputs for op in operations if op.kind == "swish"),
        "adds": whole.num_adds,
    }


def test_the_entrys_own_score_follows_from_shapes_and_mean_widths(efficientnet):
    """Its products are as the entry's file says, and the wider width is a little above 4.87."""
    assert efficientnet["macs"] == PAPER["texas_eic", "conv_macs"]
    params = efficientnet["weights"] * PAPER["texas_eic", "weight_bits"] / 32 / PARAM_BASE
    swish = 3 * efficientnet["swish"] * 8 / 32 / OPS_BASE
    left = PAPER["texas_eic", "score_own"] - params - swish
    wider = left * OPS_BASE * 32 / 2 / efficientnet["macs"]
    assert PAPER["texas_eic", "activation_bits"] < wider < 5.2


def test_additions_at_32_bits_explain_the_official_score(efficientnet):
    own = PAPER["texas_eic", "score_own"]
    products = 5.1 / 32 * efficientnet["macs"] / OPS_BASE
    wide = own - products + efficientnet["adds"] / OPS_BASE
    assert wide == pytest.approx(PAPER["texas_eic", "score"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("bits", UNIFORM_SCORES)
def test_a_target_is_the_score_of_the_published_network_at_that_width(bits):
    case = cases(SWEEPS["adjustable_quantization"], PROFILES["day"], point=f"uniform_{bits}")[0]
    require(*missing_files(case, trains=True))
    untrained = replace(case.recipe, train=TrainConfig(epochs=0), teacher=None)
    network = network_of(untrained, case.profile, 0)
    assert score_network(network, "official").score == pytest.approx(UNIFORM_SCORES[bits], abs=1e-6)
