"""SRIP: keep the matrices of a network near orthogonal, with one power step for each matrix.

The penalty of [bansal2018] (spectral restricted isometry property). [kim2020, section 3.1 and
appendix C] applies it to pointwise convolutions only (chapter `02_srip`). A weight is the matrix
`W`, `[out_chs, fan_in]`. Its distance from orthogonal is the spectral norm of a symmetric `A`,
estimated from a random start `u` as `sigma = |A A u| / |A u|`. Paper and released code differ:

| definition | A | of a matrix | of a network |
|---|---|---|---|
| `paper` | `W W' - I`, `[out_chs, out_chs]` | sigma | coef * mean, coef 1.0 |
| `released` | `W' W - I`, `[fan_in, fan_in]` | sigma squared | coef * mean, coef 0.7 |

A is never formed. With `M = W'` (paper) or `M = W` (released), `A x = M'(M x) - x`. Where M is
wide, A has the eigenvalue -1, so its norm is at least 1.

This module is the definition, for autograd. `batches.Srip` computes the same value and gradient in
closed form for the training loop.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from micronet_lib.architecture.layers import KINDS, POINTWISE, layer_kind, plain_weight
from micronet_lib.errors import InputError, check_choice

Definition = Literal["paper", "released"]
Start = Literal["fresh", "warm"]

PLACEMENTS: dict[str, tuple[str, ...]] = {
    "fc": ("fc",),
    "depthwise": ("depthwise",),
    "pointwise": POINTWISE,
    "all": tuple(kind for kind in KINDS if kind != "other"),
    **{kind: (kind,) for kind in ("expand", "project", "shortcut", "se")},
}
"""The kinds of layer (`layer_kind`) in each placement: [kim2020, Table 6]'s four, and single kinds.
"""


@dataclass(frozen=True)
class SripConfig:
    """Settings of SRIP. Other values than these raise `InputError`.

    Attributes:
        coef: factor of the mean over the matrices; 0 switches SRIP off. The paper uses 1.0 with its
            definition, the released code 0.7 with its own.
        placement: a name of `PLACEMENTS`.
        definition: `paper` or `released`, see the module.
        start: `fresh` draws `u` anew for every matrix and step. `warm` continues from the last
            iterate, a different regulariser: on v1 with orthogonal weights and noise of 0.02 it
            reaches the exact norm's gradient in 200 steps. A fresh draw's gradient has a cosine of
            0.3 to 0.4 with its mean, and the mean 0.6 with the exact gradient.
    """

    coef: float = 1.0
    placement: str = "pointwise"
    definition: Definition = "paper"
    start: Start = "fresh"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coef) and self.coef >= 0):
            raise InputError(f"SRIP's coef is {self.coef}; give a finite number, 0 (off) or more")
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("definition", self.definition, get_args(Definition))
        check_choice("start", self.start, get_args(Start))


def srip_weights(model: nn.Module, placement: str) -> dict[str, nn.Parameter]:
    """Return the weights of a placement by name, in network order.

    `pointwise` is the released code's choice: every 1x1 convolution, shortcuts and
    squeeze-and-excitation included, without the linear layer; 68 tensors in `micronet_v1_released`.
    A depthwise weight `[C, 1, 3, 3]` is a `C x 9` matrix. `all` adds the stem, `32 x 27`.

    Raises:
        InputError: unknown placement; no such layer; or a weight that is no parameter.
    """
    check_choice("placement", placement, PLACEMENTS)
    layers = dict(model.named_modules())
    kinds = {name: layer_kind(name, layer) for name, layer in layers.items()}
    chosen = {
        f"{name}.weight": plain_weight(layers[name], name)
        for name, kind in kinds.items()
        if kind in PLACEMENTS[placement]
    }
    if not chosen:
        found = ", ".join(sorted({kind for kind in kinds.values() if kind})) or "none with a matrix"
        raise InputError(f"no layer at placement {placement!r}; this network has: {found}")
    return chosen


def srip_penalty(
    weight: Tensor,
    u: Tensor | None = None,
    definition: Definition = "paper",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return sigma (`paper`) or sigma squared (`released`) of one matrix, 0-d, differentiable.

    The gradient flows through both applications of A. Where A u is exactly 0, both are 0. Elsewhere
    the gradient of sigma does not shrink with sigma.

    Args:
        weight: `[out_chs, fan_in]`, or a convolution's; half precision is raised to float32.
        u: start vector, `[out_chs]` (`paper`) or `[fan_in]` (`released`); drawn from N(0, 1) if
            None.
        definition: `paper` or `released`, see the module.
        generator: random numbers, on the weight's device.

    Raises:
        InputError: unknown definition; a weight of fewer than two dimensions; a start vector or
            generator that does not fit.
    """
    with torch.autocast(weight.device.type, enabled=False):
        matrix = as_matrix(weight, definition)
        if u is None:
            u = draw_start(matrix.new_empty(matrix.shape[1]), generator)
        if u.shape != matrix.shape[1:]:
            raise InputError(
                f"start vector of shape {tuple(u.shape)}: weight {tuple(weight.shape)} needs "
                f"({matrix.shape[1]},) by definition {definition!r}"
            )
        a = matrix.mT @ (matrix @ u) - u
        b = matrix.mT @ (matrix @ a) - a
        norm_a, norm_b = torch.linalg.vector_norm(a), torch.linalg.vector_norm(b)
        sigma = norm_b / norm_a.clamp_min(torch.finfo(a.dtype).tiny)
        return sigma if definition == "paper" else sigma.square()


