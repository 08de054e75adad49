"""The policy search: its folds, what it finds and writes, and what a killed one goes on with."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_search_policy_trials import image_set, outspoken_network

from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.augmentation.image_ops import OPERATIONS
from micronet_lib.augmentation.policies import PROVENANCE, compile_policies, load_policies
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import ImageSet
from micronet_lib.lab.host.files import Busy, only_one
from micronet_lib.lab.host.places import SEARCHED_POLICIES
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.search import policy_search, policy_trials
from micronet_lib.lab.search.policy_search import (
    BUDGETS,
    SET_NAME,
    deal_folds,
    search,
    write_policies,
)
from micronet_lib.lab.search.policy_trials import SearchConfig, rate_policies

pytest.importorskip("optuna")

CONFIG = SearchConfig(
    folds=2, trials=5, startup=3, keep=2, set_size=2, num_images=10, num_draws=2, num_control=10
)


def train_fold(learned: ImageSet, unseen: ImageSet, seed: int, folder: Path) -> MicroNet:
    return outspoken_network(seed)


def found_in(folder: Path, config: SearchConfig = CONFIG, seed: int = 0) -> dict:
    """What a search finds, less when and where."""
    content = search(train_fold, image_set(40), image_set(20, 1), config, folder, seed)
    return {**content, PROVENANCE: {**content[PROVENANCE], "env": None}}


# --------------------------------------------------------------------------------------- folds


def test_folds_hold_every_image_once_and_every_class_evenly():
    targets = torch.arange(10).repeat(31)[:301]
    for folds in (2, 3, 5):
        parts = deal_folds(targets, folds, seed=0)
        assert len(parts) == folds
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(301))
        for part in parts:
            assert torch.equal(part, part.sort().values)
            counts = torch.bincount(targets[part], minlength=10)
            assert counts.max() - counts.min() <= 2
            assert abs(len(part) - 301 / folds) < 1
        assert all(map(torch.equal, parts, deal_folds(targets, folds, seed=0)))
        assert not torch.equal(parts[0], deal_folds(targets, folds, seed=1)[0])


def test_a_network_learns_from_the_other_folds(tmp_path):
    seen = []

    def train_and_tell(learned, unseen, seed, folder):
        seen.append((learned, unseen, seed, folder.name))
        return outspoken_network(seed)

    data = image_set(40)
    search(train_and_tell, data, image_set(10, 1), CONFIG, tmp_path, seed=7)
    parts = deal_folds(data.targets, 2, 7)
    assert [(seed, name) for _, _, seed, name in seen] == [(7, "fold0"), (8, "fold1")]
    for number, (learned, unseen, _, _) in enumerate(seen):
        assert torch.equal(unseen.images, data.images[parts[number]])
        assert torch.equal(learned.images, data.images[parts[1 - number]])


# -------------------------------------------------------------------------------------- result


def test_the_best_of_every_fold_are_kept_and_written(tmp_path):
    content = found_in(tmp_path)
    path = tmp_path / "searched.json"
    write_policies(content, path)
    assert json.loads(path.read_text()) == content
    sub_policies = content[SET_NAME]
    assert len(sub_policies) == len(load_policies(path).ops) == 8
    for number, fold in enumerate(content[PROVENANCE]["folds"]):
        assert len(fold["trial_losses"]) == CONFIG.trials
        held_out = deal_folds(image_set(40).targets, 2, 0)[number]
        tried = image_set(40).subset(held_out).first(10)
        again = [
            rate_policies(outspoken_network(number), tried, compile_policies(pair), 2, 0).loss
            for pair in (sub_policies[place : place + 2] for place in (4 * number, 4 * number + 2))
        ]
        assert again == pytest.approx(sorted(fold["trial_losses"])[:2], rel=1e-4)
        plain = rate_policies(outspoken_network(number), tried, None, 1, 0).loss
        assert fold["plain_loss"] == pytest.approx(plain, rel=1e-4)
    rows = content[PROVENANCE]["control"]
    assert {row["fold"] for row in rows} == {0, 1}
    unseen = image_set(20, 1).first(10)  # the controls are rated on images nobody saw
    for row in (row for row in rows if row["policies"] == "none"):
        plain = rate_policies(outspoken_network(row["fold"]), unseen, None, 1, 0)
        assert row["loss"] == pytest.approx(plain.loss, rel=1e-4)


def test_the_same_seed_finds_the_same_and_a_folder_holds_one_search(tmp_path):
    first, again, other = (
        found_in(tmp_path / str(number), seed=seed) for number, seed in enumerate((1, 1, 2))
    )
    assert first == again
    assert first[SET_NAME] != other[SET_NAME]
    for changed in ({"config": replace(CONFIG, keep=1), "seed": 1}, {"seed": 2}):
        with pytest.raises(InputError, match=r"setting\.json"):
            found_in(tmp_path / "0", **changed)
    with only_one(tmp_path / "0" / "lock", "the search"), pytest.raises(Busy):
        found_in(tmp_path / "0", seed=1)


# -------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("calls", [3, 9])
def test_a_stopped_search_goes_on_and_finds_the_same(tmp_path, monkeypatch, calls):
    whole = found_in(tmp_path / "whole")
    counted = iter(range(calls))
    rated = []

    def rate_or_stop(*args):
        if next(counted, None) is None:
            raise KeyboardInterrupt
        return rate_policies(*args)

    def rate_and_count(*args):
        rated.append(1)
        return rate_policies(*args)

    def use(function):
        for module in (policy_search, policy_trials):
            monkeypatch.setattr(module, "rate_policies", function)

    use(rate_or_stop)
    with pytest.raises(KeyboardInterrupt):
        found_in(tmp_path / "cut")
    use(rate_and_count)
    assert found_in(tmp_path / "cut") == whole
    others = CONFIG.folds + len(whole[PROVENANCE]["control"])
    kept = calls - (calls > CONFIG.trials)  # the rating of the plain images is not kept
    assert len(rated) == CONFIG.folds * CONFIG.trials - kept + others
    rated.clear()
    found_in(tmp_path / "cut")
    assert len(rated) == others


SLOW_SEARCH = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_search_policy_search import found_in
from micronet_lib.lab.search import policy_trials
rate = policy_trials.rate_policies
policy_trials.rate_policies = lambda *args: time.sleep(0.3) or rate(*args)
found_in(Path(sys.argv[1]))
"""


