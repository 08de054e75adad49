"""Perturbation sequences: Pillow's maps, invariants, and flip rates worked out by hand."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import seeded

from micronet_lib.assembled_cnn import PERTURBATIONS, flip_rate, mean_flip_rate, perturb
from micronet_lib.assembled_cnn.perturbations import NOISES
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split

FRAMES = {"motion_blur": 21, "translate": 16}


def pictures(number: int = 3) -> torch.Tensor:
    return load_split("embedded", "test").images[:number]


def moved(image: torch.Tensor, degrees: float, scale: float, right: int, how: int) -> np.ndarray:
    """Pillow's transform with the matrix of an affine map about (16.5, 16.5)."""
    cos, sin = (f(math.radians(degrees)) / scale for f in (math.cos, math.sin))
    down, across = -16.5, -16.5 - right
    rows = [cos, sin, cos * across + sin * down + 16.5, -sin, cos, cos * down - sin * across + 16.5]
    source = Image.fromarray(image.permute(1, 2, 0).numpy())
    return np.array(source.transform((32, 32), Image.Transform.AFFINE, rows, how)).astype(int)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_sequence_repeats_itself_and_changes_from_frame_to_frame(name):
    frames = perturb(pictures(), name, seeded(0))
    assert frames.shape == (3, FRAMES.get(name, 31), 3, 32, 32)
    assert frames.dtype == torch.uint8
    assert torch.equal(frames, perturb(pictures(), name, seeded(0)))
    steps = (frames[:, 1:].float() - frames[:, :-1]).abs().mean((0, 2, 3, 4))
    assert (steps > 0).all()
    assert perturb(pictures()[:0], name, seeded(0)).shape[0] == 0


@pytest.mark.parametrize(
    ("name", "frame"),
    [("gaussian_noise", 0), ("shot_noise", 0), ("zoom_blur", 0), ("brightness", 15),
     ("translate", 7), ("rotate", 15), ("scale", 15)],
)  # fmt: skip
def test_one_frame_is_the_image_itself(name, frame):
    found = perturb(pictures(), name, seeded(0))[:, frame]
    assert (found.int() - pictures().int()).abs().max() <= (1 if name == "brightness" else 0)


@pytest.mark.parametrize("frame", [0, 7, 16, 30])
@pytest.mark.parametrize("name", ["rotate", "scale"])
def test_turns_and_scales_are_pillows(name, frame):
    images = pictures()
    turn, scale = (frame - 15, 1) if name == "rotate" else (0, (2 * frame + 70) / 100)
    found = perturb(images, name, seeded(0))[:, frame].permute(0, 2, 3, 1).numpy().astype(int)
    for image, ours in zip(images, found, strict=True):
        theirs = moved(image, turn, scale, 0, Image.Resampling.BILINEAR)
        assert np.abs(theirs - ours).max() <= 1  # a fraction is cut off


def test_a_shift_is_exact_and_leaves_black():
    images = pictures()
    found = perturb(images, "translate", seeded(0))
    assert torch.equal(found[:, 10, :, :, 3:], images[..., :-3])
    assert not found[:, 10, :, :, :3].any()
    assert torch.equal(found[:, 0, :, :, :-7], images[..., 7:])
    assert not found[:, 0, :, :, -7:].any()


def test_noise_has_the_published_spread():
    grey = torch.full((8, 3, 32, 32), 128, dtype=torch.uint8)
    for name, spread in (("gaussian_noise", 0.02), ("shot_noise", (0.502 / 700) ** 0.5)):
        frames = perturb(grey, name, seeded(0))[:, 1:].double() / 255
        assert frames.std().item() == pytest.approx(spread, rel=0.03)


def test_brightness_runs_from_darker_to_lighter_in_steps_of_three_halves_of_a_percent():
    grey = torch.full((1, 3, 32, 32), 102, dtype=torch.uint8)  # 0.4
    levels = perturb(grey, "brightness", seeded(0))[0, :, 0, 0, 0].tolist()
    assert levels == [int(255 * (0.4 + 0.015 * (i - 15)) + 1e-3) for i in range(31)]


