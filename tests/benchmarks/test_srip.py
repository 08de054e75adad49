"""One SRIP step, value and gradient: the loop over layers against the library's batches.

The baseline is how such code is usually written: for each weight the Gram matrix, a chain of
normalised products, one sum, and autograd through all of it.
"""

from collections.abc import Iterator

import pytest
import torch
from plain_step import gram_loop
from ratios import compare
from small_networks import single_thread
from torch import Tensor

from micronet_lib.architecture import build
from micronet_lib.srip.batches import Srip
from micronet_lib.srip.penalty import SripConfig, srip_network_penalty, srip_weights

TARGET = 5.0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_thread():  # none of the ways gains from more
        yield


def test_srip() -> None:
    torch.manual_seed(0)
    model = build("micronet_v1_released")
    config = SripConfig(coef=0.7, definition="released")
    weights = srip_weights(model, config.placement)
    srip = Srip(model, config)

    def draw() -> dict[str, Tensor]:
        return {name: torch.randn(weight.shape[1]) for name, weight in weights.items()}

    ways = {
        "loop, Gram matrices, autograd": lambda: gram_loop(weights, 0.7, draw()).backward(),
        "loop, products only, autograd": lambda: srip_network_penalty(weights, config).backward(),
        "library: padded batches, closed form": srip.value_and_grad,
    }
    rows = {"library: padded batches, closed form": "SRIP value and gradient"}
    medians = list(compare(ways, 1, "steps", rounds=30, rows=rows).values())

    sizes = [weight.shape[1] for weight in weights.values()]
    drawn = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(1)).split(sizes)
    model.zero_grad()
    expected = gram_loop(weights, 0.7, dict(zip(weights, drawn, strict=True)))
    expected.backward()
    theirs = [weight.grad for weight in weights.values()]
    model.zero_grad()
    torch.testing.assert_close(
        srip.value_and_grad(torch.Generator().manual_seed(1)), expected.detach()
    )
    for weight, grad in zip(weights.values(), theirs, strict=True):
        assert (weight.grad - grad).norm() < 1e-5 * grad.norm()
    assert medians[0] / medians[2] > TARGET
