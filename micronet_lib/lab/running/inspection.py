"""What a record keeps of a network's weights besides numbers: arrays that a figure needs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from micronet_lib.architecture.layers import layer_kind
from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.label_smoothing import class_similarity
from micronet_lib.srip.penalty import exact_deviation, spectrum, srip_weights

Inspection = tuple[dict[str, float], Any]
DIGITS = 5


def similarity(model: MicroNet) -> Inspection:
    """The classifier's cosine similarities, `[C, C]`, and what its off-diagonal entries come to."""
    matrix = class_similarity(model.head.classifier.weight.detach())
    others = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    metrics = {
        "similarity_mean": others.mean().item(),
        "similarity_min": others.min().item(),
        "similarity_max": others.max().item(),
    }
    return metrics, [[round(value, DIGITS) for value in row] for row in matrix.tolist()]


def spectra(model: nn.Module) -> Inspection:
    """Singular values of every matrix by layer, and the exact penalty over pointwise ones.

    `srip_penalty_paper` and `srip_penalty_released` are the means of the spectral norm and of its
    square, which the power step of the training loss estimates from below.
    """
    values = {
        name: [round(value, DIGITS) for value in spectrum(layer.get_parameter("weight")).tolist()]
        for name, layer in model.named_modules()
        if layer_kind(name, layer) is not None
    }
    weights = [weight.detach() for weight in srip_weights(model, "pointwise").values()]
    paper = torch.stack([exact_deviation(weight, "paper") for weight in weights])
    released = torch.stack([exact_deviation(weight, "released") for weight in weights])
    metrics = {
        "srip_penalty_paper": paper.mean().item(),
        "srip_penalty_released": released.square().mean().item(),
    }
    return metrics, values


INSPECTIONS: dict[str, Callable[[MicroNet], Inspection]] = {
    "class_similarity": similarity,
    "spectrum": spectra,
}
"""Each gives finite numbers for a record's metrics and one entry for its arrays."""
