"""Squeeze-and-excitation removed as a whole. Chapter `11_beyond`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from micronet_lib.architecture.layers import check_plain_weights
from micronet_lib.architecture.micronet import MBConv, MicroNet
from micronet_lib.architecture.network import Network, evaluated
from micronet_lib.errors import InputError
from micronet_lib.hooks import Hook

BATCH = 256


@dataclass(frozen=True)
class RemoveGates:
    """Replace every gate by its mean over images, which goes into the batch norm before it.

    Attributes:
        num_images: training images for the means.
    """

    num_images: int = 512

    def apply(self, network: Network, images: Tensor) -> MicroNet:
        """Return the network without gates.

        Raises:
            InputError: another kind of network, one without gates, or no images.
        """
        return without_gates(network, images)

    def hooks(self, network: Network) -> Sequence[Hook]:
        """Return nothing: the change is made once."""
        return []


@torch.no_grad()
def without_gates(network: Network, images: Tensor) -> MicroNet:
    """Return a MicroNet whose gates are constants, the means over normalised images `[N, 3, H, W]`.

    Raises:
        InputError: another kind of network, one without gates, or with a weight that is computed
            from other tensors; or no images.
    """
    if not isinstance(network, MicroNet):
        raise InputError(f"gates are removed from MicroNets only, not {type(network).__name__}")
    check_plain_weights(network)
    old = network.architecture
    if not any(config.se_chs for config in old.blocks):
        raise InputError("this network has no gates to remove")
    if not len(images):
        raise InputError("no images to measure the gates with")
    means = _mean_gates(network, images)
    configs = tuple(replace(config, se_chs=0) for config in old.blocks)
    made = MicroNet(replace(old, stem_chs=old.scaled_stem_chs, width_mult=1.0, cut_blocks=configs))
    made.to(images.device)
    state = network.state_dict()
    made.load_state_dict({name: state[name] for name in made.state_dict()})
    for index, mean in means.items():
        block: Any = made.blocks[index]
        block.bn_project.weight *= mean
        block.bn_project.bias *= mean
    return made.train(network.training)


def _mean_gates(network: MicroNet, images: Tensor) -> dict[int, Tensor]:
    """Return block -> mean gate of each channel, `[C]`, of the blocks that multiply with it."""
    sums: dict[int, Tensor] = {}

    def watch(index: int, gates: Tensor) -> None:
        sums[index] = sums.get(index, 0) + gates.sum((0, 2, 3))

    blocks = [b for b in network.blocks if isinstance(b, MBConv)]
    handles = [
        block.se.register_forward_hook(lambda _, __, out, i=index: watch(i, out))
        for index, block in enumerate(blocks)
        if block.se is not None and block.config.se_applied
    ]
    try:
        with evaluated(network):
            for batch in images.split(BATCH):
                network(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {index: total / len(images) for index, total in sums.items()}
