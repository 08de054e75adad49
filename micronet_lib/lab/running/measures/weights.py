"""Measures that need no image: similarities, spectra, zeros, the bill of each layer."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from micronet_lib.architecture.layers import layer_weights, weight_kinds
from micronet_lib.architecture.network import Network
from micronet_lib.lab.running.measures.found import DIGITS, Found
from micronet_lib.label_smoothing import class_similarity
from micronet_lib.pruning.density import density_table
from micronet_lib.scoring.bill import score_network
from micronet_lib.scoring.rules import UnpricedError
from micronet_lib.srip.penalty import exact_deviation, spectrum, srip_weights

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case


def similarity(case: "Case", network: Network, progress: bool) -> Found:
    """Return the cosine similarities of the classifier's rows, `[C, C]`, and their statistics."""
    matrix = class_similarity(network.classifier.weight.detach())
    others = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    metrics = {
        "similarity_mean": others.mean().item(),
        "similarity_min": others.min().item(),
        "similarity_max": others.max().item(),
    }
    rows = [[round(value, DIGITS) for value in row] for row in matrix.tolist()]
    return Found(metrics, {"class_similarity": rows})


def spectra(case: "Case", network: nn.Module, progress: bool) -> Found:
    """Return the singular values of every matrix, and the exact penalty of pointwise layers.

    `srip_penalty_paper` and `srip_penalty_released` are the means of the spectral norm and of its
    square, which the training loss estimates from below.
    """
    kinds = weight_kinds(network)
    values = {
        name.removesuffix(".weight"): [round(value, DIGITS) for value in spectrum(weight).tolist()]
        for name, weight in layer_weights(network).items()
        if kinds[name] != "other"
    }
    weights = [weight.detach() for weight in srip_weights(network, "pointwise").values()]
    paper = torch.stack([exact_deviation(weight, "paper") for weight in weights])
    released = torch.stack([exact_deviation(weight, "released") for weight in weights])
    metrics = {
        "srip_penalty_paper": paper.mean().item(),
        "srip_penalty_released": released.square().mean().item(),
    }
    return Found(metrics, {"spectrum": values})


def sparsity(case: "Case", network: nn.Module, progress: bool) -> Found:
    """Return the fraction of all prunable weights that is zero."""
    return Found({"sparsity": density_table(network)["sparsity"].iloc[-1].item()})


def bill(case: "Case", network: nn.Module, progress: bool) -> Found:
    """Return the per-layer table of the authors' final counter, if it prices the network."""
    try:
        table = score_network(network, "published").table().drop(columns=["score"])
    except UnpricedError:
        return Found()
    return Found(layers=table.to_dict("records"))
