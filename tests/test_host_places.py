"""Folders follow the two environment variables, and nothing else moves them."""

from pathlib import Path

import pytest

from micronet_lib.lab.host import places

MOVES = {
    "MICRONET_RUNS": (places.runs_root, places.ROOT / "runs"),
    "MICRONET_DATA": (places.data_root, places.ROOT / "data"),
}


@pytest.mark.parametrize("variable", MOVES)
def test_a_folder_lies_where_its_variable_says(tmp_path, monkeypatch, variable):
    folder, default = MOVES[variable]
    monkeypatch.setenv(variable, str(tmp_path))
    assert folder() == tmp_path
    monkeypatch.setenv(variable, "")
    assert folder() == default
    monkeypatch.delenv(variable)
    assert folder() == default


def test_downloads_lie_in_the_data_folder_and_our_own_result_in_the_repository(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MICRONET_DATA", str(tmp_path))
    assert places.checkpoint_path("net") == tmp_path / "kaist" / "net.t7"
    assert places.policy_path("fast_autoaugment").parent == tmp_path / "policies"
    assert places.policy_path("searched").is_file()
    assert places.ROOT in places.policy_path("searched").parents


def test_the_root_is_the_repositorys():
    assert Path(__file__).resolve().parents[1] == places.ROOT
    assert places.MEASURED.is_dir()
    assert places.PAPER_TABLES.is_dir()
    assert places.CIFAR100_CLASSES.is_file()
