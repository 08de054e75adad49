"""Perturbation sequences in the manner of CIFAR-100-P [hendrycks2019] (chapter `10_assembled_cnn`).

An image becomes a film of small changes: noise drawn again and again, a blur that turns, a shift by
one more pixel. A network flips if it changes its answer on the way. Kinds, frames and constants are
those of the published generator for 32 x 32 images [hendrycks_p_code]. These are the ten sequences
of the paper's mFR; the authors' script for small images has spatter in the place of snow. Not
built: spatter, and the ones kept for validation (speckle noise, Gaussian blur, shear).

Differences: our random numbers are others; steps between are rounded as floats, not as bytes; and
tilt reads between pixels exactly, where OpenCV rounds places to a 32nd of a pixel.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from micronet_lib.assembled_cnn.corruptions import (
    SIZE,
    as_bytes,
    brightened,
    check_images,
    normal,
    smeared,
    snowed,
    zoomed,
)
from micronet_lib.errors import InputError, check_choice

FRAMES = 31
NOISE_SCALE = 0.02
PHOTONS = 700
# The middle of torchvision's affine maps at that time lies half a pixel from the image's.
CENTRE = SIZE / 2 + 0.5


def perturb(images: Tensor, perturbation: str, generator: Generator) -> Tensor:
    """Return a sequence of frames for every image, uint8 `[N, frames, 3, 32, 32]`.

    Args:
        images: uint8 `[N, 3, 32, 32]`, on the generator's device.
        perturbation: a name of `PERTURBATIONS`.
        generator: random numbers.

    Raises:
        InputError: unknown perturbation, or images of another size.
    """
    check_choice("perturbation", perturbation, PERTURBATIONS)
    check_images(images, "perturbations")
    return as_bytes(PERTURBATIONS[perturbation](images.float() / 255, generator))


def flip_rate(answers: Tensor, perturbation: str) -> float:
    """Return the fraction of frames at which the answer changes, from 0 to 1 [hendrycks2019].

    It is the mean over the images of `flip_rates`, with the same arguments and errors.
    """
    return flip_rates(answers, perturbation).mean().item()


def flip_rates(answers: Tensor, perturbation: str) -> Tensor:
    """Return the fraction of an image's frames at which the answer changes, float64 `[N]`.

    A frame is compared with the one before it. A frame of noise is compared with the first, because
    noise has no order.

    Args:
        answers: class of every frame, `[N, frames]`.
        perturbation: a name of `PERTURBATIONS`.

    Raises:
        InputError: unknown perturbation, no image, or fewer than two frames.
    """
    check_choice("perturbation", perturbation, PERTURBATIONS)
    if answers.ndim != 2 or not len(answers) or answers.shape[1] < 2:
        raise InputError(
            f"answers are {list(answers.shape)}; expected [N, frames] with two frames or more"
        )
    before = answers[:, :1] if perturbation in NOISES else answers[:, :-1]
    return (answers[:, 1:] != before).double().mean(1)


def mean_flip_rate(rates: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Return mFR [hendrycks2019]: flip rates relative to a baseline's, mean over perturbations.

    Args:
        rates: perturbation -> flip rate.
        baseline: the same of the network that all are compared with.

    Raises:
        InputError: the two have not the same perturbations, or none; a rate is NaN or infinite; or
            the baseline never flips under one.
    """
    if not rates or rates.keys() != baseline.keys():
        raise InputError("rates and baseline need the same perturbations, at least one")
    for name, rate in baseline.items():
        if not math.isfinite(rates[name] + rate):
            raise InputError(f"a rate under {name} is NaN or infinite")
        if not rate:
            raise InputError(f"the baseline never flips under {name}: choose another one")
    return sum(rates[name] / baseline[name] for name in rates) / len(rates)


# ------------------------------------------------------------------------------------ parts


