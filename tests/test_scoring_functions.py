"""The price of every function that the counter knows, by hand, under the official rules."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.errors import InputError
from micronet_lib.scoring.bill import Score, score_network
from micronet_lib.scoring.functions import RULES

N = 4 * 6 * 6


class Call(nn.Module):
    """A function of the image as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor], *constants: Tensor) -> None:
        super().__init__()
        self.function = function
        for index, constant in enumerate(constants):
            self.register_buffer(f"constant{index}", constant)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.buffers())


def price(function: Callable[..., Tensor], *constants: Tensor) -> Score:
    return score_network(Call(function, *constants), "official", (4, 6, 6))


@pytest.mark.parametrize(
    ("function", "mults", "adds"),
    [
        # Copies and views.
        (lambda x: torch.cat([x[:, :2], x[:, 2:]], 1), 0, 0),
        (lambda x: torch.stack(x.chunk(2, 1)), 0, 0),
        (lambda x: x.split(2, 1)[1][:, None, ..., 1:], 0, 0),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 0, 0),
        (lambda x: F.interpolate(x, scale_factor=2), 0, 0),
        (lambda x: x.flatten(1).view(1, 4, -1).transpose(1, 2).unsqueeze(0).double(), 0, 0),
        (lambda x: F.dropout(x, 0.5, training=False), 0, 0),
        (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 15), 0, 0),
        # Numbers.
        (lambda x: x + 1, 0, N),
        (lambda x: 1 - x, 0, N),
        (lambda x: x * 2.0, N, 0),
        (lambda x: x / 6, N, 0),
        (lambda x: 6 / x, N, 0),
        (lambda x: x**2, N, 0),
        (lambda x: -x, N, 0),
        # Two activations.
        (lambda x: x[:, :2] + x[:, 2:], 0, N / 2),
        (lambda x: x[:, :2] - x[:, 2:], 0, N / 2),
        (lambda x: torch.add(x[:, :2], x[:, 2:], alpha=0.5), N / 2, N / 2),
        (lambda x: x[:, :2] * x[:, 2:], N / 2, 0),
        (lambda x: x * x[:, :1], N, 0),
        (lambda x: x[:, :2] / x[:, 2:], N / 2, 0),
        (lambda x: torch.maximum(x[:, :2], x[:, 2:]), N / 2, 0),
        (lambda x: x @ x, 6 * N, 5 * N),
        (lambda x: torch.bmm(x[0], x[0]), 6 * N, 5 * N),
        # In place.
        (lambda x: x[:, :2].add_(x[:, 2:]), 0, N / 2),
        (lambda x: x.sub_(1).mul_(2).div_(3), 2 * N, N),
        (lambda x: x.relu_().clamp_(max=1), 2 * N, 0),
        # Activations.
        (F.relu, N, 0),
        (nn.ReLU(inplace=True), N, 0),
        (F.relu6, 2 * N, 0),
        (lambda x: F.leaky_relu(x, 0.1), 2 * N, 0),
        (lambda x: x.clamp(0, 1), 2 * N, 0),
        (lambda x: x.clamp(min=0), N, 0),
        (F.hardswish, 4 * N, N),
        (F.hardsigmoid, 3 * N, N),
        (F.silu, 3 * N, N),
        (torch.sigmoid, 2 * N, N),
        (torch.abs, N, 0),
        (torch.exp, N, 0),
        # An exponential and a division each, a sum over 4 channels at 36 places.
        (lambda x: F.softmax(x, dim=1), 2 * N, 3 * 36),
        (lambda x: x.softmax(-1), 2 * N, 5 * 24),
        # Windows.
        (lambda x: x.mean((2, 3)), 4, 4 * 35),
        (lambda x: x.sum(1, keepdim=True), 0, 3 * 36),
        (lambda x: x.amax((2, 3)), 4 * 35, 0),
        (lambda x: F.avg_pool2d(x, 2), 4 * 9, 4 * 9 * 3),
        (lambda x: F.avg_pool2d(x, 2, stride=1), 4 * 25, 4 * 25 * 3),
        (lambda x: F.avg_pool2d(x, 3, stride=2, padding=1), 4 * 9, 4 * 9 * 8),
        (lambda x: F.avg_pool2d(x[0], (1, 3), stride=1), 4 * 24, 4 * 24 * 2),
        (lambda x: F.adaptive_avg_pool2d(x, 1), 4, 4 * 35),
        (lambda x: F.adaptive_avg_pool2d(x, (3, 4)), 48, 4 * (6 * 8 - 12)),  # windows 2 and 2, 2
        (lambda x: F.max_pool2d(x, 2), 4 * 9 * 3, 0),
        (lambda x: F.max_pool2d(x, 3, stride=2, padding=1), 4 * 9 * 8, 0),
        (lambda x: F.adaptive_max_pool2d(x, 1), 4 * 35, 0),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 4 * 4 * N, 3 * 4 * N),
    ],
)
def test_a_price_by_hand(function: Callable[[Tensor], Tensor], mults: float, adds: float) -> None:
    found = price(function)
    assert (found.num_mults, found.num_adds, found.param_storage) == (mults, adds, 0)


@pytest.mark.parametrize(
    ("function", "mults", "adds"),
    [
        (lambda x, c: x * c, N, 0),
        (lambda x, c: x / c, N, 0),
        (lambda x, c: c + x, 0, N),
        (lambda x, c: F.prelu(x, c.flatten()), 2 * N, 0),
    ],
)
def test_constants_that_meet_data_are_stored(
    function: Callable[[Tensor, Tensor], Tensor], mults: float, adds: float
) -> None:
    found = price(function, torch.ones(4, 1, 1))
    assert (found.num_mults, found.num_adds, found.num_params) == (mults, adds, 4)


def test_a_shuffle_of_channels_is_a_product_with_a_permutation_matrix() -> None:
    def shuffle(x: Tensor) -> Tensor:
        return x.view(1, 2, 2, 6, 6).transpose(1, 2).reshape(1, 4, 6, 6)

    found = price(shuffle)
    assert (found.num_mults, found.num_adds, found.num_params) == (N, 0, 4)
    assert found.mask_params == 4 * 4 / 32
    assert price(lambda x: x.view(1, 2, 2, 6, 6).transpose(1, 2)).score == 0
    # One channel in each group: nothing moves.
    assert price(lambda x: x.view(1, 4, 1, 6, 6).transpose(1, 2).reshape(1, 4, 6, 6)).score == 0


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (F.softplus, "softplus"),
        (lambda x: F.layer_norm(x, (6,)), "layer_norm"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "interpolate"),
        (lambda x: x[:, [1, 0, 3, 2]], "indexing"),
        (lambda x: x[x > 0], "indexing"),
        (lambda x: x * (x == 0), "eq"),
        (lambda x: x if x.sum() else -x, "__bool__"),
        (lambda x: x * x.amax().item(), "item"),
        (lambda x: F.dropout(x), "dropout"),
        (lambda x: F.batch_norm(x, None, None, training=True), "batch_norm"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "div"),
        (lambda x: torch.ops.aten.celu(x), "celu"),
    ],
)
def test_what_has_no_price_is_named_with_the_place(
    function: Callable[[Tensor], Tensor], named: str
) -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(Call(function)))
    with pytest.raises(InputError) as caught:
        score_network(model, "official", (4, 6, 6))
    message = str(caught.value)
    assert named in message
    assert "1.0 (Call)" in message
    assert "\n" not in message


def test_every_function_has_one_rule() -> None:
    from micronet_lib.scoring.functions import _FUNCTIONS

    assert len(RULES) == sum(len(names.split()) for _, names in _FUNCTIONS)
