"""ResNet with the tweaks of Assembled CNN: sizes at the paper's inputs, and blocks by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from small_networks import scrambled, seeded, single_thread
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from micronet_lib.architecture import build
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.resnet import Bottleneck, Tweaks
from micronet_lib.architecture.tweaks import BlurPool, SelectiveKernel, SqueezeExcite
from micronet_lib.errors import InputError
from micronet_lib.scoring.bill import score_network
from micronet_lib.scoring.rules import UnpricedError

SK, BL = {"sk_ratio": 2}, {"big_little": [2, 4]}
ASSEMBLED = {**SK, **BL, "blur": 3}

# Options, side of the image, millions of parameters, billions of MACs. Counted from the released
# code's structure, batch norm's parameters included; then as [lee2020assembled, Tables 8 and 14]
# print them, whose profiler counts a little more.
SIZES = {
    "R50": ({}, 224, 25.557, 4.089, 25.5, 4.1),
    "R101": ({"depth": 101}, 224, 44.549, 7.80, 44.6, 7.9),
    "R152": ({"depth": 152}, 224, 60.193, 11.51, 60.2, 11.6),
    "R50D": ({"resnet_d": True}, 224, 25.576, 4.329, None, 4.4),
    "R50D+SE": ({"resnet_d": True, "se_ratio": 16}, 224, 28.091, 4.331, None, None),
    "R50+SK": (SK, 224, 38.772, 5.94, None, None),
    "R50D+SK": ({"resnet_d": True, **SK}, 224, 38.791, 6.180, None, 6.2),
    "R50D+SK+BL": ({**SK, **BL}, 256, 41.846, 5.439, 41.8, 5.4),
    "R50D+SK+BL at 224": ({**SK, **BL}, 224, 41.846, 4.165, None, None),
    "R50+D+SK+BL": ({"resnet_d": True, **SK, **BL}, 256, 41.866, 5.752, None, None),
    "R50D+SK+BL+AA": (ASSEMBLED, 256, 41.846, 7.477, None, 7.5),
    "R152D+SK+BL+AA": (
        {"depth": 152, **SK, "big_little": [1, 2], "blur": 3},
        *(256, 117.0, 20.47, None, 20.6),
    ),
}

TINY = {"blocks": [2, 2], "width_mult": 0.125, "num_classes": 7, "stem": "cifar"}


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


def sizes(name: str, side: int, **options) -> tuple[int, int]:
    """Parameters and MACs, counted on shapes alone."""
    with torch.device("meta"):
        network = build(name, num_classes=1000, **options).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, side, side))
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize("row", SIZES)
def test_sizes_are_those_of_the_released_structure_and_of_the_paper(row):
    options, side, params, macs, printed_params, printed_macs = SIZES[row]
    found_params, found_macs = sizes("resnet", side, **options)
    assert found_params / 1e6 == pytest.approx(params, rel=1e-3)
    assert found_macs / 1e9 == pytest.approx(macs, rel=1e-3)
    if printed_params is not None:
        assert found_params / 1e6 == pytest.approx(printed_params, rel=0.02)
    if printed_macs is not None:
        assert found_macs / 1e9 == pytest.approx(printed_macs, rel=0.02)


def test_our_counter_counts_the_same():
    torch.manual_seed(0)
    network = build("resnet", **TINY, **ASSEMBLED).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 16, 16))
    score = score_network(network, "official", (3, 16, 16))
    assert score.dense_macs == counter.get_total_flops() // 2


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_the_plain_network_has_torchvisions_tensors(depth):
    with torch.device("meta"):
        ours = build("resnet", depth=depth, num_classes=1000)
        theirs = getattr(torchvision.models, f"resnet{depth}")()
    shapes = [[tuple(v.shape) for v in net.state_dict().values()] for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_with_torchvisions_weights_it_gives_torchvisions_logits():
    """At depth 50, with small images and every batch norm away from its start."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(num_classes=10).eval()
    with torch.no_grad():
        for layer in theirs.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for value in (layer.weight, layer.running_var):
                    value.uniform_(0.5, 1)
                for value in (layer.bias, layer.running_mean):
                    value.normal_(0, 0.1)
    ours = build("resnet", num_classes=10).eval()
    state = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict(dict(state))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.1


