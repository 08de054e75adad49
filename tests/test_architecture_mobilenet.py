"""MobileNet-V1: the printed size, and squeeze-and-excitation counted by hand."""

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


def test_what_is_refused():
    with pytest.raises(InputError, match="se_ratio is -2"):
        build("mobilenet_v1", se_ratio=-2)
    with pytest.raises(InputError, match="choose from imagenet, cifar"):
        build("mobilenet_v1", stem="x")
