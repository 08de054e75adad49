"""Ternary weights by hand, their gradients, their storage, and what a network of them costs."""

import copy
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import seeded
from tiny_lab import sweep_of, tiny_lab
from torch import Tensor, nn

from micronet_lib.architecture import build
from micronet_lib.architecture.network import Network, NetworkSpec
from micronet_lib.beyond.network import in_integers
from micronet_lib.distillation import DistillationConfig
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.recipes.bases import ORN
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe, with_overrides
from micronet_lib.lab.records.record import Record
from micronet_lib.lab.running.lineage import cases
from micronet_lib.lab.running.measure import ensure
from micronet_lib.lab.running.measures.ternary import ternary
from micronet_lib.lab.running.networks import network_of
from micronet_lib.lab.storage.networks import export_network, load_network, pack, restore
from micronet_lib.pruning.schedules import PruneTo
from micronet_lib.scoring import record_operations, score_network, score_operations
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE
from micronet_lib.scoring.rules import RULE_SETS
from micronet_lib.ternary import SCHEMES, Ternarize, TernaryNetwork, narrow_sums
from micronet_lib.ternary.network import PositiveScales, assigned, charge, ternary_of
from micronet_lib.ternary.packed import PackedTernary, pack_ternary, sparse_binary, unpack_ternary
from micronet_lib.ternary.schemes import (
    deviation_signs,
    entropy_signs,
    mean_scales,
    shape_scales,
    sparse_signs,
    ternary_weight,
    threshold_signs,
)
from micronet_lib.ternary.stored import StoredTernaryNetwork, in_bitmasks

PAPER = records.paper("ternary").set_index(["point", "metric"])["value"]
WEIGHT = torch.tensor([[0.9, -0.1, 0.02], [-0.6, 0.0, 0.3]])


# ------------------------------------------------------------------------------ which bin


def test_a_threshold_is_a_fraction_of_the_largest():
    assert threshold_signs(WEIGHT, 0.2).tolist() == [[1, 0, 0], [-1, 0, 1]]  # above 0.18
    assert threshold_signs(WEIGHT, 0.0).tolist() == WEIGHT.sign().tolist()


@pytest.mark.parametrize(("sparsity", "zeros"), [(0.0, 1), (1 / 6, 1), (0.5, 3), (5 / 6, 5)])
def test_a_fixed_fraction_of_zeros(sparsity, zeros):
    signs = sparse_signs(WEIGHT, sparsity)
    assert sparse_signs(WEIGHT, 0.999).any()  # never a layer of zeros
    assert (signs == 0).sum() == zeros
    assert WEIGHT[signs == 0].abs().max() < WEIGHT[signs != 0].abs().min()
    assert torch.equal(signs, WEIGHT.sign() * signs.abs())


def test_standard_deviations_from_the_mean():
    weight = torch.tensor([3.0, 1.0, -1.0, -3.0, 5.0])  # mean 1, deviation sqrt(10)
    assert deviation_signs(weight, 1.0).tolist() == [0, 0, 0, -1, 1]
    assert deviation_signs(weight, 0.6).tolist() == [1, 0, -1, -1, 1]
    normal = torch.randn(100_000, generator=seeded(0))
    assert deviation_signs(normal, 0.67449).abs().mean().item() == pytest.approx(0.5, abs=0.01)


def entropy_by_hand(weight: list[float], scales: list[float], strength: float) -> list[int]:
    """Weight by weight, as the paper's words have it."""
    bins = {-1: -scales[1], 0: 0.0, 1: scales[0]}
    nearest = [min(bins, key=lambda c: (w - bins[c]) ** 2) for w in weight]
    shares = {c: nearest.count(c) / len(weight) for c in bins}
    if shares[0] < 0.5:
        outer = shares[1] + shares[-1]
        shares = {0: 0.5, 1: 0.5 * shares[1] / outer, -1: 0.5 * shares[-1] / outer}
    bits = {c: -math.log2(max(shares[c], 1 / len(weight))) for c in bins}
    factors = []
    for c, end in ((1, max(weight)), (-1, -min(weight))):
        factors.append((end**2 - (abs(bins[c]) - end) ** 2) / (bits[c] - bits[0]))
    largest = strength * min(factors)
    return [min(bins, key=lambda c: (w - bins[c]) ** 2 + largest * bits[c]) for w in weight]