# --------------------------------------------------------------------------- blocks, by hand


def test_selective_kernels_choose_channel_by_channel():
    """With equal answers of both branches the softmax does not matter; with a push it picks one."""
    torch.manual_seed(0)
    block = SelectiveKernel(4, 4).eval()
    assert block.conv_reduce.out_channels == 32  # 4 / 2, but at least 32
    x = torch.randn(2, 4, 5, 5)
    first, second = F.relu(block.bn(block.conv(x))).chunk(2, 1)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    out = block(x)
    assert ((low - 1e-5 <= out) & (out <= high + 1e-5)).all()
    with torch.no_grad():
        block.conv_choose.weight.zero_()
        torch.testing.assert_close(block(x), (first + second) / 2)
        # The first branch of every channel gets far more than the second.
        block.bn_reduce.bias.fill_(100)
        block.conv_reduce.weight.zero_()
        block.conv_choose.weight[:4] = 1
        torch.testing.assert_close(block(x), first)


def test_squeeze_and_excitation_multiplies_by_a_sigmoid_of_the_means():
    block = SqueezeExcite(4, 2)
    x = torch.rand(2, 4, 3, 3)
    with torch.no_grad():
        block.conv_reduce.weight.fill_(0.25)
        block.conv_expand.weight.fill_(0.5)
    mean = x.mean((1, 2, 3))  # of the four channels; both inner channels hold it
    torch.testing.assert_close(block(x), x * mean.sigmoid()[:, None, None, None])


def test_a_blur_keeps_a_constant_and_spreads_a_point():
    blur = BlurPool(2)
    constant = torch.full((1, 2, 6, 6), 3.0)
    assert torch.equal(blur(constant), torch.full((1, 2, 3, 3), 3.0))
    point = torch.zeros(1, 2, 6, 6)
    point[:, 0, 2, 2] = 16
    expected = torch.zeros(1, 2, 3, 3)
    expected[:, 0, 1, 1] = 4  # the middle of [1 2 1] x [1 2 1]; the rest lies on odd pixels
    assert torch.equal(blur(point), expected)
    # Reflected at the border: pixel 1 is read on both sides of pixel 0.
    edge = torch.zeros(1, 2, 6, 6)
    edge[:, 1, 0, 1] = 16
    assert blur(edge)[0, 1, 0].tolist() == [4.0, 2.0, 0.0]
    assert BlurPool(1, 5).kernel.sum() == 1
    for size in (4, 3.0):
        with pytest.raises(InputError, match="choose from 3, 5"):
            BlurPool(1, size)


def test_anti_aliased_strides_make_the_middle_of_a_block_run_at_full_size():
    plain, blurred = (Bottleneck(8, 4, 2, Tweaks(blur=size), project=True) for size in (0, 3))
    assert plain.spatial[0].stride == (2, 2)
    assert blurred.spatial[0].stride == (1, 1)
    x = torch.randn(2, 8, 6, 6)
    assert plain(x).shape == blurred(x).shape == (2, 16, 3, 3)


def test_zero_gamma_makes_a_block_its_shortcut():
    x = torch.randn(2, 16, 4, 4)
    block = Bottleneck(16, 4, 1, Tweaks())
    torch.testing.assert_close(block(x), F.relu(x))
    other = Bottleneck(16, 4, 1, Tweaks(zero_gamma=False))
    assert not torch.allclose(other(x), F.relu(x))


