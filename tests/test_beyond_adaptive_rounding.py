"""Adaptive rounding: its functions by hand, and what it does to a small network."""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
import torch
from small_networks import seeded, single_thread
from torch import Tensor

from micronet_lib.architecture import build
from micronet_lib.architecture.micronet import MicroNet, Stage
from micronet_lib.beyond import adaptive_rounding, quantizers
from micronet_lib.beyond.adaptive_rounding import (
    RoundAdaptively,
    RoundingConfig,
    UnitError,
    beta_at,
    hard_codes,
    initial_logits,
    neighbours,
    rectified_logit,
    rectified_sigmoid,
    round_adaptively,
    soft_codes,
    undecided,
    units,
)
from micronet_lib.beyond.changes import Quantize
from micronet_lib.beyond.network import IntegerMicroNet, in_integers
from micronet_lib.errors import InputError
from micronet_lib.hooks import Change
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.lab.recipes.identity import changed_fields
from micronet_lib.pruning.masks import HeldMasks

QUICK = RoundAdaptively(
    4, 10, 10, 12, num_images=64, iterations=120, batch_size=16, lr=0.1, correct_biases=False
)
NEAREST = Quantize(4, 10, 10, 12)
"""The same widths without a choice."""


# ----------------------------------------------------------------------------------- by hand


def test_the_rectified_sigmoid_by_hand():
    """h(0) = 1.2 / 2 - 0.1 = 1/2; h(ln 3) = 1.2 * 3/4 - 0.1 = 0.8; h(ln 11) = 1.1 - 0.1 = 1."""
    v = torch.tensor([0.0, math.log(3), -math.log(3), math.log(11), 5.0, -5.0])
    expected = torch.tensor([0.5, 0.8, 0.2, 1.0, 1.0, 0.0])
    torch.testing.assert_close(rectified_sigmoid(v), expected)


def test_the_rectified_sigmoid_is_flat_only_beyond_its_clip():
    v = torch.tensor([-4.0, 0.0, 4.0], requires_grad=True)
    rectified_sigmoid(v).sum().backward()
    assert v.grad.tolist() == pytest.approx([0.0, 1.2 / 4, 0.0])


def test_the_logit_is_its_inverse():
    h = torch.linspace(0, 1, 11)
    assert rectified_logit(h).isfinite().all()
    torch.testing.assert_close(rectified_sigmoid(rectified_logit(h)), h, atol=1e-6, rtol=0)


def test_the_regulariser_by_hand():
    """1 - |2h - 1|^beta: at h = 3/4 it is 1 - 1/4 for beta 2 and 1 - 2^-20 for beta 20."""
    h = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert undecided(h, 2.0).tolist() == [0.0, 0.75, 1.0, 0.75, 0.0]
    assert undecided(h, 20.0).tolist() == [0.0, 1 - 2**-20, 1.0, 1 - 2**-20, 0.0]


def test_beta_falls_from_20_to_2_after_the_warm_start():
    assert [beta_at(at) for at in (0.0, 0.1, 0.19)] == [None, None, None]
    assert [beta_at(at) for at in (0.2, 0.6, 1.0)] == pytest.approx([20.0, 11.0, 2.0])


def test_the_neighbours_by_hand():
    """3 bits hold -4 to -1 and 1 to 4."""
    ratios = torch.tensor([0.0, 0.3, -0.9, 1.0, 1.7, -2.5, 3.2, 4.0, -7.5])
    lower, upper = neighbours(ratios, 3)
    assert lower.tolist() == [0, 1, -1, 1, 1, -2, 3, 4, -4]
    assert upper.tolist() == [0, 1, -1, 2, 2, -3, 4, 4, -4]


def test_one_bit_leaves_no_choice():
    lower, upper = neighbours(torch.tensor([-3.0, -0.2, 0.0, 0.7, 1.5]), 1)
    assert lower.tolist() == upper.tolist() == [-1, -1, 0, 1, 1]


def test_soft_codes_start_at_the_weights_and_end_at_integers():
    ratios = torch.tensor([1.25, -2.5, 3.75, 0.25, -9.0, 0.0])
    lower, upper = neighbours(ratios, 3)
    v = initial_logits(ratios, lower)
    expected = torch.tensor([1.25, -2.5, 3.75, 1.0, -4.0, 0.0])
    torch.testing.assert_close(soft_codes(v, lower, upper), expected)
    assert hard_codes(v + 1e-3, lower, upper).tolist() == [1, -3, 4, 1, -4, 0]  # to nearest
    certain = torch.tensor([9.0, -9.0, -9.0, 9.0, 9.0, 9.0])
    assert hard_codes(certain, lower, upper).tolist() == [2, -2, 3, 1, -4, 0]
    torch.testing.assert_close(soft_codes(certain, lower, upper), hard_codes(certain, lower, upper))


