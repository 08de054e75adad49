"""Networks of small matrices, the seeds that make them, and the one thread that suits them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torchvision
from torch import Tensor, nn

from micronet_lib.architecture import Network, Wrapped, build, register
from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.scoring.rules import RULE_SETS


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


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All elements, one tensor after the other."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


def network(name: str = "micronet_v1_released", dtype: torch.dtype = torch.float32) -> MicroNet:
    torch.manual_seed(0)
    return build(name).to(dtype)


def scrambled(model: nn.Module) -> nn.Module:
    """In evaluation mode, with batch-norm statistics that are not the initial ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def orthogonal_layers() -> nn.Sequential:
    """A linear layer and a pointwise convolution that permute six channels, exactly."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Conv2d(6, 6, 1, bias=False))
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.eye(6).roll(1, 0).view(layer.weight.shape))
    return model


PLAIN_RULES = [n for n in RULE_SETS if n not in ("official_integer", "official_adder_tree")]
"""The rule sets for a network that is not in integers."""

TORCHVISION = ("torchvision_resnet18", "torchvision_mobilenet_v2")
"""Networks of another library, registered here; images are 32x32."""


@register("torchvision_resnet18")
def _resnet18(num_classes: int = 100) -> Network:
    return Wrapped(torchvision.models.resnet18(num_classes=num_classes), "fc")


@register("torchvision_mobilenet_v2")
def _mobilenet_v2(num_classes: int = 100, width_mult: float = 0.25) -> Network:
    model = torchvision.models.mobilenet_v2(num_classes=num_classes, width_mult=width_mult)
    return Wrapped(model, "classifier.1")
