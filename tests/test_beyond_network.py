"""A MicroNet in integers: the same in floats, exact in evaluation, refused where it must be."""

import copy
from dataclasses import replace

import pytest
import torch
from integer_networks import NAMES, images, integer_network, random_widths
from small_networks import TORCHVISION, seeded

from micronet_lib.architecture import NetworkSpec, build
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.beyond import layers
from micronet_lib.beyond.arithmetic import Sums, rescaled, scale_factors
from micronet_lib.beyond.layers import MEAN, STD
from micronet_lib.beyond.network import IntegerMicroNet, Widths, in_integers
from micronet_lib.beyond.quantizers import scale_grid
from micronet_lib.early_exit import AddExit, Front, expected_score
from micronet_lib.errors import InputError
from micronet_lib.lab.data import images as lab_images
from micronet_lib.lab.storage.networks import pack, restore
from micronet_lib.lab.training.step import _keep_strided_depthwise_in_float32
from micronet_lib.scoring.bill import score_network, score_operations
from micronet_lib.scoring.operations import record_operations
from micronet_lib.scoring.rules import rules_of


def test_it_reads_images_as_the_lab_normalises_them():
    assert (MEAN, STD) == (lab_images.MEAN, lab_images.STD)
    raw = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8, generator=seeded(0))
    centred = layers.Pixels().centred(lab_images.normalize(raw))
    assert torch.equal(centred + torch.tensor(layers.MIDDLE).view(3, 1, 1), raw.float())


@pytest.mark.parametrize("name", NAMES)
def test_in_floats_it_is_the_folded_network(name):
    """But for padding, which reads the nearest whole pixel instead of the mean colour."""
    plain = integer_network(name, widths=None)[0]
    x = images(8)
    ours = in_integers(plain).eval()
    with torch.no_grad():
        inner = fold_batch_norm(plain)(x)
        assert ours.in_floats
        assert (ours(x) - inner).abs().max() < 0.05 * inner.abs().max()
    assert ours.classifier is ours.head.classifier


@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_the_network_in_its_mode(training):
    plain = integer_network(widths=None)[0].train(training)
    made = in_integers(plain)
    assert made.training == training
    assert all(module.training == training for module in plain.modules())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_integers_and_rounded_floats_agree(name, seed):
    """But for sums that are shortened to 16 bits, whose rounding grows from layer to layer."""
    _, network = integer_network(name, seed=seed, widths=8)
    x = images(16)
    with torch.no_grad():
        floats = network.train()(x)
        integers = network.eval()(x)
    spread = floats.std().item()
    assert (floats - integers).abs().mean().item() < 0.2 * spread
    assert torch.equal(integers, network(x))


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_does_not_depend_on_batches_precision_or_memory(name):
    _, network = integer_network(name, widths=random_widths(3))
    x = images(7)
    network.eval()
    whole = network(x)
    assert torch.equal(whole, torch.cat([network(each[None]) for each in x]))
    assert torch.equal(whole, network(x.to(memory_format=torch.channels_last)))
    assert torch.equal(whole, copy.deepcopy(network)(x))
    units = whole / 2.0**-10
    assert torch.equal(units, units.round())


@pytest.mark.parametrize("seed", range(4))
def test_no_partial_sum_leaves_its_width(seed):
    """Every positive weight reads the largest integer, or every negative one does."""
    _, network = integer_network(widths=random_widths(seed), seed=seed)
    for sums in network.sums().values():
        rows = sums.weight.double().flatten(1)
        top = 2**sums.bits - 1
        for sign in (1, -1):
            inputs = (rows * sign > 0).double() * top
            ordered = (rows * inputs).cumsum(1) + sums.start[:, None]
            low, high = sums.reach
            assert (ordered >= low[:, None]).all()
            assert (ordered <= high[:, None]).all()
            assert ordered.abs().max() <= 2 ** (sums.width - 1)
        # What tensors compute, from integers counted from zero, is the same sum.
        assert sums.width == 1 + int(max(-low.min(), high.max() + 1).log2().ceil())


