"""Rating a network on the CPU: the plain eager loop against the library's.

The baseline is how such code is usually written: NCHW tensors, batch norm as a layer of its own,
HardSwish in four operations, 100 images a batch.
"""

import torch
from plain_step import plain
from ratios import compare
from torch import Tensor, nn

from micronet_lib.architecture import build
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.lab.training.evaluation import fold_batch_norm, logits_of


@torch.no_grad()
def plain_logits(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(normalize(batch)) for batch in images.split(100)])


def test_evaluation() -> None:
    torch.manual_seed(0)
    model = build("micronet_v1_released").eval()
    images = load_split("embedded", "test").images
    baseline = plain(model)
    ways = {
        "plain eager, NCHW, batch 100": lambda: plain_logits(baseline, images),
        "channels_last, F.hardswish, batch 25": lambda: logits_of(
            model.to(memory_format=torch.channels_last), images
        ),
        "library: folded, in place, no dead gates": lambda: logits_of(
            fold_batch_norm(model), images
        ),
    }
    compare(ways, len(images), "images")
    expected = plain_logits(baseline, images).argmax(1)
    assert torch.equal(logits_of(fold_batch_norm(model), images).argmax(1), expected)
