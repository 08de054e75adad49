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
    """Which are pictures of every class, shuffled, none of them twice (`test_data_images`)."""
    images, targets = splits[split]
    digests = tuple(
        hashlib.sha256(array.tobytes()).hexdigest() for array in (images, targets.astype("<i8"))
    )
    assert digests == DIGESTS[split]
    assert images.shape == (100 * (50 if split == "train" else 10), 3, 32, 32)
    assert (images.dtype, targets.dtype) == (np.uint8, np.int64)
    assert images.flags.c_contiguous
    assert len(np.unique(targets[:100])) > 50


@pytest.mark.parametrize("split", DIGESTS)
def test_fewer_images_per_class_are_the_first_of_more(splits, split):
    images, targets = splits[split]
    few, few_targets = embedded.make_images(split, num_per_class=3)
    assert np.bincount(few_targets).tolist() == [3] * 100
    place = {image.tobytes(): index for index, image in enumerate(images)}
    kept = [place[image.tobytes()] for image in few]
    assert kept == sorted(kept)
    np.testing.assert_array_equal(targets[kept], few_targets)
    if split == "test":
        more, _ = embedded.make_images(split, num_per_class=11)
        assert place.keys() < {image.tobytes() for image in more}


def test_superclasses_can_be_told_by_simple_features(splits):
    features = {split: mean_colours(images) for split, (images, _) in splits.items()}
    coarse = {split: SUPERCLASS_OF[targets] for split, (_, targets) in splits.items()}
    means = np.stack([features["train"][coarse["train"] == s].mean(0) for s in range(20)])
    distances = np.linalg.norm(features["test"][:, None] - means, axis=2)
    accuracy = (distances.argmin(1) == coarse["test"]).mean()
    assert accuracy > 0.4  # chance is 0.05
    ring = embedded.CLASS_NAMES.index("ring, thick")
    assert embedded.SUPERCLASS_NAMES[SUPERCLASS_OF[ring]] == "rings"


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


def test_impossible_requests_are_refused():
    with pytest.raises(InputError, match="'validation'; choose from train, test"):
        embedded.make_images("validation")
    with pytest.raises(InputError, match="num_per_class"):
        embedded.make_images("train", 0)


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
