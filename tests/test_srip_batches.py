"""The closed form in padded batches against autograd through the definition."""

from types import SimpleNamespace

import pytest
import torch
from small_networks import flat, network, orthogonal_layers, seeded
from torch import Tensor, nn

from micronet_lib.architecture.initialization import initialize
from micronet_lib.errors import InputError
from micronet_lib.srip.batches import Srip
from micronet_lib.srip.penalty import (
    SripConfig,
    exact_deviation,
    spectrum,
    srip_network_penalty,
    srip_weights,
)

DEFINITIONS = ("paper", "released")


def gradients(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in weights.items()}
    for weight in weights.values():
        weight.grad = None
    return found


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return torch.cosine_similarity(one, other, dim=0)


# ---------------------------------------------------------------------------------- the closed form


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("few_launches", [False, True], ids=["small_batches", "few_launches"])
@pytest.mark.parametrize("placement", ["pointwise", "all"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_closed_form_is_autograd(definition, few_launches, placement, dtype, tolerance):
    model = network(dtype=dtype).to(memory_format=torch.channels_last)
    config = SripConfig(coef=0.7, placement=placement, definition=definition)
    weights = srip_weights(model, placement)
    expected = srip_network_penalty(weights, config, generator=seeded(3))
    expected.backward()
    theirs = gradients(weights)
    srip = Srip(model, config, few_launches=few_launches)
    for _ in range(2):  # the second call finds the buffers of the first
        value = srip.value_and_grad(seeded(3))
        assert value.dtype == dtype
        assert value.ndim == 0
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        for name, grad in gradients(weights).items():
            assert (grad - theirs[name]).norm() < tolerance * theirs[name].norm()


@pytest.mark.parametrize("start", ["fresh", "warm"])
@pytest.mark.parametrize("definition", DEFINITIONS)
def test_exactly_orthogonal_weights_have_no_value_and_a_finite_gradient(definition, start):
    model = orthogonal_layers()
    srip = Srip(model, SripConfig(1.0, "all", definition, start), seeded(0))
    for _ in range(2):
        assert srip.value_and_grad(seeded(1)).item() == 0
    for layer in model:
        assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


def test_gradients_are_added_in_place_to_the_chosen_weights_only():
    model = network()
    srip = Srip(model, SripConfig(placement="project"))
    srip.value_and_grad(seeded(3))
    fresh = {n: p.grad.clone() for n, p in srip.weights.items()}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(srip.weights)
    before = {n: p.grad.fill_(1.0) for n, p in srip.weights.items()}
    srip.value_and_grad(seeded(3))
    for name, weight in srip.weights.items():
        assert weight.grad is before[name]
        torch.testing.assert_close(weight.grad, 1 + fresh[name])
        assert weight.requires_grad


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("few_launches", [False, True])
def test_padding_stays_exactly_zero(definition, few_launches):
    config = SripConfig(placement="all", definition=definition, start="warm")
    srip = Srip(network(), config, seeded(0), few_launches)
    for _ in range(3):
        srip.value_and_grad()
    for padded in (srip._matrices, srip._gradients, srip._starts):
        rest = padded.storage.clone()
        places = padded.places(padded.slots)
        assert len(places.unique()) == sum(slot.numel() for slot in padded.slots) < len(rest)
        assert rest[places].any()
        rest[places] = 0
        assert not rest.any()


def test_sizes_are_grouped_so_that_padding_stays_small():
    model, config = network(), SripConfig()
    dense = sum(weight.numel() for weight in srip_weights(model, "pointwise").values())
    cpu = Srip(model, config, few_launches=False)._matrices
    gpu = Srip(model, config, few_launches=True)._matrices
    assert len(cpu.batches) <= 8
    assert len(cpu.storage) < 2 * dense
    assert len(gpu.batches) == 2


def test_coef_scales_value_and_gradient_and_zero_is_off():
    model = network()
    weights = srip_weights(model, "expand")
    one = Srip(model, SripConfig(1.0, "expand")).value_and_grad(seeded(0))
    grads = gradients(weights)
    half = Srip(model, SripConfig(0.5, "expand")).value_and_grad(seeded(0))
    torch.testing.assert_close(half, 0.5 * one)
    for name, grad in gradients(weights).items():
        torch.testing.assert_close(grad, 0.5 * grads[name])
    assert Srip(model, SripConfig(0.0, "expand")).value_and_grad(seeded(0)).item() == 0
    assert all(weight.grad is None for weight in weights.values())


def test_autocast_changes_nothing():
    model, config = network(), SripConfig()
    weights = srip_weights(model, "pointwise")
    expected = Srip(model, config).value_and_grad(seeded(0))
    theirs = gradients(weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Srip(model, config).value_and_grad(seeded(0)), expected)
    ours = gradients(weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in weights)


@pytest.mark.parametrize("few_launches", [False, True])
def test_the_same_generator_gives_the_same_step(few_launches):
    model = network()
    srip = Srip(model, SripConfig(), few_launches=few_launches)
    values, grads = [], []
    for seed in (0, 0, 1):
        values.append(srip.value_and_grad(seeded(seed)))
        grads.append(flat(gradients(srip.weights)))
    assert torch.equal(values[0], values[1])
    assert torch.equal(grads[0], grads[1])
    assert values[0] != values[2]
    generator = seeded(0)
    assert srip.value_and_grad(generator) != srip.value_and_grad(generator)
    warm = SripConfig(start="warm")
    states = [Srip(model, warm, seeded(seed)).state_dict()["u"] for seed in (0, 0, 1)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    with pytest.raises(InputError, match="on cuda, weights on cpu"):
        srip.value_and_grad(SimpleNamespace(device=torch.device("cuda")))


# ------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("scale", [0.4, 1.6])
def test_descent_brings_the_singular_values_towards_one(definition, scale):
    shape = (16, 24) if definition == "paper" else (24, 16)  # the side without a floor
    layer = nn.Linear(shape[1], shape[0], bias=False)
    with torch.no_grad():
        nn.init.orthogonal_(layer.weight, generator=seeded(0)).mul_(scale)
        layer.weight += 0.03 * torch.randn(shape, generator=seeded(1))
    first = (spectrum(layer.weight.detach()) - 1).abs().max().item()
    srip = Srip(layer, SripConfig(placement="fc", definition=definition))
    generator = seeded(2)
    for _ in range(400):
        layer.weight.grad = None
        srip.value_and_grad(generator)
        with torch.no_grad():
            layer.weight -= 0.02 * layer.weight.grad
    last = (spectrum(layer.weight.detach()) - 1).abs().max().item()
    assert first > 0.4
    assert last < 0.1


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_warm_start_converges_to_the_exact_norm_and_fresh_stays_below(definition):
    model = network(dtype=torch.float64)
    initialize(model, "semi_orthogonal", seeded(0))
    weights = srip_weights(model, "pointwise")
    with torch.no_grad():
        noise = seeded(1)
        for weight in weights.values():
            weight += 0.02 * torch.randn(weight.shape, generator=noise, dtype=weight.dtype)
    power = 1 if definition == "paper" else 2
    exact = torch.stack([exact_deviation(w, definition) ** power for w in weights.values()]).mean()
    exact.backward()
    exact_gradient = flat(gradients(weights))

    warm = Srip(model, SripConfig(definition=definition, start="warm"), seeded(2))
    for _ in range(200):
        value = warm.value_and_grad()
        warm_gradient = flat(gradients(weights))
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    assert cosine(warm_gradient, exact_gradient) > 0.999

    fresh, generator = Srip(model, SripConfig(definition=definition)), seeded(3)
    values, draws = [], []
    for _ in range(60):
        values.append(fresh.value_and_grad(generator))
        draws.append(flat(gradients(weights)))
    mean = torch.stack(draws).mean(0)
    assert 0.85 * exact < torch.stack(values).mean() < 0.95 * exact
    one_draw = torch.stack([cosine(draw, mean) for draw in draws[:20]]).mean()
    assert 0.25 < one_draw < 0.45  # SripConfig's docstring
    assert 0.5 < cosine(mean, exact_gradient) < 0.7


# ------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("resumed_few_launches", [False, True])
def test_warm_vectors_survive_a_resume(resumed_few_launches):
    model, config = network(), SripConfig(start="warm")
    first = Srip(model, config, seeded(0))
    for _ in range(3):
        first.value_and_grad()
    saved = {name: value.clone() for name, value in first.state_dict().items()}
    expected = first.value_and_grad()
    assert saved["u"].shape == (sum(w.shape[0] for w in first.weights.values()),)
    second = Srip(model, config, seeded(9), resumed_few_launches)
    other = Srip(model, config, seeded(9)).value_and_grad()
    second.load_state_dict(saved)
    resumed = second.value_and_grad()
    torch.testing.assert_close(resumed, expected, rtol=1e-5, atol=0)
    assert abs(other - expected) > 1e-3 * expected


def test_a_state_of_other_settings_is_refused():
    model = network()
    warm, fresh = (Srip(model, SripConfig(start=start)) for start in ("warm", "fresh"))
    assert fresh.state_dict() == {}
    fresh.load_state_dict({})
    for srip, state in (
        (fresh, warm.state_dict()),
        (warm, {}),
        (warm, Srip(model, SripConfig(placement="fc", start="warm")).state_dict()),
    ):
        with pytest.raises(InputError, match="of other settings"):
            srip.load_state_dict(state)


# ---------------------------------------------------------------------------------------- a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("start", ["fresh", "warm"])
@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_cuda_graph_repeats_the_step(definition, start):
    model = network().cuda().to(memory_format=torch.channels_last)
    config = SripConfig(definition=definition, start=start)
    generator = torch.Generator("cuda").manual_seed(0)
    eager, captured = (Srip(model, config, generator.manual_seed(0)) for _ in range(2))
    for weight in eager.weights.values():
        weight.grad = torch.zeros_like(weight)
    generator.manual_seed(1)
    expected = []
    for _ in range(3):
        value = eager.value_and_grad(generator)
        expected.append((value, [weight.grad.clone() for weight in eager.weights.values()]))
    start_state = captured.state_dict()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        captured.value_and_grad(generator)  # kernels load before the capture
    torch.cuda.synchronize()
    captured.load_state_dict(start_state)
    for weight in eager.weights.values():
        weight.grad.zero_()
    generator.manual_seed(1)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        value = captured.value_and_grad(generator)
    for expected_value, expected_grads in expected:
        graph.replay()
        torch.testing.assert_close(value, expected_value)
        for weight, grad in zip(captured.weights.values(), expected_grads, strict=True):
            torch.testing.assert_close(weight.grad, grad)
