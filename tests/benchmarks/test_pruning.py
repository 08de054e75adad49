"""Masks of one pruning round, and the step that holds them: lists and loops against the library's.

The baselines are how such code is usually written: all magnitudes in one Python list, NumPy's
percentile of it, a comparison tensor by tensor; after each step a multiplication tensor by tensor.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ratios import compare
from small_networks import single_thread
from torch import Tensor

from micronet_lib.architecture import build
from micronet_lib.pruning.masks import HeldMasks, magnitude_masks, prunable_weights


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


def percentile_of_a_list(weights: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    magnitudes: list[float] = []
    for weight in weights.values():
        magnitudes += list(weight.detach().abs().cpu().numpy().flatten())
    threshold = np.percentile(np.array(magnitudes), 100 * sparsity)
    return {name: weight.detach().abs() > threshold for name, weight in weights.items()}


def test_masks() -> None:
    torch.manual_seed(0)
    weights = dict(prunable_weights(build("micronet_v1_released")))
    by_list, library = "Python list, percentile", "magnitude_masks"
    medians = compare(
        {
            by_list: lambda: percentile_of_a_list(weights, 0.6),
            library: lambda: magnitude_masks(weights, 0.6),
        },
        items=sum(weight.numel() for weight in weights.values()),
        unit="weights",
        rounds=15,
        rows={library: "global magnitude masks"},
    )
    theirs, ours = percentile_of_a_list(weights, 0.6), magnitude_masks(weights, 0.6)
    assert sum(int((theirs[name] ^ ours[name]).sum()) for name in ours) <= 1
    assert medians[by_list] > 2 * medians[library]


def test_holding() -> None:
    torch.manual_seed(0)
    model = build("micronet_v1_released")
    weights = prunable_weights(model)
    masks = magnitude_masks(weights, 0.6)
    floats = {name: mask.float() for name, mask in masks.items()}
    held = HeldMasks(model, masks)

    @torch.no_grad()
    def one_by_one() -> None:
        for name, weight in weights.items():
            weight.data = weight.data * floats[name]

    loop, library = "a new product a tensor", "HeldMasks.after_step"
    ways = {loop: one_by_one, library: held.after_step}
    rows = {library: "holding masks after a step"}
    compare(ways, items=1, unit="steps", rounds=50, repeats=5, rows=rows)
    assert all(torch.equal(weights[name] != 0, mask) for name, mask in masks.items())
