"""The penalty against its definition written out, and which matrices of a network it is for."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_networks import network, orthogonal_layers, seeded
from torch import Tensor, nn

from micronet_lib.architecture.initialization import initialize
from micronet_lib.architecture.layers import layer_kind
from micronet_lib.errors import InputError
from micronet_lib.lab.host.places import checkpoint_path
from micronet_lib.lab.records.tables import paper
from micronet_lib.lab.storage.published import load_published
from micronet_lib.srip.penalty import (
    PLACEMENTS,
    SripConfig,
    exact_deviation,
    spectrum,
    srip_network_penalty,
    srip_penalty,
    srip_weights,
)

DEFINITIONS = ("paper", "released")
PUBLISHED = checkpoint_path("micronet_v1_pr_60")


def gram_minus_identity(weight: Tensor, definition: str) -> Tensor:
    """A as the module's table writes it, formed in full."""
    w = weight.flatten(1)
    gram = w @ w.T if definition == "paper" else w.T @ w
    return gram - torch.eye(len(gram), dtype=w.dtype)


def by_hand(weight: Tensor, u: Tensor, definition: str) -> Tensor:
    """Equation 2 of the paper, and the chain of normalised products in the released code."""
    a = gram_minus_identity(weight, definition)
    if definition == "paper":
        u = a @ u
        return (a @ u).norm() / u.norm()
    v = F.normalize(a.T @ u, dim=0)
    u = F.normalize(a @ v, dim=0)
    return (u @ (a @ v)) ** 2


def start(weight: Tensor, definition: str) -> Tensor:
    size = len(gram_minus_identity(weight.detach(), definition))
    return torch.randn(size, generator=seeded(size), dtype=weight.dtype)


# -------------------------------------------------------------------------------- the definition


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_penalty_and_gradient_are_those_of_the_matrix_written_out(definition, dtype, tolerance):
    weights = srip_weights(network(dtype=dtype), "all")
    for weight in weights.values():
        u = start(weight, definition)
        ours = srip_penalty(weight, u, definition)
        (ours_grad,) = torch.autograd.grad(ours, weight)
        theirs = by_hand(weight, u, definition)
        (theirs_grad,) = torch.autograd.grad(theirs, weight)
        assert ours.item() == pytest.approx(theirs.item(), rel=tolerance)
        assert (ours_grad - theirs_grad).norm() <= tolerance * theirs_grad.norm()


def test_network_penalty_is_coef_times_the_mean():
    weights = srip_weights(network(), "shortcut")
    us = {name: start(weight, "released") for name, weight in weights.items()}
    each = [by_hand(weight, us[name], "released").item() for name, weight in weights.items()]
    config = SripConfig(coef=0.7, definition="released")
    total = srip_network_penalty(weights, config, us)
    assert total.item() == pytest.approx(0.7 * sum(each) / 4, rel=1e-5)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)], ids=["tall", "wide", "square"])
def test_exact_deviation_is_the_spectral_norm_and_bounds_the_estimate(definition, shape):
    weight = 0.3 * torch.randn(shape, generator=seeded(0), dtype=torch.float64)
    a = gram_minus_identity(weight, definition)
    exact = exact_deviation(weight[..., None, None], definition)
    torch.testing.assert_close(exact, torch.linalg.matrix_norm(a, 2))
    draws = torch.randn(200, len(a), generator=seeded(1), dtype=torch.float64)
    estimates = torch.stack([srip_penalty(weight, u, definition) for u in draws])
    sigma = estimates if definition == "paper" else estimates.sqrt()
    assert (sigma <= exact * (1 + 1e-12)).all()
    assert sigma.mean() > 0.6 * exact


