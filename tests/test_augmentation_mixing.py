"""CutMix and mixup: torchvision's results from the same box, and labels that match the pixels."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms import v2

from micronet_lib.assembled_cnn.offline_teacher import mixed_answers
from micronet_lib.augmentation.mixing import (
    KINDS,
    MixDraw,
    cut_box,
    draw_mix,
    images_per_mix,
    mix,
    mix_rows,
)
from micronet_lib.errors import InputError

NUM_CLASSES = 10


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(num: int = 8) -> tuple[Tensor, Tensor]:
    images = torch.rand(num, 3, 32, 32, generator=generator(5))
    return images, torch.randint(NUM_CLASSES, (num,), generator=generator(6))


def constant_images(num: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Image n is n everywhere, so that a pixel tells where it came from."""
    return torch.arange(num).to(dtype).view(-1, 1, 1, 1).expand(num, 3, 32, 32)


def soft_labels(targets_a: Tensor, targets_b: Tensor, lam: Tensor) -> Tensor:
    one_hot_a, one_hot_b = (F.one_hot(t, NUM_CLASSES).float() for t in (targets_a, targets_b))
    return lam * one_hot_a + (1 - lam) * one_hot_b


def neighbours(num: int) -> Tensor:
    """The partners that torchvision takes."""
    return torch.arange(num).roll(1)


# ------------------------------------------------------------------------ against torchvision


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_mixing_is_torchvisions(kind):
    """Its weight and centre, drawn again here, make its box, its image and its labels."""
    images, targets = batch()
    before = images.clone(), targets.clone()
    oracle = (v2.CutMix if kind == "cutmix" else v2.MixUp)(alpha=1.0, num_classes=NUM_CLASSES)
    for seed in range(30 if kind == "cutmix" else 5):
        torch.manual_seed(seed)
        expected_images, expected_labels = oracle(images, targets)
        torch.manual_seed(seed)
        lam = torch.distributions.Beta(torch.ones(1), torch.ones(1)).sample()[0]
        box = None
        if kind == "cutmix":
            column, row = int(torch.randint(32, (1,))), int(torch.randint(32, (1,)))
            box, kept = cut_box(float(lam), (column, row))
            box, lam = torch.tensor(box), torch.tensor(kept)

        mixed = mix(images, targets, MixDraw(lam, box, neighbours(len(images))))
        if kind == "cutmix":
            assert torch.equal(mixed.images, expected_images)
        assert_close(mixed.images, expected_images)
        assert_close(soft_labels(mixed.targets_a, mixed.targets_b, mixed.lam), expected_labels)
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])


# -------------------------------------------------------------------------------------- CutMix


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lam=st.floats(0, 1), column=st.integers(0, 31), row=st.integers(0, 23))
def test_the_weight_is_the_share_of_pixels(lam, column, row):
    (left, top, right, bottom), kept = cut_box(lam, (column, row), (24, 32))
    assert 0 <= left <= right <= 32
    assert 0 <= top <= bottom <= 24
    assert kept == 1 - (right - left) * (bottom - top) / (24 * 32)
    assert kept >= lam - 1e-9  # whole pixels and the border only make the box smaller
    drawn = MixDraw(torch.tensor(kept), torch.tensor([left, top, right, bottom]), neighbours(2))
    images = torch.zeros(2, 1, 24, 32)
    images[1] = 1
    mixed = mix(images, torch.tensor([0, 1]), drawn)
    assert (mixed.images[0] == 0).sum() / (24 * 32) == pytest.approx(kept)
    assert (mixed.images[1] == 1).sum() / (24 * 32) == pytest.approx(kept)


@pytest.mark.parametrize(
    ("lam", "centre", "box", "kept"),
    [
        (0.75, (16, 16), (8, 8, 24, 24), 0.75),
        (0.75, (0, 16), (0, 8, 8, 24), 0.875),  # half of it lies outside
        (0.75, (31, 31), (23, 23, 32, 32), 1 - 81 / 1024),
        (0.0, (16, 16), (0, 0, 32, 32), 0.0),
        (0.0, (0, 0), (0, 0, 16, 16), 0.75),
        (1.0, (5, 7), (5, 7, 5, 7), 1.0),
        (0.999, (5, 7), (5, 7, 5, 7), 1.0),  # a side of one pixel has no half
    ],
)
def test_boxes_by_hand(lam, centre, box, kept):
    assert cut_box(lam, centre) == (box, kept)


