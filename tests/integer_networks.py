"""Small networks in integers: narrow, pruned, with averages that fit, and calibrated."""

from functools import cache

import torch
from small_networks import seeded
from torch import Tensor

from micronet_lib.architecture import MicroNet, build
from micronet_lib.beyond.allocation import trimmed
from micronet_lib.beyond.network import IntegerMicroNet, Widths, in_integers
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.pruning.masks import apply_masks, magnitude_masks, prunable_weights

NAMES = ("micronet_v1", "micronet_v2", "table1_2.0")
"""With shortcuts, wider ones, and gates in blocks of stride 2."""


@cache
def images(number: int) -> Tensor:
    """Normalised images of the embedded set."""
    return normalize(load_split("embedded", "validation").images[:number])


@cache
def _plain(name: str, seed: int) -> MicroNet:
    torch.manual_seed(seed)
    network = build(name, width_mult=0.25)
    assert isinstance(network, MicroNet)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean over all batches
        network.train()
        for _ in range(2):
            network(images(64))
        network.eval()
    apply_masks(network, magnitude_masks(prunable_weights(network), 0.4))
    return network


def random_widths(seed: int) -> int:
    """A number for `integer_network` that stands for widths drawn from a seed."""
    return -1 - seed


def integer_network(
    name: str = "micronet_v1", seed: int = 0, widths: int | None = 8
) -> tuple[MicroNet, IntegerMicroNet]:
    """The plain network and its copy in integers: all widths alike, drawn, or 32 bits for None."""
    plain = _plain(name, seed)
    network = in_integers(plain)
    if widths is None:
        return plain, network
    if widths > 0:
        chosen = Widths(
            dict.fromkeys(network.layers, widths),
            dict.fromkeys(network.quantizers, widths),
            dict.fromkeys(network.layers, 10),
            12,
        )
    else:
        generator = seeded(-widths)

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (1,), generator=generator))

        chosen = Widths(
            {name: draw(1, 8) for name in network.layers},
            {name: draw(3, 8) for name in network.quantizers},
            {name: draw(5, 12) for name in network.layers},
            draw(8, 12),
        )
    network.set_widths(chosen)
    network.calibrate(images(32))
    return plain, network


KINDS = (*(f"{name}-{seed}" for name in NAMES for seed in (0, 1)), "trimmed", "dense")
"""Networks with drawn widths; without some hidden channels, so that no table has its widths; of 8
bits and with no weight that is 0."""


@cache
def network_of(kind: str) -> IntegerMicroNet:
    """The network of one of `KINDS`, in evaluation mode. Nobody may change it."""
    if kind not in ("trimmed", "dense"):
        name, seed = kind.split("-")
        return integer_network(name, widths=random_widths(int(seed)))[1].eval()
    _, network = integer_network(widths=None)
    with torch.no_grad():
        if kind == "trimmed":
            for block in network.quantized_blocks():
                gone = torch.rand(block.config.hidden_chs, generator=seeded(0)) < 0.3
                block.conv_project.weight[:, gone] = 0
            network = trimmed(network)
        else:
            for layer in network.layers.values():
                layer.weight += (layer.weight == 0) * 1e-3
    weights, inputs, biases, pre = (3, 6, 8, 10) if kind == "trimmed" else (8, 8, 12, 12)
    network.set_widths(
        Widths(
            dict.fromkeys(network.layers, weights),
            dict.fromkeys(network.quantizers, inputs),
            dict.fromkeys(network.layers, biases),
            pre,
        )
    )
    network.calibrate(images(32))
    return network.eval()
