"""Gates that become constants: the same logits where they were constants, and what is refused."""

import pytest
import torch
from integer_networks import images, integer_network

from micronet_lib.architecture import MicroNet, build
from micronet_lib.architecture.micronet import MBConv
from micronet_lib.beyond.gates import RemoveGates, without_gates
from micronet_lib.errors import InputError
from micronet_lib.scoring.bill import score_network


def gated(network: MicroNet) -> list[MBConv]:
    return [block for block in network.blocks if isinstance(block, MBConv) and block.se is not None]


@pytest.mark.parametrize("name", ["micronet_v1", "micronet_v2", "table1_2.0", "c_efficientnet_1.0"])
def test_constant_gates_leave_the_logits_as_they_were(name):
    torch.manual_seed(0)
    network = build(name, width_mult=0.25).eval().double()
    assert isinstance(network, MicroNet)
    with torch.no_grad():
        for block in gated(network):
            block.se.conv_expand.weight.zero_()
            block.se.conv_expand.bias.normal_()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    made = without_gates(network, images(40).double()).double()
    assert not gated(made)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    torch.testing.assert_close(made(images(8).double()), network(images(8).double()))


def test_a_gate_becomes_its_mean():
    network = integer_network(widths=None)[0]
    first = gated(network)[0]
    seen: list[torch.Tensor] = []
    assert first.se is not None
    handle = first.se.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        network(images(30))
    handle.remove()
    made = RemoveGates().apply(network, images(30))
    index = list(network.blocks).index(first)
    wanted = first.bn_project.weight * seen[0].mean((0, 2, 3))
    torch.testing.assert_close(made.blocks[index].bn_project.weight, wanted)
    assert score_network(made, "official").score < score_network(network, "official").score


def test_what_has_no_gates_is_refused():
    network = integer_network(widths=None)[0]
    bare = without_gates(network, images(4))
    with pytest.raises(InputError, match="no gates"):
        without_gates(bare, images(4))
    with pytest.raises(InputError, match="no images"):
        RemoveGates().apply(network, images(4)[:0])
    with pytest.raises(InputError, match="from MicroNets only"):
        without_gates(integer_network()[1], images(4))
