import pytest
import torch
from published_data import require
from torch import nn

from micronet_lib.architecture import build
from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.errors import InputError
from micronet_lib.lab.host.places import checkpoint_path
from micronet_lib.lab.storage.published import load_published
from micronet_lib.scoring.bill import score_network
from micronet_lib.scoring.dead_channels import (
    SAVINGS,
    apply_savings,
    fold_sixth,
    remove_dead_channels,
    remove_dead_gates,
)


def pruned(name: str, density: float, seed: int, **options: float) -> MicroNet:
    """A float64 network in evaluation mode with random weights, statistics and zeros."""
    torch.manual_seed(seed)
    model = build(name, **options).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= torch.rand_like(parameter) < density
        else:
            parameter.data += 0.5 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.3 * torch.randn_like(module.running_mean)
            module.running_var *= 0.5 + torch.rand_like(module.running_var)
    return model


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)


def largest_change(model: MicroNet, other: MicroNet) -> float:
    with torch.no_grad():
        return (model(images()) - other(images())).abs().max().item()


def widths(model: MicroNet) -> list[tuple[int, ...]]:
    return [(b.in_chs, b.hidden_chs, b.out_chs, b.se_chs) for b in model.architecture.blocks]


@pytest.mark.parametrize("name", ["micronet_v1_released", "micronet_v2_released"])
def test_dead_gates_go_without_a_trace(name: str) -> None:
    model = build(name).eval()
    trimmed = remove_dead_gates(model)
    x = images().float()
    assert torch.equal(model(x), trimmed(x))
    assert trimmed.architecture.downsample_se == "none"
    assert [b.se_chs == 0 for b in trimmed.architecture.blocks] == [
        b.stride == 2 for b in trimmed.architecture.blocks
    ]
    assert score_network(trimmed).score < score_network(model).score
    assert widths(remove_dead_gates(trimmed)) == widths(trimmed)


@pytest.mark.parametrize("density", [0.3, 0.1, 0.03, 0.01])
def test_dead_channels_go_without_a_trace(density: float) -> None:
    for seed in (0, 1):
        model = pruned("micronet_v1", density, seed)
        trimmed = remove_dead_channels(model)
        assert largest_change(model, trimmed) < 1e-12
        assert score_network(trimmed).score <= score_network(model).score
        assert sum(map(sum, widths(trimmed))) <= sum(map(sum, widths(model)))
        if density <= 0.03:
            for before, after in zip(widths(model)[1:], widths(trimmed)[1:], strict=True):
                assert after[1] < before[1]
        again = remove_dead_channels(trimmed)
        assert widths(again) == widths(trimmed)


def test_all_savings_at_another_width_leave_the_network_given_alone() -> None:
    model = pruned("micronet_v1_released", 0.05, 0, width_mult=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert largest_change(model, apply_savings(model, list(SAVINGS))) < 1e-12
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_filter_or_gate_unit_without_weights_becomes_a_constant() -> None:
    model = pruned("micronet_v2", 1.0, 0)
    block = model.blocks[3]
    block.conv_dw.weight.data[7] = 0
    block.conv_project.weight.data[:, 9] = 0
    model.blocks[0].se.conv_reduce.weight.data[2] = 0
    trimmed = remove_dead_channels(model)
    expected = widths(model)
    expected[3] = (expected[3][0], expected[3][1] - 2, *expected[3][2:])
    expected[0] = (*expected[0][:3], expected[0][3] - 1)
    assert widths(trimmed) == expected
    assert largest_change(model, trimmed) < 1e-12


def test_a_constant_in_front_of_the_padding_stays() -> None:
    """Its plane is constant, but the depthwise convolution sees where the picture ends."""
    model = pruned("micronet_v2", 1.0, 0)
    block = model.blocks[3]
    block.conv_expand.weight.data[5] = 0
    block.bn_expand.bias.data[5] = 2.0
    assert widths(remove_dead_channels(model)) == widths(model)
    block.bn_expand.bias.data[5] = -9.0  # HardSwish of it is zero, and so is its plane
    block.bn_expand.running_mean[5] = 0.0
    assert widths(remove_dead_channels(model))[3][1] == widths(model)[3][1] - 1
    assert largest_change(model, remove_dead_channels(model)) < 1e-12


def test_a_channel_between_blocks_dies_with_its_last_reader() -> None:
    model = pruned("micronet_v1", 1.0, 0)
    last = model.blocks[-1]
    model.head.classifier.weight.data[:, 11] = 0
    assert widths(remove_dead_channels(model)) == widths(model)  # its own gate still reads it
    last.se.conv_reduce.weight.data[:, 11] = 0
    trimmed = remove_dead_channels(model)
    assert widths(trimmed)[-1][2] == 105
    assert trimmed.head.classifier.in_features == 105
    assert largest_change(model, trimmed) < 1e-12


def test_the_sixth_is_carried_by_the_next_layer() -> None:
    model = pruned("micronet_v1", 0.5, 0)
    folded = fold_sixth(model)
    assert largest_change(model, folded) < 1e-12
    ours, theirs = score_network(folded), score_network(model)
    swishes = theirs.table().query("kind == 'hard_swish' and quantity == 'add'")["count"].sum()
    assert theirs.num_mults - ours.num_mults == swishes
    assert theirs.num_adds == ours.num_adds


def test_what_cannot_be_saved_says_so() -> None:
    with pytest.raises(InputError, match="call remove_dead_gates first"):
        remove_dead_channels(build("micronet_v1_released"))
    with pytest.raises(InputError, match="unknown saving 'seventh'; choose from dead_gates"):
        apply_savings(build("micronet_v1"), ["seventh"])


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("v1_pr_60", [0.0053794, 0.0053794, 0.0053397]),
        ("v2_pr_60", [0.0055412, 0.0055401, 0.0055027]),
    ],
)
def test_the_published_networks(name: str, scores: list[float]) -> None:
    path = checkpoint_path(f"micronet_{name}")
    require(path)
    model = load_published(path).double()
    steps = [apply_savings(model, list(SAVINGS)[: n + 1]) for n in range(3)]
    assert [score_network(step).score for step in steps] == pytest.approx(scores, abs=5e-8)
    assert max(largest_change(model, step) for step in steps) < 1e-12


@pytest.mark.parametrize("savings", [["sixth", "sixth"], ["sixth", "dead_gates", "dead_channels"]])
def test_savings_in_any_order_leave_the_logits(savings: list[str]) -> None:
    model = pruned("micronet_v1_released", 0.4, 0, width_mult=0.25).double()
    trimmed = apply_savings(model, savings)
    assert largest_change(model, trimmed) < 1e-9
    gates = [block.se_chs for block in trimmed.architecture.blocks if not block.se_applied]
    assert not any(gates) or "dead_gates" not in savings