def test_a_pass_asks_once_whether_something_changed(monkeypatch):
    _, network = integer_network("table1_2.0", widths=8)
    asked = []
    honest = IntegerMicroNet.sums
    monkeypatch.setattr(IntegerMicroNet, "sums", lambda own: asked.append(own) or honest(own))
    network.eval()(images(2))
    assert asked == [network]


def test_a_change_of_weights_is_seen():
    _, network = integer_network(widths=8)
    network.eval()
    x = images(4)
    before = network(x)
    with torch.no_grad():
        network.head.classifier.bias += 1.0
    assert not torch.equal(network(x), before)


def test_fitted_scales_are_seen():
    _, network = integer_network(widths=8)
    network.eval()
    x = images(4)
    network(x)
    layer = network.blocks[3].conv_expand
    with torch.no_grad():
        layer.scale.mul_(1.7)
    changed = network(x)
    layer.fit()
    assert not torch.equal(network(x), changed)
    assert torch.equal(network(x), copy.deepcopy(network)(x))


def test_training_in_bfloat16_computes_it_in_float32():
    """Also where the lab keeps strided depthwise convolutions out of bfloat16 by their class."""
    _, network = integer_network(widths=8)
    network.train()
    x = images(4)
    kept = copy.deepcopy(network)
    _keep_strided_depthwise_in_float32(kept)
    assert kept.layers.keys() == network.layers.keys()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kept(x), network(x))
        assert kept(x).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_bfloat16_changes_no_integer(name):
    """As a teacher, as a trunk part by part, and as the frozen front that an exit head reads."""
    _, network = integer_network(name, widths=random_widths(7))
    x, exits = images(4), AddExit("blocks.1", hidden_chs=8).apply(network)
    for training in (False, True):
        exits.train(training)
        front = fold_batch_norm(Front(exits)) if not training else exits.features
        ways = (network, front, lambda image: exits.rest(exits.features(image)))
        with torch.no_grad():
            expected = [way(x) for way in ways]
            with torch.autocast("cpu", torch.bfloat16):
                found = [way(x) for way in ways]
        assert all(map(torch.equal, found, expected))


def test_a_file_of_it_gives_the_same_logits():
    _, network = integer_network(widths=random_widths(5))
    content = pack(network.eval())
    again = restore(content["spec"], content["model"])
    x = images(4)
    assert torch.equal(again(x), network(x))
    assert again.spec == network.spec


@pytest.mark.parametrize("mode", ["integers", "rounded floats", "floats"])
@pytest.mark.parametrize("name", NAMES)
def test_its_parts_are_the_network(name, mode):
    network = integer_network(name, widths=None if mode == "floats" else random_widths(4))[1]
    network.train(mode == "rounded floats")
    x = whole = images(3)
    with torch.no_grad():
        for part in network.parts.values():
            x = part(x)
        assert torch.equal(x, network(whole))


def test_an_early_exit_on_top_is_charged_beside_the_integers():
    _, network = integer_network(widths=random_widths(6))
    exits = AddExit("blocks.2", hidden_chs=8).apply(network.eval()).eval()
    x = images(5)
    assert torch.equal(exits.exits(x)[1], network(x))
    again = restore((kept := pack(exits))["spec"], kept["model"])
    assert all(map(torch.equal, again.exits(x), exits.exits(x)))

    charged = record_operations(exits)
    of_head = [op for op in charged if op.name.startswith("exit_head.")]
    of_trunk = [op for op in charged if op not in of_head]
    first = [op.name for op in of_trunk if op.exit == 0]
    assert [name for name in first if name.startswith("trunk.blocks")][-1] > "trunk.blocks.2."
    assert not [name for name in first if name.startswith("trunk.blocks.3")]
    bare = [[replace(op, name="", exit=0) for op in ops]
            for ops in (of_trunk, record_operations(network))]  # fmt: skip
    assert bare[0] == bare[1]
    head = score_operations(of_head, rules_of("official"))
    nobody = expected_score(exits, 0.0)
    assert nobody.score == pytest.approx(score_network(network, "official").score + head.score)


