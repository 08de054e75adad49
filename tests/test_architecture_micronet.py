"""The networks are the released ones to the last weight, and the chapter's numbers follow."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from published_data import require
from torch import nn

from micronet_lib import plots
from micronet_lib.architecture import build
from micronet_lib.architecture.layers import KINDS, layer_kind
from micronet_lib.architecture.micronet import (
    ARCHITECTURES,
    EXPAND_RATIOS,
    Architecture,
    HardSwish,
    MBConv,
    MicroNet,
    SqueezeExcite,
    c_efficientnet,
    table1,
)
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.host.places import checkpoint_path
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.storage.published import load_published
from micronet_lib.scoring.bill import OPS_BASE, PARAM_BASE
from micronet_lib.scoring.dead_channels import remove_dead_gates

V1_WIDTHS = [16] * 2 + [32] * 2 + [48] * 3 + [72] * 5 + [80] + [88] * 2 + [106]
V2_WIDTHS = [20] * 2 + [36] * 2 + [56] * 3 + [80] * 5 + [88] + [96] * 2 + [114]
STRIDE_2 = [2, 7, 12]


RELEASED = ["micronet_v1_released", "micronet_v2_released"]


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(architecture: Architecture) -> MicroNet:
    """Shapes without storage, so that every named network is built in no time."""
    with torch.device("meta"):
        return MicroNet(architecture)


def expected_params(architecture: Architecture) -> int:
    """The closed formula of the chapter, with batch norms and biases, from the stages alone."""
    total, chs = 3 * 9 * architecture.stem_chs + 2 * architecture.stem_chs, architecture.stem_chs
    for stage in architecture.stages:
        for index in range(stage.num_blocks):
            out, hidden = stage.out_chs, int(chs * architecture.expand_ratio)
            stride = stage.stride if index == 0 else 1
            total += hidden * (chs + 9 + out) + 2 * (2 * hidden + out)
            if stride == 1 or architecture.downsample_se != "none":
                total += 2 * out * (out // 4) + out // 4 + out
            if stride == 1 and chs != out:
                total += chs * out + 2 * out
            chs = out
    return total + 100 * chs + 100


# ------------------------------------------------------------------------------ counts


def test_the_number_of_parameters_is_pinned_and_follows_the_closed_formula() -> None:
    pinned = {
        "micronet_v1_released": 464_918,
        "micronet_v2_released": 485_330,
        "micronet_v1": 458_384,
        "micronet_v2": 477_355,
    }
    counts = {name: num_params(on_meta(ARCHITECTURES[name])) for name in ARCHITECTURES}
    assert counts == {name: expected_params(ARCHITECTURES[name]) for name in ARCHITECTURES}
    assert {name: counts[name] for name in pinned} == pinned
    assert num_params(build("micronet_v1")) == pinned["micronet_v1"]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        (RELEASED[0], [864, 174_912, 23_976, 187_536, 18_416, 34_152, 10_600]),
        (RELEASED[1], [864, 180_000, 22_320, 192_680, 22_048, 41_872, 11_400]),
    ],
)
def test_weights_by_kind_of_layer(name: str, sizes: list[int]) -> None:
    found = dict.fromkeys(KINDS[:7], 0)
    for layer, module in build(name).named_modules():
        kind = layer_kind(layer, module)
        if kind is not None:
            found[kind] += module.weight.numel()  # type: ignore[operator, union-attr]
    assert list(found.values()) == sizes


# ----------------------------------------------------------------------------- structure


@pytest.mark.parametrize("suffix", ["", "_released"])
@pytest.mark.parametrize(
    ("name", "ratio", "widths"),
    [("micronet_v1", 3.0, V1_WIDTHS), ("micronet_v2", 2.5, V2_WIDTHS)],
)
def test_block_tables_and_layers_are_the_released_ones(
    name: str, ratio: float, widths: list[int], suffix: str
) -> None:
    blocks = ARCHITECTURES[name + suffix].blocks
    assert [block.out_chs for block in blocks] == widths
    assert [block.in_chs for block in blocks] == [32, *widths[:-1]]
    assert [block.hidden_chs for block in blocks] == [b.in_chs * ratio for b in blocks]
    assert [i for i, block in enumerate(blocks) if block.stride == 2] == STRIDE_2
    assert [i for i, block in enumerate(blocks) if block.pointwise_shortcut] == [0, 4, 13, 15]
    assert {block.stride for block in blocks} == {1, 2}
    for index, (config, block) in enumerate(zip(blocks, build(name + suffix).blocks, strict=True)):
        gated = bool(suffix) or index not in STRIDE_2
        assert config.se_chs == (config.out_chs // 4 if gated else 0)
        assert config.se_applied == (index not in STRIDE_2)
        assert block.conv_expand.kernel_size == block.conv_project.kernel_size == (1, 1)
        assert block.conv_dw.kernel_size == (3, 3)
        assert block.conv_dw.groups == config.hidden_chs
        assert block.conv_dw.stride == (config.stride, config.stride)
        assert (block.conv_shortcut is not None) == config.pointwise_shortcut
        for norm in (block.bn_expand, block.bn_dw, block.bn_project):
            assert norm.momentum == pytest.approx(1 - 0.99)


def test_table_1_is_v2_with_one_block_more_in_stage_3() -> None:
    printed, v2 = table1(2.5), ARCHITECTURES["micronet_v2"]
    assert [stage.out_chs for stage in printed.stages] == [stage.out_chs for stage in v2.stages]
    more = [p.num_blocks - v.num_blocks for p, v in zip(printed.stages, v2.stages, strict=True)]
    assert more == [0, 1, 0, 0, 0, 0, 0]
    assert all(block.se_applied and block.se_chs for block in printed.blocks)


@pytest.mark.parametrize("name", ["micronet_v1", "micronet_v2_released", "table1_3.0"])
def test_shapes_at_every_stage(name: str) -> None:
    model = build(name).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.stem(images)
    assert features.shape == (2, 32, 32, 32)
    size = 32
    for block in model.blocks:
        features = block(features)
        size //= block.config.stride
        assert features.shape == (2, block.config.out_chs, size, size)
    assert size == 4
    logits = model.head(features)
    assert logits.shape == (2, 100)
    assert torch.equal(model(images), logits)
    assert not model.head.classifier.bias.any()


# ------------------------------------------------------------------------- the block's parts


def test_hard_swish_is_torchs() -> None:
    x = torch.linspace(-7, 7, 1001, dtype=torch.float64)
    torch.testing.assert_close(HardSwish()(x), F.hardswish(x))
    torch.testing.assert_close(HardSwish(scaled=False)(x), 6 * F.hardswish(x))


def test_the_gate_is_between_0_and_1_and_sees_only_the_mean() -> None:
    torch.manual_seed(0)
    se = SqueezeExcite(8, 2, HardSwish())
    x = torch.randn(3, 8, 4, 4)
    gate = se(x)
    assert gate.shape == (3, 8, 1, 1)
    assert ((gate > 0) & (gate < 1)).all()
    assert gate.std() > 0
    shuffled = x.flatten(2)[:, :, torch.randperm(16)].view_as(x)
    torch.testing.assert_close(se(shuffled), gate)


def test_a_block_by_hand_agrees_in_evaluation_mode() -> None:
    """The chapter does it with the batch's statistics; here with the running ones."""
    torch.manual_seed(0)
    block = build("micronet_v1").blocks[5].double().eval()
    assert isinstance(block, MBConv)
    for tensor in (*block.parameters(), *block.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.1, 1)

    def convolve(x: torch.Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> torch.Tensor:
        """The merged form that is deployed: batch norm inside the weight and a bias."""
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = conv.weight * scale[:, None, None, None]
        bias = norm.bias - norm.running_mean * scale
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, groups=conv.groups)

    x = torch.randn(2, 48, 6, 6, dtype=torch.float64)
    hidden = F.hardswish(convolve(x, block.conv_expand, block.bn_expand))
    hidden = F.hardswish(convolve(hidden, block.conv_dw, block.bn_dw))
    out = convolve(hidden, block.conv_project, block.bn_project)
    squeezed = F.hardswish(block.se.conv_reduce(out.mean((2, 3), keepdim=True)))
    gate = torch.sigmoid(block.se.conv_expand(squeezed))
    torch.testing.assert_close(gate * out + x, block(x))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_shortcut_is_added_at_stride_1(index: int) -> None:
    """With the projection silenced, what is left of a block is its shortcut."""
    torch.manual_seed(0)
    block = build("micronet_v1").blocks[index].eval()
    nn.init.zeros_(block.bn_project.weight)
    x = torch.randn(2, block.config.in_chs, 8, 8)
    if index == 2:
        assert block.config.stride == 2
        assert not block(x).any()
    else:
        assert torch.equal(block(x), x if index else block.bn_shortcut(block.conv_shortcut(x)))


