import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from micronet_lib.architecture import build
from micronet_lib.errors import InputError
from micronet_lib.scoring.operations import record_operations


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (build("micronet_v1_released"), (3, 32, 32)),
        (build("micronet_v2"), (3, 32, 32)),
        (build("table1_4.0"), (3, 32, 32)),
        (torchvision.models.efficientnet_b0(), (3, 224, 224)),
    ],
    ids=["v1_released", "v2", "table1_4.0", "efficientnet_b0"],
)
def test_macs_are_half_of_what_torch_counts(model: nn.Module, shape: tuple[int, ...]) -> None:
    operations = record_operations(model, shape)
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *shape))
    layers = [op for op in operations if op.kind in ("conv", "linear")]
    # Dense, because a fresh network can draw a weight of exactly zero.
    assert sum(op.num_outputs * op.fan_in for op in layers) * 2 == counter.get_total_flops()


def test_every_parameter_is_seen_once() -> None:
    model = build("micronet_v1_released")
    operations = record_operations(model)
    weights = sum(op.num_weights + op.bias for op in operations)
    norms = sum(p.numel() for name, p in model.named_parameters() if "bn" in name)
    assert weights + norms == sum(p.numel() for p in model.parameters())
    assert sum(op.folded_bias for op in operations) == norms // 2
    names = [op.name for op in operations if op.weight_shape]
    assert len(names) == len(set(names))
    assert [op.name for op in operations if op.is_first] == ["stem.conv"]


def test_a_block_is_listed_in_order_of_execution() -> None:
    operations = record_operations(build("micronet_v1"))
    block = [(op.name, op.kind) for op in operations if op.name.startswith("blocks.4.")]
    assert block == [
        ("blocks.4.conv_expand", "conv"),
        ("blocks.4.act_expand.hard_swish", "hard_swish"),
        ("blocks.4.conv_dw", "conv"),
        ("blocks.4.act_dw.hard_swish", "hard_swish"),
        ("blocks.4.conv_project", "conv"),
        ("blocks.4.se.pool", "pool"),
        ("blocks.4.se.conv_reduce", "conv"),
        ("blocks.4.se.act.hard_swish", "hard_swish"),
        ("blocks.4.se.conv_expand", "conv"),
        ("blocks.4.se.sigmoid", "sigmoid"),
        ("blocks.4.gate", "gate"),
        ("blocks.4.conv_shortcut", "conv"),
        ("blocks.4.residual", "residual"),
    ]


def test_zeros_are_counted_in_the_weight_that_runs() -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)
    conv.weight.data[:, 0] = 0
    conv.bias.data[:3] = 0
    (op,) = record_operations(conv, (4, 5, 6))
    assert (op.fan_in, op.nonzeros, op.num_weights, op.bias, op.bias_nonzeros) == (
        18,
        72,
        144,
        8,
        5,
    )
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


def test_batch_norm_is_charged_where_it_cannot_be_merged() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    operations = record_operations(model, (3, 4, 4))
    assert [op.kind for op in operations] == ["batch_norm", "relu", "conv"]
    assert (operations[2].bias, operations[2].folded_bias) == (3, 0)


def test_an_unknown_function_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(InputError, match="no counting rule for the torch function 'softmax'"):
        record_operations(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Softmax(dim=1)), (3, 4, 4))


def test_the_network_is_left_as_it_was() -> None:
    model = build("micronet_v1").train()
    model.stem.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    record_operations(model)
    assert model.training
    assert not model.stem.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
