"""Augmentation as such code is usually written: Pillow images, one random decision at a time."""

import random

from PIL import Image
from pillow_operations import PILLOW
from torchvision import transforms

from micronet_lib.augmentation.image_ops import GEOMETRY, OPERATIONS
from micronet_lib.augmentation.policies import Policies
from micronet_lib.lab.data.images import MEAN, STD


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


def pillow_pipeline(policies: Policies) -> transforms.Compose:
    """From a Pillow image to a normalised tensor."""
    return transforms.Compose(
        [
            PillowPolicy(policies),
            transforms.RandomCrop(32, padding=4, fill=128),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