@pytest.mark.parametrize("strength", [0.0, 0.15, 0.6])
def test_entropy_by_hand(strength):
    for seed in range(5):
        weight = torch.randn(60, generator=seeded(seed), dtype=torch.float64)
        scales = torch.tensor([1.1, 0.9], dtype=torch.float64)
        found = entropy_signs(weight.view(3, 20), scales, strength).flatten().tolist()
        assert found == entropy_by_hand(weight.tolist(), scales.tolist(), strength)


def test_entropy_moves_weights_to_zero_and_nowhere_else():
    weight, scales = torch.randn(4000, generator=seeded(1)), torch.tensor([1.2, 1.2])
    before = entropy_signs(weight, scales, 0.0)
    zeros = []
    for strength in (0.0, 0.1, 0.3, 0.9):
        signs = entropy_signs(weight, scales, strength)
        assert ((signs == before) | (signs == 0)).all()
        zeros.append(int((signs == 0).sum()))
        assert {-1.0, 0.0, 1.0} == set(signs.tolist())  # no bin is emptied
    assert zeros == sorted(set(zeros))


SORTED = {
    "threshold": threshold_signs,
    "sparsity": sparse_signs,
    "deviations": deviation_signs,
    "strength": lambda weight, value: entropy_signs(weight, torch.ones(2), value),
}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *[("threshold", value) for value in (-0.1, 1.0, math.nan, "0.1", True)],
        *[("sparsity", value) for value in (-0.5, 1.0, 1.5, math.nan)],
        *[("deviations", value) for value in (-1.0, 4.0, math.inf, None)],
        *[("strength", value) for value in (-3, 5, math.nan)],
    ],
)
def test_a_number_outside_its_range_is_refused_by_the_function_and_the_settings(name, wrong):
    for sort in (lambda: SORTED[name](WEIGHT, wrong), lambda: Ternarize(**{name: wrong})):
        with pytest.raises(InputError, match=f"ternary {name} is {re.escape(repr(wrong))}; give"):
            sort()


def test_a_strength_may_be_1():
    assert Ternarize("entropy", strength=1).strength == 1
    assert entropy_signs(WEIGHT, torch.ones(2), 1.0).shape == WEIGHT.shape


# ------------------------------------------------------------------------------ values, gradients


def test_values_and_gradients_by_hand():
    weight = torch.tensor([0.8, -0.5, 0.1, -0.05, 0.4], requires_grad=True)
    scales = torch.tensor([0.6, 0.3], requires_grad=True)
    signs = threshold_signs(weight.detach(), 0.2)
    values = ternary_weight(weight, signs, scales)
    assert torch.equal(values.detach(), scales.detach()[0] * torch.tensor([1, -0.5, 0, 0, 1]))
    gradient = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    values.backward(gradient)
    # Wp: 1 + 5. Wn: -2, where the paper prints the sum itself.
    torch.testing.assert_close(scales.grad, torch.tensor([6.0, -2.0]))
    by_hand = torch.tensor([0.6 / 0.8, 2 * 0.3 / 0.8, 3, 4, 5 * 0.6 / 0.8])
    torch.testing.assert_close(weight.grad, by_hand)


def test_the_scales_gradient_is_that_of_finite_differences():
    weight = torch.randn(6, 5, generator=seeded(2), dtype=torch.float64)
    inputs = torch.randn(7, 5, generator=seeded(3), dtype=torch.float64)
    signs = threshold_signs(weight, 0.3)

    def loss(scales: Tensor) -> Tensor:
        return (inputs @ ternary_weight(weight, signs, scales).T).tanh().square().sum()

    scales = torch.tensor([0.7, 0.4], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(scales), scales)
    for index in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[index] = 1e-6
        difference = (loss(scales + step) - loss(scales - step)) / 2e-6
        assert found[index].item() == pytest.approx(difference.item(), rel=1e-6)


def test_a_fixed_scale_passes_the_gradient_as_it_is():
    weight = WEIGHT.clone().requires_grad_()
    signs = threshold_signs(WEIGHT, 0.2)
    values = ternary_weight(weight, signs, torch.tensor([0.5, 0.5]), trained=False)
    assert torch.equal(values.detach(), 0.5 * signs)
    gradient = torch.randn(2, 3, generator=seeded(4))
    values.backward(gradient)
    torch.testing.assert_close(weight.grad, gradient)


def test_scales_by_hand():
    signs = threshold_signs(WEIGHT, 0.2)
    torch.testing.assert_close(mean_scales(WEIGHT, signs), torch.tensor([0.6, 0.6]))
    assert (mean_scales(WEIGHT, torch.zeros(2, 3)) > 0).all()  # two empty bins
    expected = math.sqrt(2 / 3 * 6 / 3)  # three inputs, three of six weights
    torch.testing.assert_close(shape_scales(signs), torch.full((2,), expected))


