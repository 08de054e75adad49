import hashlib
import pickle
import socket

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100
from torchvision.transforms.functional import normalize as torchvision_normalize

from micronet_lib.errors import InputError
from micronet_lib.lab.data import images as data

needs_cifar100 = pytest.mark.skipif(
    not (data.data_root() / CIFAR100.base_folder).is_dir(),
    reason="CIFAR-100 is not there: python -m micronet_lib data fetch cifar100",
)


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
    return data.load_dataset("cifar100")


def check_structure(dataset, per_class):
    for split in data.SPLITS:
        part = getattr(dataset, split)
        assert part.images.shape == (100 * per_class[split], 3, 32, 32)
        assert part.images.dtype == torch.uint8
        assert part.images.is_contiguous()
        assert (part.targets.dtype, part.coarse_targets.dtype) == (torch.int64, torch.int64)
        assert len(part) == len(part.targets)
        assert part.targets.bincount().tolist() == [per_class[split]] * 100
        assert torch.equal(dataset.superclass_of[part.targets], part.coarse_targets)
        alone = data.load_split(dataset.name, split)
        assert torch.equal(alone.images, part.images)
        assert torch.equal(alone.targets, part.targets)
    assert dataset.superclass_of.bincount().tolist() == [5] * 20
    assert (len(dataset.class_names), len(dataset.superclass_names)) == (100, 20)


def test_embedded_has_the_three_splits(embedded_set):
    check_structure(embedded_set, {"train": 45, "validation": 5, "test": 10})


def test_embedded_validation_is_held_out(embedded_set):
    parts = (embedded_set.train, embedded_set.validation, embedded_set.test)
    assert len({image.numpy().tobytes() for part in parts for image in part.images}) == 6000


@needs_cifar100
def test_cifar100_has_the_three_splits(cifar100_set):
    check_structure(cifar100_set, {"train": 450, "validation": 50, "test": 100})
    assert cifar100_set.class_names[:2] == ("apple", "aquarium_fish")
    apple = cifar100_set.superclass_names[cifar100_set.superclass_of[0]]
    assert apple == "fruit_and_vegetables"
    assert digest(cifar100_set.validation.images) == (
        "f4cfd4d4d97611a643a649dd708fbc0ba194d3be1704b8caf87b41a37f8f87fe"
    )


@needs_cifar100
def test_committed_names_are_those_of_the_published_files(cifar100_set):
    labels = data.load_labels("cifar100")
    assert labels.class_names == cifar100_set.class_names
    assert labels.superclass_names == cifar100_set.superclass_names
    assert torch.equal(labels.superclass_of, cifar100_set.superclass_of)


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


def test_labels_of_another_data_set_are_refused():
    with pytest.raises(InputError, match="unknown data set 'mnist'"):
        data.load_labels("mnist")


@needs_cifar100
def test_cifar100_images_are_torchvisions():
    theirs = CIFAR100(data.data_root(), train=False)
    ours = data.load_split("cifar100", "test")
    assert np.array_equal(ours.images[7].permute(1, 2, 0).numpy(), np.asarray(theirs[7][0]))
    assert ours.targets.tolist() == theirs.targets


@needs_cifar100
def test_statistics_are_those_of_cifar100(cifar100_set):
    pixels = cifar100_set.train.images.transpose(0, 1).flatten(1).float().div(255)
    assert pixels.mean(1).tolist() == pytest.approx(data.MEAN, abs=5e-4)
    assert pixels.std(1).tolist() == pytest.approx(data.STD, abs=5e-4)


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
    assert dataset.test.coarse_targets.tolist() == content["coarse_labels"]
    assert dataset.class_names[3] == "class 3"
    assert dataset.superclass_names[int(dataset.superclass_of[3])] == "superclass 1"


def test_the_test_split_does_not_need_the_training_file(folder):
    (folder / "train").unlink()
    assert len(data.load_split("cifar100", "test")) == 200


def test_the_training_splits_do_not_need_the_test_file(folder):
    (folder / "test").unlink()
    assert len(data.load_split("cifar100", "validation")) == 200


def refusal(split="test"):
    with pytest.raises(InputError) as caught:
        data.load_split("cifar100", split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path))
    message = refusal()
    assert f"no folder {tmp_path / 'cifar-100-python'}" in message
    assert "`python -m micronet_lib data fetch cifar100`" in message
    assert "cifar-100-python.tar.gz by hand" in message


@pytest.mark.parametrize(
    ("split", "name"),
    [("train", "train"), ("validation", "train"), ("test", "test"), ("train", "meta")],
)
def test_missing_file_is_named(folder, split, name):
    (folder / name).unlink()
    message = refusal(split)
    assert message.startswith(f"{folder / name} is missing: ")
    assert "data fetch cifar100" in message


@pytest.mark.parametrize("name", ["test", "meta"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:100], id="truncated"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"<html>not found</html>", id="garbage"),
        pytest.param(lambda content: content[:-9] + b"?" + content[-8:], id="one wrong byte"),
    ],
)
def test_damaged_file_is_named(folder, name, damage):
    damaged = damage((folder / name).read_bytes())
    (folder / name).write_bytes(damaged)
    message = refusal()
    assert message.startswith(f"{folder / name} is cut short or not the published file")
    assert f"({len(damaged)} bytes" in message
    assert "data fetch cifar100" in message


def test_a_foreign_pickle_is_not_run(folder, tmp_path):
    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    (folder / "test").write_bytes(pickle.dumps(Attack()))
    assert "not the published file" in refusal()
    assert not tmp_path.joinpath("ran").exists()


def test_unreadable_file_is_named(folder, monkeypatch):
    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(data, "_unpickle", fail)
    assert refusal().startswith(f"{folder / 'test'} cannot be read (Permission denied)")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        InputError, match="unknown data set 'mnist'; choose from embedded, cifar100"
    ):
        data.load_dataset("mnist")
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
    assert part.coarse_targets.tolist() == embedded_set.train.coarse_targets[[5, 2]].tolist()
    moved = embedded_set.to("meta")
    for split in data.SPLITS:
        on_device = getattr(moved, split)
        for tensor in (on_device.images, on_device.targets, on_device.coarse_targets):
            assert tensor.is_meta
    assert moved.superclass_of.is_meta
    assert moved.class_names == embedded_set.class_names


def test_normalize_is_torchvisions(embedded_set):
    images = embedded_set.test.images[:64]
    expected = torchvision_normalize(images.float() / 255, data.MEAN, data.STD)
    torch.testing.assert_close(data.normalize(images), expected)
    assert data.normalize(images).dtype == torch.float32


def test_normalize_keeps_channels_last(embedded_set):
    images = embedded_set.test.images[:8].contiguous(memory_format=torch.channels_last)
    result = data.normalize(images)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, data.normalize(embedded_set.test.images[:8]))


def test_normalize_leaves_its_input_alone(embedded_set):
    images = embedded_set.test.images[:8].clone()
    data.normalize(images)
    assert torch.equal(images, embedded_set.test.images[:8])


def test_embedded_needs_neither_files_nor_network(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("the embedded set opened a connection")

    monkeypatch.setenv("MICRONET_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(socket.socket, "connect", fail)
    assert len(data.load_split("embedded", "validation")) == 500