# --------------------------------------------------------------------- squeeze-and-excitation


def scramble(se: SqueezeExcite) -> None:
    for parameter in se.parameters():
        nn.init.normal_(parameter)


@pytest.mark.parametrize("name", RELEASED)
def test_a_dead_gate_has_no_effect_and_no_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = build(name).eval()
    images = torch.randn(2, 3, 32, 32)
    logits = model(images)
    logits.square().sum().backward()
    for index, block in enumerate(model.blocks):
        grads = [parameter.grad for parameter in block.se.parameters()]
        assert all((grad is None) == (index in STRIDE_2) for grad in grads)

    for index in STRIDE_2:
        scramble(model.blocks[index].se)
    assert torch.equal(model(images), logits)
    scramble(model.blocks[3].se)
    assert not torch.equal(model(images), logits)
    applied = MicroNet(replace(ARCHITECTURES[name], downsample_se="applied")).eval()
    logits = applied(images)
    scramble(applied.blocks[STRIDE_2[0]].se)
    assert not torch.equal(applied(images), logits)


# ---------------------------------------------------------------------- building and naming


def test_given_blocks_rebuild_the_network_of_the_table() -> None:
    architecture = ARCHITECTURES["micronet_v1_released"]
    rebuilt = replace(architecture, name="cut", cut_blocks=architecture.blocks)
    assert rebuilt.blocks == architecture.blocks
    model, other = MicroNet(architecture).eval(), MicroNet(rebuilt).eval()
    other.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(other(images), model(images))


