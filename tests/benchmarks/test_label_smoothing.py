"""Adaptive label smoothing: loops over classes and images against tables.

The baselines do what the released code does: a cosine for every pair of classes once an epoch, and
in every step the targets written image by image, twice, since mixed images get two losses.
"""

from collections.abc import Iterator

import pytest
import torch
from plain_step import distribution_by_pairs, loss_by_images
from ratios import compare
from small_networks import single_thread
from torch import Tensor

from micronet_lib.label_smoothing import (
    RELEASED_DENSE,
    smoothed_targets,
    smoothing_distribution,
    soft_cross_entropy,
    target_table,
)

NUM_CLASSES, NUM_FEATURES, BATCH = 100, 106, 128


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


def test_similarity_table() -> None:
    torch.manual_seed(0)
    weight = torch.randn(NUM_CLASSES, NUM_FEATURES)
    by_pairs, library = "pair by pair", "target_table"
    medians = compare(
        {
            by_pairs: lambda: distribution_by_pairs(weight),
            library: lambda: target_table(weight, RELEASED_DENSE),
        },
        items=NUM_CLASSES**2,
        unit="pairs",
        repeats=5,
        rows={library: "similarity and target table"},
    )
    torch.testing.assert_close(
        distribution_by_pairs(weight), smoothing_distribution(weight, RELEASED_DENSE)
    )
    assert medians[by_pairs] > 300 * medians[library]


def test_mixed_loss() -> None:
    torch.manual_seed(0)
    logits = torch.randn(BATCH, NUM_CLASSES, requires_grad=True)
    a, b = torch.randint(NUM_CLASSES, (2, BATCH))
    weight = torch.randn(NUM_CLASSES, NUM_FEATURES)
    u = smoothing_distribution(weight, RELEASED_DENSE)
    table = target_table(weight, RELEASED_DENSE)
    lam, smoothing = 0.3, RELEASED_DENSE.smoothing

    def two_losses() -> Tensor:
        first = loss_by_images(logits, u, a, smoothing)
        second = loss_by_images(logits, u, b, smoothing)
        return torch.autograd.grad(lam * first + (1 - lam) * second, logits)[0]

    def one_loss() -> Tensor:
        loss = soft_cross_entropy(logits, smoothed_targets(table, a, b, lam))
        return torch.autograd.grad(loss, logits)[0]

    by_images, library = "image by image, two losses", "smoothed_targets, one loss"
    medians = compare(
        {by_images: two_losses, library: one_loss},
        BATCH,
        "images",
        rounds=9,
        repeats=20,
        rows={library: "mixed-label loss"},
    )
    torch.testing.assert_close(two_losses(), one_loss())
    assert medians[by_images] > 5 * medians[library]
