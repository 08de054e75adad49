"""The two data sets as tensors: the embedded one and CIFAR-100, with one fixed validation split.

A split is read on demand: rating a network on CIFAR-100 opens only its test file.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import check_integrity

from micronet_lib.errors import InputError, check_choice, unknown
from micronet_lib.lab.data import embedded
from micronet_lib.lab.host.places import CIFAR100_CLASSES, data_root, of_checkout

DATA_SETS = ("embedded", "cifar100")
SPLITS = ("train", "validation", "test")
NUM_IMAGES = {
    "embedded": {"train": 4_500, "validation": 500, "test": 1_000},
    "cifar100": {"train": 45_000, "validation": 5_000, "test": 10_000},
}
"""Images of each split, known without reading a file; as many of every class."""
NUM_CLASSES = 100

Labelling = Literal["class", "superclass"]

# Of CIFAR-100's training images, per channel, in units of the full range. The embedded set is
# normalised by the same numbers: a network that moves between the two sees one scale.
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)

VALIDATION_SEED = 2019


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels, all on one device.

    Attributes:
        images: uint8 [N,3,32,32].
        targets: int64 [N], the class of each image.
    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the same images on a device."""
        return ImageSet(self.images.to(device), self.targets.to(device))

    def subset(self, indices: Tensor) -> "ImageSet":
        """Return the images at `indices`, int64 [M], in that order."""
        return ImageSet(self.images[indices], self.targets[indices])

    def first(self, num: int) -> "ImageSet":
        """Return `num` images, the first of each class in turn; all of them for 0.

        Raises:
            InputError: more images than there are.
        """
        if num > len(self):
            raise InputError(f"{num} images asked for, but there are {len(self)}")
        if not num:
            return self
        targets = pd.Series(self.targets.cpu())
        turns = targets.groupby(targets).cumcount()
        chosen = pd.DataFrame({"turn": turns, "target": targets}).sort_values(["turn", "target"])
        return self.subset(torch.tensor(sorted(chosen.index[:num]), device=self.targets.device))


