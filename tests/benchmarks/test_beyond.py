"""A step in integers with a teacher, against a step of floats and a teacher's answer."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from ratios import compare
from small_networks import seeded, single_thread

from micronet_lib.architecture import Network, build, initialize
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.beyond.network import Widths, in_integers
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.lab.host.machine import keep_freed_memory
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.training.step import Step

RECIPE = SWEEPS["beyond"].point("distilled").recipe


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


def network() -> Network:
    model = build("micronet_v1")
    initialize(model, "semi_orthogonal", seeded(0))
    return model


def test_a_step_in_integers_with_a_teacher() -> None:
    keep_freed_memory()
    batch = RECIPE.train.batch_size
    images = load_split("embedded", "train").subset(torch.arange(batch))
    pixels = normalize(images.images).contiguous(memory_format=torch.channels_last)
    rounded = in_integers(network())
    rounded.set_widths(
        Widths(
            dict.fromkeys(rounded.layers, 8),
            dict.fromkeys(rounded.quantizers, 8),
            dict.fromkeys(rounded.layers, 10),
            12,
        )
    )
    rounded.calibrate(pixels)
    teacher = fold_batch_norm(network())
    channels_last = {"memory_format": torch.channels_last}
    alone = replace(RECIPE, start=None, changes=(), teacher=None, more_teachers=())
    plain = Step(network().train().to(**channels_last), alone)
    taught = Step(rounded.train().to(**channels_last), RECIPE, teacher=teacher)

    def separately() -> None:
        plain(images.images, images.targets, None, 1e-4)
        with torch.no_grad():
            teacher(pixels)

    ways = {
        "step of floats, and a teacher's answer": separately,
        "step in integers with a teacher": lambda: taught(
            images.images, images.targets, None, 1e-4
        ),
    }
    rows = {"step in integers with a teacher": "step in integers (8/8) with a teacher"}
    compare(ways, batch, "images", rounds=7, rows=rows)