def test_pixels_and_labels_of_a_draw_agree():
    num = 16
    for seed in range(20):
        drawn = draw_mix("cutmix", num, generator(seed))
        mixed = mix(constant_images(num), torch.arange(num), drawn)
        assert mixed.images.dtype == torch.uint8
        assert torch.equal(mixed.targets_a, torch.arange(num))
        for image, own, partner in zip(mixed.images, mixed.targets_a, mixed.targets_b, strict=True):
            assert set(image.flatten().tolist()) <= {int(own), int(partner)}
            if own != partner:
                assert (image == own).float().mean() == drawn.lam
        left, top, right, bottom = drawn.box.tolist()
        assert drawn.lam == 1 - (right - left) * (bottom - top) / 1024


# ------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_the_same_seed_draws_the_same(kind):
    first, again, other = (draw_mix(kind, 20, generator(seed)) for seed in (1, 1, 2))
    torch.manual_seed(3)
    third = draw_mix(kind, 20, generator(1))
    for same in (again, third):
        assert torch.equal(first.lam, same.lam)
        assert torch.equal(first.permutation, same.permutation)
        assert kind == "mixup" or torch.equal(first.box, same.box)
    assert not torch.equal(first.permutation, other.permutation)
    assert first.lam != other.lam
    assert (first.lam.dtype, first.lam.shape) == (torch.float32, ())
    assert sorted(first.permutation.tolist()) == list(range(20))
    if kind == "mixup":
        assert first.box is None
    else:
        assert (first.box.dtype, first.box.shape) == (torch.int64, (4,))


def weights(num: int, **settings: float) -> Tensor:
    running = generator()
    return torch.stack([draw_mix("mixup", 1, running, **settings).lam for _ in range(num)])


def test_weights_are_beta_distributed():
    for alpha in (0.2, 1.0, 5.0):
        drawn = weights(2000, alpha=alpha)
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(float(drawn.mean()) - 0.5) < 4 * (variance / 2000) ** 0.5
        assert float(drawn.var()) == pytest.approx(variance, rel=0.1)
    assert set(weights(200, alpha=1e-6).tolist()) == {0.0, 1.0}  # the image or its partner
    assert_close(weights(200, alpha=1e6), torch.full((200,), 0.5), atol=0.01, rtol=0)


