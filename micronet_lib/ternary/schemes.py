"""Which weights become `+Wp`, 0 or `-Wn`, and the gradients that move them.

A layer keeps its weights as floats, the latent ones. In every step they are sorted into three bins,
`signs` of 1, 0 and -1, and the layer computes with `+Wp`, 0 and `-Wn`. Four schemes sort them:

- `ttq`: by a threshold, a fraction of the largest magnitude, or by a fixed fraction of zeros; the
  two scales are trained [zhu2017];
- `fixed`: by a number of standard deviations; one scale that follows from the shape [msunet];
- `entropy`: by distance and by what it costs to say which bin; trained scales [marban2020];
- `binary`: by the sign; one fixed scale [courbariaux2015, mbpm].
"""

import math
from typing import Any

import torch
from torch import Tensor

from micronet_lib.errors import InputError, is_number

SCHEMES = ("ttq", "fixed", "entropy", "binary")
TRAINED_SCALES = ("ttq", "entropy")
SMALLEST = 1e-5
"""Of a scale. Both bins on one side of 0 would be no ternary layer."""
HIGHEST = {"threshold": 1.0, "sparsity": 1.0, "deviations": 4.0, "strength": 1.0}
"""The numbers that weights are sorted by lie between 0 and these, which only a strength reaches."""


def check_setting(name: str, value: Any) -> None:
    """Raise an error unless a number that weights are sorted by is in its range.

    Args:
        name: of `HIGHEST`.
        value: the number.

    Raises:
        InputError: it is none, or outside its range.
    """
    high, reaches = HIGHEST[name], name == "strength"
    if not is_number(value) or not (0 <= value < high or (value == high and reaches)):
        to = " to" if reaches else ", less than"
        raise InputError(f"ternary {name} is {value!r}; give a number from 0{to} {high:g}")


def threshold_signs(weight: Tensor, threshold: float) -> Tensor:
    """Return 1 above the threshold, -1 below its negative, else 0; of the same shape.

    Args:
        weight: of any shape.
        threshold: a fraction of the largest magnitude [zhu2017].

    Raises:
        InputError: as for `check_setting`, also in the next three.
    """
    check_setting("threshold", threshold)
    sizes = weight.abs()
    return weight.sign() * (sizes > threshold * sizes.max())


def sparse_signs(weight: Tensor, sparsity: float) -> Tensor:
    """Return 0 for that fraction of smallest magnitudes, else the sign; of the same shape.

    Equal magnitudes go together, so there may be more zeros. The largest magnitude stays.
    """
    check_setting("sparsity", sparsity)
    num_zeros = min(round(sparsity * weight.numel()), weight.numel() - 1)
    if not num_zeros:
        return weight.sign()
    sizes = weight.abs()
    return weight.sign() * (sizes > sizes.flatten().kthvalue(num_zeros).values)


def deviation_signs(weight: Tensor, deviations: float) -> Tensor:
    """Return 1, 0 and -1 by standard deviations from the mean, of the same shape [msunet].

    0.67449 makes half of normally distributed weights zero.
    """
    check_setting("deviations", deviations)
    z = (weight - weight.mean()) / weight.std()
    return (z > deviations).to(weight.dtype) - (z < -deviations).to(weight.dtype)


def entropy_signs(weight: Tensor, scales: Tensor, strength: float) -> Tensor:
    """Return the bin of the lowest cost, 1, 0 or -1, of the same shape [marban2020].

    The cost of a bin `c` is `(weight - c)^2 + strength * largest * I_c`. `I_c` are the bits that it
    takes to say `c` if bins are as frequent as the nearest ones, but zero at least one in two.
    `largest` is the smaller of the two factors at which even the largest positive weight, or the
    largest negative one, would become zero.

    Args:
        weight: of any shape.
        scales: `[2]`, `Wp` and `Wn`.
        strength: in [0, 1]; 0 takes the nearest bin.
    """
    check_setting("strength", strength)
    bins = torch.stack([-scales[1], torch.zeros_like(scales[0]), scales[0]])
    distances = (weight.unsqueeze(-1) - bins).square()  # [..., 3]
    nearest = distances.argmin(-1)
    shares = torch.stack([(nearest == index).sum() for index in range(3)]) / weight.numel()
    zero = shares[1].clamp_min(0.5)
    outer = shares[::2]
    outer = outer * (1 - zero) / outer.sum().clamp_min(1 / weight.numel())
    bits = -torch.stack([outer[0], zero, outer[1]]).clamp_min(1 / weight.numel()).log2()
    ends = torch.stack([-weight.min(), weight.max()]).clamp_min(0)  # magnitudes
    sizes = scales.flip(0)
    reach = ends.square() - (sizes - ends).square()
    largest = (reach / (bits[::2] - bits[1]).clamp_min(1e-6)).min().clamp_min(0)
    return (distances + strength * largest * bits).argmin(-1).to(weight.dtype) - 1


def ternary_weight(weight: Tensor, signs: Tensor, scales: Tensor, trained: bool = True) -> Tensor:
    """Return `+Wp`, 0 and `-Wn` with gradients to scales and latent weights, of the same shape.

    `Wp` gets the sum of the gradient over its bin, `Wn` the negative sum over its own. For the
    latent weights, the estimator is straight through: the gradient passes as it is, and with
    trained scales times `Wp / m` and `Wn / m` in the outer bins [zhu2017]. `m` is the largest
    magnitude: the paper's latent weights are divided by it once.

    Args:
        weight: latent.
        signs: the bins, 1, 0 and -1.
        scales: `[2]`, `Wp` and `Wn`.
        trained: whether the scales are trained.
    """
    positive, negative = scales[0], scales[1]
    up, down = (signs > 0).to(weight.dtype), (signs < 0).to(weight.dtype)
    values = positive * up - negative * down
    latent = weight - weight.detach()  # 0, with a gradient
    if not trained:
        return values + latent
    largest = weight.detach().abs().max().clamp_min(SMALLEST)  # a layer may have only zeros
    sizes = (positive * up + negative * down).detach() / largest
    return values + (sizes + (1 - up - down)) * latent


def mean_scales(weight: Tensor, signs: Tensor) -> Tensor:
    """Return `Wp` and `Wn` of the smallest squared error, the mean size of each bin, `[2]`."""
    means = [
        (weight.abs() * chosen).sum() / chosen.sum().clamp_min(1)
        for chosen in (signs > 0, signs < 0)
    ]
    return torch.stack(means).clamp_min(SMALLEST)


def shape_scales(signs: Tensor) -> Tensor:
    """Return `Wp` and `Wn`, equal, as they follow from the shape of a layer, `[2]` [msunet].

    `sqrt(2 / fan_in / density)`: the outputs of a layer keep the size of its inputs.
    """
    fan_in = math.prod(signs.shape[1:])
    density = signs.count_nonzero().clamp_min(1) / signs.numel()
    return (2 / fan_in / density).sqrt().to(signs.dtype).expand(2)
