"""Our own files: read back whole, set aside where they are damaged, never taken for absent."""

from pathlib import Path

import pytest
import torch

from micronet_lib.errors import InputError
from micronet_lib.lab.storage.states import (
    forget_states,
    is_own,
    is_whole,
    load_own,
    load_state,
    save_own,
    save_state,
)

STATE = {"epoch": 3, "model": {"weight": torch.arange(4.0)}, "curve": {"loss": [1.5]}}


def test_own_file_is_read_back_under_its_key_only(tmp_path):
    save_own(tmp_path / "a.pt", "key", STATE)
    found = load_own(tmp_path / "a.pt", "key")
    assert found is not None
    assert found["epoch"] == 3
    assert torch.equal(found["model"]["weight"], STATE["model"]["weight"])
    assert load_own(tmp_path / "a.pt", "other") is None
    assert load_own(tmp_path / "a.pt").keys() == STATE.keys()
    assert load_own(tmp_path / "b.pt", "key") is None


@pytest.mark.parametrize("fault", ["cut", "a flipped bit", "empty"])
def test_a_file_that_is_not_whole_is_recognised_and_its_predecessor_used(tmp_path, capsys, fault):
    for epoch in (1, 2):
        save_state(tmp_path, "key", STATE | {"epoch": epoch})
    newest = tmp_path / "state.pt"
    whole = newest.read_bytes()
    half = len(whole) // 2
    flipped = whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]
    content = {"cut": whole[:half], "a flipped bit": flipped, "empty": b""}[fault]
    newest.write_bytes(content)
    state = load_state(tmp_path, "key")
    assert state is not None
    assert state["epoch"] == 1
    assert newest.with_name("state.pt.damaged").read_bytes() == content
    assert not newest.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_newest_state_is_used_and_states_are_forgotten(tmp_path):
    assert load_state(tmp_path, "key") is None
    for epoch in (1, 2, 3):
        save_state(tmp_path, "key", STATE | {"epoch": epoch})
    state = load_state(tmp_path, "key")
    assert state is not None
    assert state["epoch"] == 3
    forget_states(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_fault_while_saving_leaves_a_state(tmp_path, monkeypatch):
    save_state(tmp_path, "key", STATE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"the checkpoint state.pt under .* \(No space left"):
        save_state(tmp_path, "key", STATE | {"epoch": 4})
    state = load_state(tmp_path, "key")
    assert state is not None
    assert state["epoch"] == 3


def test_a_damaged_file_never_replaces_another(tmp_path):
    path = tmp_path / "a.pt"
    for content in (b"first", b"second"):
        path.write_bytes(content)
        assert load_own(path, "key") is None
    assert sorted(each.read_bytes() for each in tmp_path.iterdir()) == [b"first", b"second"]
    assert load_own(path, "key") is None  # absent now
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_read_is_not_absent(tmp_path, monkeypatch):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(InputError, match=r"folder\.pt"):
        load_own(tmp_path / "folder.pt", "key")
    save_state(tmp_path, "key", STATE)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        with pytest.raises(InputError, match="Permission denied") as caught:
            load_state(tmp_path, "key")
    assert "\n" not in str(caught.value)
    assert load_state(tmp_path, "key") is not None


def test_a_damaged_file_that_cannot_be_renamed_is_not_absent(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    path.write_bytes(b"damaged")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match=r"a\.pt"):
        load_own(path, "key")
    assert path.read_bytes() == b"damaged"


def test_own_files_are_known_by_their_beginning(tmp_path):
    save_own(tmp_path / "a.pt", "key", STATE)
    assert is_own(tmp_path / "a.pt")
    torch.save(STATE, tmp_path / "b.pt")
    assert not is_own(tmp_path / "b.pt")
    assert not is_own(tmp_path / "absent.pt")
    assert not is_own(tmp_path)


def test_looking_whether_a_file_is_whole_changes_nothing(tmp_path):
    path = tmp_path / "a.pt"
    assert not is_whole(path, "key")
    save_own(path, "key", STATE)
    assert is_whole(path, "key")
    assert not is_whole(path, "other")
    damaged = path.read_bytes()[:-1]
    path.write_bytes(damaged)
    assert not is_whole(path, "key")
    assert path.read_bytes() == damaged
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(InputError, match=r"folder\.pt"):
        is_whole(tmp_path / "folder.pt", "key")
