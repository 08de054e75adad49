"""SRIP: keep a network's matrices near orthogonal, with one power step a matrix.

The spectral restricted isometry property penalty of [bansal2018], which [kim2020, section 3.1 and
appendix C] put on the pointwise convolutions alone (chapter `02_srip`). A weight is the matrix `W`
of `[out_chs, fan_in]`; its distance from orthogonal is the spectral norm of a symmetric `A`,
estimated from a random start `u` as `sigma = |A A u| / |A u|`. Paper and released code differ:

| definition | A | of a matrix | of a network |
|---|---|---|---|
| `paper` | `W W' - I`, `[out_chs, out_chs]` | sigma | coef * mean, coef 1.0 |
| `released` | `W' W - I`, `[fan_in, fan_in]` | sigma squared | coef * mean, coef 0.7 |

A is never formed. With `M = W'` (paper) or `M = W` (released), `A x = M'(M x) - x`. Where M is
wide, A has the eigenvalue -1 whatever the weights are: the norm cannot fall under 1 there.

This module is the definition, for autograd. For the training loop, `batches.Srip` has the same
value and gradient in closed form, on batches of matrices.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from micronet_lib.architecture.layers import KINDS, POINTWISE, layer_kind
from micronet_lib.errors import InputError, unknown

Definition = Literal["paper", "released"]
Start = Literal["fresh", "warm"]

PLACEMENTS: dict[str, tuple[str, ...]] = {
    "fc": ("fc",),
    "depthwise": ("depthwise",),
    "pointwise": POINTWISE,
    "all": tuple(kind for kind in KINDS if kind != "other"),
    **{kind: (kind,) for kind in ("expand", "project", "shortcut", "se")},
}
"""The kinds of layer (`layer_kind`) in each placement: [kim2020, Table 6]'s four, then finer."""


@dataclass(frozen=True)
class SripConfig:
    """How a network is regularised; anything but these values raises `InputError`.

    Attributes:
        coef: factor of the mean over the matrices; 0 switches the penalty off. The paper's 1.0 goes
            with its definition, 0.7 with the released one.
        placement: a name of `PLACEMENTS`.
        definition: `paper` or `released`, see the module.
        start: `fresh` draws `u` anew for every matrix and step. `warm` keeps the last iterate,
            which is another regulariser: on v1 with orthogonal weights and noise of 0.02 it comes
            to the gradient of the exact norm in 200 steps. A fresh draw's is mostly noise
            (cosine 0.3 to 0.4 with its own mean), and even that mean has a cosine of only 0.6 with
            the exact one.
    """

    coef: float = 1.0
    placement: str = "pointwise"
    definition: Definition = "paper"
    start: Start = "fresh"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coef) and self.coef >= 0):
            raise InputError(f"SRIP's coef is {self.coef}; give a finite number, 0 (off) or more")
        _check("placement", self.placement, PLACEMENTS)
        _check("definition", self.definition, get_args(Definition))
        _check("start", self.start, get_args(Start))


def _check(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise unknown(what, name, known)


def srip_weights(model: nn.Module, placement: str) -> dict[str, nn.Parameter]:
    """The weights that a placement means, in the network's order.

    `pointwise` is the released code's choice: every convolution whose kernel is one wide, shortcuts
    and squeeze-and-excitation too, the linear layer not; 68 tensors in `micronet_v1_released`. A
    depthwise weight `[C, 1, 3, 3]` counts as a `C x 9` matrix. `all` adds the stem, `32 x 27`.

    Raises:
        InputError: unknown placement, or the network has no such layer.
    """
    _check("placement", placement, PLACEMENTS)
    kinds = {name: layer_kind(name, layer) for name, layer in model.named_modules()}
    chosen = {
        f"{name}.weight": model.get_parameter(f"{name}.weight")
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
    """One matrix's penalty: sigma (`paper`) or sigma squared (`released`), 0-d, differentiable.

    The gradient flows through both applications of A. Where A u is exactly 0, so are penalty and
    gradient; elsewhere the gradient of sigma, as of any norm, does not shrink with it.

    Args:
        weight: `[out_chs, fan_in]`, or a convolution's, flattened to that; half precision is
            computed in float32.
        u: start vector, `[out_chs]` (`paper`) or `[fan_in]` (`released`); else drawn from N(0, 1).
        definition: `paper` or `released`, see the module.
        generator: to draw from, on the weight's device.

    Raises:
        InputError: unknown definition; a weight of fewer than two dimensions; a start vector or a
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
    """The term of the loss: `coef` times the mean of `srip_penalty` over the matrices, 0-d.

    Args:
        weights: as from `srip_weights(model, config.placement)`.
        config: its `coef` and `definition` count here.
        us: a start vector each; else all are drawn at once, those of `batches.Srip`.
        generator: to draw from, on the weights' device.
    """
    if us is None:
        matrices = [as_matrix(weight, config.definition) for weight in weights.values()]
        sizes = [matrix.shape[1] for matrix in matrices]
        drawn = draw_start(matrices[0].new_empty(sum(sizes)), generator)
        us = dict(zip(weights, drawn.split(sizes), strict=True))
    penalties = [srip_penalty(w, us[name], config.definition) for name, w in weights.items()]
    return config.coef * torch.stack(penalties).mean()


def spectrum(weight: Tensor) -> Tensor:
    """Singular values of a weight as a matrix, `[min(out_chs, fan_in)]`, largest first."""
    return torch.linalg.svdvals(as_matrix(weight, "released"))


def exact_deviation(weight: Tensor, definition: Definition) -> Tensor:
    """The spectral norm of A, which the power step estimates from below; 0-d.

    At least 1 where the shape makes A's matrix product singular: for `released` in a wide weight
    (`out_chs` less than `fan_in`), for `paper` in a tall one.
    """
    rows, columns = as_matrix(weight, definition).shape
    deviation = (spectrum(weight).square() - 1).abs().max()
    return deviation.clamp_min(1) if rows < columns else deviation


def as_matrix(weight: Tensor, definition: Definition) -> Tensor:
    """A weight as M of the module's docstring, the matrix whose power step is taken.

    Args:
        weight: `[out_chs, fan_in]`, or a convolution's, flattened to that.
        definition: `paper` or `released`.

    Returns:
        `[fan_in, out_chs]` (`paper`) or `[out_chs, fan_in]` (`released`), in float32 at least;
        start vectors have as many elements as M has columns.

    Raises:
        InputError: unknown definition, or a weight of fewer than two dimensions.
    """
    _check("definition", definition, get_args(Definition))
    if weight.ndim < 2:
        raise InputError(f"a weight of {weight.ndim} dimensions is no matrix; SRIP needs 2 or more")
    matrix = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    return matrix.mT if definition == "paper" else matrix


def draw_start(target: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fill start vectors, of any shape, with N(0, 1) numbers in place; returns them.

    Args:
        target: one vector, or those of many matrices one after the other.
        generator: to draw from, on the target's device; None for PyTorch's own.

    Raises:
        InputError: the generator is on another device.
    """
    if generator is not None and generator.device.type != target.device.type:
        kind = target.device.type
        raise InputError(
            f"generator on {generator.device}, weights on {kind}: use torch.Generator({kind!r})"
        )
    return target.normal_(generator=generator)
