"""Each way to start a network against its words: orthogonality, spread, zeros, repeatability."""

import math

import pytest
import torch
from published_data import require
from small_networks import seeded
from torch import Tensor, nn

from micronet_lib.architecture import build
from micronet_lib.architecture.initialization import (
    INITIALIZATIONS,
    WeightDistribution,
    distribution_of,
    initialize,
)
from micronet_lib.architecture.layers import layer_kind
from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.errors import InputError
from micronet_lib.lab.host.places import checkpoint_path
from micronet_lib.lab.storage.published import load_published
from micronet_lib.scoring.dead_channels import remove_dead_gates
from micronet_lib.srip.penalty import spectrum, srip_weights

PUBLISHED = checkpoint_path("micronet_v1_pr_60")
KINDS = ("conv", "expand", "depthwise", "project", "shortcut", "se", "fc")


def trained_like() -> MicroNet:
    """A network whose kinds of layer differ in mean and spread, half of each weight pruned."""
    model = build("micronet_v1")
    generator = seeded(5)
    with torch.no_grad():
        for name, layer in model.named_modules():
            kind = layer_kind(name, layer)
            if kind is not None:
                weight, rank = layer.weight, KINDS.index(kind)
                weight.normal_(0.1 * rank, 0.1 + 0.1 * rank, generator=generator)
                weight *= torch.rand(weight.shape, generator=generator) < 0.5
    return model


@pytest.fixture(scope="module")
def distribution() -> WeightDistribution:
    return distribution_of(trained_like())


def initialized(how: str, seed: int, distribution: WeightDistribution | None = None) -> MicroNet:
    """From a network in which nothing is as an initialisation leaves it."""
    model = build("micronet_v1")
    for value in (*model.parameters(), *model.buffers()):
        value.data = torch.full_like(value, 3)
    initialize(model, how, seeded(seed), distribution if how == "trained_distribution" else None)
    return model


def of_kind(model: nn.Module, kind: str) -> Tensor:
    """All weights of one kind in one vector."""
    return torch.cat(
        [
            layer.weight.detach().flatten()
            for name, layer in model.named_modules()
            if layer_kind(name, layer) == kind
        ]
    )


@pytest.mark.parametrize("how", INITIALIZATIONS)
def test_biases_are_zero_and_batch_norms_the_identity(how, distribution):
    model = initialized(how, 0, distribution)
    biases = [n for n, _ in model.named_parameters() if n.endswith(".bias")]
    assert any(".se." in name for name in biases)
    for name in biases:
        assert not model.get_parameter(name).any(), name
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.running_mean.any()
            assert (module.running_var == 1).all()
            assert module.num_batches_tracked == 0


@pytest.mark.parametrize("how", INITIALIZATIONS)
def test_a_generator_state_is_a_network_whatever_its_memory_order_and_precision(how, distribution):
    one, same, other = (initialized(how, seed, distribution).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    weights = [name for name, value in one.items() if value.ndim > 1]
    assert not any(torch.equal(one[name], other[name]) for name in weights)
    model = build("micronet_v1").double().to(memory_format=torch.channels_last)
    initialize(model, how, seeded(0), distribution if how == "trained_distribution" else None)
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float64
        assert torch.equal(weight.float(), one[name]), name


# ------------------------------------------------------------------------------- semi-orthogonal


def test_every_singular_value_is_one():
    model = initialized("semi_orthogonal", 0)
    weights = srip_weights(model, "all")
    assert len(weights) == 80
    for name, weight in weights.items():
        values = spectrum(weight.detach())
        torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)], ids=["tall", "wide", "square"])
def test_semi_orthogonal_is_the_papers_three_steps(shape):
    layer = nn.Linear(shape[1], shape[0])
    initialize(layer, "semi_orthogonal", seeded(3))
    normal = torch.empty(shape).normal_(generator=seeded(3))
    q, r = torch.linalg.qr(normal if shape[0] >= shape[1] else normal.T)
    q = q * r.diagonal().sign()
    torch.testing.assert_close(layer.weight.detach(), q if shape[0] >= shape[1] else q.T)
    assert not layer.bias.any()


def test_q_is_uniform():
    """Q's column signs are fair, which plain QR does not give: its R has a one-sided diagonal."""
    generator, layer = seeded(0), nn.Linear(3, 3)
    corners = []
    for _ in range(400):
        initialize(layer, "semi_orthogonal", generator)
        corners.append(layer.weight[0, 0].item())
    corners = torch.tensor(corners)
    assert abs((corners > 0).float().mean() - 0.5) < 0.1  # 4 standard errors
    assert abs(corners.square().mean() - 1 / 3) < 0.06


