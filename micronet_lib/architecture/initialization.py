"""Initialisation: the three ways that paper, code and README of [kim2020] name (chapter `02_srip`).

- `semi_orthogonal`, the paper's (section 3.1, after [saxe2013]): every weight as a matrix
  `[out_chs, fan_in]` is the Q of a QR factorisation, so all singular values are 1, the target of
  SRIP.
- `released`, the code's: normal weights without any factorisation.
- `trained_distribution`, the README's ("we initialized our networks with this obtained weight
  distribution"). The released code never applies it and neither text specifies it. We draw each
  weight from the values that a trained network has in its layers of the same kind.

All three set biases to 0 and batch norms to the identity. They draw on the generator's device, so a
seed gives the same network on every device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from micronet_lib.architecture.layers import layer_kind, layer_weights, plain_weight, weight_kinds
from micronet_lib.errors import InputError, check_choice

INITIALIZATIONS = ("semi_orthogonal", "released", "trained_distribution")
LINEAR_STD = 0.01  # of the released code's linear layer
NUM_QUANTILES = 1001  # every 0.1 %, minimum and maximum included


@dataclass(frozen=True)
class WeightDistribution:
    """Values of a trained network's weights by kind of layer (`layers.layer_kind`).

    Attributes:
        quantiles: for each kind, two or more ascending values at equally spaced probabilities from
            0 to 1: the inverse of the distribution function, linear in between.

    Raises:
        InputError: a kind with fewer values, or with values that descend or are not finite.
    """

    quantiles: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        for kind, values in self.quantiles.items():
            ascending = all(-math.inf < a <= b < math.inf for a, b in pairwise(values))
            if len(values) < 2 or not ascending:
                raise InputError(
                    f"quantiles of kind {kind!r} are {len(values)} numbers; give two or more, "
                    "finite and ascending"
                )

    def sample(self, kind: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Return independent draws of one kind, float32 of that shape on the generator's device.

        Raises:
            InputError: the distribution has no such kind.
        """
        check_choice("kind of layer in the weight distribution", kind, self.quantiles)
        device = generator.device
        quantiles = torch.tensor(self.quantiles[kind], device=device)
        place = torch.rand(shape, generator=generator, device=device) * (len(quantiles) - 1)
        below = place.long().clamp_max(len(quantiles) - 2)  # the product can round up to the end
        return torch.lerp(quantiles[below], quantiles[below + 1], place - below)


def distribution_of(model: nn.Module) -> WeightDistribution:
    """Return the weight distribution of a trained network, for `initialize`.

    Layers of one kind are pooled. Zeros are left out: in a pruned network they are the mask, so its
    distribution has a gap around 0. Remove weights that no gradient reached before the call
    (`dead_channels.remove_dead_gates` for a published network).

    Raises:
        InputError: a kind whose weights are all zero or not finite, or no layer at all.
    """
    pools: dict[str, list[Tensor]] = {}
    kinds = weight_kinds(model)
    for name, weight in layer_weights(model).items():
        if kinds[name] != "other":
            pools.setdefault(kinds[name], []).append(weight.detach().flatten())
    if not pools:
        raise InputError("this network has no convolution and no linear layer to take weights from")
    probabilities = torch.linspace(0, 1, NUM_QUANTILES, dtype=torch.float64)
    quantiles = {}
    for kind, pool in pools.items():
        values = torch.cat(pool).cpu().double()
        values = values[values != 0]
        if not (len(values) and values.isfinite().all()):
            raise InputError(f"the weights of kind {kind!r} are all zero or not finite")
        quantiles[kind] = tuple(values.quantile(probabilities).tolist())
    return WeightDistribution(quantiles)


@torch.no_grad()
def initialize(
    model: nn.Module,
    how: str,
    generator: torch.Generator,
    distribution: WeightDistribution | None = None,
) -> None:
    """Set every convolution, linear layer and batch norm in place, by one of `INITIALIZATIONS`.

    Layers are drawn in order. A distribution is required for `trained_distribution` and refused
    otherwise.

    Raises:
        InputError: unknown name; a distribution that is missing, not wanted, or lacks a kind; a
            weight that is no parameter.
    """
    check_choice("initialization", how, INITIALIZATIONS)
    if (how == "trained_distribution") != (distribution is not None):
        raise InputError(
            f"initialization {how!r} needs no distribution"
            if distribution
            else f"initialization {how!r} needs a distribution, as from distribution_of(network)"
        )
    for name, layer in model.named_modules():
        kind = layer_kind(name, layer)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_parameters()
        elif isinstance(layer, nn.Conv2d | nn.Linear) and kind is not None:
            if distribution is not None:
                values = distribution.sample(kind, layer.weight.shape, generator)
            elif how == "semi_orthogonal":
                values = semi_orthogonal(layer.weight.shape, generator)
            else:
                values = released(layer, generator)
            plain_weight(layer, name).copy_(values)
            if layer.bias is not None:
                layer.bias.zero_()


def semi_orthogonal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return a weight whose matrix `[out_chs, fan_in]` has all singular values 1, float32.

    [kim2020, section 3.1] is PyTorch's `orthogonal_`: factor a normal matrix (its transpose if
    wide), then multiply Q's columns by the signs of R's diagonal. Q is then uniform over all
    orthogonal matrices.
    """
    empty = torch.empty(shape, device=generator.device)
    return nn.init.orthogonal_(empty, generator=generator)


def released(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> Tensor:
    """Return a weight as the released code draws it, float32 in the shape of the layer's weight.

    N(0, 2 / (kernel area * out_chs)) in every convolution, depthwise too, and N(0, 0.01^2) in the
    linear layer; the second number is the variance.
    """
    std = LINEAR_STD
    if isinstance(layer, nn.Conv2d):
        std = math.sqrt(2 / (math.prod(layer.kernel_size) * layer.out_channels))
    empty = torch.empty(layer.weight.shape, device=generator.device)
    return empty.normal_(0, std, generator=generator)