@pytest.mark.parametrize(("definition", "wide"), [("paper", (24, 16)), ("released", (16, 24))])
def test_a_floor_of_one_where_the_product_is_singular(definition, wide):
    orthogonal = nn.init.orthogonal_(torch.empty(wide, dtype=torch.float64), generator=seeded(0))
    assert exact_deviation(orthogonal, definition).item() == pytest.approx(1, abs=1e-12)
    assert exact_deviation(0.5 * orthogonal, definition).item() == pytest.approx(1, abs=1e-12)
    assert exact_deviation(2 * orthogonal, definition).item() == pytest.approx(3, abs=1e-12)
    # The other way round it is an isometry, and nothing is left to penalise.
    assert exact_deviation(orthogonal.T, definition).item() < 1e-12
    assert srip_penalty(orthogonal.T, None, definition, seeded(1)).item() < 1e-12


def test_spectrum_of_a_convolution_is_that_of_its_matrix():
    weight = torch.zeros(4, 1, 3, 3)
    weight[0, 0, 0, 0], weight[1, 0, 1, 1], weight[2, 0, 2, 2] = 1, -3, 2
    torch.testing.assert_close(spectrum(weight), torch.tensor([3.0, 2, 1, 0]))


def test_networks_without_a_penalty_and_on_the_floor():
    for definition in DEFINITIONS:
        assert srip_penalty(torch.zeros(5, 7), None, definition, seeded(0)).item() == 1
        model = orthogonal_layers()
        config = SripConfig(placement="all", definition=definition)
        penalty = srip_network_penalty(srip_weights(model, "all"), config, generator=seeded(0))
        penalty.backward()
        assert penalty.item() == 0
        for layer in model:
            assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))
    model = network()
    initialize(model, "semi_orthogonal", seeded(0))
    weights = srip_weights(model, "pointwise")
    shapes = [weight.flatten(1).shape for weight in weights.values()]
    floors = {
        "released": sum(rows < columns for rows, columns in shapes),
        "paper": sum(rows > columns for rows, columns in shapes),
    }
    assert floors == {"released": 33, "paper": 35}
    for definition, floor in floors.items():
        config = SripConfig(definition=definition)
        value = srip_network_penalty(weights, config, generator=seeded(1))
        assert value.item() == pytest.approx(floor / 68, abs=1e-5)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_half_precision_and_autocast_compute_in_float32(definition):
    weight = 0.3 * torch.randn(16, 8, 1, 1, generator=seeded(0))
    u = torch.randn(16 if definition == "paper" else 8, generator=seeded(1))
    expected = srip_penalty(weight, u, definition)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(srip_penalty(weight, u, definition), expected)
    halved = srip_penalty(weight.bfloat16(), u, definition)
    assert halved.dtype == torch.float32
    assert torch.equal(halved, srip_penalty(weight.bfloat16().float(), u, definition))


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_the_penalty_traces_without_a_break(definition):
    def penalty(weight: Tensor, u: Tensor) -> Tensor:
        return srip_penalty(weight, u, definition)

    weight = torch.randn(12, 12, 1, 1, generator=seeded(0), requires_grad=True)
    u = torch.randn(12, generator=seeded(1))
    traced = torch.compile(penalty, fullgraph=True, backend="eager")(weight, u)
    torch.testing.assert_close(traced, penalty(weight, u))
    (gradient,) = torch.autograd.grad(traced, weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(penalty(weight, u), weight)[0])


# ----------------------------------------------------------------------------------- placements


def test_how_many_matrices_a_placement_has():
    counts = {
        **{"fc": (1, 1), "depthwise": (16, 16), "pointwise": (68, 62), "all": (86, 80)},
        **{"expand": (16, 16), "project": (16, 16), "shortcut": (4, 4), "se": (32, 26)},
    }
    released, ours = network("micronet_v1_released"), network("micronet_v1")
    assert counts == {
        placement: (len(srip_weights(released, placement)), len(srip_weights(ours, placement)))
        for placement in counts
    }


def test_pointwise_is_what_the_released_code_takes_for_it():
    model = network()
    theirs = [n for n, p in model.named_parameters() if p.ndim == 4 and p.shape[3] == 1]
    assert list(srip_weights(model, "pointwise")) == theirs
    assert len({p.shape for p in srip_weights(model, "pointwise").values()}) == 36
    parts = ("expand", "project", "shortcut", "se")
    assert sorted(theirs) == sorted(n for part in parts for n in srip_weights(model, part))
    assert list(srip_weights(model, "all")) == [
        n for n, p in model.named_parameters() if p.ndim > 1
    ]