def test_a_cut_block_keeps_the_rest() -> None:
    architecture = ARCHITECTURES["micronet_v1"]
    first, *others = architecture.blocks
    narrow = replace(first, hidden_chs=first.hidden_chs - 1)
    cut = replace(architecture, cut_blocks=(narrow, *others))
    saved = num_params(on_meta(architecture)) - num_params(on_meta(cut))
    assert saved == first.in_chs + 2 + 9 + 2 + first.out_chs


def test_width_mult_scales_every_width_to_an_even_number_and_leaves_no_layer_empty() -> None:
    small = replace(ARCHITECTURES["micronet_v1"], width_mult=0.75)
    assert small.scaled_stem_chs == 24
    assert sorted({block.out_chs for block in small.blocks}) == [12, 24, 36, 54, 60, 66, 80]
    tiny = replace(ARCHITECTURES["micronet_v1_released"], width_mult=0.01)
    assert all(block.out_chs == 4 and block.se_chs == 1 for block in tiny.blocks)
    for architecture in (small, tiny):
        assert MicroNet(architecture).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 100)


def test_c_efficientnet_is_micronet_v1_of_any_ratio_from_1() -> None:
    assert c_efficientnet(3.0).blocks == ARCHITECTURES["micronet_v1"].blocks
    assert c_efficientnet(2.25).blocks[1].hidden_chs == 36
    with pytest.raises(InputError, match="expand_ratio"):
        c_efficientnet(0.5)


# ----------------------------------------------------------------------- against the paper


@pytest.fixture(scope="module")
def paper() -> pd.DataFrame:
    rows = records.paper_wide("architecture", "kim2020").dropna(subset="score")
    return rows.set_index("point")


def test_the_transcription_is_complete() -> None:
    rows = records.paper("architecture")
    assert set(rows["source"]) == {"kim2020"}
    rows = rows[rows["locator"].str.startswith("Table 2,")]
    ratios = [f"{ratio:.1f}" for ratio in EXPAND_RATIOS]
    assert {metric: list(group["point"]) for metric, group in rows.groupby("metric")} == {
        "top1_vanilla_percent": ratios,
        "top1_no_bias_decay_percent": ratios,
        "param_storage_millions": ratios,
        "math_ops_millions": ratios,
        "score": ratios,
    }
    assert rows["locator"].str.match(r"Table 2, row .+").all()