@pytest.mark.parametrize(
    "options",
    [{}, {"resnet_d": True, "sk_ratio": 2}, ASSEMBLED, {"stem": "imagenet", "last_stride": 1}],
)
def test_the_parts_are_the_network(options):
    torch.manual_seed(0)
    network = build("resnet", **{**TINY, **options}).eval()
    x = torch.randn(2, 3, 32, 32)
    found = x
    for part in network.parts.values():
        found = part(found)
    assert torch.equal(found, network(x))
    names = ["stages.0"] if "big_little" in options else ["stages.0.0", "stages.0.1"]
    assert list(network.parts) == ["stem", *names, "stages.1.0", "stages.1.1", "head"]


def test_the_last_stage_keeps_its_size_if_asked_to():
    small = {**TINY, "blocks": [1, 1, 1]}
    kept, halved = (build("resnet", **small, last_stride=stride) for stride in (1, 2))
    x = torch.zeros(2, 3, 32, 32)
    assert kept.stages(kept.stem(x)).shape[2:] == (16, 16)
    assert halved.stages(halved.stem(x)).shape[2:] == (8, 8)
    assert kept.state_dict().keys() == halved.state_dict().keys()
    assert kept(x[..., :2, :2]).shape == (2, 7)
    with pytest.raises(InputError, match=r"2 x 2.*at least 4"):
        halved(x[..., :2, :2])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resnet_d": True, "se_ratio": 16},
        ASSEMBLED,
        {"blur": 5, "blur_at": ["strided_conv", "projection", "max_pool"], "stem": "imagenet"},
        {**ASSEMBLED, "resnet_d": True, "stem": "imagenet"},
    ],
)
def test_every_variant_learns_and_is_folded_without_a_change(options):
    torch.manual_seed(0)
    network = build("resnet", **{**TINY, **options})
    x = torch.randn(4, 3, 32, 32)
    network(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    network.eval()
    folded = fold_batch_norm(network)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), atol=1e-4, rtol=1e-4)
        again = build(network.spec)
        again.load_state_dict(network.state_dict())
        assert torch.equal(again.eval()(x), network(x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 34}, "choose from 50, 101, 152"),
        ({"depth": 50.0}, "choose from 50, 101, 152"),
        ({"big_little": [0, 4]}, "alpha and beta, whole numbers of at least 1"),
        ({"big_little": [2]}, "alpha and beta, whole numbers of at least 1"),
        ({"big_little": [2, 1.5]}, r"\[2, 1.5\]; give alpha and beta"),
        ({"big_little": [1.5, 4]}, r"\[1.5, 4\]; give alpha and beta"),
        ({"big_little": [math.nan, 4]}, r"\[nan, 4\]; give alpha and beta"),
        ({"big_little": [2, 4], "blocks": [1, 3]}, "with big_little two"),
        ({"blocks": [0, 3]}, "at least one"),
        ({"blocks": [1.5]}, "a whole number of blocks"),
        ({"big_little": [2, 4], "blocks": [3]}, "two stages or more"),
        ({"sk_ratio": -1}, "sk_ratio is -1"),
        ({"se_ratio": True}, "se_ratio is True"),
        ({"blur": 4}, "choose from 3, 5"),
        ({"blur": 3.0}, "blur size '3.0'; choose from 3, 5"),
        ({"blur_at": ["stem"]}, "choose from strided_conv, projection, max_pool"),
        ({"last_stride": 3}, "choose from 1, 2"),
        ({"last_stride": True}, "last_stride 'True'; choose from 1, 2"),
        ({"stem": "tiny"}, "choose from imagenet, cifar"),
        ({"tweak": "D"}, "unknown option of resnet 'tweak'; choose from depth, blocks"),
        *(({"num_classes": each}, f"num_classes is {each};") for each in (-1, 0, 2.5, True)),
        *(({"width_mult": each}, f"width_mult is {each};") for each in (-1, 0, math.nan, math.inf)),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(InputError, match=words) as caught:
        build("resnet", **options)
    assert "\n" not in str(caught.value)


def test_images_that_do_not_fit_are_refused():
    network = build("resnet", **{**TINY, "blocks": [2, 2, 2]}, **BL)
    assert network(torch.zeros(2, 3, 8, 12)).shape == (2, 7)
    with pytest.raises(InputError, match=r"30 x 30.*multiples of 4"):
        network(torch.zeros(2, 3, 30, 30))
    with pytest.raises(InputError, match=r"16 x 16.*at least 32$"):
        build("resnet", width_mult=0.125)(torch.zeros(2, 3, 16, 16))


