"""Networks of small matrices, the seeds that make them, and the one thread that suits them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from micronet_lib.architecture.micronet import MicroNet, build


@contextmanager
def single_thread() -> Iterator[None]:
    """Matrices this small gain nothing from more, and lose a lot on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(name: str = "micronet_v1_released", dtype: torch.dtype = torch.float32) -> MicroNet:
    torch.manual_seed(0)
    return build(name).to(dtype)


def orthogonal_layers() -> nn.Sequential:
    """A linear layer and a pointwise convolution that permute six channels, exactly."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Conv2d(6, 6, 1, bias=False))
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.eye(6).roll(1, 0).view(layer.weight.shape))
    return model