def test_prob_is_the_share_of_mixed_batches():
    assert (weights(50, prob=0) == 1).all()
    assert (weights(50, prob=1) < 1).all()
    share = float((weights(2000, prob=0.3) < 1).float().mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5
    images, targets = batch()
    for kind in ("cutmix", "mixup"):
        mixed = mix(images, targets, draw_mix(kind, len(images), generator(), prob=0))
        assert torch.equal(mixed.images, images)
        assert torch.equal(mixed.targets_a, targets)
        assert mixed.lam == 1


def test_every_place_can_be_the_centre():
    """Boxes cover the middle more often than the corners, and all four corners alike."""
    running = generator()
    covered = torch.zeros(32, 32)
    for _ in range(1500):
        mixed = mix(constant_images(2), torch.arange(2), draw_mix("cutmix", 2, running))
        if mixed.targets_b[0] == 1:
            covered += mixed.images[0, 0]
    corners = covered[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() < 1.4 * corners.min()
    assert covered[16, 16] > 1.5 * corners.max()


# ------------------------------------------------------------------------------------ edge cases


def test_mixing_is_one_graph_for_all_draws():
    images, targets = batch()
    traced = torch.compile(mix, fullgraph=True, backend="eager", dynamic=False)
    for seed in (0, 1):
        with torch.compiler.set_stance("default" if seed == 0 else "fail_on_recompile"):
            drawn = draw_mix("cutmix", len(images), generator(seed))
            expected = mix(images, targets, drawn)
            assert torch.equal(traced(images, targets, drawn).images, expected.images)


@pytest.mark.parametrize("kind", KINDS)
def test_mixing_stays_on_its_device(kind):
    """On the device without contents every wait for a value and every foreign tensor raises."""
    loaded = 8 * images_per_mix(kind)
    images, targets = (tensor.to("meta") for tensor in batch(loaded))
    drawn = draw_mix(kind, 8, generator(), "meta")
    mixed = mix(images, targets, drawn)
    assert {tensor.device.type for tensor in mixed} == {"meta"}
    assert mixed.images.shape == (8, *images.shape[1:])
    assert mix_rows(torch.zeros(loaded, 5, device="meta"), drawn).shape == (8, 5)


def test_half_precision_stays():
    images, targets = batch()
    mixed = mix(images.bfloat16(), targets, draw_mix("mixup", len(images), generator()))
    assert mixed.images.dtype == torch.bfloat16
    full = mix(images, targets, draw_mix("mixup", len(images), generator()))
    assert_close(mixed.images.float(), full.images, atol=0.02, rtol=0)


def test_settings_that_cannot_be():
    for name, value in (
        *(("kind", "cutout"), ("alpha", 0.0), ("alpha", -1.0), ("alpha", float("nan"))),
        ("prob", 1.5),
    ):
        settings = {"kind": "cutmix", "num_images": 4, "generator": generator()}
        with pytest.raises(InputError, match=f"{value}"):
            draw_mix(**{**settings, name: value})


def test_batches_that_cannot_be_mixed():
    images, targets = batch(4)
    with pytest.raises(InputError, match="4 images, but a draw for 5"):
        mix(images, targets, draw_mix("cutmix", 5, generator()))
    with pytest.raises(InputError, match=r"which are torch.uint8: normalise them first"):
        mix(constant_images(4), targets, draw_mix("mixup", 4, generator()))


# --------------------------------------------------------- a weight for every image


def test_two_batches_become_one():
    images, targets = batch(8)
    drawn = draw_mix("mixup_two_batches", 4, generator(), alpha=0.2)
    mixed = mix(images, targets, drawn)
    lam = drawn.lam.view(4, 1, 1, 1)
    assert_close(mixed.images, lam * images[:4] + (1 - lam) * images[4:])
    assert torch.equal(mixed.targets_a, targets[:4])
    assert torch.equal(mixed.targets_b, targets[4:])
    assert len(set(drawn.lam.tolist())) == 4


def test_one_batch_is_mixed_half_with_half_in_order_and_reversed():
    images, targets = batch(8)
    drawn = draw_mix("mixup_one_batch", 8, generator(), alpha=0.2)
    mixed = mix(images, targets, drawn)
    first, second = images.chunk(2)
    lam = drawn.lam.view(2, 4, 1, 1, 1)
    assert_close(mixed.images[:4], lam[0] * first + (1 - lam[0]) * second)
    assert_close(mixed.images[4:], lam[1] * first + (1 - lam[1]) * second.flip(0))
    assert torch.equal(mixed.targets_a, targets[:4].repeat(2))
    assert torch.equal(mixed.targets_b, torch.cat([targets[4:], targets[4:].flip(0)]))


@pytest.mark.parametrize("kind", ["mixup_two_batches", "mixup_one_batch"])
def test_each_image_has_a_weight_from_the_beta_distribution(kind):
    lam = draw_mix(kind, 4000, generator(), alpha=0.2).lam
    variance = 1 / (4 * (2 * 0.2 + 1))
    assert abs(float(lam.mean()) - 0.5) < 4 * (variance / 4000) ** 0.5
    assert float(lam.var()) == pytest.approx(variance, rel=0.1)
    assert (draw_mix(kind, 8, generator(), prob=0).lam == 1).all()
    assert torch.equal(draw_mix(kind, 4000, generator(), alpha=0.2).lam, lam)


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "mixup_two_batches", "mixup_one_batch"])
def test_rows_are_mixed_as_the_labels_are(kind):
    num = 16 if kind == "mixup_two_batches" else 8
    images, targets = batch(num)
    drawn = draw_mix(kind, 8, generator())
    mixed = mix(images, targets, drawn)
    lam = mixed.lam if mixed.lam.ndim == 0 else mixed.lam[:, None]
    rows = F.one_hot(targets, NUM_CLASSES).float()
    assert_close(mix_rows(rows, drawn), soft_labels(mixed.targets_a, mixed.targets_b, lam))


def test_an_odd_batch_or_another_number_of_images_is_refused():
    with pytest.raises(InputError, match="7 images are odd"):
        draw_mix("mixup_one_batch", 7, generator())
    for kind in KINDS:
        loaded = 4 * images_per_mix(kind)
        drawn = draw_mix(kind, 4, generator())
        rows = torch.rand(loaded, NUM_CLASSES)
        assert len(mix(*batch(loaded), drawn).images) == len(mix_rows(rows, drawn)) == 4
        for num in {2, 4, 6, 8, 16} - {loaded}:
            images, targets = batch(num)
            rows = torch.rand(num, NUM_CLASSES)
            with pytest.raises(InputError, match=f"{num} images, but a draw for {loaded}"):
                mix(images, targets, drawn)
            with pytest.raises(InputError, match=f"{num} targets, but a draw for {loaded}"):
                mix(batch(loaded)[0], targets, drawn)
            for function in (mix_rows, mixed_answers):
                with pytest.raises(InputError, match=f"{num} rows, but a draw for {loaded}"):
                    function(rows, drawn)


@pytest.mark.parametrize("kind", ["mixup_one_batch", "mixup_two_batches"])
def test_a_batch_that_is_not_mixed_has_every_image_once(kind):
    draw = draw_mix(kind, 8, generator(), prob=0.0)
    images, targets = batch(8 * images_per_mix(kind))
    mixed = mix(images, targets, draw)
    assert torch.equal(mixed.images, images[:8])
    assert torch.equal(mixed.targets_a, targets[:8])
    assert (mixed.lam == 1).all()