def test_a_zoom_blur_is_the_mean_of_all_magnifications_so_far():
    images = pictures(1)
    frames = perturb(images, "zoom_blur", seeded(0))[0].permute(0, 2, 3, 1).numpy().astype(int)
    bilinear = Image.Resampling.BILINEAR
    steps = [moved(images[0], 0, 1 + 0.004 * i, 0, bilinear) for i in range(31)]
    for frame in (1, 30):
        assert np.abs(np.mean(steps[: frame + 1], 0) - frames[frame]).max() < 2.01


@pytest.mark.parametrize("frame", [0, 15, 20, 30])
def test_tilt_moves_a_pixel_as_worked_out_by_hand(frame):
    marks = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    marks[..., 22:25, 23:26] = 255  # around column 24, row 23
    angle, far = math.radians(0.75 * (frame - 15)), math.hypot(32, 32)
    # The published matrix lifts the image to height 1, so that even the middle frame is smaller.
    across, up = 24 - 16, 1
    across, up = (across * math.cos(angle) - up * math.sin(angle),
                  across * math.sin(angle) + up * math.cos(angle))  # fmt: skip
    down = 23 - 16
    down, up = (down * math.cos(angle) - up * math.sin(angle),
                down * math.sin(angle) + up * math.cos(angle))  # fmt: skip
    expected = [side * far / (far + up) + 16 for side in (across, down)]
    found = perturb(marks, "tilt", seeded(0))[0, frame, 0].double()
    places = torch.arange(32, dtype=torch.float64)
    middle = [(found.sum(side) @ places / found.sum()).item() for side in (0, 1)]
    assert middle == pytest.approx(expected, abs=0.06)


def test_a_constant_network_never_flips():
    answers = torch.full((5, 31), 7)
    assert [flip_rate(answers, name) for name in PERTURBATIONS] == [0.0] * 10


def test_flip_rate_by_hand():
    """Noise is compared with the first frame, the others with the one before."""
    answers = torch.tensor([[0, 1, 1, 0], [2, 2, 2, 3]])
    assert flip_rate(answers, "rotate") == pytest.approx((2 + 1) / 6)
    for noise in NOISES:
        assert flip_rate(answers, noise) == pytest.approx((2 + 1) / 6)
    back = torch.tensor([[0, 1, 1, 1]])
    assert flip_rate(back, "tilt") == pytest.approx(1 / 3)
    assert flip_rate(back, "shot_noise") == 1.0


@pytest.mark.parametrize("noise", [False, True])
def test_flip_rate_is_the_authors_loop(noise):
    answers = torch.randint(3, (6, 8), generator=seeded(1))
    total = 0.0
    for film in answers.tolist():
        flips, before = [], film[0]
        for answer in film[1:]:
            flips.append(answer != before)
            before = before if noise else answer
        total += sum(flips) / len(flips) / len(answers)
    assert flip_rate(answers, "gaussian_noise" if noise else "snow") == pytest.approx(total)


def test_mean_flip_rate_by_hand():
    rates, base = {"tilt": 0.1, "snow": 0.3}, {"tilt": 0.2, "snow": 0.2}
    assert mean_flip_rate(rates, base) == pytest.approx((0.5 + 1.5) / 2)
    assert mean_flip_rate(base, base) == 1
    with pytest.raises(InputError, match="same perturbations"):
        mean_flip_rate(rates, {"tilt": 0.1})
    with pytest.raises(InputError, match="at least one"):
        mean_flip_rate({}, {})
    with pytest.raises(InputError, match="never flips under snow"):
        mean_flip_rate(rates, {**base, "snow": 0.0})
    for given in ((rates | {"snow": float("nan")}, base), (rates, base | {"snow": float("nan")})):
        with pytest.raises(InputError, match="a rate under snow is NaN or infinite"):
            mean_flip_rate(*given)


def test_what_is_refused():
    with pytest.raises(InputError, match="choose from gaussian_noise"):
        perturb(pictures(), "spatter", seeded(0))
    with pytest.raises(InputError, match="take uint8"):
        perturb(pictures().float(), "tilt", seeded(0))
    with pytest.raises(InputError, match="choose from gaussian_noise"):
        flip_rate(torch.zeros(2, 3), "spatter")
    for answers in (torch.zeros(3), torch.zeros(0, 3), torch.zeros(3, 1)):
        with pytest.raises(InputError, match="two frames or more"):
            flip_rate(answers, "tilt")