def number_of_trials(folder: Path) -> int:
    try:
        with sqlite3.connect(f"file:{folder / 'trials.db'}?mode=ro", uri=True) as database:
            return database.execute("select count(*) from trials").fetchone()[0]
    except sqlite3.Error:
        return 0


@pytest.mark.slow
def test_a_killed_search_goes_on(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SEARCH, tmp_path / "cut", Path(__file__).parent],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while number_of_trials(tmp_path / "cut") < 3:
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 3 <= number_of_trials(tmp_path / "cut") < CONFIG.folds * CONFIG.trials
    assert found_in(tmp_path / "cut") == found_in(tmp_path / "whole")


# -------------------------------------------------------------------------------------- budgets


def test_budgets():
    assert set(BUDGETS) == set(PROFILES)
    sizes = [budget.folds * budget.trials for budget in BUDGETS.values()]
    assert sizes == sorted(sizes)
    for name, value in {"folds": 1, "trials": 0, "num_draws": 0, "set_size": 0, "keep": 6}.items():
        with pytest.raises(InputError, match=f"{name} is {value}"):
            replace(CONFIG, **{name: value})


def test_the_committed_search_is_of_real_images_and_says_how_it_was_made():
    content = json.loads(SEARCHED_POLICIES.read_text(encoding="utf-8"))
    about = content[PROVENANCE]
    setting = about["setting"]
    assert setting["dataset"] == "cifar100"
    assert set(content) == {PROVENANCE, SET_NAME}
    assert 0 < len(content[SET_NAME]) <= setting["folds"] * setting["keep"] * setting["set_size"]
    assert len(load_policies(SEARCHED_POLICIES).ops) == len(content[SET_NAME])
    assert all(len(fold["trial_losses"]) == setting["trials"] for fold in about["folds"])
    assert {"none", "searched", "shuffled", "random"} <= {r["policies"] for r in about["control"]}
    assert {"device", "torch", "commit", "date"} <= set(about["env"])
    assert {step[0] for sub in content[SET_NAME] for step in sub} <= set(OPERATIONS)
