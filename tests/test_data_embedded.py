import hashlib

import numpy as np
import pytest

from micronet_lib.errors import InputError
from micronet_lib.lab.data import embedded

# Change these only together with the pictures, and then re-measure what was measured on them.
DIGESTS = {
    "train": (
        "5d41289314166c4be4492218a182fd64c05481dcc034126b9ac9c2de17824eae",
        "6735918a4b815b63958166b08114cdf3e76c9d1a40ab0c4c328b29feed812ac8",
    ),
    "test": (
        "5d2aa3114f82c387156225ad153a8c95e60ab50d7b6507a3c12b9c0cb8381a94",
        "159d026662f96fc57f6d72ff8eaa32a5027f887ba3f6b295125a6cb3c7f52af3",
    ),
}
SUPERCLASS_OF = np.array(embedded.SUPERCLASS_OF)


@pytest.fixture(scope="module")
def splits():
    return {split: embedded.make_images(split) for split in DIGESTS}


def mean_colours(images):
    """[N,48]: the mean colour of each of 16 tiles, in [0, 1]."""
    tiles = images.reshape(-1, 3, 4, 8, 4, 8).mean((3, 5)) / 255
    return tiles.reshape(len(images), -1)


@pytest.mark.parametrize("split", DIGESTS)
def test_every_machine_draws_the_same_bytes(splits, split):
    images, targets = splits[split]
    digests = tuple(
        hashlib.sha256(array.tobytes()).hexdigest() for array in (images, targets.astype("<i8"))
    )
    assert digests == DIGESTS[split]


@pytest.mark.parametrize(("split", "num_per_class"), [("train", 50), ("test", 10)])
def test_shapes_and_balance(splits, split, num_per_class):
    images, targets = splits[split]
    assert images.shape == (100 * num_per_class, 3, 32, 32)
    assert (images.dtype, targets.dtype) == (np.uint8, np.int64)
    assert images.flags.c_contiguous
    assert np.bincount(targets).tolist() == [num_per_class] * 100


def test_order_is_shuffled(splits):
    _, targets = splits["train"]
    assert len(np.unique(targets[:100])) > 50


def test_no_image_is_drawn_twice_or_is_in_both_splits(splits):
    drawn = {image.tobytes() for images, _ in splits.values() for image in images}
    assert len(drawn) == 6000


@pytest.mark.parametrize("split", DIGESTS)
def test_fewer_images_per_class_are_the_first_of_more(splits, split):
    images, targets = splits[split]
    few, few_targets = embedded.make_images(split, num_per_class=3)
    assert np.bincount(few_targets).tolist() == [3] * 100
    place = {image.tobytes(): index for index, image in enumerate(images)}
    kept = [place[image.tobytes()] for image in few]
    assert kept == sorted(kept)
    np.testing.assert_array_equal(targets[kept], few_targets)
    fewer, _ = embedded.make_images(split, num_per_class=2)
    assert {image.tobytes() for image in fewer} < {image.tobytes() for image in few}


def test_more_than_the_usual_number_keeps_the_usual_images(splits):
    more, _ = embedded.make_images("test", num_per_class=11)
    usual, _ = splits["test"]
    assert {image.tobytes() for image in usual} < {image.tobytes() for image in more}


def test_hundred_names_in_twenty_superclasses_of_five():
    assert len(set(embedded.CLASS_NAMES)) == 100
    assert len(set(embedded.SUPERCLASS_NAMES)) == 20
    assert np.bincount(SUPERCLASS_OF).tolist() == [5] * 20
    ring = embedded.CLASS_NAMES.index("ring, thick")
    assert embedded.SUPERCLASS_NAMES[SUPERCLASS_OF[ring]] == "rings"


def test_superclasses_can_be_told_by_simple_features(splits):
    features = {split: mean_colours(images) for split, (images, _) in splits.items()}
    coarse = {split: SUPERCLASS_OF[targets] for split, (_, targets) in splits.items()}
    means = np.stack([features["train"][coarse["train"] == s].mean(0) for s in range(20)])
    distances = np.linalg.norm(features["test"][:, None] - means, axis=2)
    accuracy = (distances.argmin(1) == coarse["test"]).mean()
    assert accuracy > 0.4  # chance is 0.05


def test_classes_are_closer_within_than_between_superclasses(splits):
    images, targets = splits["train"]
    features = mean_colours(images)
    means = np.stack([features[targets == c].mean(0) for c in range(100)])
    distances = np.linalg.norm(means[:, None] - means, axis=2)
    same = SUPERCLASS_OF[:, None] == SUPERCLASS_OF
    others = ~np.eye(100, dtype=bool)
    assert distances[same & others].mean() < 0.5 * distances[~same].mean()


def test_a_mirrored_image_could_be_of_the_same_class(splits):
    # Half of the crescents open to either side, so a horizontal flip changes no label.
    images, targets = splits["train"]
    crescents = images[targets == embedded.CLASS_NAMES.index("crescent, slim")].mean(1)
    brighter_left = crescents[:, :, :16].mean((1, 2)) > crescents[:, :, 16:].mean((1, 2))
    assert 0.25 < brighter_left.mean() < 0.75


@pytest.mark.parametrize(
    ("split", "num_per_class", "message"),
    [
        ("validation", None, "unknown split 'validation'; choose from train, test"),
        ("train", 0, "num_per_class must be at least 1, not 0"),
    ],
)
def test_impossible_requests_are_refused(split, num_per_class, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        embedded.make_images(split, num_per_class)


def test_contact_sheet_lays_images_out_row_by_row():
    images = np.arange(3, dtype=np.uint8).repeat(3 * 32 * 32).reshape(3, 3, 32, 32)
    sheet = embedded.contact_sheet(images, columns=2)
    assert sheet.shape == (70, 70, 3)
    assert sheet.dtype == np.uint8
    assert (sheet[2:34, 2:34] == 0).all()
    assert (sheet[2:34, 36:68] == 1).all()
    assert (sheet[36:68, 2:34] == 2).all()
    assert (sheet[36:68, 36:] == 255).all()
    assert (sheet[:2] == 255).all()
    assert (sheet[:, 34:36] == 255).all()
    assert (sheet[68:] == 255).all()
