"""Every operation equals Pillow's to the last bit, and so do crops and mirror images."""

import json
import platform

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pillow_operations import PILLOW
from published_data import require
from torch import Tensor
from torchvision.transforms import functional as torchvision

from micronet_lib.augmentation import image_ops
from micronet_lib.augmentation.image_ops import BLEND, GEOMETRY, OPERATIONS, TONE, apply_operation
from micronet_lib.augmentation.policies import VALUE_RANGES
from micronet_lib.errors import InputError
from micronet_lib.lab.host.places import data_root

POLICY_FILE = data_root() / "policies" / "fast_autoaugment_cifar100.json"
# The value that leaves every image as it is, of the operations that have one.
NEUTRAL = {
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Cutout"), 0.0),
    **dict.fromkeys(("Contrast", "Color", "Brightness", "Sharpness"), 1.0),
    "Solarize": 256.0,
    "Posterize": 8.0,
}
# Elsewhere the compiler may fuse multiplication and addition inside Pillow.
PILLOW_ROUNDS_TWICE = platform.machine() in ("x86_64", "AMD64")
BLENDED = {"Contrast", "Brightness", *BLEND}

each_operation = pytest.mark.parametrize("name", OPERATIONS)


# -------------------------------------------------------------------------------- Pillow's side


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def by_pillow(name: str, images: Tensor, values: Tensor, centres: Tensor) -> Tensor:
    inputs = zip(images, values.tolist(), centres.tolist(), strict=True)
    return torch.stack([from_pillow(PILLOW[name](to_pillow(i), v, (*c,))) for i, v, c in inputs])


def assert_same(name: str, ours: Tensor, pillows: Tensor) -> None:
    assert ours.dtype == torch.uint8
    assert ours.shape == pillows.shape
    difference = (ours.int() - pillows.int()).abs()
    largest = int(difference.max()) if len(difference) else 0
    allowed = 0 if PILLOW_ROUNDS_TWICE or name not in BLENDED else 1
    assert largest <= allowed, f"{name}: {int((difference > 0).sum())} levels differ by {largest}"


# ------------------------------------------------------------------------------------- material


def sample_images(seed: int = 0) -> Tensor:
    """40 images: constant, of few levels, smooth, noisy, black and white, all one but a pixel."""
    generator = torch.Generator().manual_seed(seed)

    def levels(*shape: int, low: int = 0, high: int = 256) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    coarse = levels(8, 3, 4, 4).float()
    ramp = torch.arange(32).view(1, 1, 1, 32) * torch.tensor([1, 4, 8]).view(1, 3, 1, 1)
    kinds = [
        levels(6, 3, 1, 1).expand(-1, -1, 32, 32),
        torch.tensor([0, 255]).view(2, 1, 1, 1).expand(-1, 3, 32, 32),
        levels(8, 3, 1, 1, high=250) + levels(8, 3, 32, 32, high=6),
        F.interpolate(coarse, size=(32, 32), mode="bicubic").round().clamp(0, 255),
        ramp.expand(1, 3, 32, 32),
        ramp.mT.flip(1).expand(1, 3, 32, 32),
        255 * levels(4, 3, 32, 32, high=2),
        levels(8, 3, 32, 32),
        F.pad(levels(2, 3, 1, 1), (31, 0, 0, 31), value=7),
    ]
    images = torch.cat([kind.to(torch.uint8) for kind in kinds])
    assert images.shape == (40, 3, 32, 32)
    return images


def sample_values(name: str, num: int, seed: int = 0) -> Tensor:
    """Both ends of the range, their mirror images, the neutral value, and random ones."""
    low, high = VALUE_RANGES[name]
    generator = torch.Generator().manual_seed(seed)
    within = low + (high - low) * torch.rand(num, generator=generator, dtype=torch.float64)
    within[:3] = torch.tensor([low, high, NEUTRAL.get(name, 0.0)])
    if name in GEOMETRY:
        within = torch.cat([within, -within])
    return within