# ------------------------------------------------------------------------- on a small network


@pytest.fixture(scope="module", autouse=True)
def plain_loops() -> Iterator[None]:
    """Compiling takes longer than all of this."""
    with pytest.MonkeyPatch.context() as patch, single_thread():
        patch.setattr(quantizers, "COMPILE_FROM", 2**40)
        yield


@pytest.fixture(scope="module")
def images() -> Tensor:
    return normalize(load_split("embedded", "train").images[:64])[..., ::2, ::2]


@pytest.fixture(scope="module")
def small(images: Tensor) -> MicroNet:
    """Six narrow blocks whose batch norm knows the images, with two weights in five at zero."""
    torch.manual_seed(0)
    stages = (Stage(16, 1), Stage(32, 2, 2), Stage(48, 1), Stage(72, 2, 2))
    network = build("micronet_v1", width_mult=0.25, stages=[asdict(stage) for stage in stages])
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.groups == 1 and layer.in_channels > 3:
                layer.weight *= torch.rand(layer.weight.shape, generator=seeded(1)) > 0.4
    return network.eval()


@pytest.fixture(scope="module")
def nearest(small: MicroNet, images: Tensor) -> IntegerMicroNet:
    return NEAREST.apply(small, images)


@pytest.fixture(scope="module")
def rounded(small: MicroNet, images: Tensor) -> tuple[IntegerMicroNet, list[UnitError]]:
    made = NEAREST.apply(small, images)
    return made, round_adaptively(made, images, QUICK)


def test_the_output_of_every_unit_is_nearer_to_the_float_one(rounded):
    network, errors = rounded
    assert [error.name for error in errors] == [*units(network)]
    assert len(errors) == len(network.blocks) + 1
    for error in errors:
        assert error.adaptive < 0.97 * error.nearest, error


def test_so_is_the_output_of_the_network(small, images, nearest, rounded):
    with torch.no_grad():
        exact = small(images)
        errors = [(net.eval()(images) - exact).square().mean() for net in (nearest, rounded[0])]
    assert errors[1] < 0.8 * errors[0]


def test_every_code_is_a_neighbour_of_its_weight(small, nearest, rounded):
    changed = 0
    for name, layer in rounded[0].layers.items():
        before = nearest.layers[name]
        codes, usual = layer.codes(), before.codes()
        assert torch.equal(layer.scale, before.scale)
        assert (codes - usual).abs().max() <= 1, name
        assert torch.equal(codes.sign(), before.weight.sign()), name
        assert codes.abs().max() <= 8, name
        ratios = before.weight / before.scales().view(-1, *[1] * (codes.ndim - 1))
        inside = (ratios.abs() >= 1) & (ratios.abs() <= 8)
        assert ((codes - ratios).abs()[inside] < 1 + 1e-4).all(), name
        changed += int((codes != usual).sum())
    assert changed > 100


def test_a_network_that_was_run_before_notices(small, images):
    made = NEAREST.apply(small, images[:32]).eval()
    before = made(images[:4])
    round_adaptively(made, images[:32], replace(QUICK, iterations=20))
    after = made(images[:4])
    made._sums = None
    assert torch.equal(after, made(images[:4]))
    assert not torch.equal(after, before)


def test_zeros_stay(nearest, rounded):
    for name, layer in rounded[0].layers.items():
        assert torch.equal(layer.weight == 0, nearest.layers[name].weight == 0), name
    assert any((layer.weight == 0).any() for layer in rounded[0].layers.values())
    (hook,) = QUICK.hooks(rounded[0])
    assert isinstance(hook, HeldMasks)


def test_a_weight_sits_on_its_integer(rounded):
    """So that no rounding of a product can move it to another one."""
    for layer in rounded[0].layers.values():
        scale = layer.scales().view(-1, *[1] * (layer.weight.ndim - 1))
        torch.testing.assert_close(layer.weight / scale, layer.codes(), atol=1e-4, rtol=0)


def test_nothing_but_weights_is_changed(nearest, rounded):
    kept = nearest.state_dict()
    for name, value in rounded[0].state_dict().items():
        if not name.endswith(".weight"):
            assert torch.equal(value, kept[name]), name
    assert rounded[0].spec == nearest.spec
    assert all(each.requires_grad for each in rounded[0].parameters())


def codes_of(network: IntegerMicroNet) -> Tensor:
    return torch.cat([layer.codes().flatten() for layer in network.layers.values()])


