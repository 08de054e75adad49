"""Measures that rate a network on the test images: as it is, with savings, in 16 bits."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.network import Network
from micronet_lib.lab.host.machine import default_device
from micronet_lib.lab.host.places import checkpoint_path
from micronet_lib.lab.running.measures.found import RATINGS, Found
from micronet_lib.lab.running.networks import content_of, images_of
from micronet_lib.lab.storage.networks import restore
from micronet_lib.lab.storage.published import load_published
from micronet_lib.lab.training.evaluation import evaluate, logits_of, rate
from micronet_lib.scoring.dead_channels import apply_savings

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case


_LOGITS: dict[tuple[Path, int], tuple[Tensor, Tensor]] = {}


def accuracy(case: "Case", network: Network, progress: bool) -> Found:
    """Rate a network on the test images. An untrained network is not rated.

    For a network trained here, `top1`, `top5`, `loss` and `correct` are after the last epoch,
    `selected_top1` after the best epoch on the validation images. `best_on_test_top1`, which the
    authors report, is the best test accuracy of all epochs. A network that was trained on the
    validation images has no validation accuracy and no selected epoch.
    """
    if not case.recipe.learns:
        return Found()
    test = images_of(case.recipe, case.profile, "test")
    if not case.recipe.train.epochs:
        return Found(evaluate(network, test, progress).metrics())
    content, device = content_of(case.recipe, case.profile, case.seed), default_device()
    test = test.to(device)
    found = evaluate(network.to(device), test, progress).metrics()
    network.cpu()
    metrics = {name: found[name] for name in RATINGS}
    curve = content["curve"]
    metrics |= {
        "train_loss": curve["train_loss"][-1],
        "srip_penalty": curve["srip_penalty"][-1],
        "train_images_per_s": content["images_per_s"],
    }
    if "test_top1" in curve:
        metrics["best_on_test_top1"] = max(curve["test_top1"])
    if "validation_top1" not in curve:
        return Found(metrics)
    metrics |= {
        "validation_top1": curve["validation_top1"][-1],
        "best_validation_top1": max(curve["validation_top1"]),
        "selected_top1": metrics["top1"],
    }
    last, best = content["model"], content["best"]
    if not all(torch.equal(value, best[name]) for name, value in last.items()):
        selected = restore(content["spec"], best).to(device)
        metrics["selected_top1"] = evaluate(selected, test, progress).top1
    return Found(metrics)


def confusions(case: "Case", network: Network, progress: bool) -> Found:
    """Count which class a network answers for which: rows of true class, answer, test images.

    Pairs that never occur have no row. Right answers have theirs, with the class twice.
    """
    test = images_of(case.recipe, case.profile, "test")
    logits = logits_of(fold_batch_norm(network), test.images, progress=progress)
    found = rate(logits, test.targets, seconds=float("inf")).metrics()
    answers = torch.stack([test.targets, logits.argmax(1)], 1)
    pairs, counts = answers.unique(dim=0, return_counts=True)
    rows = torch.cat([pairs, counts[:, None]], 1).tolist()
    return Found({name: found[name] for name in RATINGS}, {"confusions": rows})


def same_logits(case: "Case", network: Network, progress: bool) -> Found:
    """Rate a trimmed network, and compare every logit with the published file's.

    `max_logit_difference` compares in float64, savings included, so that rounding hides no error.
    `max_logit_difference_stored` makes the savings in float32, which rounds weights, and runs in
    float64. `bit_identical` is 1 if the float32 logits are equal to the last bit, and
    `same_predictions` the number of images with the same answer.
    """
    recipe, test = case.recipe, images_of(case.recipe, case.profile, "test")
    if not recipe.savings:
        return accuracy(case, network, progress)
    path = checkpoint_path(recipe.checkpoint)
    single, double = _published_logits(path, test.images, progress)
    logits = logits_of(network, test.images, progress=progress)
    found = rate(logits, test.targets, seconds=float("inf")).metrics()
    exact = apply_savings(load_published(path).double(), recipe.savings)
    stored = copy.deepcopy(network).double()
    change = (double - logits_of(exact, test.images, progress=progress)).abs().max().item()
    rounded = change
    if not all(map(torch.equal, exact.state_dict().values(), stored.state_dict().values())):
        rounded = (double - logits_of(stored, test.images, progress=progress)).abs().max().item()
    return Found(
        {name: found[name] for name in RATINGS}
        | {
            "max_logit_difference": change,
            "max_logit_difference_stored": rounded,
            "bit_identical": int(torch.equal(single, logits)),
            "same_predictions": int((single.argmax(1) == logits.argmax(1)).sum()),
        }
    )


def _published_logits(path: Path, images: Tensor, progress: bool) -> tuple[Tensor, Tensor]:
    """Return the logits of a published file in float32 and float64, kept for all its savings."""
    key = (path, len(images))
    if key not in _LOGITS:
        network = load_published(path)
        single = logits_of(network, images, progress=progress)
        _LOGITS.clear()
        _LOGITS[key] = single, logits_of(network.double(), images, progress=progress)
    return _LOGITS[key]


def half_precision(case: "Case", network: Network, progress: bool) -> Found:
    """Rate a network whose numbers really have the 16 bits that the score charges.

    Parameters and batch norm's averages are rounded to float16; the arithmetic is in float32.
    `half.correct` is of the network as it is, `half_folded.correct` of the network with batch norm
    merged into the convolutions before rounding, which is what the score counts.
    """
    test = images_of(case.recipe, case.profile, "test")
    metrics: dict[str, float] = {}
    networks: dict[str, nn.Module] = {
        "half": copy.deepcopy(network),
        "half_folded": fold_batch_norm(network),
    }
    for name, made in networks.items():
        metrics[f"{name}.correct"] = evaluate(in_half(made), test, progress).correct
    return Found(metrics)


def in_half(network: nn.Module) -> nn.Module:
    """Round parameters and averages to float16 in place, and return the network."""
    for value in network.state_dict(keep_vars=True).values():
        if value.is_floating_point():
            value.data = value.data.half().float()
    return network
