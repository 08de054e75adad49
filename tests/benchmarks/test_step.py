"""A training step, alone and with everything around it: the plain way against the library's.

The plain way: eager NCHW, HardSwish in four operations, SRIP through autograd layer by layer,
targets image by image, images augmented one by one by Pillow. Both ways take the same recipe:
SRIP, adaptive label smoothing, Fast AutoAugment, CutMix, no bias decay.

Both run twice: as the process starts, and with `keep_freed_memory`, which training sets for the
whole process and which helps the plain way too. A ratio across the two runs is what a user of the
library gains over a script that leaves the allocator alone.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from PIL import Image
from pillow_pipeline import pillow_pipeline
from plain_step import PlainStep
from ratios import compare
from small_networks import seeded, single_thread
from torch import Tensor

from micronet_lib.architecture import Network, build, initialize
from micronet_lib.augmentation.mixing import draw_mix
from micronet_lib.augmentation.policies import augment, draw, uniform_policies
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.lab.host.machine import keep_freed_memory
from micronet_lib.lab.recipes.bases import RELEASED
from micronet_lib.lab.training.step import Step
from micronet_lib.label_smoothing import RELEASED_DENSE
from micronet_lib.srip.penalty import srip_weights

RECIPE = replace(RELEASED, smoothing=RELEASED_DENSE)
BATCH, ROUNDS = 128, 3
PLAIN = "eager NCHW, HardSwish in four operations, SRIP by autograd, labels image by image"
PLAIN_AROUND = f"{PLAIN}, Pillow"
HAS_AMX = torch.cpu._is_amx_tile_supported()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


def network() -> Network:
    model = build("c_efficientnet_3.0")
    initialize(model, "semi_orthogonal", seeded(0))
    return model.train()


def starts(model: Network) -> dict[str, Tensor]:
    return {name: torch.randn(w.shape[1]) for name, w in srip_weights(model, "pointwise").items()}


def test_training_step_and_everything_around_it() -> None:
    images = load_split("embedded", "train").subset(torch.arange(BATCH))
    arrays = images.images.permute(0, 2, 3, 1).contiguous().numpy()
    policies = uniform_policies(seeded(0), 500)
    pillow = pillow_pipeline(policies)
    random.seed(0)
    mixed = draw_mix("cutmix", BATCH, seeded(0))
    generator = seeded(1)
    pixels = normalize(images.images)
    theirs = PlainStep(network(), RECIPE)
    ours = Step(network().to(memory_format=torch.channels_last), RECIPE)
    half = replace(RECIPE, train=replace(RECIPE.train, precision="bf16"))
    in_half = Step(network().to(memory_format=torch.channels_last), half)

    def plain_everything() -> None:
        augmented = torch.stack([pillow(Image.fromarray(array)) for array in arrays])
        theirs(augmented, images.targets, mixed, starts(theirs.model))

    def everything(step: Step) -> None:
        augmented = augment(images.images, draw(policies, BATCH, generator))
        step(augmented, images.targets, mixed, 0.1, generator)

    ways = {
        PLAIN: lambda: theirs(pixels, images.targets, mixed, starts(theirs.model)),
        "library step": lambda: ours(images.images, images.targets, mixed, 0.1, generator),
    }
    around = {PLAIN_AROUND: plain_everything, "library": lambda: everything(ours)}
    if HAS_AMX:
        ways["library step, bfloat16"] = lambda: in_half(
            images.images, images.targets, mixed, 0.1, generator
        )
        around["library, bfloat16"] = lambda: everything(in_half)
    step, whole = "training step, float32", "the same with augmentation and all around it"
    started = {
        **compare(
            ways, BATCH, "images", ROUNDS, rows={"library step": f"{step}, as the process starts"}
        ),
        **compare(
            around, BATCH, "images", ROUNDS, rows={"library": f"{whole}, as the process starts"}
        ),
    }
    keep_freed_memory()
    print("\nwith freed memory kept, as in training:")
    kept = {
        **compare(
            ways, BATCH, "images", ROUNDS, rows={"library step": f"{step}, freed memory kept"}
        ),
        **compare(around, BATCH, "images", ROUNDS, rows={"library": f"{whole}, freed memory kept"}),
    }
    print("\nlibrary with freed memory kept, against the plain way without:")
    for plain, *fast in (ways, around):
        for name in fast:
            print(f"  {name:44} x{started[plain] / kept[name]:.2f}")
    if not HAS_AMX:
        print("  bfloat16: not run, this CPU has no AMX")