def srip_network_penalty(
    weights: Mapping[str, Tensor],
    config: SripConfig,
    us: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the loss term: `coef` times the mean of `srip_penalty` over the matrices, 0-d.

    Weights are as from `srip_weights(model, config.placement)`. Without start vectors `us` by name,
    all are drawn at once, the same as in `batches.Srip`, on the weights' device.
    """
    if us is None:
        matrices = [as_matrix(weight, config.definition) for weight in weights.values()]
        sizes = [matrix.shape[1] for matrix in matrices]
        drawn = draw_start(matrices[0].new_empty(sum(sizes)), generator)
        us = dict(zip(weights, drawn.split(sizes), strict=True))
    penalties = [srip_penalty(w, us[name], config.definition) for name, w in weights.items()]
    return config.coef * torch.stack(penalties).mean()


def spectrum(weight: Tensor) -> Tensor:
    """Return a weight's singular values as a matrix, `[min(out_chs, fan_in)]`, largest first."""
    return torch.linalg.svdvals(as_matrix(weight, "released"))


def exact_deviation(weight: Tensor, definition: Definition) -> Tensor:
    """Return the exact spectral norm of A, 0-d. The power step estimates it from below.

    It is at least 1 where A's matrix product is singular: for `released` in a wide weight
    (`out_chs` less than `fan_in`), for `paper` in a tall one.
    """
    rows, columns = as_matrix(weight, definition).shape
    deviation = (spectrum(weight).square() - 1).abs().max()
    return deviation.clamp_min(1) if rows < columns else deviation


def as_matrix(weight: Tensor, definition: Definition) -> Tensor:
    """Return a weight as the matrix M of the module's docstring, in float32 at least.

    A convolution's weight is flattened to `[out_chs, fan_in]`. M is that (`released`) or its
    transpose (`paper`). A start vector has one element for each column.

    Raises:
        InputError: unknown definition, or a weight of fewer than two dimensions.
    """
    check_choice("definition", definition, get_args(Definition))
    if weight.ndim < 2:
        raise InputError(f"a weight of {weight.ndim} dimensions is no matrix; SRIP needs 2 or more")
    matrix = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    return matrix.mT if definition == "paper" else matrix


def draw_start(target: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fill start vectors, one or many in a row, with N(0, 1) numbers in place, and return them.

    Raises:
        InputError: the generator is on another device.
    """
    if generator is not None and generator.device.type != target.device.type:
        kind = target.device.type
        raise InputError(
            f"generator on {generator.device}, weights on {kind}: use torch.Generator({kind!r})"
        )
    return target.normal_(generator=generator)