def one_layer(weight: list[float], change: Ternarize) -> Any:
    """A linear layer under the change, which is its own classifier."""

    class Lone(Network):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(len(weight), 1, bias=False)
            self.layer.weight.data = torch.tensor([weight])
            self.spec = NetworkSpec("lone")

        @property
        def classifier(self) -> nn.Linear:
            return self.layer

    return change.apply(Lone()).layers["layer"]


def test_the_binary_scale_is_the_mean_of_the_weights_that_are_kept():
    """Pruned weights are no part of it: here 0.6 and not 0.24."""
    layer = one_layer([0.9, 0.0, -0.3, 0.0, 0.0], Ternarize("binary", keep=()))
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.6, 0, -0.6, 0, 0]]))
    assert one_layer([0.0, 0.0], Ternarize("binary", keep=())).weight.tolist() == [[0, 0]]


def test_a_held_zero_stays_0_where_the_mean_is_far_from_it():
    """The mean is 1.2, so 0 is 0.98 standard deviations below it."""
    weight = [0.0, 0.0, 2.0, 2.0, 2.0]
    for held, signs in ((True, [0, 0, 1, 1, 1]), (False, [-1, -1, 1, 1, 1])):
        change = Ternarize("fixed", deviations=0.5, keep=(), hold_zeros=held)
        assert one_layer(weight, change).weight.sign().tolist() == [signs]


# ------------------------------------------------------------------------------ two bitmasks


