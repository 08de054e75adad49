from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from micronet_lib.architecture import build
from micronet_lib.architecture.micronet import ARCHITECTURES
from micronet_lib.architecture.network import Network, Wrapped
from micronet_lib.errors import InputError
from micronet_lib.scoring.bill import score_network
from micronet_lib.scoring.operations import Operation, record_operations


def flops(model: nn.Module, shape: tuple[int, ...]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops()


def dense_macs(operations: tuple[Operation, ...]) -> int:
    # Dense, because a fresh network can draw a weight of exactly zero.
    return sum(op.dense_macs for op in operations)


@pytest.mark.parametrize(
    "name",
    [
        *("mobilenet_v2", "mobilenet_v3_small", "resnet18", "densenet121", "squeezenet1_1"),
        *("efficientnet_b0", "shufflenet_v2_x1_0", "micronet_v1_released", "table1_4.0"),
    ],
)
def test_networks_of_torchvision_and_ours(name: str) -> None:
    ours = name in ARCHITECTURES
    model = build(name) if ours else getattr(torchvision.models, name)()
    shape = (3, 64, 64)
    operations = record_operations(model, shape)
    assert dense_macs(operations) * 2 == flops(model, shape)
    assert score_network(model, "official", shape).score > 0
    read = [op for op in operations if op.kind != "permutation"]
    # A batch norm that is merged leaves one of its two parameters a channel.
    stored = sum(op.num_weights + op.bias + 2 * op.folded_bias for op in read)
    assert stored == sum(parameter.numel() for parameter in model.parameters())
    merges = {"densenet121": 59, "squeezenet1_1": 0}
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert sum(op.folded_bias > 0 for op in operations) == merges.get(name, norms)
    if ours:
        names = [op.name for op in operations if op.weight_shape]
        assert len(names) == len(set(names))
        assert [op.name for op in operations if op.is_first] == ["stem.conv"]
    if name.startswith("shufflenet"):  # a layout in memory changes no price
        model = model.to(memory_format=torch.channels_last)
        assert record_operations(model, shape) == operations


class Random(nn.Module):
    """A network put together by chance: one layer after the other on a 5 x 6 picture."""

    def __init__(self, choices: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[str] = []
        chs = 4
        for choice in choices:
            self.steps.append(("conv", "depthwise", "residual", "cat", "twice", "attend")[choice])
            out = {"residual": chs, "twice": chs, "depthwise": 2 * chs, "cat": 6}.get(
                self.steps[-1], 8
            )
            groups = {"depthwise": chs, "conv": 2}.get(self.steps[-1], 1)
            size, stride, padding, dilation = ((3, 1, 1, 1), (2, 2, 1, 1), (3, 1, 2, 2))[choice % 3]
            if self.steps[-1] in ("residual", "twice"):
                size, stride, padding, dilation = 3, 1, 2, 2
            self.layers.append(
                nn.Conv2d(chs, out, size, stride, padding, dilation, groups, bias=choice % 2 == 0)
            )
            chs = {"cat": out + 4, "attend": chs}.get(self.steps[-1], out)
        self.head = nn.Linear(chs, 3)

    def forward(self, x: Tensor) -> Tensor:
        for step, layer in zip(self.steps, self.layers, strict=True):
            if step == "residual":
                x = x + layer(x)
            elif step == "cat":
                y = layer(x)
                x = torch.cat([y, x[:, :4, : y.shape[2], : y.shape[3]]], 1)
                x = F.pad(x, (0, 1, 1, 0))
            elif step == "twice":
                x = layer(F.relu(layer(x)))
            elif step == "attend":
                rows = x.flatten(2)
                x = (rows.softmax(-1) @ rows.transpose(1, 2) @ rows).view(x.shape)
            else:
                x = layer(x)
        return self.head(x.mean((2, 3)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_macs_of_random_networks_are_half_of_what_torch_counts(choices: list[int]) -> None:
    model = Random(choices)
    assert dense_macs(record_operations(model, (4, 5, 6))) * 2 == flops(model, (4, 5, 6))


def test_a_block_is_listed_in_order_of_execution() -> None:
    operations = record_operations(build("micronet_v1"))
    block = [(op.name, op.kind) for op in operations if op.name.startswith("blocks.4.")]
    swish = "hard_swish"
    assert [(name.removeprefix("blocks.4."), kind) for name, kind in block] == [
        *(("conv_expand", "conv"), (f"act_expand.{swish}", swish)),
        *(("conv_dw", "conv"), (f"act_dw.{swish}", swish), ("conv_project", "conv")),
        *(("se.pool", "pool"), ("se.conv_reduce", "conv"), (f"se.act.{swish}", swish)),
        *(("se.conv_expand", "conv"), ("se.sigmoid", "sigmoid"), ("gate", "gate")),
        *(("conv_shortcut", "conv"), ("residual", "residual")),
    ]


def test_batch_norm_is_charged_where_it_cannot_be_merged() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    operations = record_operations(model, (3, 4, 4))
    assert [op.kind for op in operations] == ["batch_norm", "relu", "conv"]
    assert (operations[2].bias, operations[2].folded_bias) == (3, 0)


def test_zeros_are_counted_in_the_weight_that_runs() -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)
    conv.weight.data[:, 0] = 0
    conv.bias.data[:3] = 0
    (op,) = record_operations(conv, (4, 5, 6))
    assert (op.fan_in, op.nonzeros, op.num_weights) == (18, 72, 144)
    assert (op.bias, op.bias_nonzeros) == (8, 5)
    assert op.sparsity == 0.5
    assert op.macs == 8 * 5 * 6 * 9


class Functional(nn.Module):
    """Everything that no module hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1, bias=False)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x))
        y = x * F.relu6(x + 3)
        z = F.relu(y) + F.silu(y)
        gate = torch.sigmoid(z.mean((2, 3), keepdim=True))
        return (gate * z).flatten(1)


def test_functional_operations_are_told_apart() -> None:
    kinds = [op.kind for op in record_operations(Functional(), (3, 4, 4))]
    assert kinds == [
        *("conv", "shift", "relu6", "product", "relu", "swish", "residual"),
        *("pool", "sigmoid", "gate"),
    ]


class Twice(nn.Module):
    """One convolution, one batch norm, both run twice."""

    def __init__(self, norms: int, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, bias=bias)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(norms))

    def forward(self, x: Tensor) -> Tensor:
        for index in range(2):
            x = self.conv(x)
            if len(self.norms):
                x = self.norms[index % len(self.norms)](x)
        return x


def test_what_runs_twice_is_stored_once() -> None:
    found = score_network(Twice(norms=0), "official", (4, 3, 3))
    assert (found.num_params, found.num_mults) == (16, 2 * 16 * 9)
    assert score_network(Twice(norms=0, bias=True), "official", (4, 3, 3)).num_params == 16 + 4
    published = score_network(Twice(norms=0), "published", (4, 3, 3))
    assert (published.num_params, published.mask_params) == (16, 16 / 32)
    norm = nn.BatchNorm2d(4)
    found = score_network(nn.Sequential(norm, nn.ReLU(), norm), "official", (4, 3, 3))
    assert (found.num_params, found.num_adds) == (2 * 4, 2 * 36)
    # Two norms cannot be merged into one layer.
    for norms, params, kinds in (
        (1, 16 + 4, ["conv", "conv"]),
        (2, 16 + 2 * 8, ["conv", "batch_norm"] * 2),
    ):
        model = Twice(norms)
        assert score_network(model, "official", (4, 3, 3)).num_params == params
        assert [op.kind for op in record_operations(model, (4, 3, 3))] == kinds


class Norms(nn.Module):
    """A convolution and a batch norm, joined by a function of both."""

    def __init__(self, join: Callable[[nn.Module, nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.join = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.conv, self.bn, x)


@pytest.mark.parametrize(
    ("join", "merges"),
    [
        (lambda conv, bn, x: F.relu(bn(conv(x))), True),
        (lambda conv, bn, x: bn(conv(x).relu_()), False),
        (lambda conv, bn, x: (lambda y: bn(y) + y)(conv(x)), False),
        (lambda conv, bn, x: (lambda y: (bn(y), y))(conv(x)), False),
    ],
)
def test_batch_norm_is_merged_where_nothing_else_reads_the_layer(
    join: Callable[[nn.Module, nn.Module, Tensor], Tensor], merges: bool
) -> None:
    operations = record_operations(Norms(join), (3, 2, 2))
    assert any(op.kind == "batch_norm" for op in operations) == (not merges)
    assert operations[0].folded_bias == (4 if merges else 0)


class Weights(nn.Module):
    """A convolution whose weights are computed in `forward`."""

    def __init__(self, weight_of: Callable[..., Tensor], *others: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.conv.weight.data = torch.arange(1.0, 13).view(4, 3, 1, 1)
        self.others = nn.ParameterList(others)
        self.weight_of = weight_of

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_of(self.conv.weight, *self.others)
        return F.conv2d(x, weight, self.conv.bias)


MASK = torch.arange(12).view(4, 3, 1, 1) % 2.0


@pytest.mark.parametrize(
    ("model", "nonzeros"),
    [
        (Weights(lambda w, m: w * m, MASK), 6),
        (Weights(lambda w, s: torch.round(w / s).clamp(-3, 3) * s, torch.ones(4, 1, 1, 1)), 12),
        (Weights(lambda w: torch.where(w > 4, w.sign(), 0.0)), 8),
        (Weights(lambda w: torch.fake_quantize_per_tensor_affine(w, 10.0, 0, -1, 1)), 7),
        (Weights(lambda w: (w - w.mean()) * (w.abs().amax().item() / 7)), 12),
    ],
)
def test_arithmetic_on_weights_is_free(model: nn.Module, nonzeros: int) -> None:
    (op,) = record_operations(model, (3, 8, 8))
    assert (op.name, op.kind, op.nonzeros, op.num_weights) == ("conv", "conv", nonzeros, 12)
    found = score_network(model, "official", (3, 8, 8))
    assert (found.num_params, found.num_mults) == (nonzeros + 4, nonzeros * 64)
    assert found.mask_params == (0 if nonzeros == 12 else 12 / 32)


class Binary(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.sign()


def test_masks_and_parametrizations_of_torch_are_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    prune.random_unstructured(model[0], "weight", amount=6)
    parametrize.register_parametrization(model[1], "weight", Binary())
    first, second = record_operations(model, (3, 2, 2))
    assert (first.name, first.nonzeros, first.num_weights) == ("0", 6, 12)
    assert (second.name, second.nonzeros) == ("1", 16)
    assert score_network(model, "official", (3, 2, 2)).num_params == 6 + 4 + 16 + 4


def test_which_values_are_the_same() -> None:
    """A transposed weight is stored once; two parts of one parameter are both stored."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight) @ self.weight

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight[:2]) + F.linear(x, self.weight[2:])

    for model, macs in ((Tied(), 48), (Halves(), 24)):
        operations = record_operations(model, (6,))
        assert sum(op.num_weights for op in operations if not op.shared) == 24
        assert dense_macs(operations) == macs


class Constant(nn.Module):
    """A function of the image and of one learned constant of six values."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.arange(1.0, 7))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.constant)


def first_row_replaced(x: Tensor, constant: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = constant
    return x


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (torch.maximum, 12),
        (torch.pow, 12),
        (torch.ge, 12),
        (lambda x, c: x.clamp(max=c), 12),
        (lambda x, c: torch.cat([c.view(1, 1, 6), x], 1), 0),
        (lambda x, c: torch.stack([x[:, 0], c.view(1, 6)]), 0),
        (first_row_replaced, 0),
    ],
)
def test_a_constant_beside_data_is_stored(function: Callable[..., Tensor], operations: int) -> None:
    found = score_network(Constant(function), "official", (2, 6))
    assert (found.num_params, found.num_mults, found.num_adds) == (6, operations, 0)


def test_weights_that_depend_on_the_image_are_not_stored() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, x[:, :, :1, :1].expand(2, 3, 1, 1))

    (op,) = record_operations(Dynamic(), (3, 4, 4))
    assert (op.kind, op.num_weights, op.macs) == ("matmul", 0, 2 * 16 * 3)


def test_buffers_that_filter_data_are_stored() -> None:
    class Blur(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kernel", torch.ones(3, 1, 3, 3) / 9)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.kernel, stride=2, padding=1, groups=3)

    (op,) = record_operations(Blur(), (3, 8, 8))
    assert (op.nonzeros, op.macs, op.is_first) == (27, 3 * 16 * 9, True)


def test_the_fullest_filter_is_known() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 5))
    for layer in (model[0], model[2]):
        layer.weight.data.fill_(1)
        layer.weight.data[1:] = 0
    operations = record_operations(model, (3, 2, 2))
    assert [op.most_nonzeros for op in operations] == [3, 16]
    assert [op.nonzeros for op in operations] == [3, 16]


def test_the_widths_are_those_that_the_layer_says() -> None:
    class Layer(nn.Conv2d):
        weight_bits, activation_bits, accumulator_bits = 2, 4, 16

    ternary = Layer(3, 4, 1)
    ternary.weight.data.copy_((torch.arange(12) % 3 - 1).view(4, 3, 1, 1))
    around = Weights(lambda w: w.sign())  # its own `forward` runs the convolution
    around.activation_bits = 8
    around.conv.weight_bits = 1
    plain = nn.Conv2d(4, 4, 1)
    said = [
        (op.weight_bits, op.activation_bits, op.accumulator_bits)
        for model in (ternary, around, plain)
        for op in record_operations(model, (model.in_channels if model is plain else 3, 2, 2))
    ]
    assert said == [(2, 4, 16), (1, 8, None), (None, None, None)]


class TwoExits(Network):
    """An early head on the first of two layers; the trunk runs before either head."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.early_head, self.late_head = nn.Linear(4, 10), nn.Linear(4, 10)

    def exits(self, x: Tensor) -> list[Tensor]:
        early = F.relu(self.early(x))
        late = self.late(early)
        return [self.early_head(early.mean((2, 3))), self.late_head(late.mean((2, 3)))]


def test_an_operation_belongs_to_the_first_exit_that_needs_it() -> None:
    operations = record_operations(TwoExits(), (3, 2, 2))
    exits = {"early": 0, "relu": 0, "early_head": 0, "pool": 1, "late": 1, "late_head": 1}
    assert {op.name: op.exit for op in operations} == exits
    assert [op.exit for op in operations if op.kind == "pool"] == [0, 1]


def test_a_network_with_one_exit_is_run_as_it_is() -> None:
    resnet = torchvision.models.resnet18()
    wrapped = record_operations(Wrapped(resnet, "fc"), (3, 32, 32))
    assert [op.kind for op in wrapped] == [op.kind for op in record_operations(resnet)]
    assert wrapped[0].name == "network.conv1"


def test_code_that_cannot_be_listened_to_is_refused() -> None:
    class Detour(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(2)

    scripted = torch.jit.trace(nn.ReLU(), torch.zeros(1))
    for model in (nn.Sequential(scripted), Detour()):
        with pytest.raises(InputError):
            record_operations(model)


def test_the_network_is_left_as_it_was() -> None:
    model = build("micronet_v1").train()
    model.stem.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    record_operations(model)
    assert model.training
    assert not model.stem.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
