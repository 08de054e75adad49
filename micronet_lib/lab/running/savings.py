"""Proof that a free saving is free: every logit of a published network before and after it."""

import copy
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.host.places import checkpoint_path, data_root
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.storage.published import load_published
from micronet_lib.lab.training.evaluation import logits_of, rate
from micronet_lib.scoring.dead_channels import apply_savings


def compare_logits(
    recipe: Recipe, trimmed: MicroNet, dataset: str, progress: bool
) -> dict[str, float]:
    """Rate the trimmed network and hold every logit of it against the published file's.

    `max_logit_difference` is of savings made and run in float64, where rounding cannot hide a
    fault; `max_logit_difference_stored` of savings made in float32, whose weights are rounded, and
    run in float64; `bit_identical` is 1 when the float32 logits are the same to the last bit.
    """
    single, double = _published_logits(data_root(), recipe.checkpoint, dataset, progress)
    test = load_split(dataset, "test")
    logits = logits_of(trimmed, test.images, progress=progress)
    found = rate(logits, test.targets, seconds=float("inf")).metrics()
    exact = apply_savings(
        load_published(checkpoint_path(recipe.checkpoint)).double(), recipe.savings
    )
    stored = copy.deepcopy(trimmed).double()
    change = (double - logits_of(exact, test.images, progress=progress)).abs().max().item()
    rounded = change
    if not all(map(torch.equal, exact.state_dict().values(), stored.state_dict().values())):
        rounded = (double - logits_of(stored, test.images, progress=progress)).abs().max().item()
    return {
        **{name: found[name] for name in ("correct", "num_examples", "top1", "top5", "loss")},
        "max_logit_difference": change,
        "max_logit_difference_stored": rounded,
        "bit_identical": int(torch.equal(single, logits)),
    }


@lru_cache(maxsize=1)
def _published_logits(
    root: Path, checkpoint: str, dataset: str, progress: bool
) -> tuple[Tensor, Tensor]:
    """Logits of a published file in float32 and float64; every step of its savings needs them."""
    model = load_published(root / "kaist" / f"{checkpoint}.t7")
    images = load_split(dataset, "test").images
    single = logits_of(model, images, progress=progress)
    return single, logits_of(model.double(), images, progress=progress)