@pytest.mark.parametrize("shape", [(1,), (3, 5), (4, 2, 3, 3), (9, 1, 7, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_packed_tensor_comes_back_equal(shape, dtype):
    signs = torch.randint(-1, 2, shape, generator=seeded(5)).to(dtype)
    weight = 0.37 * (signs > 0) - 0.21 * (signs < 0)
    weight = weight.to(dtype)
    packed = pack_ternary(weight)
    assert torch.equal(unpack_ternary(packed, dtype), weight)
    assert len(packed.plus) == len(packed.minus) == -(-weight.numel() // 8)


def test_bits_by_hand():
    packed = pack_ternary(torch.tensor([2.0, 0, -3, 2, 0, 0, 0, -3, 2]))
    assert (packed.plus, packed.minus) == (b"\x90\x80", b"\x21\x00")
    assert (packed.positive, packed.negative) == (2.0, 3.0)
    assert pack_ternary(torch.zeros(3)).positive == 0


@pytest.mark.parametrize(
    ("values", "match"),
    [([1.0, 2.0, -1.0], "2 positive"), ([-1.0, -2.0, -3.0], "3 negative"), ([math.nan], "NaN")],
)
def test_what_is_not_ternary_is_refused(values, match):
    with pytest.raises(InputError, match=match):
        pack_ternary(torch.tensor(values))


def test_bitmasks_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="needs 2"):
        unpack_ternary(PackedTernary((9,), b"\x00", b"\x00", 1.0, 1.0))
    with pytest.raises(InputError, match="both"):
        unpack_ternary(PackedTernary((8,), b"\x80", b"\xc0", 1.0, 1.0))


@dataclass
class Counted:
    """A number that counts what is done with it."""

    value: float
    done: dict[str, int]

    def __add__(self, other: "Counted") -> "Counted":
        self.done["add"] += 1
        return Counted(self.value + other.value, self.done)

    def __sub__(self, other: "Counted") -> "Counted":
        self.done["add"] += 1
        return Counted(self.value - other.value, self.done)

    def __rmul__(self, factor: float) -> "Counted":
        self.done["mult"] += 1
        return Counted(factor * self.value, self.done)


def test_two_multiplications_an_output_and_the_dense_product():
    """With whole inputs and scales of a power of two, to the last bit."""
    signs = torch.randint(-1, 2, (6, 12), generator=seeded(6)).double()
    signs[:, :2] = torch.tensor([1.0, -1.0])  # every row has both
    weight = 0.5 * (signs > 0).double() - 0.25 * (signs < 0).double()
    inputs = torch.randint(-9, 10, (12,), generator=seeded(7)).double()
    done = {"mult": 0, "add": 0}
    found = sparse_binary([Counted(x, done) for x in inputs.tolist()], pack_ternary(weight))
    assert [each.value for each in found] == (weight @ inputs).tolist()
    assert done["mult"] == PAPER["ternary_slide", "mults_per_output"] * 6
    assert done["add"] == int(signs.count_nonzero()) - 6


def test_rows_without_a_bin():
    weight = torch.tensor([[2.0, 0.0], [0.0, -0.5], [0.0, 0.0]])
    assert sparse_binary([3, 8], pack_ternary(weight)) == [6.0, -4.0, 0]
    with pytest.raises(InputError, match="3 inputs; a row of this matrix has 2"):
        sparse_binary([1, 2, 3], pack_ternary(weight))


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_of_all_images_and_positions_at_once(kernel):
    signs = torch.randint(-1, 2, (5, 4, kernel, kernel), generator=seeded(8)).double()
    weight = 0.7 * (signs > 0).double() - 0.4 * (signs < 0).double()
    x = torch.randn(3, 4, 6, 6, generator=seeded(9), dtype=torch.float64)
    columns = F.unfold(x, kernel, padding=kernel // 2).unbind(1)  # fan_in of [3, 36]
    found = torch.stack(sparse_binary(columns, pack_ternary(weight)), 1).view(3, 5, 6, 6)
    torch.testing.assert_close(found, F.conv2d(x, weight, padding=kernel // 2))


# ------------------------------------------------------------------------------ networks


def small(name: str = "micronet_v1", **options: Any) -> Network:
    torch.manual_seed(0)
    return build(name, width_mult=0.15, **options).eval()


IMAGES = torch.randn(2, 3, 32, 32, generator=seeded(10))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["micronet_v1", "torchvision_mobilenet_v2"])
def test_a_file_a_copy_and_an_export_compute_the_same(scheme, name):
    network = Ternarize(scheme).apply(small(name)).eval()
    content = pack(network)
    content["spec"] = json.loads(json.dumps(content["spec"]))
    again, plain = restore(content["spec"], content["model"]), network.plain()
    exported = build(NetworkSpec(network.network.spec.name, network.network.spec.options)).eval()
    exported.load_state_dict(plain.state_dict())
    for path, packed in network.packed().items():
        exported.get_submodule(path).weight.data = unpack_ternary(packed)
    with torch.no_grad():
        logits = network(IMAGES)
        for other in (again, copy.deepcopy(network), plain, exported):
            assert torch.equal(other(IMAGES), logits)
    assert not any("parametrizations" in name for name in plain.state_dict())


def test_every_weight_has_three_values_and_latent_weights_stay():
    network = small()
    before = {name: value.clone() for name, value in network.named_parameters()}
    made = Ternarize("ttq").apply(network)
    kept = {name for name, weight in made.plain().named_parameters()
            if weight.ndim > 1 and len(weight.unique()) > 3}  # fmt: skip
    assert "stem.conv.weight" in kept
    assert "head.classifier.weight" in kept
    assert {name.split(".")[-2] for name in kept} == {"conv", "conv_dw", "classifier"}
    for name, layer in made.layers.items():
        assert torch.equal(layer.parametrizations.weight.original, before[f"{name}.weight"])


def test_layers_that_are_kept():
    everything = set(Ternarize(keep=()).apply(small()).layers)
    assert {"stem.conv", "head.classifier"} < everything
    first = Ternarize(keep=("first",)).apply(small())
    assert everything - set(first.layers) == {"stem.conv"}
    gates = Ternarize(keep=("se", "classifier")).apply(small("micronet_v2"))
    assert not [name for name in gates.layers if ".se." in name or "classifier" in name]
    of_others = Ternarize().apply(small("torchvision_mobilenet_v2"))
    assert "network.features.0.0" not in of_others.layers
    assert "network.classifier.1" not in of_others.layers


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"scheme": "quaternary"}, "unknown ternary scheme 'quaternary'; choose from ttq"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"threshold": math.nan}, "threshold is nan"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"deviations": -1.0}, "deviations is -1.0"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"keep": ("stem",)}, "unknown layer to keep 'stem'"),
    ],
)
def test_settings_that_are_none_are_refused(settings, match):
    with pytest.raises(InputError, match=match):
        Ternarize(**settings)


@pytest.mark.parametrize("keep", [None, "first", ["first"]])
def test_layers_to_keep_are_a_tuple(keep):
    with pytest.raises(InputError, match=r"ternary keep is .*give a tuple of names"):
        Ternarize(keep=keep)