class Labels(NamedTuple):
    """The meaning of the target numbers.

    Attributes:
        class_names: of the 100 classes.
        superclass_names: of the 20 superclasses.
        superclass_of: int64 [100], the superclass of each class.
    """

    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...]
    superclass_of: Tensor

    def table(self) -> pd.DataFrame:
        """Return one row per class, in the order of the labels: class, superclass."""
        superclasses = [self.superclass_names[index] for index in self.superclass_of.tolist()]
        return pd.DataFrame({"class": self.class_names, "superclass": superclasses})


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with three splits. Validation is taken from the published training set.

    Attributes:
        name: one of `DATA_SETS`.
        train: for learning.
        validation: for choosing between recipes.
        test: for the one number at the end.
        class_names: and the next two, see `Labels`.
    """

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...]
    superclass_of: Tensor

    @property
    def everything(self) -> ImageSet:
        """Training and validation images: the published training set, in another order."""
        return ImageSet(
            torch.cat([self.train.images, self.validation.images]),
            torch.cat([self.train.targets, self.validation.targets]),
        )


def load_dataset(name: str) -> Dataset:
    """Return all splits of one of `DATA_SETS`, on the CPU.

    `embedded` has 4 500 + 500 + 1 000 images for training, validation and test; `cifar100` has
    45 000 + 5 000 + 10 000.

    Raises:
        InputError: unknown name, or CIFAR-100 is missing or damaged.
    """
    published, test = _read(name, "train"), _read(name, "test")
    train, validation = (published.subset(part) for part in split_indices(published.targets))
    return Dataset(name, train, validation, test, *load_labels(name))


def load_labels(name: str) -> Labels:
    """Return the labels of one of `DATA_SETS`. CIFAR-100's are in the repository, without images.

    Raises:
        InputError: unknown name.
    """
    match name:
        case "embedded":
            superclass_of = torch.tensor(embedded.SUPERCLASS_OF)
            return Labels(embedded.CLASS_NAMES, embedded.SUPERCLASS_NAMES, superclass_of)
        case "cifar100":
            rows = pd.read_csv(of_checkout(CIFAR100_CLASSES))
            superclasses = sorted(rows["superclass"].unique())  # the published numbering
            numbers = [superclasses.index(superclass) for superclass in rows["superclass"]]
            return Labels(tuple(rows["class"]), tuple(superclasses), torch.tensor(numbers))
    raise unknown("data set", name, DATA_SETS)


def load_split(name: str, split: str) -> ImageSet:
    """Return one of the `SPLITS` on the CPU, without opening files of other splits.

    Raises:
        InputError: unknown name or split, or CIFAR-100 is missing or damaged.
    """
    check_choice("split", split, SPLITS)
    if split == "test":
        return _read(name, "test")
    published = _read(name, "train")
    train, validation = split_indices(published.targets)
    return published.subset(train if split == "train" else validation)


def restricted(
    images: ImageSet, name: str, num_classes: int = 0, labels: Labelling = "class"
) -> ImageSet:
    """Return the images of the first classes only, with classes or superclasses as targets.

    Args:
        images: of the data set, with its classes as targets.
        name: of the data set.
        num_classes: how many classes stay, the first in the order of the labels; 0 for all.
        labels: what the targets become.
    """
    if num_classes:
        images = images.subset((images.targets < num_classes).nonzero().flatten())
    if labels == "superclass":
        superclass_of = load_labels(name).superclass_of.to(images.targets.device)
        images = ImageSet(images.images, superclass_of[images.targets])
    return images


def split_indices(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Split a training set with targets int64 [N]: the same tenth of every class on every machine.

    Returns:
        Indices of the training and of the validation images, int64, each ascending.
    """
    labels, order = targets.cpu(), shuffled(len(targets), VALIDATION_SEED)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels[order] == label]
        held_out[members[: len(members) // 10]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def shuffled(num: int, seed: int) -> Tensor:
    """Return 0 to `num` - 1 in a random order, int64, the same on every machine."""
    # The raw stream of PCG64 never changes between releases of NumPy; its shuffle may.
    return torch.from_numpy(np.argsort(np.random.PCG64(seed).random_raw(num), kind="stable"))


def normalize(images: Tensor) -> Tensor:
    """Scale images to about zero mean and unit variance per channel, by `MEAN` and `STD`.

    uint8 [N,3,H,W] becomes float32 on the same device and in the same memory format.
    """
    pixels = images.float() / 255
    # Numbers and not a tensor: a CUDA graph cannot capture the copy of one to the GPU.
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        pixels[:, channel].sub_(mean).div_(std)
    return pixels


def _read(name: str, split: Literal["train", "test"]) -> ImageSet:
    """Return a published split, validation images included."""
    match name:
        case "embedded":
            return _read_embedded(split)
        case "cifar100":
            return _read_cifar100(split)
    raise unknown("data set", name, DATA_SETS)


@cache  # drawn once per process: nobody writes into an image set
def _read_embedded(split: Literal["train", "test"]) -> ImageSet:
    return ImageSet(*map(torch.from_numpy, embedded.make_images(split)))


# torchvision checks the digest of every file in both lists before it opens one.
class _TrainFile(CIFAR100):
    test_list: ClassVar[list[list[str]]] = []


class _TestFile(CIFAR100):
    train_list: ClassVar[list[list[str]]] = []


def _read_cifar100(split: Literal["train", "test"]) -> ImageSet:
    root = data_root()
    kind = _TrainFile if split == "train" else _TestFile
    try:
        files = kind(root, train=split == "train")
    except RuntimeError as error:
        expected = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
        raise _fault(root / kind.base_folder, expected) from error
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}): make it readable, or point "
            "MICRONET_DATA to another folder"
        ) from error
    images = torch.from_numpy(files.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(files.targets))


def _fault(folder: Path, expected: list[list[str]]) -> InputError:
    """Return the error for a damaged folder: its first wrong file, and how to get the right one."""
    remedy = (
        "run `micronet data fetch cifar100`, or unpack "
        f"{CIFAR100.filename} by hand so that {folder} holds train, test and meta"
    )
    if not folder.is_dir():
        return InputError(f"CIFAR-100 is not there, no folder {folder}: {remedy}")
    for name, md5 in expected:
        path = folder / name
        if not path.is_file():
            return InputError(f"{path} is missing: {remedy}")
        if not check_integrity(path, md5):
            size = path.stat().st_size
            return InputError(
                f"{path} is cut short or not the published file ({size} bytes, and its md5 is "
                f"not {md5}): {remedy}"
            )
    return InputError(f"{folder} changed while it was read: try again")
