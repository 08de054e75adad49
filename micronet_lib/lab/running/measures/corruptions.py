"""The measure of robustness against corrupted images, chapter `10_assembled_cnn`."""

from typing import TYPE_CHECKING

import torch

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.network import Network
from micronet_lib.assembled_cnn.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from micronet_lib.lab.host.machine import default_device
from micronet_lib.lab.running.measures.found import Found, by_image
from micronet_lib.lab.running.networks import images_of
from micronet_lib.lab.training.evaluation import logits_of

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case

CHUNK = 500
"""Images that are corrupted at once."""


def corruptions(case: "Case", network: Network, progress: bool) -> Found:
    """Rate a network on the test images under every corruption at every severity.

    All networks see the same corrupted images: they depend on the case's seed and are drawn on the
    CPU. `top1` is of the images as they are, `corrupted_top1` the mean over all corruptions and
    severities, `<corruption>.top1` over severities. `corrupted` has the fraction of wrong answers
    of each severity, from which mCE is computed. `by_image` has the fraction of its corrupted
    copies to which the right answer is given, for each image.
    """
    test, device = images_of(case.recipe, case.profile, "test"), default_device()
    folded = fold_batch_norm(network).to(device)
    answers = logits_of(folded, test.images, progress=progress).argmax(1).cpu()
    metrics = {"top1": (answers == test.targets).double().mean().item()}
    errors, right = dict[str, list[float]](), torch.zeros(len(test), dtype=torch.float64)
    for place, name in enumerate(CORRUPTIONS):
        errors[name] = []
        for severity in SEVERITIES:
            generator = torch.Generator().manual_seed((case.seed * 100 + place) * 10 + severity)
            found = [
                logits_of(folded, corrupt(images, name, severity, generator)).argmax(1).cpu()
                for images in test.images.split(CHUNK)
            ]
            hits = (torch.cat(found) == test.targets).double()
            errors[name].append(1 - hits.mean().item())
            right += hits
        metrics[f"{name}.top1"] = 1 - sum(errors[name]) / len(SEVERITIES)
    metrics["corrupted_top1"] = sum(metrics[f"{name}.top1"] for name in errors) / len(errors)
    rounded = {name: [round(each, 6) for each in row] for name, row in errors.items()}
    share = right / (len(CORRUPTIONS) * len(SEVERITIES))
    return Found(metrics, {"corrupted": rounded, "by_image": by_image(share)})