def test_a_file_of_another_method_is_refused_in_one_line():
    made = Ternarize().apply(small())
    spec = {"name": made.spec.name, "options": made.spec.options}
    for given in (small().state_dict(), Ternarize("binary", keep=()).apply(small()).state_dict()):
        with pytest.raises(InputError, match="tensors of another network than ") as refused:
            restore(spec, given)
        assert "\n" not in str(refused.value)


def test_networks_that_cannot_be_made_ternary():
    with pytest.raises(InputError, match="leaves no layer"):
        Ternarize(
            keep=("first", "classifier", "depthwise", "expand", "project", "shortcut", "se")
        ).apply(small())
    with pytest.raises(InputError, match="quantised already"):
        Ternarize().apply(Ternarize().apply(small()))
    with pytest.raises(InputError, match="IntegerMicroNet is quantised already"):
        Ternarize().apply(in_integers(build("micronet_v1", width_mult=2.5)))


# ------------------------------------------------------------------------------ as a file has it


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["micronet_v1", "torchvision_mobilenet_v2"])
def test_a_file_holds_bitmasks_and_scales_and_computes_the_same(tmp_path, scheme, name):
    network = Ternarize(scheme).apply(small(name)).eval()
    for layer in network.layers.values():  # sides of their own, as after a training
        ternary_of(layer).scales.data *= torch.tensor([1.0, 0.7])
    export_network(network, tmp_path / "a.safetensors")
    again = load_network(tmp_path / "a.safetensors")
    assert isinstance(again, StoredTernaryNetwork)
    assert list(again.layers) == list(network.layers)
    with torch.no_grad():
        assert torch.equal(again(IMAGES), network(IMAGES))
    for layer, packed in network.packed().items():
        place = again.layers[layer].parametrizations.weight
        assert place.original0.numpy().tobytes() == packed.plus
        assert place.original1.numpy().tobytes() == packed.minus
        assert place.original2.tolist() == [packed.positive, packed.negative]
    scores = [score_network(each, "official").score for each in (network, again)]
    assert scores[0] == scores[1]


