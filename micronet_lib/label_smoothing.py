"""Adaptive label smoothing [kim2020, section 3.2]: similar classes get more of the smoothing.

A target puts `1 - smoothing` on the true class y and distributes `smoothing` over the other classes
by u(k | y). u is computed from the classifier: s is the cosine similarity of two of its rows, T the
temperature. `SmoothingConfig.form` chooses one of the published forms of u:

- `none`: no smoothing, one-hot targets.
- `uniform`: 1 / (C - 1) on each other class, as in the released code. The paper and PyTorch's
  `label_smoothing` use all C classes. That gives the same target at `label_smoothing = smoothing *
  C / (C - 1)`.
- `paper`: equation 3, softmax of s / T over the other classes.
- `released`: the code [micronet_code], softmax of |s| / T with T = 1. Opposite directions count as
  similar. As |s| lies in [0, 1], two entries of a row differ by at most a factor of e at T = 1, so
  u is close to uniform.
- `slide`: the organisers' slide [gale2020] as printed, s / (sum over j of exp|s_j|). The numerator
  lacks exp. An entry is negative where s is, and cross-entropy has no minimum there. As |s| <=
  exp|s| / e, a row sums to at most 1 / e (about 0 in the published networks), so most of
  `smoothing` is lost. We do not normalise it, because no factor corrects a sign. With exp|s| in the
  numerator it equals `released`; train with that.

Chapter `03_label_smoothing` compares them.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from micronet_lib.errors import InputError, check_choice

Form = Literal["none", "uniform", "paper", "released", "slide"]


@dataclass(frozen=True)
class SmoothingConfig:
    """Settings of label smoothing. The default numbers are the paper's.

    Attributes:
        form: of u(k | y), see the module. `none` ignores the two numbers.
        smoothing: epsilon, the probability taken from the true class; in [0, 1).
        temperature: T of `paper` and `released`. Near 0 the most similar class gets everything;
            towards infinity all other classes get the same.

    Raises:
        InputError: unknown form, or a number outside its range.
    """

    form: Form = "none"
    smoothing: float = 0.2
    temperature: float = 0.2

    def __post_init__(self) -> None:
        check_choice("smoothing form", self.form, get_args(Form))
        if not 0 <= self.smoothing < 1:
            raise InputError(f"smoothing {self.smoothing} is not in [0, 1); the paper has 0.2")
        if not 0 < self.temperature < math.inf:
            raise InputError(
                f"temperature {self.temperature} is not a finite number above 0; the paper has 0.2"
            )


# The default of the released code, also of the commands in its README.
HARD_LABELS = SmoothingConfig("none")
PAPER_SMOOTHING = SmoothingConfig("paper", smoothing=0.2, temperature=0.2)
# The code smooths the dense training more than the rounds of pruning.
RELEASED_DENSE = SmoothingConfig("released", smoothing=0.3, temperature=1.0)
RELEASED_PRUNE = SmoothingConfig("released", smoothing=0.1, temperature=1.0)
# Its option `labelsmooth`, for rounds of pruning only: dense training stops at a NameError.
RELEASED_UNIFORM = SmoothingConfig("uniform", smoothing=0.1, temperature=1.0)
# The slide prints no value for epsilon; this is the paper's.
SLIDE = SmoothingConfig("slide", smoothing=0.2, temperature=1.0)


def class_similarity(weight: Tensor) -> Tensor:
    """Return the cosine similarity of every two classes, symmetric, in [-1, 1], `[C, C]`.

    The classifier's weight is `[C, D]`, one row for each class (a column of the paper's W). A row
    of zeros has similarity 0 with every class, itself included. The result is float64 for float64
    weights, else float32.

    Raises:
        InputError: not a matrix of at least two rows.
    """
    if weight.ndim != 2 or len(weight) < 2:
        raise InputError(
            f"the classifier's weight is {list(weight.shape)}; expected [C, D] with C at least 2"
        )
    with torch.autocast(weight.device.type, enabled=False):
        rows = F.normalize(weight.to(torch.promote_types(weight.dtype, torch.float32)), dim=1)
        return (rows @ rows.T).clamp(-1, 1)


def smoothing_distribution(weight: Tensor, config: SmoothingConfig) -> Tensor:
    """Return u(k | y), the distribution of the smoothing over the other classes, `[C, C]`.

    Row y is for true class y; the diagonal is zero. Rows of `uniform`, `paper` and `released` are
    probabilities, those of `slide` are as printed, those of `none` are zero. The classifier's
    weight `[C, D]` receives no gradient, because targets are constants.

    Raises:
        InputError: not a matrix of at least two rows.
    """
    similarity = class_similarity(weight.detach())
    itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    if config.form == "none":
        return torch.zeros_like(similarity)
    if config.form == "uniform":
        return torch.full_like(similarity, 1 / (len(similarity) - 1)).masked_fill(itself, 0)
    if config.form == "slide":
        partition = similarity.abs().exp().masked_fill(itself, 0).sum(1, keepdim=True)
        return similarity.masked_fill(itself, 0) / partition
    alike = similarity if config.form == "paper" else similarity.abs()
    # |s| <= 1, so dividing by the smallest normal number does not overflow yet.
    temperature = max(config.temperature, torch.finfo(alike.dtype).tiny)
    return torch.softmax(alike.masked_fill(itself, -torch.inf) / temperature, dim=1)


def target_table(weight: Tensor, config: SmoothingConfig) -> Tensor:
    """Return the target of every class: `(1 - smoothing) I + smoothing u`, one-hot for form `none`.

    Returns:
        `[C, C]`, row y is the target of an image of class y. Arguments and errors are those of
        `smoothing_distribution`.
    """
    u = smoothing_distribution(weight, config)
    one_hot = torch.eye(len(u), dtype=u.dtype, device=u.device)
    if config.form == "none":
        return one_hot
    return (1 - config.smoothing) * one_hot + config.smoothing * u


def smoothed_targets(
    table: Tensor,
    targets: Tensor,
    targets_b: Tensor | None = None,
    lam: float | Tensor | None = None,
) -> Tensor:
    """Look up the targets of a batch. Mix them where the images are mixed (CutMix, mixup).

    The table is `[C, C]`, from `target_table`; classes are `[N]`, int64 or int32. `lam` is the
    weight of the first image, in [0, 1]: a number, a 0-d tensor, or `[N]` for a weight per image. A
    captured CUDA graph needs a tensor; its values are not checked.

    Returns:
        `[N, C]`: `table[targets]`, or `lam table[targets] + (1 - lam) table[targets_b]`.

    Raises:
        InputError: only one of `targets_b` and `lam` is given, `lam` is outside [0, 1], or a tensor
            has the wrong shape or type.
    """
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise InputError(f"the table of targets is {list(table.shape)}; expected [C, C]")
    if (targets_b is None) != (lam is None):
        raise InputError("targets_b and lam belong together: give both to mix, neither not to")
    for classes in (targets,) if targets_b is None else (targets, targets_b):
        if classes.ndim != 1 or classes.shape != targets.shape:
            raise InputError(
                f"class numbers are {list(classes.shape)}; expected [N], as many of targets_b"
            )
        if classes.dtype not in (torch.int64, torch.int32):
            raise InputError(f"class numbers are {classes.dtype}; expected int64 or int32")
    soft = table.index_select(0, targets)
    if targets_b is None or lam is None:
        return soft
    if isinstance(lam, Tensor):
        if lam.shape not in ((), targets.shape):
            raise InputError(f"lam is {list(lam.shape)}; expected a number or [{len(targets)}]")
        lam = lam.to(table.dtype).unsqueeze(-1)
    elif not 0 <= lam <= 1:
        raise InputError(f"lam {lam} is not in [0, 1]; it is the first image's share")
    return lam * soft + (1 - lam) * table.index_select(0, targets_b)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy against distributions, `-sum_k targets log_softmax(logits)`.

    It is linear in the targets. So one loss on mixed targets equals the released code's `lam
    loss(logits, a) + (1 - lam) loss(logits, b)`, in value and gradient. Both are `[N, C]`; logits
    are raised to the precision of the targets if theirs is lower.

    Returns:
        Mean over N, 0-d, in nats.

    Raises:
        InputError: not two matrices of the same shape.
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise InputError(
            f"logits are {list(logits.shape)}, targets {list(targets.shape)}; expected two [N, C] "
            "(smoothed_targets turns class numbers into them)"
        )
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, targets.dtype)), targets)


def nearest_classes(similarity: Tensor, k: int) -> Tensor:
    """Return the k other classes most similar to each, `[C, k]`, from `class_similarity`'s matrix.

    Most similar first, of equals the smaller number. Raises InputError if k is not in [1, C - 1].
    """
    if not 1 <= k < len(similarity):
        raise InputError(f"k {k} is not from 1 to {len(similarity) - 1}, the number of others")
    itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    others = similarity.masked_fill(itself, -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :k]


def class_tree(similarity: np.ndarray) -> np.ndarray:
    """Return the average linkage of the classes at distance 1 - cosine, as scipy's linkage matrix.

    The most similar classes are joined first. Neighbours among the leaves are as similar as the
    tree allows (optimal leaf ordering). Needs scipy.

    Args:
        similarity: `[C, C]` of cosines.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = 1 - np.asarray(similarity, dtype=np.float64)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    return linkage(squareform(distance), "average", optimal_ordering=True)


def class_clusters(similarity: np.ndarray, count: int) -> np.ndarray:
    """Return the cluster of each class, numbered from 1, `[C]`: `class_tree` cut into `count`."""
    from scipy.cluster.hierarchy import fcluster

    return fcluster(class_tree(similarity), count, "maxclust")
