"""Inference with numpy alone: the logits of the network in integers, every sum within its width."""

import ast
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from integer_networks import KINDS, network_of
from published_data import IMAGES, require

from micronet_lib.beyond import arithmetic, integer, layers
from micronet_lib.beyond.conversion import network_bytes
from micronet_lib.beyond.integer import (
    SIGMOID,
    Accumulator,
    Machine,
    gated,
    halved,
    hard_swish,
    multiplier,
    pooled,
    rescaled,
)
from micronet_lib.beyond.network import IntegerMicroNet
from micronet_lib.beyond.packed import read_packed
from micronet_lib.beyond.quantizers import hard_swish_grid
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.lab.host.places import OWN_NETWORKS

SOURCE = Path(integer.__file__)


@cache
def machine_of(kind: str) -> Machine:
    return Machine(read_packed(network_bytes(network_of(kind)), kind))


def logits_of(network: IntegerMicroNet, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = network(normalize(torch.from_numpy(images))) / integer.LOGIT_UNIT
    assert torch.equal(logits, logits.round())
    return logits.numpy().astype(np.int64)


def strange_images() -> np.ndarray:
    """Black, white, stripes, a chessboard, noise of two levels and of all."""
    random = np.random.default_rng(0)
    chess = np.indices((32, 32)).sum(0) % 2
    stripes = np.broadcast_to(np.arange(32) % 2, (32, 32))
    levels = [np.zeros((32, 32)), np.ones((32, 32)), chess, stripes, random.random((32, 32)) < 0.5]
    images = [np.broadcast_to(level * 255, (3, 32, 32)) for level in levels]
    images += [random.integers(0, 256, (3, 32, 32)) for _ in range(3)]
    return np.stack(images).astype(np.uint8)


# ----------------------------------------------------------------------------------- what it is


def test_it_imports_numpy_and_the_description_and_is_short_enough_to_read():
    """And the description imports nothing of the library but the error for users."""
    for path, allowed in (
        (SOURCE, {"micronet_lib.beyond.description"}),
        (SOURCE.with_name("description.py"), {"micronet_lib.errors"}),
    ):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
        names = {alias.name for node in imports for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {n for n in names if n.split(".")[0] not in sys.stdlib_module_names} - allowed <= {
            "numpy",
            "numpy.typing",
        }
    assert len(SOURCE.read_text(encoding="utf-8").splitlines()) <= 250


def test_its_constants_are_those_of_the_network():
    for name in ("STREAM_BITS", "GATE_BITS", "GATE_UNIT", "LOGIT_UNIT", "MULTIPLIER_BITS"):
        assert getattr(integer, name) == getattr(arithmetic, name)
    for name in ("MIDDLE", "PIXEL_UNIT", "IMAGE_BITS"):
        assert getattr(integer, name) == getattr(layers, name)
    assert np.array_equal(SIGMOID, arithmetic.sigmoid_table())


def test_no_entry_of_the_gates_table_depends_on_the_machine():
    """The exponential may differ in its last digit, and no entry is so near to a half."""
    values = 2**15 / (1 + np.exp(-np.arange(-512, 512) / 64))
    assert np.abs(values % 1 - 0.5).min() > 1e-4


# ----------------------------------------------------------------------------- single operations


def test_rescaling_is_that_of_the_network():
    random = np.random.default_rng(0)
    values = np.concatenate(
        [random.integers(-(2**15), 2**15, 400), [0, 1, -1, 2**15, -(2**15), 2**15 - 1]]
    ).astype(np.int32)
    factors = [*(2.0 ** random.uniform(-36, 20, 400)), *(2.0 ** np.arange(-40.0, 30)), 1 - 2**-17]
    for factor in factors:
        wanted = arithmetic.rescaled(
            torch.from_numpy(values), torch.tensor(factor, dtype=torch.float64)
        ).numpy()
        found = rescaled(values, multiplier(factor))
        assert found.dtype == np.int32
        # What is larger than any result may be is cut off in the same way.
        ends = (-(2**15), 2**15 - 1)
        assert np.array_equal(np.clip(found, *ends), np.clip(wanted, *ends)), factor


def test_halves_are_rounded_up():
    assert halved(np.arange(-6, 7), 2).tolist() == [-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert halved(np.arange(-2, 3), 0).tolist() == [-2, -1, 0, 1, 2]


@pytest.mark.parametrize(("step", "bits", "pre_bits"), [(0.02, 8, 12), (0.3, 4, 8), (0.7, 3, 4)])
def test_hard_swish_is_that_of_the_network(step, bits, pre_bits):
    grid = hard_swish_grid(step, bits, pre_bits)
    values = np.arange(-3000, 5000, dtype=np.int32)
    wanted = arithmetic.hard_swish(torch.from_numpy(values).float(), grid, pre_bits) + grid.zero
    assert np.array_equal(hard_swish(values, grid, pre_bits), wanted.numpy())


def test_gates_and_means_are_those_of_the_network():
    random = np.random.default_rng(1)
    values = random.integers(-(2**15), 2**15, (6, 4, 4, 5)).astype(np.int32)
    logits = random.integers(-512, 512, (6, 1, 1, 5)).astype(np.int32)
    ours, theirs = (torch.from_numpy(each).permute(3, 0, 1, 2) for each in (values, logits))
    wanted = arithmetic.gated(ours.float(), theirs.float())
    assert np.array_equal(gated(values, logits).transpose(3, 0, 1, 2), wanted.numpy())
    wanted = arithmetic.pooled(ours.float())
    assert np.array_equal(pooled(values).transpose(3, 0, 1, 2), wanted.numpy())


# --------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_the_network(kind):
    images = np.concatenate(
        [load_split("embedded", "validation").images[-16:].numpy(), strange_images()]
    )
    machine, network = machine_of(kind), network_of(kind)
    found = machine(images)
    assert found.dtype == np.int64
    assert np.array_equal(found, logits_of(network, images))
    assert len(np.unique(found)) > 50
    for name, sums in network.sums().items():
        seen = machine.layers[name].sums
        assert seen.bits == sums.width
        assert sums.width < 32
        assert Accumulator(seen.smallest, seen.largest).bits <= sums.width
        assert np.array_equal(machine.layers[name].start, sums.start.numpy())


def test_a_batch_is_its_images():
    images = strange_images()
    machine = machine_of("trimmed")
    assert np.array_equal(
        machine(images), np.concatenate([machine(images[:3]), machine(images[3:])])
    )


# ----------------------------------------------------------------------------------- accumulators


@pytest.mark.parametrize("kind", KINDS[::3])
def test_the_worst_inputs_reach_the_proven_ends_and_no_further(kind):
    """For each filter, the largest input where a weight is positive and 0 elsewhere, or not."""
    machine = machine_of(kind)
    for name, layer in machine.layers.items():
        stored = machine.network.layers[name]
        reads = machine.network.shapes[name].reads
        top = 2 ** (machine.network.grids[reads].bits if reads else 8) - 1
        codes = stored.codes.reshape(len(stored.codes), -1)
        for sign in (1, -1):
            sums = [Accumulator(each.low, each.high) for each in layer.reach]
            for row, weights in enumerate(codes):
                inputs = (sign * weights > 0) * top
                total = int(weights @ inputs + layer.start[row])
                proven = sums[row]
                end = proven.high if sign > 0 else proven.low
                assert total == end + (min if sign > 0 else max)(0, int(layer.start[row]))
                assert -(2 ** (layer.sums.bits - 1)) <= end < 2 ** (layer.sums.bits - 1)


def test_the_worst_inputs_run_through_a_layer():
    machine = Machine(machine_of("micronet_v1-0").network)
    for name in ("blocks.0.conv_expand", "blocks.3.conv_project", "blocks.1.conv_dw", "stem.conv"):
        layer, shape = machine.layers[name], machine.network.shapes[name]
        codes = machine.network.layers[name].codes
        top = 2 ** (machine.network.grids[shape.reads].bits if shape.reads else 8) - 1
        inputs = np.concatenate([codes > 0, codes < 0]) * top  # one image for each end
        depthwise = shape.weight[1] == 1
        if depthwise:
            inputs = np.repeat(inputs, len(codes), axis=1)
        layer(inputs.transpose(1, 2, 3, 0).astype(np.int32), 1.0, lambda y: y)
        start = layer.start
        assert layer.sums.largest == max(
            each.high + min(0, first) for each, first in zip(layer.reach, start, strict=True)
        )
        assert layer.sums.smallest == min(
            0, *(each.low + max(0, first) for each, first in zip(layer.reach, start, strict=True))
        )


def test_partial_sums_stay_within_the_proven_ends_in_any_order():
    machine, random = machine_of("table1_2.0-1"), np.random.default_rng(0)
    for name, layer in machine.layers.items():
        reads = machine.network.shapes[name].reads
        top = 2 ** (machine.network.grids[reads].bits if reads else 8) - 1
        codes = machine.network.layers[name].codes.reshape(len(layer.start), -1)
        for row in random.integers(0, len(codes), 3):
            for inputs in (random.integers(0, top + 1, codes.shape[1]), (codes[row] > 0) * top):
                terms = np.append(codes[row] * inputs, layer.start[row])
                partial = random.permutation(terms).cumsum()
                assert layer.reach[row].low <= min(0, partial.min())
                assert max(0, partial.max()) <= layer.reach[row].high


def test_a_sum_outside_its_range_stops_the_run():
    machine = Machine(machine_of("trimmed").network)
    for each in machine.layers["blocks.2.conv_expand"].reach:
        each.high = 0
        each.low = 0
    with pytest.raises(OverflowError, match="proven 0 to 0"):
        machine(strange_images())


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [(0, 0, 1), (-1, 0, 1), (0, 1, 2), (-2, 1, 2), (-2, 2, 3), (-128, 127, 8), (-129, 0, 9)],
)
def test_the_width_of_a_range(low, high, bits):
    assert Accumulator(low, high).bits == bits


# --------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize("path", sorted(OWN_NETWORKS.glob("*.mnet")), ids=lambda path: path.stem)
def test_a_committed_network_predicts_the_same_on_200_images(path):
    require(IMAGES)
    from micronet_lib.beyond.conversion import unpacked
    from micronet_lib.beyond.packed import load_packed

    assert path.stat().st_size <= 200_000
    images = load_split("cifar100", "test").images[:200].numpy()
    stored = load_packed(path)
    assert np.array_equal(Machine(stored)(images), logits_of(unpacked(stored), images))


@pytest.mark.parametrize(("chs", "bits", "largest"), [(8, 8, 127), (40, 12, 2047), (318, 12, 2047)])
def test_sums_of_any_size_are_exact(chs, bits, largest):
    """In one part, in two, and in float64."""
    weight = torch.full((1, chs, 1, 1), float(largest)) - torch.arange(chs).view(1, -1, 1, 1) % 3
    codes = torch.full((1, chs, 2, 2), 2.0**bits - 1) - torch.arange(4.0).view(1, 1, 2, 2)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    layer = arithmetic.Sums(weight, zero, one, torch.zeros(1), bits, stride=1)
    exact = (weight.double() * codes.double()).sum(1, keepdim=True)
    assert torch.equal(layer(codes).double(), exact)
