"""Chapter 09 against a library that others keep: brevitas rounds, exports and bounds the same."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from integer_networks import images, integer_network
from small_networks import seeded
from torch import Tensor

from micronet_lib.adjustable_quantization import adjusted
from micronet_lib.adjustable_quantization.network import Adjust, AdjustableMicroNet
from micronet_lib.beyond.arithmetic import Sums

pytest.importorskip("brevitas", reason="the extra `test` is not installed")

import brevitas.nn as qnn
from brevitas.core.quant import IntQuant
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8AccumulatorAwareZeroCenterWeightQuant,
    Int8WeightPerChannelFloat,
)
from brevitas.quant_tensor import IntQuantTensor

ZERO = torch.tensor(0.0)


def int_quant(signed: bool) -> Any:
    return IntQuant(narrow_range=False, signed=signed, input_view_impl=torch.nn.Identity())


@pytest.fixture(scope="module")
def network() -> AdjustableMicroNet:
    """A pruned network whose channels have every width."""
    plain = copy.deepcopy(integer_network("micronet_v1", widths=None)[0])
    made = Adjust(target=0.002).apply(plain, images(32)).eval()
    generator = seeded(11)
    with torch.no_grad():
        for each in (*made.layers.values(), *made.quantizers.values()):
            each.bit_scale.uniform_(0.2, 1, generator=generator)
    return made


def by_filter(values: Tensor, like: Tensor) -> Tensor:
    return values.detach().view(-1, *[1] * (like.ndim - 1))


# ------------------------------------------------------------------------------ rounding


def test_every_filter_is_rounded_as_brevitas_rounds_it(network):
    """The integers that are exported, and the floats of training that they stand for."""
    widths = set()
    for name, layer in network.layers.items():
        scale, bits = (by_filter(v, layer.weight) for v in (layer.scales(), layer.filter_bits()))
        widths |= set(bits.flatten().tolist())
        given = scale, ZERO, bits, layer.weight.detach()
        assert torch.equal(layer.codes(), int_quant(signed=True).to_int(*given)), name
        torch.testing.assert_close(layer.rounded()[0].detach(), int_quant(signed=True)(*given))
    assert widths == {2, 3, 4, 5, 6, 7, 8}


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_activations_and_their_gradients_are_brevitas(bits):
    """In float64, where adding the zero before rounding does not move a number over a half."""
    x = torch.randn(4, 3, 5, 5, generator=seeded(bits), dtype=torch.float64)
    grad = torch.randn(x.shape, generator=seeded(bits + 1), dtype=torch.float64)
    top, zero = 2.0**bits - 1, -math.floor(2**bits / 3)
    found = []
    for ours in (True, False):
        leaf = x.clone().requires_grad_()
        step = torch.full((1, 3, 1, 1), 3.0 / top, dtype=torch.float64, requires_grad=True)
        if ours:
            y = adjusted(leaf, step, zero * step, torch.tensor(top))
        else:
            width = torch.tensor(float(bits), dtype=torch.float64)
            y = int_quant(signed=False)(step, torch.tensor(-float(zero)), width, leaf)
        y.backward(grad)
        found.append((y.detach(), leaf.grad, step.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
    reached = found[0][0] * top / 3
    assert (reached.min().item(), reached.max().item()) == pytest.approx((zero, zero + top))


# ------------------------------------------------------------------------------ integers


def test_brevitas_computes_the_same_sums_from_the_exported_integers(network):
    """A pointwise layer of 5 bits. Its inputs are alike in all channels and count from 0."""
    layer = copy.deepcopy(network.layers["blocks.1.conv_project"])
    object.__setattr__(layer, "reads", copy.deepcopy(layer.reads))
    with torch.no_grad():
        layer.reads.low.zero_()
        layer.reads.range_shift.zero_()
        for each in (layer.reads.width, layer.reads.bit_scale):
            each.copy_(each[:1].expand_as(each))
        layer.bit_scale.fill_(5 / 8)
        layer.bias.zero_()
    sums, grid = layer.sums(), layer.reads.grid()
    bits = int(layer.input_bits()[0])
    assert not grid.shifts.any()
    assert not grid.low.any()

    scale = by_filter(layer.scales(), layer.weight)
    theirs = qnn.QuantConv2d(
        *layer.weight.shape[1::-1], 1, bias=False, return_quant_tensor=True,
        weight_quant=Int8WeightPerChannelFloat, weight_bit_width=5, weight_narrow_range=False,
        # brevitas takes the largest number of a filter and divides it by 2^(bits - 1).
        weight_scaling_impl_type="const", weight_scaling_init=16 * scale,
    ).eval()  # fmt: skip
    theirs.weight.data = layer.weight.detach().clone()
    assert torch.equal(theirs.quant_weight().int().float(), layer.codes())

    shape = (2, layer.weight.shape[1], 3, 3)
    codes = torch.randint(0, 2**bits, shape, generator=seeded(2)).float()
    unit = torch.tensor(0.5)
    inputs = IntQuantTensor(codes * unit, unit, ZERO, torch.tensor(float(bits)), False, False)
    with torch.no_grad():
        out = theirs(inputs)
    assert torch.equal(out.int(float_datatype=True), sums(codes))
    # Their bound knows the two widths, ours the weights too.
    assert sums.width <= int(out.bit_width)


# ------------------------------------------------------------------------------ accumulators


def plain_sums(weight: Tensor, bits: int) -> Sums:
    """A convolution in integers of unsigned inputs, without bias."""
    nothing = torch.zeros(len(weight), dtype=torch.float64)
    return Sums(weight, nothing, nothing + 1, torch.zeros(1, dtype=torch.float64), bits, 1, 1, 1)


def bounded(kind: Any, bits: int, accumulator: int) -> tuple[Any, Tensor]:
    """A layer of brevitas with that accumulator, and its integer weights."""
    torch.manual_seed(accumulator)
    layer = qnn.QuantConv2d(
        12, 8, 3, bias=False, weight_quant=kind, weight_bit_width=8,
        weight_accumulator_bit_width=accumulator,
    )  # fmt: skip
    wide = torch.tensor(float(bits))
    inputs = IntQuantTensor(torch.ones(1, 12, 4, 4), torch.tensor(1.0), ZERO, wide, False, True)
    layer(inputs)
    layer.eval()
    return layer, layer.quant_weight(inputs).int().float()


KINDS = [Int8AccumulatorAwareWeightQuant, Int8AccumulatorAwareZeroCenterWeightQuant]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accumulator", [16, 18, 20])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_made_for_an_accumulator_fit_it_by_our_proof(kind, bits, accumulator):
    """[colbert2023] trains under a bound on the sum of magnitudes; we bound what was trained."""
    _, weight = bounded(kind, bits, accumulator)
    sums = plain_sums(weight, bits)
    assert accumulator - 3 <= sums.width <= accumulator  # they are not all 0
    worst = [(2**bits - 1) * (side.flatten(1)) for side in (weight > 0, weight < 0)]
    ends = [(weight.double().flatten(1) * each).sum(1) for each in worst]
    assert torch.equal(ends[0], sums.reach[1])  # both ends are taken by some inputs
    assert torch.equal(ends[1], sums.reach[0])


@pytest.mark.parametrize("bits", [3, 8])
def test_the_narrowest_accumulator_is_that_of_brevitas(bits):
    """Equal for weights that add up to 0, within a bit for weights of one sign."""
    positive = torch.randint(0, 9, (6, 4, 3, 3), generator=seeded(bits)).float()
    centred = torch.cat([positive, -positive.flip(1)], 1)
    for kind, weight, apart in zip(KINDS, (positive, centred), ({0, 1}, {0}), strict=True):
        largest = weight.abs().flatten(1).sum(1).max().item()
        enough = [
            width
            for width in range(6, 25)
            if largest
            <= bounded(kind, bits, width)[0]
            .weight_quant.tensor_quant.pre_scaling_impl.calc_max_l1_norm(
                torch.tensor(float(bits)), False
            )
            .item()
        ]
        assert enough[0] - plain_sums(weight, bits).width in apart


def test_without_a_bound_the_sums_are_wider():
    weight = (100 * torch.randn(8, 12, 3, 3, generator=seeded(0))).round().clamp(-128, 127)
    sums = plain_sums(weight, 8)
    assert sums.width > 16
    inputs = torch.randint(0, 256, (4, 12, 6, 6), generator=seeded(1)).float()
    found = sums(inputs)
    assert torch.equal(found, F.conv2d(inputs.double(), weight.double(), padding=1).to(found.dtype))
    assert found.abs().max() < 2 ** (sums.width - 1)