def _read(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read images between pixels as Pillow does: the edge repeated in its half pixel, then black.

    `rows` and `columns` `[32, 32]` say where each pixel comes from, in pixels from the corner of
    the image, so that the middle of the first pixel lies at 0.5.
    """
    grid = torch.stack([columns, rows], -1) * 2 / SIZE - 1
    found = F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="border",
                          align_corners=False)  # fmt: skip
    inside = (rows >= 0) & (rows < SIZE) & (columns >= 0) & (columns < SIZE)
    return found * inside


def _affine(x: Tensor, degrees: float = 0.0, right: int = 0, scale: float = 1.0) -> Tensor:
    """Turn, shift or magnify images, with black around them."""
    places = torch.arange(SIZE, device=x.device) + 0.5 - CENTRE
    down, across = torch.meshgrid(places, places, indexing="ij")
    across = across - right
    cos, sin = (f(math.radians(degrees)) / scale for f in (math.cos, math.sin))
    return _read(x, cos * down - sin * across + CENTRE, cos * across + sin * down + CENTRE)


def _tilted(x: Tensor, degrees: float) -> Tensor:
    """Turn images in space about both axes of their plane, seen from a diagonal away."""
    far, half = math.hypot(SIZE, SIZE), SIZE / 2
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    place = torch.tensor([[1, 0, -half], [0, 1, -half], [0, 0, 1], [0, 0, 1]])
    about_x = torch.tensor([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1.0]])
    about_y = torch.tensor([[c, 0, -s, 0], [0, 1, 0, 0], [s, 0, c, 0], [0, 0, 0, 1.0]])
    away = torch.eye(4)
    away[2, 3] = far
    seen = torch.tensor([[far, 0, half, 0], [0, far, half, 0], [0, 0, 1, 0]])
    forward = (seen.double() @ away.double() @ about_x.double() @ about_y.double()) @ place.double()
    places = torch.arange(SIZE, dtype=torch.float64)
    down, across = torch.meshgrid(places, places, indexing="ij")
    source = torch.stack([across, down, torch.ones_like(down)], -1) @ forward.inverse().T
    grid = (source[..., :2] / source[..., 2:]) * 2 / (SIZE - 1) - 1
    grid = grid.to(x).expand(len(x), -1, -1, -1)
    found = F.grid_sample(x, grid, padding_mode="zeros", align_corners=True)
    return (255 * found).round() / 255  # OpenCV rounds, and cuts nothing off


# ---------------------------------------------------------------------------- perturbations


def _gaussian_noise(x: Tensor, generator: Generator) -> Tensor:
    noise = NOISE_SCALE * normal(x, generator, (len(x), FRAMES - 1, *x.shape[1:]))
    return torch.cat([x[:, None], x[:, None] + noise], 1)


def _shot_noise(x: Tensor, generator: Generator) -> Tensor:
    light = (x * PHOTONS)[:, None].expand(-1, FRAMES - 1, -1, -1, -1)
    return torch.cat([x[:, None], torch.poisson(light, generator) / PHOTONS], 1)


def _motion_blur(x: Tensor, generator: Generator) -> Tensor:
    angles = range(-180, 1, 9)
    return torch.stack([smeared(x, 6, 1.8, x.new_full((len(x),), a)) for a in angles], 1)


def _zoom_blur(x: Tensor, generator: Generator) -> Tensor:
    frames = [x, *(_affine(x, scale=1 + 0.004 * i) for i in range(1, FRAMES))]
    count = torch.arange(1, FRAMES + 1, device=x.device)[:, None, None, None]
    return torch.stack(frames, 1).cumsum(1) / count


def _snow(x: Tensor, generator: Generator) -> Tensor:
    """Let the flakes of an image turn with the wind."""
    flakes = 0.05 + 0.3 * normal(x, generator, (len(x), 1, SIZE, SIZE))
    flakes = zoomed(flakes, 2)
    flakes = torch.where(flakes < 0.5, 0.0, flakes).clamp(0, 1)
    winds = (x.new_full((len(x),), 4 * i - 150) for i in range(FRAMES))
    return torch.stack([snowed(x, smeared(flakes, 10, 2, wind), 0.85) for wind in winds], 1)


def _brightness(x: Tensor, generator: Generator) -> Tensor:
    return torch.stack([brightened(x, 0.015 * (i - 15)) for i in range(FRAMES)], 1)


def _translate(x: Tensor, generator: Generator) -> Tensor:
    return torch.stack([_affine(x, right=i - 7) for i in range(16)], 1)


def _rotate(x: Tensor, generator: Generator) -> Tensor:
    return torch.stack([_affine(x, degrees=i - 15) for i in range(FRAMES)], 1)


def _tilt(x: Tensor, generator: Generator) -> Tensor:
    return torch.stack([_tilted(x, 0.75 * (i - 15)) for i in range(FRAMES)], 1)


def _scale(x: Tensor, generator: Generator) -> Tensor:
    return torch.stack([_affine(x, scale=(2 * i + 70) / 100) for i in range(FRAMES)], 1)


PERTURBATIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "brightness": _brightness,
    "translate": _translate,
    "rotate": _rotate,
    "tilt": _tilt,
    "scale": _scale,
}
"""Function of images as floats, by name, in the order of [hendrycks2019]."""

NOISES = ("gaussian_noise", "shot_noise")
"""Perturbations whose frames have no order."""
