"""MobileNet-V1: the printed size, and squeeze-and-excitation counted by hand."""

import math

import pytest
import torch
from small_networks import single_thread
from test_architecture_resnet import sizes

from micronet_lib.architecture import build
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.mobilenet import BLOCKS
from micronet_lib.errors import InputError


def test_its_size_is_the_printed_one():
    params, macs = sizes("mobilenet_v1", 224)
    assert params / 1e6 == pytest.approx(4.2, rel=0.02)  # [howard2017, Table 8]
    assert macs / 1e6 == pytest.approx(569, rel=1e-3)


@pytest.mark.parametrize("ratio", [16, 2])
def test_squeeze_and_excitation_adds_two_matrices_a_block(ratio):
    plain, wider = sizes("mobilenet_v1", 224), sizes("mobilenet_v1", 224, se_ratio=ratio)
    added = sum(2 * chs * chs // ratio for chs, _ in BLOCKS)
    assert (wider[0] - plain[0], wider[1] - plain[1]) == (added, added)


def test_it_is_built_again_from_its_spec_and_folds():
    torch.manual_seed(0)
    options = {"num_classes": 7, "width_mult": 0.25, "stem": "cifar", "se_ratio": 2}
    network = build("mobilenet_v1", **options).eval()
    x = torch.randn(2, 3, 32, 32)
    with single_thread(), torch.no_grad():
        again = build(network.spec)
        again.load_state_dict(network.state_dict())
        assert torch.equal(again.eval()(x), network(x))
        torch.testing.assert_close(fold_batch_norm(network)(x), network(x), atol=1e-4, rtol=1e-4)
        found = x
        for part in network.parts.values():
            found = part(found)
        assert torch.equal(found, network(x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"se_ratio": -2}, "se_ratio is -2"),
        ({"stem": "x"}, "choose from imagenet, cifar"),
        ({"depth": 50}, "'depth'; choose from num_classes, width_mult, stem, se_ratio"),
        ({"num_classes": 0}, "num_classes is 0"),
        *(({"width_mult": each}, f"width_mult is {each};") for each in (-1, 0, math.nan)),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(InputError, match=words) as caught:
        build("mobilenet_v1", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("stem", "smallest"), [("imagenet", 32), ("cifar", 16)])
def test_images_smaller_than_its_stride_are_refused(stem, smallest):
    network = build("mobilenet_v1", num_classes=7, width_mult=0.25, stem=stem).eval()
    with single_thread(), torch.no_grad():
        assert network(torch.zeros(1, 3, smallest, smallest + 1)).shape == (1, 7)
        small = torch.zeros(1, 3, smallest - 1, 64)
        for run in (network, network.parts["stem"]):
            with pytest.raises(InputError, match=f"{smallest - 1} x 64.*at least {smallest}$"):
                run(small)
