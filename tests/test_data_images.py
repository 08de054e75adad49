import hashlib
import pickle
import socket

import numpy as np
import pytest
import torch
from published_data import IMAGES, require
from torchvision.datasets import CIFAR100
from torchvision.transforms.functional import normalize as torchvision_normalize

from micronet_lib.errors import InputError
from micronet_lib.lab.data import images as data


def digest(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder in the published format with few random images, its digests the expected."""
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def part(num_per_class):
        fine = rng.permutation(np.arange(100).repeat(num_per_class))
        images = rng.integers(0, 256, (len(fine), 3072), dtype=np.uint8)
        coarse = (fine * 7) % 20
        return {"data": images, "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}

    monkeypatch.setattr(CIFAR100, "train_list", [["train", write("train", part(20))]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", write("test", part(2))]])
    names = {
        "fine_label_names": [f"class {c}" for c in range(100)],
        "coarse_label_names": [f"superclass {s}" for s in range(20)],
    }
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": write("meta", names)})
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path))
    return folder


@pytest.fixture(scope="module")
def embedded_set():
    return data.load_dataset("embedded")


@pytest.fixture(scope="module")
def cifar100_set():
    require(IMAGES)
    return data.load_dataset("cifar100")


def check_structure(dataset, per_class):
    for split in data.SPLITS:
        part = getattr(dataset, split)
        assert part.images.shape == (100 * per_class[split], 3, 32, 32)
        assert part.images.dtype == torch.uint8
        assert part.images.is_contiguous()
        assert part.targets.dtype == torch.int64
        assert len(part) == len(part.targets)
        assert part.targets.bincount().tolist() == [per_class[split]] * 100
        alone = data.load_split(dataset.name, split)
        assert torch.equal(alone.images, part.images)
        assert torch.equal(alone.targets, part.targets)
    assert dataset.superclass_of.bincount().tolist() == [5] * 20
    assert (len(dataset.class_names), len(dataset.superclass_names)) == (100, 20)


def test_embedded_has_the_three_splits_and_no_image_twice(embedded_set):
    check_structure(embedded_set, {"train": 45, "validation": 5, "test": 10})
    parts = (embedded_set.train, embedded_set.validation, embedded_set.test)
    assert len({image.numpy().tobytes() for part in parts for image in part.images}) == 6000


def test_cifar100_has_the_three_splits_statistics_and_the_committed_names(cifar100_set):
    check_structure(cifar100_set, {"train": 450, "validation": 50, "test": 100})
    assert cifar100_set.class_names[:2] == ("apple", "aquarium_fish")
    apple = cifar100_set.superclass_names[cifar100_set.superclass_of[0]]
    assert apple == "fruit_and_vegetables"
    assert digest(cifar100_set.validation.images) == (
        "f4cfd4d4d97611a643a649dd708fbc0ba194d3be1704b8caf87b41a37f8f87fe"
    )
    folder = data.data_root() / CIFAR100.base_folder
    meta, test = (
        pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in ("meta", "test")
    )
    assert list(cifar100_set.class_names) == meta["fine_label_names"]
    assert list(cifar100_set.superclass_names) == meta["coarse_label_names"]
    coarse = cifar100_set.superclass_of[cifar100_set.test.targets]
    assert coarse.tolist() == test["coarse_labels"]
    pixels = cifar100_set.train.images.transpose(0, 1).flatten(1).float().div(255)
    assert pixels.mean(1).tolist() == pytest.approx(data.MEAN, abs=5e-4)
    assert pixels.std(1).tolist() == pytest.approx(data.STD, abs=5e-4)


@pytest.mark.parametrize("name", data.DATA_SETS)
def test_labels_need_no_images(name, monkeypatch, tmp_path):
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path))
    labels = data.load_labels(name)
    assert len(set(labels.class_names)) == 100
    assert len(set(labels.superclass_names)) == 20
    assert labels.superclass_of.bincount().tolist() == [5] * 20
    table = labels.table()
    assert tuple(table["class"]) == labels.class_names
    assert [labels.superclass_names.index(name) for name in table["superclass"]] == (
        labels.superclass_of.tolist()
    )


def test_cifar100_images_are_torchvisions():
    require(IMAGES)
    theirs = CIFAR100(data.data_root(), train=False)
    ours = data.load_split("cifar100", "test")
    assert np.array_equal(ours.images[7].permute(1, 2, 0).numpy(), np.asarray(theirs[7][0]))
    assert ours.targets.tolist() == theirs.targets


def test_validation_split_is_the_same_everywhere():
    train, validation = data.split_indices(torch.arange(50_000) % 100)
    assert digest(validation) == "a5e0b293aa632762f3be226d9ca3f3848af637394913b322d6af133a2bb9f8d0"
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(50_000))
    assert (validation % 100).bincount().tolist() == [50] * 100


def test_published_format_is_read_whole(folder):
    dataset = data.load_dataset("cifar100")
    check_structure(dataset, {"train": 18, "validation": 2, "test": 2})
    content = pickle.loads((folder / "test").read_bytes())
    assert np.array_equal(dataset.test.images.flatten(1).numpy(), content["data"])
    assert dataset.test.targets.tolist() == content["fine_labels"]
    # A split does not need the other split's file.
    for name, split in (("train", "test"), ("test", "validation")):
        (folder / name).rename(folder / "elsewhere")
        assert len(data.load_split("cifar100", split)) == 200
        (folder / "elsewhere").rename(folder / name)


def refusal(split="test"):
    with pytest.raises(InputError) as caught:
        data.load_split("cifar100", split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_file_or_folder_is_named(folder, tmp_path, monkeypatch):
    needs = (("train", "train"), ("validation", "train"), ("test", "test"), ("train", "meta"))
    for split, name in needs:
        (folder / name).rename(folder / "elsewhere")
        message = refusal(split)
        assert message.startswith(f"{folder / name} is missing: ")
        assert "data fetch cifar100" in message
        (folder / "elsewhere").rename(folder / name)
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path / "nowhere"))
    message = refusal()
    assert f"no folder {tmp_path / 'nowhere' / 'cifar-100-python'}" in message
    assert "data fetch cifar100" in message
    assert "cifar-100-python.tar.gz" in message


def test_damaged_or_unreadable_file_is_named_and_a_foreign_pickle_not_run(
    folder, tmp_path, monkeypatch
):
    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    def fail(self, root, train):
        raise PermissionError(13, "Permission denied", str(folder / "test"))

    for name in ("test", "meta"):
        path = folder / name
        whole = path.read_bytes()
        altered = whole[:-9] + b"?" + whole[-8:]
        for damaged in (whole[:100], b"", b"<html>", altered, pickle.dumps(Attack())):
            path.write_bytes(damaged)
            message = refusal()
            assert message.startswith(f"{path} is cut short or not the published file")
            assert f"({len(damaged)} bytes" in message
            assert "data fetch cifar100" in message
        path.write_bytes(whole)
    assert not tmp_path.joinpath("ran").exists()
    monkeypatch.setattr(data._TestFile, "__init__", fail)
    assert refusal().startswith(f"{folder / 'test'} cannot be read (Permission denied)")


def test_unknown_names_list_the_known_ones():
    for load in (data.load_dataset, data.load_labels):
        with pytest.raises(InputError, match="'mnist'; choose from embedded, cifar100"):
            load("mnist")
    with pytest.raises(InputError, match="choose from train, validation, test"):
        data.load_split("embedded", "val")


def test_data_root_is_the_variable_or_the_repository(monkeypatch, tmp_path, pytestconfig):
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path))
    assert data.data_root() == tmp_path
    monkeypatch.setenv("MICRONET_DATA", "~/pictures")
    assert data.data_root().is_absolute()
    monkeypatch.delenv("MICRONET_DATA")
    assert data.data_root() == pytestconfig.rootpath / "data"


def test_subset_and_device_keep_images_and_labels_together(embedded_set):
    part = embedded_set.train.subset(torch.tensor([5, 2]))
    assert len(part) == 2
    assert torch.equal(part.images[1], embedded_set.train.images[2])
    assert part.targets.tolist() == embedded_set.train.targets[[5, 2]].tolist()
    moved = part.to("meta")
    assert moved.images.is_meta
    assert moved.targets.is_meta


def test_normalize_is_torchvisions(embedded_set):
    images = embedded_set.test.images[:64]
    before, found = images.clone(), data.normalize(images)
    torch.testing.assert_close(
        found, torchvision_normalize(images.float() / 255, data.MEAN, data.STD)
    )
    assert found.dtype == torch.float32
    assert torch.equal(images, before)
    other = data.normalize(images.contiguous(memory_format=torch.channels_last))
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(other, found)


def test_embedded_needs_neither_files_nor_network(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("the embedded set opened a connection")

    monkeypatch.setenv("MICRONET_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(socket.socket, "connect", fail)
    assert len(data.load_split("embedded", "validation")) == 500


def test_images_of_the_first_classes_and_with_superclasses(embedded_set):
    test, all_of = embedded_set.test, embedded_set.superclass_of
    some = data.restricted(test, "embedded", num_classes=7)
    assert len(some) == 70
    assert some.targets.unique().tolist() == list(range(7))
    assert torch.equal(some.images, test.images[test.targets < 7])
    coarse = data.restricted(test, "embedded", labels="superclass")
    assert torch.equal(coarse.images, test.images)
    assert torch.equal(coarse.targets, all_of[test.targets])
    both = data.restricted(test, "embedded", 7, "superclass")
    assert torch.equal(both.targets, all_of[some.targets])
    assert data.restricted(test, "embedded") is test