def test_placements_of_another_network_go_by_shape():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 4, 1),
        nn.Conv2d(4, 4, (3, 1)),
        nn.BatchNorm2d(4),
        nn.Linear(4, 2),
    )
    kinds = [layer_kind(name, layer) for name, layer in model.named_children()]
    assert kinds == ["conv", "depthwise", "conv", "project", "pointwise", None, "fc"]
    assert list(srip_weights(model, "pointwise")) == ["3.weight", "4.weight"]
    assert len(srip_weights(model, "all")) == 6
    with pytest.raises(InputError, match="'se'; this network has: conv, depthwise, fc"):
        srip_weights(model, "se")
    with pytest.raises(InputError, match="none with a matrix"):
        srip_weights(nn.ReLU(), "all")


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("placement", ["conv2"]),
        ("definition", ["squared"]),
        ("start", ["cold"]),
        ("coef", [-1.0, float("nan"), float("inf")]),
    ],
)
def test_config_refuses(name, values):
    for value in values:
        with pytest.raises(InputError, match=f"{name}.*{value}"):
            SripConfig(**{name: value})


def test_penalty_refuses():
    weight = torch.ones(3, 5)
    with pytest.raises(InputError, match=r"shape \(5,\): weight \(3, 5\) needs \(3,\)"):
        srip_penalty(weight, torch.ones(5), "paper")
    with pytest.raises(InputError, match="unknown definition 'both'"):
        srip_penalty(weight, None, "both")
    with pytest.raises(InputError, match="1 dimensions is no matrix"):
        srip_penalty(torch.ones(3))
    with pytest.raises(InputError, match="unknown placement '1x1'"):
        srip_weights(network(), "1x1")
    elsewhere = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(InputError, match=r"on cuda, weights on cpu: use torch.Generator\('cpu'\)"):
        srip_penalty(torch.ones(3, 3), generator=elsewhere)


# -------------------------------------------------------------------------------- published numbers


def test_transcribed_numbers():
    rows = paper("srip")
    assert set(rows["source"]) == {"kim2020", "micronet_code", "gale2020"}
    gains = rows[rows["metric"] == "gain_percent"].set_index("point")["value"]
    assert list(gains.index) == ["fc", "depthwise", "pointwise", "all"]
    assert set(gains.index) < set(PLACEMENTS)
    stacked, with_orn = (
        rows[rows["metric"] == f"top1_{row}_percent"].set_index("point")["value"]
        for row in ("stacked", "orn")
    )
    assert list(with_orn.index) == [f"ratio_{i / 2:.1f}" for i in range(2, 9)]
    # The paper's gain by placement is not the difference of its own two rows at i = 3.
    assert (with_orn - stacked)["ratio_3.0"] == pytest.approx(5.88)
    assert gains["pointwise"] == 6.05


def test_released_initialization_starts_far_away():
    model, config = network(), SripConfig(definition="released")
    for seed in range(3):
        initialize(model, "released", seeded(seed))
        weights = srip_weights(model, "pointwise")
        assert 40 < srip_network_penalty(weights, config, generator=seeded(seed)).item() < 65


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="python -m micronet_lib data fetch kaist")
def test_the_published_network_is_near_its_floor():
    weights = srip_weights(load_published(PUBLISHED), "pointwise")
    config, generator = SripConfig(definition="released"), seeded(0)
    values = [srip_network_penalty(weights, config, None, generator).item() for _ in range(10)]
    assert all(0.40 < value < 0.52 for value in values)
    norms = [(w.flatten(1).shape, exact_deviation(w, "released")) for w in weights.values()]
    wide = [norm.item() for (rows, columns), norm in norms if rows < columns]
    tall = [norm.item() for (rows, columns), norm in norms if rows >= columns]
    assert min(wide) == pytest.approx(1, abs=1e-6)
    assert sum(wide) / len(wide) == pytest.approx(1.004, abs=5e-4)
    assert sum(tall) / len(tall) == pytest.approx(0.222, abs=5e-4)