def test_a_seed_decides_everything(small, images):
    few = replace(QUICK, iterations=3, num_images=32)
    first, again, other = (replace(few, seed=seed).apply(small, images[:32]) for seed in (1, 1, 2))
    assert torch.equal(codes_of(first), codes_of(again))
    assert not torch.equal(codes_of(first), codes_of(other))


def test_no_iteration_rounds_to_nearest(small, images, nearest):
    made = replace(QUICK, iterations=0).apply(small, images)
    assert torch.equal(codes_of(made), codes_of(nearest))


def test_a_unit_that_would_get_worse_is_rounded_to_nearest(small, images, nearest):
    """One step at a huge rate throws every choice to one side."""
    made = NEAREST.apply(small, images)
    errors = round_adaptively(made, images, replace(QUICK, iterations=1, lr=1e3))
    assert all(error.adaptive <= error.nearest for error in errors)
    spared = [error.name for error in errors if error.adaptive == error.nearest]
    assert len(spared) > 2
    for name, layer in made.layers.items():
        if any(name.startswith(f"{unit}.") for unit in spared if unit != "blocks.0"):
            assert torch.equal(layer.codes(), nearest.layers[name].codes()), name


def test_corrected_biases_have_the_mean_of_the_float_layer(small, images, nearest):
    """Of the classifier: its mean logits are those of the network in floats."""
    made = NEAREST.apply(small, images)
    round_adaptively(made, images, RoundingConfig(iterations=0, correct_biases=True))
    assert torch.equal(codes_of(made), codes_of(nearest))
    with torch.no_grad():
        wanted = small(images).mean(0)
        before, after = (
            (net._float_forward(images).mean(0) - wanted).abs().mean() for net in (nearest, made)
        )
    assert after < 0.2 * before


def test_a_network_of_floats_is_put_in_integers_first(small, images):
    few = replace(QUICK, iterations=0)
    assert isinstance(few, Change)
    made = few.apply(small, images)
    assert isinstance(made, IntegerMicroNet)
    assert not made.in_floats
    assert {layer.weight_bits for layer in made.layers.values()} == {4}
    assert few.num_images == 64
    assert RoundAdaptively().num_images == 1024
    assert changed_fields(RoundAdaptively(iterations=5)) == {"iterations": 5}


def test_layers_in_floats_stay(small, images):
    made = NEAREST.apply(small, images)
    made.set_widths(replace(made.widths, weights={"blocks.3.conv_dw": 4}))
    before = {name: layer.weight.clone() for name, layer in made.layers.items()}
    round_adaptively(made, images[:16], RoundingConfig(iterations=1, batch_size=4))
    changed = [name for name in before if not torch.equal(before[name], made.layers[name].weight)]
    assert changed == ["blocks.3.conv_dw"]


# --------------------------------------------------------------------------------- bad input


def test_no_images(small, images, nearest):
    with pytest.raises(InputError, match="no images to calibrate with"):
        QUICK.apply(small, images[:0])
    with pytest.raises(InputError, match="no images to round with"):
        round_adaptively(nearest, images[:0], QUICK)


@pytest.mark.parametrize("bits", [0, 13, 33])
def test_a_width_that_does_not_exist(small, images, bits):
    with pytest.raises(InputError, match=f"weight bits of .* is {bits}; give 1 to 12 bits"):
        replace(QUICK, weight_bits=bits).apply(small, images[:2])


def test_weights_in_floats(small, images):
    with pytest.raises(InputError, match="weights are in floats"):
        round_adaptively(in_integers(small), images[:2], QUICK)


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": -1},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"rounding_weight": -0.1},
    ],
)
def test_a_setting_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"^{name} is .*; give") as error:
        RoundAdaptively(**wrong)
    assert "\n" not in str(error.value)


def test_an_interruption_leaves_the_network_in_integers(small, images, monkeypatch):
    network = NEAREST.apply(small, images)
    widths = {name: layer.weight_bits for name, layer in network.layers.items()}
    learned = [name for name, each in network.named_parameters() if each.requires_grad]

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(adaptive_rounding, "_decide", interrupted)
    with pytest.raises(KeyboardInterrupt):
        round_adaptively(network, images, QUICK)
    assert {name: layer.weight_bits for name, layer in network.layers.items()} == widths
    assert learned
    assert [name for name, each in network.named_parameters() if each.requires_grad] == learned


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_rounds_too(small, images):
    network = replace(QUICK, iterations=3).apply(copy.deepcopy(small).cuda(), images.cuda())
    assert next(network.parameters()).is_cuda
    assert network(images.cuda()).isfinite().all()
