"""A network with ternary layers as a file holds it: two bitmasks and two scales a layer.

The latent weights are left out. So such a network runs and is counted like the one that it was made
of, to the last bit, and cannot be trained on. What is not ternary stays as it was.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from micronet_lib.architecture.network import Network, NetworkSpec, build, register
from micronet_lib.ternary.network import TernaryNetwork, WithTernaryLayers
from micronet_lib.ternary.packed import pack_ternary

NAME = "stored_ternary"
HIGHEST_BIT = 7


class Bitmasks(nn.Module):
    """The parametrization of one weight: bitmasks of `+Wp` and `-Wn` and the two scales in.

    A state has them under `original0`, `original1` (uint8, 8 positions each, the first in the
    highest bit) and `original2`.

    Args:
        shape: of the weight.
    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return bitmasks and scales of a ternary weight.

        Raises:
            InputError: as for `pack_ternary`.
        """
        packed = pack_ternary(weight)
        plus, minus = (
            torch.frombuffer(bytearray(bits), dtype=torch.uint8).to(weight.device)
            for bits in (packed.plus, packed.minus)
        )
        return plus, minus, weight.new_tensor([packed.positive, packed.negative])

    def forward(self, plus: Tensor, minus: Tensor, scales: Tensor) -> Tensor:
        """Return the weight that the layer computes with."""
        up, down = (self._positions(bits).to(scales.dtype) for bits in (plus, minus))
        return scales[0] * up - scales[1] * down

    def _positions(self, bits: Tensor) -> Tensor:
        shifts = torch.arange(HIGHEST_BIT, -1, -1, dtype=torch.uint8, device=bits.device)
        found = (bits.unsqueeze(1) >> shifts) & 1
        return found.flatten()[: self.shape.numel()].view(self.shape)


class StoredTernaryNetwork(WithTernaryLayers):
    """A network with ternary layers that are two bitmasks and two scales.

    Args:
        network: its named layers have weights of three values; changed in place.
        layers: their names.

    Raises:
        InputError: a weight of more values.
    """

    def __init__(self, network: Network, layers: Iterable[str]) -> None:
        super().__init__()
        self.network, self._names = network, tuple(layers)
        for layer in self.layers.values():
            layer.weight.requires_grad_(False)
            parametrize.register_parametrization(layer, "weight", Bitmasks(layer.weight.shape))
        inside = {"name": network.spec.name, "options": dict(network.spec.options)}
        self.spec = NetworkSpec(NAME, {"network": inside, "layers": list(self._names)})

    @property
    def layers(self) -> dict[str, Any]:
        """The ternary layers, under their names in the network inside."""
        found = dict(self.network.named_modules())
        return {name: found[name] for name in self._names}


def in_bitmasks(network: TernaryNetwork) -> StoredTernaryNetwork:
    """Return a network with ternary layers as a file holds it, in evaluation mode."""
    return StoredTernaryNetwork(network.plain(), network.layers).eval()


@register(NAME)
def _build(network: Mapping[str, Any], layers: Iterable[str]) -> StoredTernaryNetwork:
    """Build a network with stored ternary layers from its spec, all of them 0."""
    made = build(NetworkSpec(**network))
    found = dict(made.named_modules())
    with torch.no_grad():
        for name in layers:
            found[name].weight.zero_()
    return StoredTernaryNetwork(made, layers)