def test_the_small_stem_is_left_alone_and_beta_changes_nothing_in_two_blocks():
    def shapes(**options):
        made = build("resnet", **{**TINY, "blocks": [2, 2, 2], **options})
        return {name: tuple(value.shape) for name, value in made.state_dict().items()}

    def stem(found):
        return {name: shape for name, shape in found.items() if name.startswith("stem.")}

    plain = shapes()
    for tweak in ({"resnet_d": True}, BL):
        assert stem(shapes(**tweak)) == stem(plain)
        assert stem(shapes(**tweak, stem="imagenet")) != stem(shapes(stem="imagenet"))
    assert shapes(big_little=[2, 1]) == shapes(big_little=[2, 8])
    deep = {"blocks": [6, 2]}
    assert shapes(big_little=[2, 1], **deep) != shapes(big_little=[2, 8], **deep)


def test_the_authors_counter_says_which_rules_have_a_price():
    network = build("resnet", **TINY).eval()
    with pytest.raises(UnpricedError, match=r"no price for relu.*--rules official"):
        score_network(network, "published")
    assert score_network(network, "official").score > 0


# ------------------------------------------------------------------------------ timm as an oracle


def test_a_blur_is_timms():
    timm = pytest.importorskip("timm.layers")
    x = torch.randn(2, 5, 9, 12, generator=seeded(0))
    for size in (3, 5):
        for kept in (x, x[..., :8, :8]):
            torch.testing.assert_close(BlurPool(5, size)(kept), timm.BlurPool2d(5, size)(kept))


def test_selective_kernels_are_timms():
    """With two kernels of 3x3 that both see the whole input."""
    timm = pytest.importorskip("timm.layers")
    ours = scrambled(SelectiveKernel(6, 8, stride=2, ratio=2))
    theirs = timm.SelectiveKernel(
        6, 8, kernel_size=[3, 3], stride=2, rd_channels=32, split_input=False
    )
    with torch.no_grad():
        for half, path in enumerate(theirs.paths):
            rows = slice(8 * half, 8 * half + 8)
            path.conv.weight.copy_(ours.conv.weight[rows])
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(path.bn, name).copy_(getattr(ours.bn, name)[rows])
        theirs.attn.fc_reduce.load_state_dict(ours.conv_reduce.state_dict())
        theirs.attn.bn.load_state_dict(ours.bn_reduce.state_dict())
        theirs.attn.fc_select.load_state_dict(ours.conv_choose.state_dict())
        x = torch.randn(3, 6, 8, 8, generator=seeded(1))
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("resnet_d", [False, True])
def test_what_the_shortcut_of_the_last_stage_pools(resnet_d):
    network = build("resnet", **{**TINY, **BL}, resnet_d=resnet_d)
    kernels = [m.kernel_size for m in network.stages[1].modules() if isinstance(m, nn.AvgPool2d)]
    assert kernels == ([2] if resnet_d else [3])


BLURRED = {"blur": 5, "blur_at": ["strided_conv", "projection", "max_pool"]}


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("tweaks", [{}, {"resnet_d": True}, SK, {"blur": 3}, BLURRED])
@pytest.mark.parametrize("blocks", [[1], [1, 1, 1]])
def test_images_of_every_size_from_the_smallest_on(tweaks, stem, blocks):
    network = build("resnet", **{**TINY, "blocks": blocks, "stem": stem, **tweaks})
    for side in (network.smallest, network.smallest + 1, network.smallest + 6):
        assert network(torch.zeros(2, 3, side, side + 1)).shape == (2, 7)
    if network.smallest > 1:
        with pytest.raises(InputError, match=f"at least {network.smallest}$"):
            network(torch.zeros(2, 3, network.smallest - 1, 64))