def test_a_file_is_smaller_by_what_the_bits_save(tmp_path):
    floats, network = small(), Ternarize().apply(small())
    sizes = []
    for each in (floats, network):
        export_network(each.eval(), tmp_path / "a.safetensors")
        state = load_network(tmp_path / "a.safetensors").state_dict()
        sizes.append(sum(value.nbytes for value in state.values()))
    saved = sum(4 * n - 2 * -(-n // 8) - 8 for n in
                (layer.weight.numel() for layer in network.layers.values()))  # fmt: skip
    assert sizes[0] - sizes[1] == saved


def test_a_stored_network_is_no_start_for_another_method(tmp_path):
    export_network(Ternarize().apply(small()).eval(), tmp_path / "a.safetensors")
    again = load_network(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="StoredTernaryNetwork is quantised already"):
        Ternarize().apply(again)
    assert not any(layer.weight.requires_grad for layer in again.layers.values())


def test_a_file_that_names_another_layer_is_refused_in_one_line():
    made = in_bitmasks(Ternarize().apply(small()))
    spec = {"name": made.spec.name, "options": {**made.spec.options, "layers": ["stem.conv"]}}
    with pytest.raises(InputError, match="tensors of another network than stored_ternary") as said:
        restore(spec, made.state_dict())
    assert "\n" not in str(said.value)


# ------------------------------------------------------------------------------ what it costs


class OneLayer(Network):
    """A pointwise convolution of six inputs, and what stands for a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 2, 1, bias=False)
        self.spec = NetworkSpec("one_layer")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def charged(weight: list[list[float]]) -> dict[str, float]:
    """The bill of the layer on 5 x 5 positions: quantity and bits -> count."""
    network = OneLayer().eval()
    network.conv.weight.data = torch.tensor(weight).float().view(2, 6, 1, 1)
    charge(network.conv)
    table = score_network(network, "official", (6, 5, 5)).table()
    return table.groupby(["quantity", "bits"])["count"].sum().to_dict()


def test_the_bill_of_a_layer_by_hand():
    found = charged([[2, 0, -1, 2, 0, 0], [0, 0, -1, 0, 2, 2]])
    assert found == {
        ("add", 32): 25 * (2 + 2),  # three weights in each row
        ("mult", 16): 25 * (2 + 2),  # the ratio and the scale of each row
        ("mask", 1): 12,
        ("param", 1): 6,  # signs
        ("param", 16): 2,  # the scale of a filter
        ("param", 32): 0.5,  # the ratio, 16 bits
    }
    found = charged([[1, 0, -1, 1, 0, 0], [1, -1, -1, 1, 1, 1]])  # one scale, a full row
    assert ("param", 32) not in found
    assert found["mult", 16] == 25 * 2
    assert found["add", 32] == 25 * (2 + 5)
    found = charged([[1, 1, 1, 1, 1, 1], [-1, -1, -1, -1, -1, -1]])  # no zeros, no mask
    assert ("mask", 1) not in found
    assert found["param", 1] == 12


def test_a_network_costs_less_and_least_with_narrow_sums():
    network = small()
    before = score_network(network, "official")
    made = Ternarize(sparsity=0.5).apply(network)
    operations = record_operations(made)
    found = score_operations(operations, RULE_SETS["official"])
    narrow = score_operations(narrow_sums(operations, 16), RULE_SETS["official_integer"])
    assert narrow.score < found.score < before.score
    assert narrow.num_adds == found.num_adds
    assert narrow.param_storage == found.param_storage
    zeros = sum(int((signs == 0).sum()) for signs in assigned(made).values())
    assert found.num_params == pytest.approx(before.num_params - zeros, abs=2000)
    rows = found.table().query("quantity == 'param' and bits == 1")
    assert set(rows["layer"]) == set(made.layers)
    outputs = {op.name: op.num_outputs for op in operations}
    mults = found.table().query("quantity == 'mult' and layer in @made.layers.keys()")
    for layer, count in mults.groupby("layer")["count"].sum().items():
        assert outputs[layer] <= count <= 2 * outputs[layer]


# ------------------------------------------------------------------------------ training


def test_scales_stay_positive():
    for scheme in ("ttq", "entropy"):
        made = Ternarize(scheme).apply(small())
        (hook,) = Ternarize(scheme).hooks(made)
        assert isinstance(hook, PositiveScales)
        for layer in made.layers.values():
            ternary_of(layer).scales.data.fill_(-1.0)
        hook.after_step()
        for layer in made.layers.values():
            ternary, latent = ternary_of(layer), layer.parametrizations.weight.original
            assert (ternary.scales > 0).all()
            if scheme == "entropy":
                lowest = 0.675 * latent.detach().std()
                torch.testing.assert_close(ternary.scales.detach(), lowest.expand(2))
    assert Ternarize("fixed").hooks(Ternarize("fixed").apply(small())) == []


def test_recipes_train_measure_and_hold_zeros(tmp_path):
    base = replace(ORN, train=replace(ORN.train, initialization="default"))
    pruned = Recipe(start=base, changes=(PruneTo(0.4),))
    recipes = {"rounded": Recipe(start=pruned, changes=(Ternarize(),))}
    recipes |= {
        scheme: Recipe(
            start=pruned,
            changes=(Ternarize(scheme),),
            teacher=base,
            distillation=DistillationConfig(temperature=2.0),
            train=replace(base.train, optimizer="adam", lr=0.5, min_lr=0.0, relative_lr=True),
        )
        for scheme in SCHEMES
    }
    sweep = replace(sweep_of("toy", **recipes), measures=("accuracy", "ternary"))
    with tiny_lab(tmp_path) as lab:
        ensure(sweep, "smoke", progress=False)
        rounded, *trained = cases(sweep, PROFILES["smoke"])
        assert len(lab.trained) == 1 + len(SCHEMES)
        metrics = rounded.record().metrics
        assert metrics["moved"] == 0
        assert "validation_divergence" not in metrics
        start = dict(
            network_of(pruned_of(trained[0].recipe), rounded.profile, 0).named_parameters()
        )
        for case in trained:
            check_record(case.record(), network_of(case.recipe, case.profile, 0), start)


def pruned_of(recipe: Recipe) -> Recipe:
    """The recipe of the network before the change."""
    assert recipe.start is not None
    return recipe.start


def check_record(found: Record, network: Network, start: Mapping[str, Tensor]) -> None:
    """Its zeros were held, and its numbers are those of the network."""
    assert isinstance(network, TernaryNetwork)
    for name, weight in network.plain().named_parameters():
        if weight.ndim > 1:
            assert (weight[start[name] == 0] == 0).all()
    metrics = found.metrics
    assert 0 < metrics["moved"] < 1
    signs = torch.cat([each.flatten() for each in assigned(network).values()])
    assert metrics["num_ternary"] == len(signs)
    assert metrics["zeros"] == pytest.approx((signs == 0).double().mean().item())
    assert metrics["zeros"] > 0.3
    assert 0 < metrics["bits_per_weight"] <= math.log2(3)
    assert metrics["narrow_sums.score"] < metrics["official.score"]
    assert 0 <= metrics["half.correct"] <= 100
    assert metrics["validation_divergence"] == found.curve["validation_divergence"][-1]
    assert [row["layer"] for row in found.layers] == list(network.layers)
    histogram = found.arrays["histogram"]
    size = network.layers[histogram["layer"]].weight.numel()
    for when in ("before", "after"):
        assert sum(sum(histogram[when][side]) for side in ("minus", "zero", "plus")) == size
        low, high = histogram[when]["scales"]
        assert low < 0 < high


def test_the_measure_is_for_ternary_networks():
    with pytest.raises(InputError, match=r"toy/floats.*ternary layers"):
        ternary(SimpleNamespace(name="toy/floats"), small(), False)


def test_overrides_reach_the_change_of_a_recipe():
    recipe = Recipe(changes=(Ternarize("entropy"),))
    assert with_overrides(recipe, {"train.epochs": 2}).changes == recipe.changes
    given = {"changes.0.scheme": "ttq", "changes.0.threshold": 0.1, "changes.0.keep": ["first"]}
    found = with_overrides(recipe, given).changes
    assert found == (Ternarize("ttq", threshold=0.1, keep=("first",)),)


# ------------------------------------------------------------------------------ entries, recounted

SIMPNET = [(66, 32), *[(128, 32)] * 4, *[(192, 16)] * 4, (288, 16), (288, 8), (355, 8), (432, 8)]
"""Filters and side of the thirteen 3x3 convolutions of MB-PM's network [mbpm]."""


def simpnet_score(sum_bits: int, quantized: bool) -> tuple[float, float]:
    """MB-PM's count: storage and operations, each relative to the reference network."""
    in_chs, params, ops = 3, 0.0, 0.0
    for out_chs, side in SIMPNET:
        outputs, fan_in = out_chs * side**2, 9 * in_chs
        params += fan_in * out_chs / 32 + 2 * out_chs
        ops += outputs * (fan_in / 32 + (fan_in - 1) * sum_bits / 32)
        ops += outputs * (2 + 3)  # batch norm, ELU
        if quantized:
            params += 3
            ops += 12 * in_chs * side**2
        in_chs = out_chs
    params += 432 * 100  # its biases are added and not stored
    ops += 432 * 100 + 99 + 431 * 100 + 100
    ops += 3 * 16**2 * 128 + 3 * 8**2 * 288 + (8**2 - 1) * 432  # comparisons of pooling
    return params / PARAM_BASE, ops / OPS_BASE


@pytest.mark.parametrize(("point", "bits"), [("quantbin", 16), ("quantbin_plus", 8)])
def test_mb_pms_printed_scores_follow_from_its_shapes(point, bits):
    params, ops = simpnet_score(bits, quantized=point == "quantbin_plus")
    assert ops == pytest.approx(PAPER[point, "ops_score"], abs=5e-5)
    # Storage is printed with its fourth digit cut off.
    assert math.floor(params * 1e4) / 1e4 == PAPER[point, "param_score"]
    assert params + ops == pytest.approx(PAPER[point, "score"], abs=1e-4)


def test_mb_pms_additions_at_32_bits_would_have_cost_twice_or_three_times_as_much():
    assert sum(simpnet_score(32, False)) == pytest.approx(0.1209, abs=5e-5)
    assert sum(simpnet_score(32, True)) > 3 * PAPER["quantbin_plus", "score"]


class Msunet:
    """MSUNet-v3's count of its own shapes, with zeros as many as its settings ask for [msunet].

    What is not printed is how many weights of each layer are zero. Normally distributed ones lie
    within 0.67749 standard deviations with a probability of 0.502; pruned layers have 90 % (gates)
    and 50 % (depthwise, last four blocks) zeros.
    """

    def __init__(self) -> None:
        self.params = self.ops = 0.0

    def ternary(self, in_chs: int, out_chs: int, side: int, groups: int = 1) -> None:
        weights = in_chs * out_chs // groups
        kept = weights * math.erfc(0.67749 / math.sqrt(2))
        self.params += weights / 32 + kept / 32 + groups / 2
        self.ops += side**2 * (kept / 32 + kept - out_chs + out_chs / 2)

    def half(self, fan_in: int, out_chs: int, side: int, density: float = 1.0) -> None:
        self.params += fan_in * out_chs * (density / 2 + (density < 1) / 32)
        self.ops += side**2 * out_chs * (1.5 * fan_in * density - 1)

    def norm_and_activation(self, chs: int, side: int, costs: float) -> None:
        self.params += chs / 2
        self.ops += chs * side**2 * (1 + costs) / 2

    def block(
        self, chs: tuple[int, int, int], sides: tuple[int, int], kernels: tuple[int, ...],
        groups: tuple[int, int], gate_chs: int, density: float,
    ) -> None:  # fmt: skip
        (in_chs, hidden, out_chs), (before, after) = chs, sides
        activation = 4 if gate_chs else 1  # swish, else ReLU
        self.ternary(in_chs, hidden, before, groups[0])
        self.norm_and_activation(hidden, before, activation)
        share = hidden // len(kernels)
        widths = [hidden - share * (len(kernels) - 1), *[share] * (len(kernels) - 1)]
        for kernel, width in zip(kernels, widths, strict=True):
            self.half(kernel**2, width, after, density)
        self.norm_and_activation(hidden, after, activation)
        if gate_chs:
            for fan_in, width, costs in ((hidden, gate_chs, 4), (gate_chs, hidden, 3)):
                self.half(fan_in, width, 1, density=0.1)
                self.params += width / 2
                self.ops += width + width * costs / 2
            self.ops += hidden * (2 * after**2 + after**2 - 1) / 2
        self.ternary(hidden, out_chs, after, groups[1])
        self.norm_and_activation(out_chs, after, 0)
        if in_chs == out_chs and before == after:
            self.ops += out_chs * after**2 / 2

    def whole(self) -> "Msunet":
        self.half(27, 64, 32)
        self.norm_and_activation(64, 32, 1)
        self.half(9, 64, 32)
        self.norm_and_activation(64, 32, 1)
        self.ternary(64, 64, 32)
        self.norm_and_activation(64, 32, 0)
        self.ops += 64 * 32**2 / 2
        self.block((64, 384, 64), (32, 32), (3,), (2, 2), 0, 1.0)
        self.block((64, 320, 128), (32, 16), (3, 5, 7), (1, 1), 32, 0.5)
        self.block((128, 768, 128), (16, 16), (3, 5), (2, 2), 64, 0.5)
        self.block((128, 640, 256), (16, 8), (3, 5, 7), (1, 2), 32, 0.5)
        self.block((256, 1024, 256), (8, 8), (3, 5), (1, 2), 64, 0.5)
        self.ternary(256, 256, 8)
        self.norm_and_activation(256, 8, 1)
        self.ops += 256 * 8**2 / 2  # pooling
        self.params += 256 * 100 / 2
        self.ops += 100 * (1.5 * 256 - 1)
        return self


def test_msunets_printed_score_follows_from_its_shapes_but_for_the_zeros():
    """Storage to a thousandth; operations to 7 %, which is zeros that are not printed."""
    found = Msunet().whole()
    printed = {name: PAPER["msunet_v3", name] for name in
               ("param_storage_millions", "math_ops_millions", "score")}  # fmt: skip
    assert found.params / 1e6 == pytest.approx(printed["param_storage_millions"], rel=1e-3)
    assert found.ops / 1e6 == pytest.approx(printed["math_ops_millions"], rel=0.07)
    total = found.params / PARAM_BASE + found.ops / OPS_BASE
    assert total == pytest.approx(printed["score"], rel=0.05)


def test_hhi_mals_two_scores_are_its_two_readings_of_additions():
    storage = PAPER["hhi_mal", "param_storage_millions"] * 1e6 / PARAM_BASE
    for reading in ("fp32", "fp16"):
        ops = PAPER["hhi_mal", f"math_ops_millions_{reading}_adds"] * 1e6 / OPS_BASE
        assert storage + ops == pytest.approx(PAPER["hhi_mal", f"score_{reading}_adds"], abs=1e-4)
    wide, narrow = (PAPER["hhi_mal", f"math_ops_millions_{r}_adds"] for r in ("fp32", "fp16"))
    additions = 2 * (wide - narrow)  # in millions, one by one
    assert 0.9 < additions / wide < 1  # nearly all of the work is additions


@pytest.mark.parametrize("scheme", ["ttq", "entropy"])
def test_a_layer_that_is_pruned_to_nothing_stays_zero(scheme):
    network = build("micronet_v1", width_mult=0.25)
    network.blocks[0].conv_expand.weight.data.zero_()
    made = Ternarize(scheme).apply(network.eval())
    logits = made(torch.randn(2, 3, 32, 32, generator=seeded(0)))
    logits.square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)