def test_the_printed_score_is_equation_1_on_the_printed_numbers(paper: pd.DataFrame) -> None:
    storage = paper["param_storage_millions"] * 1e6 / PARAM_BASE
    operations = paper["math_ops_millions"] * 1e6 / OPS_BASE
    assert ((storage + operations).round(4) == paper["score"]).all()


def committed(sweep: str, metric: str) -> pd.Series:
    """The committed records of a sweep in millions, by point."""
    rows = records.measured(SWEEPS[sweep]).set_index("point")
    assert (rows["n"] > 0).all()
    return rows[metric] / 1e6


def test_storage_is_the_papers_and_operations_are_up_to_3_percent_low(paper: pd.DataFrame) -> None:
    printed = paper["param_storage_millions"]
    storage = committed("expand_ratio", "revised.param_storage")
    assert list(storage.map("{:.2f}".format)) == list(printed.map("{:.2f}".format))
    counted = committed("expand_ratio", "revised.math_ops")
    assert list(counted.round(2)) == [21.80, 31.00, 40.21, 49.42, 58.63, 67.83, 77.04]
    residual = counted / paper["math_ops_millions"] - 1
    assert residual.between(-0.032, -0.009).all()
    # The printed table is another network.
    other = committed("printed_table", "revised.param_storage")
    assert list(other.round(3)) == [0.121, 0.162, 0.203, 0.244, 0.284, 0.325, 0.366]
    assert ((other - printed).abs() > 0.02).all()


def test_the_comparison_marks_what_rounds_to_the_printed_digit() -> None:
    metrics = ["param_storage_millions", "math_ops_millions", "score"]
    rows = pd.DataFrame(
        {
            "point": ["1.0"] * 3 + ["2.0"] * 3,
            "metric": metrics * 2,
            "paper": [0.10, 22.0, 0.0048, 0.16, 41.0, 0.0083],
            "measured": [0.1049, 21.4, 0.00481, 0.1551, 41.4, 0.00836],
        }
    )
    rows["difference"] = rows["measured"] - rows["paper"]
    table = plots.expand_ratio_table(rows)
    assert list(table["i"]) == ["1.0", "2.0"]
    assert list(table["NP rounds"]) == [True, True]
    assert list(table["MO rounds"]) == [False, True]
    assert list(table["score rounds"]) == [True, False]
    assert table["MO off"][0] == pytest.approx(21.4 / 22 - 1)


# ------------------------------------------------------------------------ the published files


@pytest.mark.parametrize(
    ("name", "num_zero_biases"),
    [("micronet_v1_pr_60", 230), ("micronet_v2_pr_30", 255), ("micronet_v2_pr_60", 255)],
)
def test_the_dead_gates_of_the_published_files_were_never_trained(
    name: str, num_zero_biases: int
) -> None:
    path = checkpoint_path(name)
    require(path)
    model = load_published(path)
    dead = {
        f"blocks.{index}.se.{layer}.bias"
        for index in STRIDE_2
        for layer in ("conv_reduce", "conv_expand")
    }
    vectors = {n: p for n, p in model.named_parameters() if p.ndim == 1}
    assert {n for n, p in vectors.items() if (p == 0).any()} == dead
    assert sum(vectors[n].numel() for n in dead) == num_zero_biases
    assert not any(vectors[n].any() for n in dead)

    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(remove_dead_gates(model)(images), model(images))


@pytest.mark.parametrize("option", [{"activation": "relu"}, {"downsample_se": "Dead"}])
def test_an_unknown_choice_of_an_architecture_is_refused(option):
    with pytest.raises(InputError, match=f"unknown {next(iter(option))}"):
        build("micronet_v1", **option)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("width_mult", value) for value in (-1, 0, 1e308, float("nan"))),
        *(("num_classes", value) for value in (0, -3)),
        *(("expand_ratio", value) for value in (0.0, -2.0)),
        ("se_ratio", -0.5),
    ],
)
def test_a_number_that_no_network_has_is_refused_in_one_line(option, value):
    with pytest.raises(InputError, match=f"^{option} is .*; give") as error:
        build("micronet_v1", **{option: value})
    assert "\n" not in str(error.value)


def test_a_ratio_of_zero_means_no_gates():
    assert not any(block.se_chs for block in build("micronet_v1", se_ratio=0.0).architecture.blocks)