# -------------------------------------------------------------------------------------- released


def test_released_spread_is_by_kernel_area_and_filters():
    model = initialized("released", 0)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 2000:
            expected = math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels))
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.07), name
            assert abs(layer.weight.mean().item()) < 0.1 * expected, name
    depthwise = model.get_submodule("blocks.15.conv_dw")
    std = depthwise.weight.std().item()
    assert std == pytest.approx(math.sqrt(2 / (9 * depthwise.out_channels)), rel=0.1)
    assert model.head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)


# --------------------------------------------------------------------------- trained distribution


def test_draws_have_the_distribution_of_their_kind(distribution):
    trained = trained_like()
    model = initialized("trained_distribution", 0, distribution)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    for kind in KINDS:
        source, drawn = of_kind(trained, kind), of_kind(model, kind)
        source = source[source != 0]
        assert len(source) < 0.6 * len(drawn)
        spread = source.std()
        assert abs(drawn.mean() - source.mean()) < 0.12 * spread, kind
        assert drawn.std() == pytest.approx(spread.item(), rel=0.12), kind
        gap = (drawn.quantile(levels) - source.quantile(levels)).abs().max()
        assert gap < 0.25 * spread, kind
        assert drawn.min() >= source.min()
        assert drawn.max() <= source.max()


def test_quantiles_are_those_of_the_non_zero_weights():
    layer = nn.Linear(5, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0, 4, -2, 0, 1], [0, 3, 2, 0, 0]]))
    values = distribution_of(layer).quantiles["fc"]
    assert (values[0], values[250], values[500], values[-1]) == (-2, 1, 2, 4)
    assert list(values) == sorted(values)


def test_sampling_follows_a_table_by_hand(monkeypatch):
    table = WeightDistribution({"fc": (-1.0, 0.0, 10.0)})
    drawn = table.sample("fc", torch.Size([20000]), seeded(0))
    assert drawn.dtype == torch.float32
    assert (drawn < 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (drawn < 5).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert -1 <= drawn.min() < -0.99
    assert 9.9 < drawn.max() <= 10
    # At some table lengths float32 rounds the largest draw, just under 1, up to the end.
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.ones(shape))
    assert table.sample("fc", torch.Size([2]), seeded(0)).tolist() == [10, 10]


def test_a_published_network_gives_a_distribution():
    require(PUBLISHED)
    published = load_published(PUBLISHED)
    alive = distribution_of(remove_dead_gates(published))
    assert set(alive.quantiles) == set(KINDS)
    assert alive.quantiles["se"] != distribution_of(published).quantiles["se"]
    smallest = min(value.abs().item() for value in of_kind(published, "expand") if value != 0)
    assert min(abs(value) for value in alive.quantiles["expand"]) >= smallest * 0.5
    model = build("micronet_v1")
    initialize(model, "trained_distribution", seeded(0), alive)
    source = of_kind(published, "expand")
    spread = source[source != 0].std().item()
    assert of_kind(model, "expand").std().item() == pytest.approx(spread, rel=0.05)


# --------------------------------------------------------------------------------- what is refused


def test_unknown_names_and_unusable_tables_and_networks_are_refused(distribution):
    layer = nn.Linear(2, 2)
    with pytest.raises(InputError, match="'kaiming'; choose from semi_ortho"):
        initialize(layer, "kaiming", seeded(0))
    with pytest.raises(InputError, match="'trained_distribution' needs a distribution"):
        initialize(layer, "trained_distribution", seeded(0))
    with pytest.raises(InputError, match="'released' needs no distribution"):
        initialize(layer, "released", seeded(0), distribution)
    with pytest.raises(InputError, match="'fc'"):
        initialize(layer, "trained_distribution", seeded(0), WeightDistribution({"se": (0.0, 1.0)}))
    for values in ((), (1.0,), (1.0, 0.0), (0.0, float("nan")), (0.0, float("inf"))):
        with pytest.raises(InputError, match="'fc'"):
            WeightDistribution({"fc": values})
    with pytest.raises(InputError, match="no convolution and no linear layer"):
        distribution_of(nn.BatchNorm2d(3))
    for value in (0.0, float("nan")):
        nn.init.constant_(layer.weight, value)
        with pytest.raises(InputError, match="'fc'"):
            distribution_of(layer)
