"""Rounded numbers by hand, their gradients, and the grid on which HardSwish is a product."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import seeded

from micronet_lib.beyond import quantizers
from micronet_lib.beyond.quantizers import (
    FakeQuantize,
    Grid,
    bias_unit,
    check_bits,
    fake_quantize_weight,
    fitted_scales,
    fitted_step,
    hard_swish_grid,
    nearest_scales,
    rounded_hard_swish,
    scale_grid,
    weight_codes,
)
from micronet_lib.errors import InputError


def test_codes_by_hand():
    """Two bits hold -2, -1, 1 and 2: no zero, and nothing beyond."""
    ratios = torch.tensor([-9.0, -1.4, -0.1, 0.2, 1.4, 1.6, 7.0])
    assert weight_codes(ratios, 2).tolist() == [-2, -1, -1, 1, 1, 2, 2]
    assert weight_codes(ratios, 1).tolist() == [-1, -1, -1, 1, 1, 1, 1]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("seed", range(3))
def test_codes_are_the_nearest_of_all_codes(bits, seed):
    ratios = torch.randn(500, generator=seeded(seed)) * 2 ** (bits - 1) / 2
    sizes = torch.arange(1, 2 ** (bits - 1) + 1)
    every = torch.cat([-sizes, sizes]).float()
    nearest = (ratios[:, None] - every).abs().amin(1)
    assert torch.allclose((ratios - weight_codes(ratios, bits)).abs(), nearest)


@pytest.mark.parametrize("seed", range(3))
def test_a_fitted_scale_is_the_best_of_its_grid(seed):
    sizes = torch.logspace(-2, 0, 6).view(6, 1, 1, 1)
    weight = torch.randn(6, 5, 3, 3, generator=seeded(seed)) * sizes
    weight[torch.rand(weight.shape, generator=seeded(seed + 9)) < 0.4] = 0
    scales = fitted_scales(weight, 4)
    grid = scale_grid(scales.max())
    rows, kept = weight.flatten(1), weight.flatten(1) != 0

    def error(scale: torch.Tensor) -> torch.Tensor:
        restored = weight_codes(rows / scale[:, None], 4) * scale[:, None]
        return ((restored - rows) * kept).square().sum(1)

    best = torch.stack([error(each.expand(6)) for each in grid]).amin(0)
    assert torch.allclose(error(scales), best)
    assert torch.equal(grid[nearest_scales(scales)], scales)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_without_clipping_no_weight_is_cut_off(bits):
    weight = torch.randn(8, 20, generator=seeded(bits))
    scales = fitted_scales(weight, bits, clip=False)
    assert ((weight.abs().amax(1) / scales) <= 2 ** (bits - 1) * (1 + 1e-5)).all()
    assert ((weight.abs().amax(1) / scales) > 2 ** (bits - 1) / 2**0.26).all()  # the next scale up


def test_the_gradient_of_a_rounded_weight_is_that_of_the_weight():
    weight = torch.tensor([[0.3, -1.2, 0.0, 9.0]], requires_grad=True)
    scale = torch.tensor([0.5], requires_grad=True)
    rounded = fake_quantize_weight(weight, scale, 3)
    assert rounded.tolist() == [[0.5, -1.0, 0.0, 2.0]]
    rounded.backward(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    assert weight.grad.tolist() == [[1.0, 10.0, 0.0, 1000.0]]
    # code - ratio inside, the code itself where the weight is clipped
    by_hand = 1 * (1 - 0.6) + 10 * (-2 + 2.4) + 1000 * 4
    assert scale.grad.item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("bits", [5, 8])
def test_the_largest_bias_is_the_largest_integer(bits):
    bias = torch.randn(9, generator=seeded(bits))
    codes = bias / bias_unit(bias, bits)
    assert codes.abs().max().item() == pytest.approx(2 ** (bits - 1) - 1)


# ------------------------------------------------------------------------------ activations


@pytest.mark.parametrize(
    ("bits", "step"),
    [
        (2, 0.2),
        (2, 3.0),
        (4, 0.1),
        (5, 0.02),
        (5, 0.7),
        (8, 0.004),
        (8, 0.1),
        (10, 0.002),
        (10, 0.02),
    ],
)
def test_hard_swish_on_its_grid_is_hard_swish_rounded(bits, step):
    """With many bits before it, the product of integers is HardSwish to half a step."""
    grid = hard_swish_grid(step, bits, 12)
    assert abs(grid.step / step - 1) < 0.03
    assert grid.low <= 0 <= grid.high
    x = torch.linspace(-6, 3 + grid.step * 2**bits, 5001)
    found = rounded_hard_swish(x, grid, 12)
    exact = F.hardswish(x).clamp(grid.low * grid.step, grid.high * grid.step)
    unit = 3 / grid.three
    assert (found - exact).abs().max() <= 0.5 * grid.step + 0.76 * unit
    codes = found / grid.step
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert rounded_hard_swish(torch.tensor([-3.0, 0.0, -50.0]), grid, 12).tolist() == [0, 0, 0]


def test_the_step_of_a_grid_has_that_grid():
    """Also as float32, so that a file may hold the integers instead of the step."""
    random = np.random.default_rng(0)
    for _ in range(20_000):
        pre_bits = int(random.integers(4, 13))
        bits = int(random.integers(2, pre_bits + 1))
        reach = 10 ** (random.uniform(-8, 4) if random.random() < 0.3 else random.uniform(0.3, 1.5))
        step = float(np.float32(reach / (2**bits - 1)))
        grid = hard_swish_grid(step, bits, pre_bits)
        assert grid.low <= 0 <= grid.high
        for again in (grid.step, float(np.float32(grid.step))):
            assert hard_swish_grid(again, bits, pre_bits) == grid, (step, bits, pre_bits)
        if pre_bits > max(8, bits + 2) and 2 < reach < 16:
            assert abs(grid.step / step - 1) < 0.1, (step, bits, pre_bits)


@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_those_of_the_clipped_number(seed):
    """Autograd through clamp and HardSwish, with the rounding left out, gives the same."""
    x = (torch.randn(4, 6, 5, 5, generator=seeded(seed)) * 2).requires_grad_()
    grad = torch.randn(x.shape, generator=seeded(seed + 7))
    for grid in (hard_swish_grid(0.011, 8, 12), hard_swish_grid(0.2, 4, 12), Grid(0.05, 9, 5)):
        step = torch.tensor(grid.step, requires_grad=True)
        out = FakeQuantize.apply(x, step, grid, 12)
        found = torch.autograd.grad(out, (x, step), grad)
        value = (F.hardswish(x) if grid.three else x) / step
        clipped = value.clamp(grid.low, grid.high)
        rounded = clipped + (clipped.round() - clipped).detach()
        wanted = torch.autograd.grad((rounded * step), (x, step), grad)
        assert torch.allclose(found[0], wanted[0], atol=1e-5)
        assert torch.allclose(found[1], wanted[1], rtol=1e-3, atol=1e-3)


def test_compiled_and_plain_code_agree(monkeypatch):
    x = torch.randn(2, 8, 6, 6, generator=seeded(0)).to(memory_format=torch.channels_last)
    grid = hard_swish_grid(0.02, 8, 10)
    plain = FakeQuantize.apply(x, torch.tensor(grid.step), grid, 10)
    monkeypatch.setattr(quantizers, "COMPILE_FROM", 1)
    assert torch.equal(FakeQuantize.apply(x, torch.tensor(grid.step), grid, 10), plain)


def test_without_a_compiler_the_plain_code_runs_and_says_so(monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    monkeypatch.setattr(quantizers, "COMPILE_FROM", 1)
    quantizers._compiled.cache_clear()
    x, grid = torch.linspace(-1, 1, 9), Grid(0.25, 2, 3)
    with pytest.warns(UserWarning, match="no compiler"):
        found = FakeQuantize.apply(x, torch.tensor(0.25), grid, 8)
    assert found.tolist() == (x * 4).round().clamp(-2, 5).div(4).tolist()
    quantizers._compiled.cache_clear()


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_the_shape_and_memory_of_activations_stay(memory):
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=memory).requires_grad_()
    out = FakeQuantize.apply(x, torch.tensor(0.1), Grid(0.1, 8, 4), 8)
    assert out.shape == x.shape
    assert torch.allclose(out, (x * 10).round().clamp(-8, 7) / 10, atol=1e-6)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, ((x * 10 >= -8) & (x * 10 <= 7)).float())


@pytest.mark.parametrize("hard_swish", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_fitted_step_beats_its_neighbours(hard_swish, seed):
    values = torch.randn(4000, generator=seeded(seed)) * 1.5
    values = F.hardswish(values) if hard_swish else values

    def error(step: float, zero: int) -> float:
        rounded = (values / step).round().clamp(-zero, 15 - zero) * step
        return (rounded - values).square().mean().item()

    step, zero = fitted_step(values, 4, hard_swish)
    unclipped = fitted_step(values, 4, hard_swish, clip=False)
    assert error(step, zero) <= error(*unclipped)
    assert unclipped[0] * (15 - unclipped[1]) >= values.max() - unclipped[0]


def test_widths_out_of_range_are_refused():
    for bits in (0, -1, 13, 33, 4.0, True):
        with pytest.raises(InputError, match="bits"):
            check_bits("bits of x", bits)
    for bits in (1, 12, 32):
        check_bits("bits of x", bits)
    assert math.isfinite(hard_swish_grid(1e-8, 8, 12).step)


FUSED = """
import torch
from micronet_lib.beyond import quantizers
x, grid = torch.linspace(-9, 9, 100_003), quantizers.hard_swish_grid(0.02, 8, 10)
for name, args in (
    ("hard_swish", quantizers._hard_swish_arguments(grid, 10)),
    ("linear", (20.0, -8.0, 7.0, 0.05)),
):
    plain = quantizers._ELEMENTWISE[name](x, *args)
    assert torch.equal(quantizers._compiled(name)(x, *args), plain), name
"""


@pytest.mark.slow
def test_compiled_code_of_one_instruction_set_is_not_run_with_another(tmp_path):
    """One cache on disk, as in a home folder or a container that moves between CPUs."""
    for capability in (None, "avx2", "default", None):
        chosen = {} if capability is None else {"ATEN_CPU_CAPABILITY": capability}
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), **chosen}
        ran = subprocess.run(
            [sys.executable, "-c", FUSED], env=env, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, (capability, ran.stderr[-500:])