def sample_centres(num: int, seed: int = 0) -> Tensor:
    """Centres of cutouts, the corners of the range among them."""
    generator = torch.Generator().manual_seed(seed)
    centres = 32 * torch.rand(num, 2, generator=generator, dtype=torch.float64)
    corners = torch.tensor([[0.0, 0.0], [32.0, 32.0], [1.0, 32.0], [15.5, 16.0]])
    centres[: len(corners)] = corners[:num]
    return centres


def compare(name: str, images: Tensor, values: Tensor, centres: Tensor | None = None) -> None:
    """Our result on a batch against Pillow's on each image, every image with its own value."""
    centres = sample_centres(len(values)) if centres is None else centres
    before = images.clone()
    ours = apply_operation(name, images, values, centres)
    assert torch.equal(images, before), "the input was changed"
    assert_same(name, ours, by_pillow(name, images, values, centres))


# ---------------------------------------------------------------------------------------- tests


def test_no_operation_is_left_out():
    assert set(PILLOW) == set(VALUE_RANGES) == set(OPERATIONS)
    assert len(OPERATIONS) == 15


@each_operation
def test_every_value_on_every_kind_of_image(name):
    images, values = sample_images(), sample_values(name, 20)
    compare(name, images.repeat_interleave(len(values), 0), values.repeat(len(images)))


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_neutral_value_changes_nothing(name):
    images = sample_images()
    values = torch.full((len(images),), NEUTRAL[name], dtype=torch.float64)
    centres = sample_centres(len(images))
    assert torch.equal(apply_operation(name, images, values, centres), images)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(OPERATIONS),
    level=st.floats(0, 1),
    centre=st.tuples(st.floats(0, 32), st.floats(0, 32)),
    seed=st.integers(0, 9),
)
def test_any_level_on_any_image(name, level, centre, seed):
    low, high = VALUE_RANGES[name]
    images = sample_images(seed)[seed::7]
    value = torch.tensor(level * (high - low) + low, dtype=torch.float64)
    centres = torch.tensor(centre, dtype=torch.float64).expand(len(images), 2)
    compare(name, images, value.expand(len(images)), centres)


@each_operation
def test_every_value_of_the_published_policies(name):
    require(POLICY_FILE)
    sets = json.loads(POLICY_FILE.read_text(encoding="utf-8")).values()
    low, high = VALUE_RANGES[name]
    levels = {
        level
        for sub_policies in sets
        for sub_policy in sub_policies
        for operation, _, level in sub_policy
        if operation == name
    }
    values = torch.tensor(sorted(levels), dtype=torch.float64) * (high - low) + low
    if name in GEOMETRY:
        values = torch.cat([values, -values])
    assert len(values) > 50
    images = sample_images()
    compare(name, images[torch.arange(len(values)) % len(images)], values)


@pytest.mark.parametrize("name", ["TranslateX", "TranslateY"])
def test_translations_that_end_just_short_of_a_pixel(name):
    """Pillow truncates them exactly; in 16-bit fixed point they would reach the next pixel."""
    pixels = torch.arange(-13, 14, dtype=torch.float64)
    values = torch.cat([(pixels - 0.5 + offset) / 32 for offset in (-1e-6, -1e-12, 0, 1e-6)])
    images = sample_images()[torch.arange(len(values)) % 8 + 29]
    compare(name, images, values)


def test_shears_and_rotations_at_fixed_points_edges():
    """Matrix entries halfway between two 16-bit numbers."""
    halves = (torch.arange(-40, 40, dtype=torch.float64) + 0.5) / 65536
    images = sample_images()[torch.arange(len(halves)) % 8 + 29]
    for name in ("ShearX", "ShearY"):
        compare(name, images, halves)
    degrees = torch.rad2deg(torch.asin(halves))
    compare("Rotate", images, degrees + 1e-9)
    compare("Rotate", images, torch.linspace(-30, 30, len(halves), dtype=torch.float64))


