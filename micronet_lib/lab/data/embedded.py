"""The embedded data set: 100 drawn classes in 20 superclasses, the same bytes on every machine.

A superclass is a shape, a texture and a palette; its five classes differ in one attribute. So the
true hierarchy of the labels is known, unlike in CIFAR-100. Every image has its own place, size,
tilt, colours, clouded background and noise. Half of them are mirrored, so a horizontal flip does no
harm.
"""

from typing import Literal

import numpy as np
import torch
from torchvision.utils import make_grid

from micronet_lib.errors import InputError, check_choice
from micronet_lib.lab.data.superclasses import SUPERCLASSES, Array, Colour, Varied, direction

# Equal bytes everywhere rest on two rules. Randomness is PCG64's raw 64-bit stream, which NumPy
# promises never to change. Arithmetic is element-wise + - * / sqrt and comparisons, which
# IEEE 754 rounds exactly; sums over an axis, matrix products and sin or cos are not used.
PIXELS = 32
NUM_PER_CLASS = {"train": 50, "test": 10}
NUMBERS = 62  # random numbers of an image besides its noise: twelve, and two grids of 25

SUPERCLASS_NAMES: tuple[str, ...] = tuple(s.name for s in SUPERCLASSES)
CLASS_NAMES: tuple[str, ...] = tuple(
    f"{s.member}, {label}" for s in SUPERCLASSES for label in s.classes
)
SUPERCLASS_OF: tuple[int, ...] = tuple(
    index for index, s in enumerate(SUPERCLASSES) for _ in s.classes
)


def _clouds(knots: Array) -> Array:
    """Interpolate [N,25] random knots, a 5 x 5 grid, linearly to [N,32,32]."""
    knots = knots.reshape(-1, 5, 5)
    place = (np.arange(PIXELS, dtype=np.float32) + 0.5) / 8
    left = place.astype(np.int64)
    share = place - left.astype(np.float32)
    rows = knots[:, left] + share[:, None] * (knots[:, left + 1] - knots[:, left])
    return rows[:, :, left] + share * (rows[:, :, left + 1] - rows[:, :, left])


def _rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """Return [N,3] red, green, blue in [0, 1] for [N] hue (in turns), saturation and value."""
    angle = hue[:, None] + np.array([0, 2, 1], np.float32) / 3
    ramp = np.clip(np.abs(6 * (angle - np.floor(angle)) - 3) - 1, 0, 1)
    return value[:, None] * (1 - saturation[:, None] * (1 - ramp))


def _draw(index: int, split: str, num_per_class: int) -> tuple[Array, Array]:
    """Return one superclass: uint8 images [5k,3,32,32], and a shuffling key each, uint64 [5k].

    Image n is the (n // 5)-th of class n % 5 and uses its own row of the random stream. So fewer
    images per class are a subset of more.
    """
    look = SUPERCLASSES[index]
    count = 5 * num_per_class
    words = 1 + NUMBERS + 3 * PIXELS * PIXELS // 8
    seed = [2019, list(NUM_PER_CLASS).index(split), index]
    raw = np.random.PCG64(seed).random_raw(count * words).reshape(count, words)
    unit = (raw[:, 1 : 1 + NUMBERS] >> np.uint64(40)).astype(np.float32) / 2**24
    noise = raw[:, 1 + NUMBERS :].astype("<u8").view(np.uint8).reshape(count, 3, PIXELS, PIXELS)
    mirror, size, tilt, right, down, hue, saturation, value, fade = 2 * unit[:, :9].T - 1
    clouds, grain = _clouds(unit[:, 12:37]), _clouds(unit[:, 37:62])

    def of(varied: Varied) -> Array:
        return np.tile(look.values(varied), num_per_class)

    def colour(base: Colour, shift: Array) -> Array:
        return _rgb(
            base[0] + shift + 0.025 * hue,
            np.clip(base[1] * (1 + 0.25 * saturation), 0, 1),
            np.clip(base[2] * (1 + 0.18 * value), 0, 1),
        )[:, :, None, None]

    scale = (of("size") * (1 + 0.16 * size))[:, None, None]
    cos, sin = (part[:, None, None] for part in direction(of("turn") + 0.025 * tilt))
    place = np.arange(PIXELS, dtype=np.float32) - (PIXELS - 1) / 2
    x = (place - 3 * right[:, None])[:, None, :] * np.copysign(1, mirror)[:, None, None] / scale
    y = (place - 3 * down[:, None])[:, :, None] / scale
    u, v = x * cos + y * sin, y * cos - x * sin
    distance = look.shape(u, v, of("amount")[:, None, None])
    texture = look.texture(u, v, distance, grain)[:, None]
    cover = (np.clip(0.5 - distance * scale, 0, 1) * (0.8 + 0.2 * fade)[:, None, None])[:, None]

    still = np.zeros(count, np.float32)
    paper, ink = colour(look.paper, still), colour(look.ink, of("hue"))
    accent = colour(look.accent, of("hue"))
    paper = paper + 0.3 * (unit[:, 9:12, None, None] - paper)
    picture = paper + cover * (ink + texture * (accent - ink) - paper)
    picture = picture + 0.3 * (clouds[:, None] - 0.5)
    levels = np.floor(255 * picture + (noise.astype(np.float32) - 127.5) * 0.2 + 0.5)
    return np.clip(levels, 0, 255).astype(np.uint8), raw[:, 0]


def make_images(
    split: Literal["train", "test"], num_per_class: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a split of the embedded set.

    Args:
        split: `train` or `test`; no image is in both.
        num_per_class: images per class; by default 50 (train) or 10 (test). The first k images of a
            class, and their order, do not depend on it.

    Returns:
        Images, uint8 [N,3,32,32], and targets, int64 [N], in a fixed shuffled order.

    Raises:
        InputError: unknown split, or a number below 1.
    """
    check_choice("split", split, NUM_PER_CLASS)
    if num_per_class is None:
        num_per_class = NUM_PER_CLASS[split]
    if num_per_class < 1:
        raise InputError(f"num_per_class must be at least 1, not {num_per_class}")
    drawn = [_draw(index, split, num_per_class) for index in range(len(SUPERCLASSES))]
    order = np.argsort(np.concatenate([key for _, key in drawn]), kind="stable")
    targets = np.concatenate(
        [np.tile(np.arange(5) + 5 * index, num_per_class) for index in range(len(SUPERCLASSES))]
    )
    return np.concatenate([images for images, _ in drawn])[order], targets[order]


def contact_sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """Lay images, uint8 [N,3,H,W], out row by row on white, two pixels apart.

    Returns:
        uint8 [rows * (H + 2) + 2, columns * (W + 2) + 2, 3], ready for `imshow`.
    """
    sheet = make_grid(torch.from_numpy(images), nrow=columns, padding=2, pad_value=255)
    return sheet.permute(1, 2, 0).numpy()