def test_scales_by_hand():
    places = torch.arange(32)
    grid = scale_factors(0.75, places)
    assert torch.allclose(grid, scale_grid(torch.tensor(0.75, dtype=torch.float64)))
    assert grid[4].item() == 0.375
    half = torch.tensor(0.5, dtype=torch.float64)
    assert rescaled(torch.tensor([5.0, -5.0]), half).tolist() == [3, -2]


def test_what_cannot_be_put_in_integers_is_refused():
    for name in TORCHVISION:
        with pytest.raises(InputError, match="MicroNet"):
            in_integers(build(name))
    with pytest.raises(InputError, match="dead_gates"):
        in_integers(build("micronet_v1_released", width_mult=0.25))
    six = build(NetworkSpec("micronet_v1", {"width_mult": 0.25, "activation": "hard_swish_x6"}))
    with pytest.raises(InputError, match="hard_swish_x6"):
        in_integers(six)
    _, network = integer_network(widths=8)
    with pytest.raises(InputError, match="no images"):
        network.calibrate(images(4)[:0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": {"stem.conv": 0}}, "stem.conv"),
        ({"weights": {"stem.conv": 33}}, "stem.conv"),
        ({"biases": {"stem.conv": 1}}, "bias"),
        ({"inputs": {"head.quant": 0}}, "head.quant"),
        ({"inputs": {"blocks.0.quant_dw": 12}}, "before"),
        ({"weights": {"stem.conf": 4}}, "stem.conf"),
        ({"inputs": {"stem.conv": 4}}, "stem.conv"),
        ({"pre": 33}, "HardSwish"),
        ({"pre": 32}, "HardSwish"),
        ({"pre": 2}, "HardSwish"),
    ],
)
def test_wrong_widths_are_refused_and_change_nothing(change, words):
    _, network = integer_network(widths=8)
    spec, before = network.spec, network.eval()(images(4))
    with pytest.raises(InputError, match=words):
        network.set_widths(replace(network.widths, **{"pre": 10, **change}))
    assert network.spec == spec
    assert torch.equal(network(images(4)), before)
    rebuilt = build(spec)
    assert isinstance(rebuilt, IntegerMicroNet)
    assert rebuilt.widths == network.widths
    assert Widths() != network.widths


@pytest.mark.parametrize("kind", ["linear", "pointwise", "depthwise"])
def test_sums_beyond_float32_are_exact(kind):
    generator = seeded(3)
    shape = {"linear": (6, 400), "pointwise": (6, 400, 1, 1), "depthwise": (400, 1, 3, 3)}[kind]
    weight = torch.randint(-128, 129, shape, generator=generator).float()
    weight[:2] = 128  # the largest sum
    codes = torch.randint(-2048, 2048, (3, 400, 5, 5), generator=generator).float()
    codes[0] = 2047
    geometry = {"linear": (), "pointwise": (1, 0, 1), "depthwise": (2, 1, 400)}[kind]
    bias = torch.arange(len(weight), dtype=torch.float64) * 1001
    sums = Sums(weight, bias, bias + 1, torch.zeros(1), 12, *geometry)
    if kind == "linear":
        codes = codes[:, :, 0, 0]
        wanted = codes.long() @ weight.long().T
    else:
        stride, padding, groups = geometry
        wanted = torch.nn.functional.conv2d(
            codes.double(), weight.double(), None, stride, padding, groups=groups
        ).long()
    wanted = wanted + bias.long().view(1, -1, *[1] * (wanted.ndim - 2))
    found = sums(codes)
    assert torch.equal(found.long(), wanted)
    assert kind == "depthwise" or wanted.abs().max() > 2**24


@pytest.mark.parametrize("fused", [False, True])
def test_after_a_step_of_training_it_answers_with_the_new_weights(fused):
    _, network = integer_network(widths=8)
    x = images(4)
    network.eval()(x)
    optimizer = torch.optim.SGD(network.parameters(), 0.003, fused=fused)
    network.train()(x).square().mean().backward()
    optimizer.step()
    assert torch.equal(network.eval()(x), copy.deepcopy(network)(x))