def test_auto_contrast_of_every_spread():
    """Each distance of highest from lowest level, at several places of the scale."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, 256).repeat(6)
    low = (torch.rand(len(spread), generator=generator) * (256 - spread)).long()
    low[: len(low) // 6] = 0
    ramps = low[:, None] + torch.arange(1024) % (spread[:, None] + 1)
    images = ramps.to(torch.uint8).view(-1, 3, 32, 32)
    compare("AutoContrast", images, torch.zeros(len(images), dtype=torch.float64))
    # Some of Pillow's own results stop short of 255: the double product does.
    tables = image_ops.auto_contrast(images, torch.zeros(len(images))).view(-1, 256)
    highest = tables.gather(1, (low + spread)[:, None])
    assert {254, 255} == set(highest.flatten().tolist())


def test_equalize_of_every_step_width():
    """The step is (1024 - pixels of the highest level) // 255: 4, 3, 2, 1 or none."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([1, 2, 4, 5, 258, 259, 260, 513, 514, 515, 768, 769, 770, 1023, 1024])
    pixels = torch.randint(0, 99, (len(counts), 1024), generator=generator)
    pixels[torch.arange(1024) < counts[:, None]] = 99
    images = pixels.to(torch.uint8).view(-1, 3, 32, 32)
    compare("Equalize", images, torch.zeros(len(images), dtype=torch.float64))


def test_solarize_at_every_threshold_and_posterize_with_every_fraction():
    images = torch.arange(1024).remainder(256).to(torch.uint8).view(1, 1, 32, 32)
    values = torch.cat([torch.arange(257), torch.arange(256) + 0.5]).double()
    compare("Solarize", images.expand(len(values), 3, -1, -1), values)
    values = torch.tensor([4, 4.999, 5, 6.5, 7, 7.999999, 8], dtype=torch.float64)
    compare("Posterize", sample_images()[-11:-4], values)


def test_cutout_belongs_to_the_image_up_to_both_corners():
    centres = torch.tensor([[16.0, 16.0]], dtype=torch.float64)
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    painted = image_ops.cutout(image, torch.tensor([0.125], dtype=torch.float64), centres)
    # A side of 4 pixels from 14 to 18: five rows and columns.
    expected = image.clone()
    expected[:, :, 14:19, 14:19] = torch.tensor([125, 123, 114]).view(3, 1, 1)
    assert torch.equal(painted, expected)


def test_cutout_is_cut_at_the_border():
    grid = torch.linspace(0, 32, 17, dtype=torch.float64)
    centres = torch.cartesian_prod(grid, grid)
    images = sample_images()[30:31].expand(len(centres), -1, -1, -1)
    for value in (1e-9, 0.05, 0.2):
        compare("Cutout", images, torch.full((len(centres),), value).double(), centres)


@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_flip_are_torchvisions(flip):
    shifts = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    images = sample_images()[torch.arange(len(shifts)) % 40]
    ours = image_ops.crop_and_flip(images, shifts, torch.full((len(shifts),), flip))
    for image, (row, column), cut in zip(images, shifts.tolist(), ours, strict=True):
        padded = torchvision.pad(to_pillow(image), 4, fill=128)
        expected = torchvision.crop(padded, row, column, 32, 32)
        expected = torchvision.hflip(expected) if flip else expected
        assert torch.equal(cut, from_pillow(expected))


@each_operation
def test_no_image_and_images_of_another_memory_format(name):
    images, values = sample_images()[:20], sample_values(name, 20)[:20]
    other = images.contiguous(memory_format=torch.channels_last)
    centres = sample_centres(20)
    expected = apply_operation(name, images, values, centres)
    assert torch.equal(apply_operation(name, other, values, centres), expected)
    assert apply_operation(name, images[:0], values[:0], centres[:0]).shape == (0, 3, 32, 32)


def test_tables_hold_an_entry_for_every_level_of_every_channel():
    images = sample_images()
    for name, table_of in TONE.items():
        table = table_of(images, torch.full((len(images),), 6.0, dtype=torch.float64))
        assert (table.shape, table.dtype) == ((len(images), 3, 256), torch.uint8), name


def test_an_unknown_operation():
    images = sample_images()[:1]
    values = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(InputError, match="unknown operation 'Blur'; choose from ShearX"):
        apply_operation("Blur", images, values, sample_centres(1))
