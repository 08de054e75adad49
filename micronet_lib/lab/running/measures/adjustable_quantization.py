"""The measure of a network with widths of its own in every channel, chapter 09."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from micronet_lib.adjustable_quantization import AdjustableMicroNet
from micronet_lib.architecture.layers import named_kind
from micronet_lib.architecture.network import Network
from micronet_lib.errors import InputError
from micronet_lib.lab.running.measures.found import Found
from micronet_lib.lab.running.networks import content_of, images_of
from micronet_lib.lab.training.evaluation import logits_of
from micronet_lib.scoring.bill import score_operations
from micronet_lib.scoring.operations import record_operations
from micronet_lib.scoring.rules import RULE_SETS

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case


BATCH_SIZE = 100
"""Grids and steps are made anew for every batch, so larger ones than elsewhere are faster."""


class _InFloats(torch.nn.Module):
    """The rounded floats of training, without training."""

    def __init__(self, network: AdjustableMicroNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.network.rounded_floats(x)


def check(case: "Case", network: Network) -> AdjustableMicroNet:
    """Return a network that `adjustable_quantization` can rate.

    Raises:
        InputError: a network without adjustable channels.
    """
    if not isinstance(network, AdjustableMicroNet):
        raise InputError(
            f"{case.name}: the measure adjustable_quantization is for a network with adjustable "
            "channels"
        )
    return network


def adjustable_quantization(case: "Case", network: Network, progress: bool) -> Found:
    """Say which widths the channels have, what they cost, and whether integers agree with floats.

    `weight_bits` is the mean width of the weights that are not zero, `activation_bits` of the
    rounded activations of an image, both as the challenge's slide has them. `shifted.score` charges
    a product the width of a weight with its shift built in, see `price.counted`.
    `official_integer.score` charges sums their proven width. `correct` and `top1` are what the
    integers get right, `floats.correct` what the rounded floats of training do, `same_answer` the
    fraction of test images to which both give the same answer. `histogram` counts channels by
    width.

    Raises:
        InputError: see `check`.
    """
    network = check(case, network)
    widths, rows = network.mean_bits(), list[dict[str, Any]]()
    for name, layer in network.layers.items():
        bits, inputs = layer.filter_bits().detach(), layer.input_bits().detach()
        row = {"layer": name, "kind": named_kind(name), "num_filters": len(bits)}
        row |= {"weight_bits": bits.mean().item(), "activation_bits": inputs.mean().item()}
        rows.append(row | {"zeros": (layer.codes() == 0).double().mean().item()})
    shifted = score_operations(record_operations(network.counted(True)), RULE_SETS["official"])
    metrics = {"weight_bits": widths[0], "activation_bits": widths[1]}
    metrics["shifted.score"] = shifted.score
    weights = torch.cat([layer.codes().flatten() for layer in network.layers.values()])
    metrics["zeros"] = (weights == 0).double().mean().item()
    if case.recipe.learns:
        test = images_of(case.recipe, case.profile, "test")
        floats, integers = (
            logits_of(way, test.images, BATCH_SIZE, progress).argmax(1)
            for way in (_InFloats(network).eval(), network)
        )
        metrics["same_answer"] = (floats == integers).double().mean().item()
        metrics["floats.correct"] = int((floats == test.targets).sum())
        metrics |= {"correct": int((integers == test.targets).sum()), "num_examples": len(test)}
        metrics["top1"] = metrics["correct"] / len(test)
    if case.recipe.train.epochs:
        curve = content_of(case.recipe, case.profile, case.seed)["curve"]
        if "validation_divergence" in curve:
            metrics["validation_divergence"] = curve["validation_divergence"][-1]
    found = {
        "weights": [layer.filter_bits() for layer in network.layers.values()],
        "activations": [each.channel_bits() for each in network.quantizers.values()],
    }
    histogram = {
        side: torch.cat(each).long().bincount(minlength=9).tolist() for side, each in found.items()
    }
    return Found(metrics, {"histogram": histogram}, rows)
