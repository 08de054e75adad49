"""The measure of stability on perturbation sequences, chapter `10_assembled_cnn`."""

from typing import TYPE_CHECKING

import torch

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.network import Network
from micronet_lib.assembled_cnn.perturbations import PERTURBATIONS, flip_rates, perturb
from micronet_lib.lab.host.machine import default_device
from micronet_lib.lab.running.measures.found import Found, by_image
from micronet_lib.lab.running.networks import images_of
from micronet_lib.lab.training.evaluation import logits_of

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case

NUM_IMAGES = 1000
"""Test images that become sequences, as many of each class. All of them would take hours."""
CHUNK = 50
"""Images that are perturbed at once."""


def perturbations(case: "Case", network: Network, progress: bool) -> Found:
    """Count how often a network changes its answer within perturbation sequences.

    All networks see the same frames: they depend on the case's seed and are drawn on the CPU.
    `top1` is of the `num_examples` images as they are. `flip_rate` is the mean over all
    perturbations, `<perturbation>.flip_rate` of one. `flip_rates` has them again, for mFR, and
    `by_image` the mean over all perturbations of each image.
    """
    test, device = images_of(case.recipe, case.profile, "test"), default_device()
    test = test.first(min(NUM_IMAGES, len(test)))
    folded = fold_batch_norm(network).to(device)
    right = logits_of(folded, test.images, progress=progress).argmax(1).cpu() == test.targets
    rates, of_image = dict[str, float](), torch.zeros(len(test), dtype=torch.float64)
    for place, name in enumerate(PERTURBATIONS):
        generator = torch.Generator().manual_seed(case.seed * 100 + place)
        found = []
        for images in test.images.split(CHUNK):
            frames = perturb(images, name, generator)
            answers = logits_of(folded, frames.flatten(0, 1)).argmax(1).cpu()
            found.append(answers.view(frames.shape[:2]))
        flips = flip_rates(torch.cat(found), name)
        rates[name] = flips.mean().item()
        of_image += flips / len(PERTURBATIONS)
    metrics = {
        "top1": right.double().mean().item(),
        "num_examples": len(test),
        "flip_rate": sum(rates.values()) / len(rates),
        **{f"{name}.flip_rate": rate for name, rate in rates.items()},
    }
    rounded = {name: round(rate, 6) for name, rate in rates.items()}
    return Found(metrics, {"flip_rates": rounded, "by_image": by_image(of_image)})
