"""Fast AutoAugment on one core: a Pillow pipeline, image by image, against the library's chunks.

The baseline is how such code is usually written: Pillow images, one random decision after the
other, torchvision's transforms behind them. Both ways end in normalised floats.
"""

import random
from collections.abc import Iterator

import pytest
import torch
from PIL import Image
from ratios import compare
from test_augmentation_image_ops import PILLOW, POLICY_FILE
from torch import Tensor
from torchvision import transforms

from micronet_lib.augmentation.image_ops import GEOMETRY, OPERATIONS
from micronet_lib.augmentation.policies import (
    SUBSET_CHUNK,
    Policies,
    augment,
    draw,
    load_policies,
    uniform_policies,
)
from micronet_lib.lab.data.images import MEAN, STD, load_split, normalize

TARGET = 8


class PillowPolicy:
    """A random sub-policy for each image it is called with."""

    def __init__(self, policies: Policies) -> None:
        columns = (policies.ops, policies.probabilities, policies.values)
        self.sub_policies = [
            [(OPERATIONS[op], *numbers) for op, *numbers in zip(*row, strict=True)]
            for row in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def __call__(self, image: Image.Image) -> Image.Image:
        for name, probability, value in random.choice(self.sub_policies):
            if random.random() <= probability:
                sign = -1 if name in GEOMETRY and random.random() > 0.5 else 1
                centre = (random.uniform(32, 1), random.uniform(32, 1))
                image = PILLOW[name](image, sign * value, centre)
        return image


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_augmentation() -> None:
    generator = torch.Generator().manual_seed(0)
    published = POLICY_FILE.is_file()
    policies = load_policies(POLICY_FILE) if published else uniform_policies(generator, 500)
    print(f"\n{'published' if published else 'random'} policies, chunks of {SUBSET_CHUNK} images")
    images = load_split("embedded", "train").images[:SUBSET_CHUNK]
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    transform = transforms.Compose(
        [
            PillowPolicy(policies),
            transforms.RandomCrop(32, padding=4, fill=128),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def one_by_one() -> Tensor:
        return torch.stack([transform(Image.fromarray(array)) for array in arrays])

    def library() -> Tensor:
        return augment(images, draw(policies, len(images), generator))

    ways = {
        "Pillow, image by image, normalised": one_by_one,
        "library, normalised": lambda: normalize(library()),
        "library, as uint8": library,
    }
    medians = compare(ways, len(images), "images")
    ratio = medians["Pillow, image by image, normalised"] / medians["library, normalised"]
    # Half of the target fails the test: other work on the machine hits the short runs harder.
    assert ratio > TARGET / 2, f"{ratio:.1f} times as fast, the target is {TARGET}"
