"""The bill of a network in integers, line by line and against a second count."""

import pytest
import torch
from integer_networks import NAMES, images, integer_network, random_widths

from micronet_lib.architecture import build
from micronet_lib.beyond.allocation import output_positions
from micronet_lib.beyond.changes import Quantize
from micronet_lib.beyond.counting import counted, work_of
from micronet_lib.beyond.savings import compile_rows, run
from micronet_lib.errors import InputError
from micronet_lib.scoring.bill import score_network, score_operations
from micronet_lib.scoring.operations import record_operations
from micronet_lib.scoring.rules import RULE_SETS


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_says_its_widths(name):
    _, network = integer_network(name, widths=random_widths(1))
    found = {op.name: op for op in record_operations(network) if op.kind in ("conv", "linear")}
    assert found.keys() == network.layers.keys()
    positions = output_positions(network)
    for layer_name, layer in network.layers.items():
        op, sums = found[layer_name], network.sums()[layer_name]
        assert (op.weight_bits, op.activation_bits) == (layer.weight_bits, layer.activation_bits)
        assert (op.accumulator_bits, op.bias_bits) == (sums.width, layer.bias_bits)
        assert op.nonzeros == int(layer.weight.count_nonzero())
        assert op.num_outputs == positions[layer_name] * op.out_chs
        assert op.bias or op.folded_bias, layer_name


def test_storage_by_hand():
    _, network = integer_network(widths=random_widths(2))
    bits, units = 0, set()
    for layer in network.layers.values():
        nonzeros, size = int(layer.weight.count_nonzero()), layer.weight.numel()
        bits += nonzeros * layer.weight_bits + (size if nonzeros < size else 0)
        bits += len(layer.weight) * (5 + layer.bias_bits) + 64
        units.add(id(layer.reads))
    bits += 40 * len(units)
    assert score_network(network, "official").param_storage * 32 == pytest.approx(bits)


def test_the_readings_differ_in_additions_only():
    _, network = integer_network(widths=random_widths(4))
    operations = record_operations(network)
    scores = {
        name: score_operations(operations, RULE_SETS[name])
        for name in ("official", "official_integer", "official_adder_tree")
    }
    for score in scores.values():
        assert score.param_storage == scores["official"].param_storage
        assert score.num_mults == scores["official"].num_mults
        assert score.num_adds == scores["official"].num_adds
    assert (
        scores["official"].score
        > scores["official_integer"].score
        > scores["official_adder_tree"].score
    )


@pytest.mark.parametrize("seed", range(3))
def test_savings_are_the_same_sums_for_less(seed):
    _, network = integer_network(widths=random_widths(seed), seed=seed)
    plain = score_operations(
        record_operations(counted(network, savings=False)), RULE_SETS["official"]
    )
    saved = score_network(network, "official")
    assert saved.num_adds < plain.num_adds
    assert saved.num_mults < plain.num_mults
    assert saved.param_storage == plain.param_storage
    for name in ("blocks.2.conv_expand", "blocks.5.conv_project", "head.classifier"):
        sums = network.sums()[name]
        rows = sums.weight.flatten(1).long()
        inputs = torch.randint(2**sums.bits, (rows.shape[1], 7))
        found = run(compile_rows(rows.numpy()), inputs.numpy())
        assert (torch.from_numpy(found) == rows @ inputs).all(), name
    depthwise = network.sums()["blocks.1.conv_dw"]
    nonzeros = depthwise.weight.flatten(1).count_nonzero(1)
    work = work_of(depthwise, network.layers["blocks.1.conv_dw"].weight_bits)
    assert work.num_adds == (nonzeros - 1).clamp_min(0).sum()  # nothing to share


def test_what_is_rounded_costs_a_product():
    """The stream is rounded before every block but the first, whose input HardSwish has rounded."""
    _, network = integer_network(widths=8)
    rounding = [
        op
        for op in record_operations(network)
        if op.kind == "product" and op.name == "blocks.product"
    ]
    sizes = [block.config.in_chs for block in list(network.blocks)[1:]]
    assert [op.out_shape[0] for op in rounding] == sizes


def test_a_network_in_floats_has_no_such_bill():
    with pytest.raises(InputError, match="in floats"):
        score_network(integer_network(widths=None)[1], "official")
    with pytest.raises(InputError, match="official_integer"):
        score_network(build("micronet_v1", width_mult=0.25), "official_integer")


def test_a_shared_scale_is_stored_once_and_stays_one():
    plain, _ = integer_network(widths=None)
    own, shared = (
        Quantize(6, 8, shared_scales=share).apply(plain, images(32)).train()
        for share in (False, True)
    )
    filters = sum(len(layer.weight) for layer in own.layers.values())
    one, other = (score_network(network.eval(), "official") for network in (own, shared))
    assert 32 * (one.param_storage - other.param_storage) == pytest.approx(5 * filters)
    # Training moves all scales of a layer together.
    optimizer = torch.optim.Adam(shared.train().parameters(), lr=1e-2)
    before = shared.stem.conv.scales()[0].item()
    shared(images(8)).square().sum().backward()
    optimizer.step()
    for layer in shared.layers.values():
        assert len(layer.scales().unique()) == 1
        assert not layer.stored_scales().any()
    assert shared.stem.conv.scales()[0].item() != before
    again = build(shared.spec)
    again.load_state_dict(shared.state_dict())
    shared.eval()
    again.eval()
    assert torch.equal(again(images(8)), shared(images(8)))
