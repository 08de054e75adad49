"""What a notebook passes on is checked as what a command line says is."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from micronet_lib.errors import InputError, Registry, check_choice
from micronet_lib.lab.host.given import SEEDS, as_overrides, as_seed, assignments
from micronet_lib.lab.host.machine import stamp
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.running import ensure, trained
from micronet_lib.lab.search.policy_search import search_policies

SWEEP = SWEEPS["expand_ratio"]
NO_SEEDS = (1.0, 0.0, True, False, "1", "", None, -1, SEEDS, 2**64, 1e300, float("nan"), [1], {})
NO_PROFILES = (None, True, 1, 1.5, ["smoke"], {"smoke": 1}, {"smoke"}, "Smoke", "", b"smoke")
NO_OVERRIDES = ("width_mult", "[1]", "1", '{"width_mult": 0.5', [("width_mult", 0.5)], 3, {1: 2})


@given(st.integers(0, SEEDS - 1))
def test_a_seed_is_any_number_that_every_generator_takes(seed):
    assert as_seed(seed) == seed
    assert type(as_seed(np.uint64(seed))) is int
    torch.Generator().manual_seed(as_seed(seed) + 1000 * 8)  # the eighth round of pruning


@given(st.integers(max_value=-1) | st.integers(min_value=SEEDS) | st.floats() | st.text())
def test_nothing_else_is_a_seed(value):
    with pytest.raises(InputError):
        as_seed(value)


def plain() -> st.SearchStrategy:
    return st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.text(), plain()))
def test_overrides_are_the_same_as_text(overrides):
    assert as_overrides(json.dumps(overrides)) == as_overrides(overrides) == overrides


@pytest.mark.parametrize("nothing", [None, "", {}, "{}", "null"])
def test_no_overrides(nothing):
    assert as_overrides(nothing) == {}


def test_a_key_that_is_there_twice_is_no_choice():
    with pytest.raises(InputError, match=r"'train\.epochs' is given twice"):
        as_overrides('{"train.epochs": 2, "seed": 1, "train.epochs": 3}')


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


ENTRIES = {
    "ensure": lambda **given: ensure(SWEEP, point="1.0", progress=False, **given),
    "trained": lambda **given: trained(SWEEPS["stages"], "3.0-orn", progress=False, **given),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_refuses_in_one_line_and_writes_nothing(name, runs):
    wrong = [
        *({"profile": "smoke", "seed": seed} for seed in NO_SEEDS),
        *({"profile": profile} for profile in NO_PROFILES),
        *({"profile": "smoke", "overrides": overrides} for overrides in NO_OVERRIDES),
    ]
    for words in wrong:
        with pytest.raises(InputError) as caught:
            ENTRIES[name](**words)
        assert "\n" not in str(caught.value), words
    assert not runs.exists()


def test_the_first_cell_of_a_chapter_refuses_a_seed_that_its_other_cells_cannot_use():
    for seed in NO_SEEDS:
        with pytest.raises(InputError, match="seed"):
            stamp("smoke", seed)
        with pytest.raises(InputError, match="seed"):
            search_policies("smoke", seed)


@pytest.mark.parametrize("overrides", [{"model": "table1_2.0"}, {"price": {"weight_bits": 8}}])
def test_text_makes_the_record_of_a_dictionary(overrides, runs):
    overrides = overrides | ({"price.activation_bits": 8} if "price" in overrides else {})
    text = json.dumps(overrides)
    as_text, as_dict = (
        ensure(SWEEP, "smoke", np.int64(3), given, 1.0, progress=False)
        for given in (text, overrides)
    )
    assert as_text.equals(as_dict)
    assert as_text["n"].tolist() == [1]
    assert len(list(runs.rglob("*.json"))) == 1
    recipe, smoke = SWEEP.point("1.0").recipe, PROFILES["smoke"]
    assert resolved(recipe, smoke, text) == resolved(recipe, smoke, overrides)


def test_names_of_odd_types_are_unknown_names():
    for name in NO_PROFILES:
        for looked_up in (lambda name: Registry("profile", {"a": 1})[name], PROFILES.__getitem__):
            with pytest.raises(InputError, match="choose from"):
                looked_up(name)
        with pytest.raises(InputError, match="choose from"):
            check_choice("profile", name, {"a": 1})


def test_values_of_assignments_are_json_or_text():
    texts = ["model=micronet_v2", "train.epochs=2", 'train={"lr": 0.1}', "note=a=b", "empty="]
    assert assignments(texts) == {
        "model": "micronet_v2",
        "train.epochs": 2,
        "train": {"lr": 0.1},
        "note": "a=b",
        "empty": "",
    }


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["model"], "argument 'model' is not KEY=VALUE"),
        (["a=1", "a=2"], "argument a is given twice"),
        (["a.0.b=1", "a=[]"], r"argument a is given, and a\.0\.b: give one of them"),
        (['a={"b": 1, "b": 2}'], "'b' is given twice"),
        (["a=NaN"], "NaN is no number to give"),
        (['a={"b": -Infinity}'], "-Infinity is no number to give"),
    ],
)
def test_wrong_assignments_are_refused(texts, said):
    with pytest.raises(InputError, match=said):
        assignments(texts, "argument")
