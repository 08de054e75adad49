"""A second counter of a network in integers, which reads nothing but its file.

It charges what the challenge's rules charge (`scoring.rules`, `beyond.counting`) without their
code: one walk over the blocks that adds bits. It shares `beyond.savings` with the first counter,
whose counts `test_beyond_savings` checks by other means.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from integer_networks import KINDS, network_of
from published_data import IMAGES, require

from micronet_lib.beyond.conversion import network_bytes
from micronet_lib.beyond.description import IMAGE_BITS, Packed
from micronet_lib.beyond.integer import Machine
from micronet_lib.beyond.packed import load_packed, read_packed
from micronet_lib.beyond.savings import compile_rows, costs
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.host.places import MEASURED, OWN_NETWORKS
from micronet_lib.lab.records.record import Record, record_path
from micronet_lib.lab.records.record import read as read_record

READINGS = ("official", "official_integer", "official_adder_tree")
MIDDLE = np.array([129, 124, 112])
HALF = 16
"""Width of what is neither a layer nor HardSwish: gates, means, scales."""


def first_sums(network: Packed, name: str) -> np.ndarray:
    """What the accumulators of a layer begin with: biases, less what inputs of 0 add."""
    layer, reads = network.layers[name], network.shapes[name].reads
    step = network.grids[reads].step if reads else 2.0**-6
    octaves = np.array([1.0, 0.8408964152537145, 0.7071067811865476, 0.5946035575013605])
    scales = layer.scale * octaves[layer.places % 4] * 0.5 ** (layer.places // 4) * step
    bias = np.floor(layer.bias * layer.unit / scales + 0.5).astype(np.int64)
    if reads:
        zeros = network.grids[reads].zero * layer.codes.reshape(len(bias), -1).sum(1)
    else:
        zeros = (layer.codes.sum((2, 3)) * MIDDLE).sum(1)
    return bias - zeros


def operations(network: Packed, reading: str) -> dict[str, int]:
    """Multiplications and additions for one image, each times its width."""
    bits: Counter[str] = Counter()
    pre = network.pre_bits
    wide = reading == "official"  # additions at 32 bits

    def layer(name: str, positions: int) -> int:
        stored, reads = network.layers[name], network.shapes[name].reads
        matrix = stored.codes.reshape(len(stored.codes), -1)
        program = compile_rows(matrix, share=not name.endswith("conv_dw"))
        inputs = network.grids[reads].bits if reads else IMAGE_BITS
        found = costs(program, stored.bits, inputs, first_sums(network, name))
        low, high = min(found.low), max(found.high)
        width = 32 if wide else 1 + max((-low - 1).bit_length() if low else 0, high.bit_length())
        adds = found.add_bits if reading == "official_adder_tree" else found.num_adds * width
        outputs = len(matrix) * positions
        bits["mult"] += found.mult_bits * positions + outputs * HALF  # sums, then their scales
        bits["add"] += adds * positions + outputs * width  # sums, then their biases
        return outputs

    def swished(name: str, positions: int) -> None:
        outputs = layer(name, positions)
        bits["mult"] += 3 * outputs * pre  # clip at two ends, and the product
        bits["add"] += outputs * (32 if wide else pre)

    def means(chs: int, positions: int) -> None:
        bits["mult"] += chs * HALF
        bits["add"] += chs * (positions - 1) * 32

    positions = 32 * 32
    swished("stem.conv", positions)
    for index, block in enumerate(network.blocks):
        name = f"blocks.{index}"
        if index:
            bits["mult"] += block.in_chs * positions * HALF  # the stream is rounded
        swished(f"{name}.conv_expand", positions)
        before, positions = positions, positions // block.stride**2
        swished(f"{name}.conv_dw", positions)
        outputs = layer(f"{name}.conv_project", positions)
        if block.se_chs:
            means(block.out_chs, positions)
            swished(f"{name}.se.conv_reduce", 1)
            gates = layer(f"{name}.se.conv_expand", 1)
            bits["mult"] += 2 * gates * HALF + outputs * HALF  # the sigmoid, and its product
            bits["add"] += gates * 32
        if block.shortcut:
            layer(f"{name}.conv_shortcut", before)
        if block.stride == 1:
            bits["add"] += outputs * 32
    means(network.blocks[-1].out_chs, positions)
    layer("head.classifier", 1)
    return dict(bits)


def storage(network: Packed) -> int:
    """Bits to store: masks, weights, scales, biases, two floats a layer, step and zero a grid."""
    bits = 40 * (len(network.grids) + 1)  # the image has a step and a zero too
    for layer in network.layers.values():
        kept = int((layer.codes != 0).sum())
        bits += kept * layer.bits + (layer.codes.size if kept < layer.codes.size else 0)
        bits += len(layer.bias) * (5 + layer.bias_bits) + 2 * 32
    return bits


def recounted(network: Packed, reading: str) -> float:
    """The score of a network under a reading of the rules."""
    return (
        storage(network) / 32 / 36.5e6 + sum(operations(network, reading).values()) / 32 / 10.49e9
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_counter_finds_the_same_score(kind):
    from micronet_lib.scoring.bill import score_operations
    from micronet_lib.scoring.operations import record_operations
    from micronet_lib.scoring.rules import RULE_SETS

    network = network_of(kind)
    stored = read_packed(network_bytes(network), kind)
    recorded = record_operations(network)
    for reading in READINGS:
        score = score_operations(recorded, RULE_SETS[reading])
        assert score.param_storage * 32 == pytest.approx(storage(stored), abs=1e-6)
        found = operations(stored, reading)
        for quantity, bits in found.items():
            charged = [item for item in score.items if item.quantity == quantity]
            assert sum(item.count * item.bits for item in charged) == bits, (reading, quantity)
        assert recounted(stored, reading) == pytest.approx(score.score, rel=1e-12, abs=1e-15)


COMMITTED = sorted(OWN_NETWORKS.glob("*.mnet"))


def record_of(network: Packed) -> Record:
    """The committed record of a committed file."""
    about = network.about
    place = record_path(about["sweep"], about["point"], about["profile"], about["seed"])
    record = read_record(MEASURED / place)
    assert record.recipe_id == about["recipe_id"]
    return record


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_network_costs_what_its_record_says(path):
    network = load_packed(path)
    metrics = record_of(network).metrics
    for reading in READINGS:
        assert recounted(network, reading) == pytest.approx(metrics[f"{reading}.score"], rel=1e-12)
    counted = metrics["official.param_storage"] * 4
    assert storage(network) / 8 == counted < path.stat().st_size < 1.05 * counted


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_network_is_as_accurate_as_its_record_says(path):
    """All test images, through the loop over integers."""
    require(IMAGES)
    network, test = load_packed(path), load_split("cifar100", "test")
    machine = Machine(network)
    found = [machine(part.numpy()).argmax(1) for part in test.images.split(100)]
    right = (torch.from_numpy(np.concatenate(found)) == test.targets).sum()
    assert right == record_of(network).metrics["correct"]
