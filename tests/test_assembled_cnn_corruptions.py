"""Corruptions: properties worked out by hand, Pillow, and the generator's loop in plain numpy."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import seeded

from micronet_lib.assembled_cnn import CORRUPTIONS, SEVERITIES, corrupt, mean_corruption_error
from micronet_lib.assembled_cnn import corruptions as own
from micronet_lib.errors import InputError


def pictures(number: int = 8) -> torch.Tensor:
    """Smooth images with an edge."""
    ramp = torch.arange(32) * 4
    base = torch.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], ramp[:, None] + ramp])
    base[:, 10:20, 12:24] = torch.tensor([220, 60, 30])[:, None, None]
    shift = torch.arange(number)[:, None, None, None] * 3
    return (base[None] // 2 + 20 + shift).clamp(0, 255).to(torch.uint8)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().mean().item()


def test_there_are_fifteen_of_five_severities():
    assert len(CORRUPTIONS) == 15
    assert all(len(constants) == len(SEVERITIES) for _, constants in CORRUPTIONS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_repeats_itself_and_grows_with_severity(name):
    images = pictures()
    found = [corrupt(images, name, severity, seeded(0)) for severity in SEVERITIES]
    assert all(each.dtype == torch.uint8 and each.shape == images.shape for each in found)
    assert torch.equal(found[2], corrupt(images, name, 3, seeded(0)))
    assert all(distance(each, images) > 0.1 for each in found)
    # Elastic trades a map of the whole image for moves of single pixels as it grows.
    assert name == "elastic" or distance(found[4], images) > distance(found[0], images)
    assert len(corrupt(images[:0], name, 5, seeded(0))) == 0


@pytest.mark.parametrize(
    ("name", "severity", "spread"),
    [
        ("gaussian_noise", 1, 0.04),
        ("gaussian_noise", 5, 0.10),
        ("shot_noise", 5, (0.5 / 50) ** 0.5),
    ],
)
def test_noise_has_its_standard_deviation(name, severity, spread):
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    found = corrupt(grey, name, severity, seeded(0)).double() / 255
    assert found.std().item() == pytest.approx(spread, rel=0.03)
    assert found.mean().item() == pytest.approx(0.5, abs=0.005)


def test_impulses_hit_channels_alone_and_are_black_or_white():
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    found = corrupt(grey, "impulse_noise", 5, seeded(0))
    shares = [(found == level).double().mean().item() for level in (0, 128, 255)]
    assert shares == pytest.approx([0.035, 0.93, 0.035], abs=0.004)


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"])
def test_a_blur_keeps_a_grey_image(name):
    grey = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    for severity in SEVERITIES:
        assert distance(corrupt(grey, name, severity, seeded(0)), grey) <= 1
        assert corrupt(grey, name, severity, seeded(0)).unique().numel() == 1


def test_the_largest_defocus_is_a_box_of_nine_pixels():
    """A disk of radius 1.5 covers 3 x 3 pixels; softening by 0.1 changes nothing."""
    point = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    point[..., 10, 10] = 252
    found = corrupt(point, "defocus_blur", 5, seeded(0))
    assert (found[..., 9:12, 9:12] == 28).all()
    assert found.long().sum() == 3 * 9 * 28


def test_glass_is_the_generators_loop():
    """Its swap of two views of an array copies, which makes a pass one parallel step."""
    image = pictures(1)
    back = (torch.rand(2, 1, 32, 32, generator=seeded(3)) < 0.5).long()
    array = image[0].permute(1, 2, 0).numpy().copy()
    for h in range(31, 1, -1):
        for w in range(31, 1, -1):
            up, left = h - int(back[0, 0, h, w]), w - int(back[1, 0, h, w])
            array[h, w], array[up, left] = array[up, left], array[h, w]
    found = corrupt(image, "glass_blur", 1, seeded(3))  # sigma 0.05 blurs nothing
    assert torch.equal(found[0].permute(1, 2, 0), torch.from_numpy(array))


def test_motion_smears_along_one_direction():
    """At 0 degrees a pixel is a mean of itself and those to its right, weighted by a Gaussian."""
    x = torch.zeros(1, 1, 32, 32)
    x[..., 16, 16] = 1
    found = own.smeared(x, 6, 1.0, torch.zeros(1))[0, 0]
    weights = np.exp(-0.5 * np.arange(13) ** 2)
    expected = weights / weights.sum()
    assert found[16, 4:17].flip(0).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert found.sum().item() == pytest.approx(1)
    assert found[:16].sum() == found[17:].sum() == 0


def test_zoom_magnifies_about_the_middle():
    x = torch.arange(32.0).expand(1, 1, 32, 32)
    assert torch.equal(own.zoomed(x, 1.0), x)
    wide = own.zoomed(x, 2.0)[0, 0, 0]
    # The middle sixteen columns, from 8 to 23, on 32 pixels, corner on corner.
    assert wide.tolist() == pytest.approx(np.linspace(8, 23, 32).tolist(), abs=1e-4)


def test_fog_fills_a_square_from_zero_to_one_and_keeps_the_brightest():
    x = torch.rand(4, 3, 32, 32, generator=seeded(0))
    clouds = own._plasma(x, seeded(1), 3.0)
    assert clouds.shape == (4, 1, 32, 32)
    assert clouds.amin((1, 2, 3)).tolist() == [0.0] * 4
    assert clouds.amax((1, 2, 3)).tolist() == [1.0] * 4
    for severity in SEVERITIES:
        foggy = own._fog(x, seeded(1), *CORRUPTIONS["fog"][1][severity - 1])
        assert (foggy.amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-6).all()


def test_brightness_keeps_hue_and_contrast_keeps_the_mean():
    image = torch.tensor([51, 102, 0])[:, None, None].expand(3, 32, 32)[None].to(torch.uint8)
    # The value 0.4 becomes 0.7, so every channel grows by 1.75.
    bright = corrupt(image, "brightness", 5, seeded(0))
    assert bright[0, :, 0, 0].tolist() == [89, 178, 0]
    black = corrupt(torch.zeros_like(image), "brightness", 5, seeded(0))
    assert black.unique().tolist() == [76]
    images = pictures()
    flat = corrupt(images, "contrast", 5, seeded(0)).double()
    means = images.double().mean((2, 3), keepdim=True)
    assert (flat - (means + 0.15 * (images - means))).abs().max() <= 1.01


def test_elastic_of_the_first_severity_is_an_affine_map():
    """A ramp stays a plane away from the mirrored border: its second differences vanish."""
    ramp = torch.arange(32.0).expand(1, 3, 32, 32) / 64
    found = own._elastic(ramp, seeded(0), 0, 0, 0.08)[..., 12:20, 12:20]
    assert found.diff(dim=-1).diff(dim=-1).abs().max() < 1e-4
    assert found.diff(dim=-2).diff(dim=-2).abs().max() < 1e-4
    assert distance(found, ramp[..., 12:20, 12:20]) > 1e-3
    still = own._elastic(ramp, seeded(0), 0, 0, 0.0)
    torch.testing.assert_close(still, ramp, atol=1e-5, rtol=0)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_and_jpeg_are_pillows(severity):
    images = pictures(3)
    small = int(32 * CORRUPTIONS["pixelate"][1][severity - 1][0])
    quality = CORRUPTIONS["jpeg"][1][severity - 1][0]
    coarse = corrupt(images, "pixelate", severity, seeded(0))
    packed = corrupt(images, "jpeg", severity, seeded(0))
    for index, image in enumerate(images):
        source = Image.fromarray(image.permute(1, 2, 0).numpy())
        there = source.resize((small, small), Image.Resampling.BOX)
        back = np.array(there.resize((32, 32), Image.Resampling.BOX)).astype(int)
        ours = coarse[index].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(ours - back).max() <= 1
        buffer = io.BytesIO()
        source.save(buffer, "JPEG", quality=quality)
        read = np.array(Image.open(buffer))
        assert np.array_equal(packed[index].permute(1, 2, 0).numpy(), read)


def test_mean_corruption_error_by_hand():
    errors = {"fog": [0.1, 0.3], "snow": [0.2, 0.4]}
    baseline = {"fog": [0.2, 0.2], "snow": [0.1, 0.3]}
    assert mean_corruption_error(errors, baseline) == pytest.approx((0.4 / 0.4 + 0.6 / 0.4) / 2)
    assert mean_corruption_error(baseline, baseline) == 1
    with pytest.raises(InputError, match="same corruptions"):
        mean_corruption_error(errors, {"fog": [0.1]})
    with pytest.raises(InputError, match="at least one"):
        mean_corruption_error({}, {})
    with pytest.raises(InputError, match="no error under fog"):
        mean_corruption_error(errors, {**baseline, "fog": [0.0, 0.0]})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([0.1], "1 errors under fog, and 2 of the baseline"),
        ([], "0 errors under fog, and 2 of the baseline"),
        ([0.1, float("nan")], "an error under fog is NaN or infinite"),
        ([0.1, float("inf")], "an error under fog is NaN or infinite"),
    ],
)
def test_errors_of_other_severities_or_no_numbers_are_refused(row, words):
    baseline = {"fog": [0.2, 0.2], "snow": [0.1, 0.3]}
    with pytest.raises(InputError, match=words):
        mean_corruption_error({**baseline, "fog": row}, baseline)
    with pytest.raises(InputError, match="under fog"):
        mean_corruption_error(baseline, {**baseline, "fog": row})
    with pytest.raises(InputError, match="0 errors under fog"):
        mean_corruption_error({"fog": []}, {"fog": []})


@pytest.mark.parametrize(
    ("images", "name", "severity", "words"),
    [
        (pictures(), "rain", 1, "choose from gaussian_noise"),
        (pictures(), "fog", 6, "choose from 1, 2, 3, 4, 5"),
        (pictures().float(), "fog", 1, "take uint8"),
        (pictures()[..., :16], "fog", 1, r"\[8, 3, 32, 16\]"),
    ],
)
def test_what_is_refused(images, name, severity, words):
    with pytest.raises(InputError, match=words):
        corrupt(images, name, severity, seeded(0))
