"""Recipes, profiles and sweeps: well-formed, executable by name, and overridden with care."""

import dataclasses
import json
import re
from dataclasses import dataclass, field

import pytest

from micronet_lib.architecture.micronet import ARCHITECTURES
from micronet_lib.errors import InputError
from micronet_lib.lab.data.downloads import ASSETS
from micronet_lib.lab.data.images import DATA_SETS
from micronet_lib.lab.recipes.grids import SWEEPS, get_sweep
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.profile import PROFILES, get_profile
from micronet_lib.lab.recipes.recipe import Recipe, with_overrides
from micronet_lib.scoring.dead_channels import SAVINGS
from micronet_lib.scoring.rules import rules_of

each_sweep = pytest.mark.parametrize("sweep", SWEEPS.values(), ids=lambda sweep: sweep.name)


# ---------------------------------------------------------------------------------- the tables


def test_names_are_the_keys():
    assert all(name == profile.name for name, profile in PROFILES.items())
    assert all(name == sweep.name for name, sweep in SWEEPS.items())


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_a_profile_names_a_data_set(profile):
    assert profile.dataset in DATA_SETS
    assert profile.purpose


@each_sweep
def test_a_sweep_is_complete(sweep):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", sweep.chapter)
    assert sweep.title
    assert sweep.metrics
    assert len(set(sweep.metrics)) == len(sweep.metrics)
    assert sweep.profiles
    assert list(sweep.profiles) == [name for name in PROFILES if name in sweep.profiles]


@each_sweep
def test_points_have_names_that_are_file_names(sweep):
    names = [point.name for point in sweep.points()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*", name) for name in names)


@each_sweep
def test_points_follow_the_axes(sweep):
    sizes = [len(values) for values in sweep.axes.values()]
    count = 1
    for size in sizes:
        count *= size
    assert len(sweep.points()) == count > 0
    last = "-".join(str(values[-1]) for values in sweep.axes.values())
    assert sweep.points()[-1].name == last


@each_sweep
def test_points_differ_in_what_they_measure(sweep):
    """Round 0 of pruning is the dense network, whatever comes after it."""
    ids = [recipe_id(point.recipe) for point in sweep.points() if not point.name.endswith("-0")]
    assert len(set(ids)) == len(ids)


@each_sweep
def test_every_recipe_names_what_there_is(sweep):
    published = {asset.path for asset in ASSETS if asset.group == "kaist"}
    for point in sweep.points():
        recipe = point.recipe
        assert recipe.model in ARCHITECTURES
        assert not recipe.checkpoint or f"kaist/{recipe.checkpoint}.t7" in published
        assert recipe.savings == tuple(SAVINGS)[: len(recipe.savings)]
        rules_of("official", recipe.weight_bits, recipe.activation_bits, recipe.accumulator)


@each_sweep
def test_a_recipe_is_plain_json(sweep):
    for point in sweep.points():
        values = dataclasses.asdict(point.recipe)
        restored = json.loads(json.dumps(values, allow_nan=False))
        assert restored == json.loads(json.dumps(values))
        flat = {key: value for key, value in restored.items() if not isinstance(value, dict)}
        assert with_overrides(point.recipe, flat) == point.recipe
        for name, settings in restored.items():
            if isinstance(settings, dict):
                part = getattr(point.recipe, name)
                assert with_overrides(part, settings) == part


def test_point_is_found_by_name():
    sweep = SWEEPS["free_savings"]
    point = sweep.point("v2_pr_60-dead_channels")
    assert point.recipe == Recipe(
        checkpoint="micronet_v2_pr_60", savings=("dead_gates", "dead_channels")
    )
    assert point in sweep.points()


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (lambda: get_sweep("x"), f"unknown sweep 'x'; choose from {', '.join(SWEEPS)}"),
        (lambda: get_profile("x"), "unknown profile 'x'; choose from smoke, quick, full"),
        (
            lambda: SWEEPS["bit_widths"].point("w8a8"),
            "unknown point of bit_widths 'w8a8'; choose from w8a8-fp32, w8a8-integer, ",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(find, message):
    with pytest.raises(InputError) as caught:
        find()
    assert str(caught.value).startswith(message)


def test_known_names_are_found():
    assert get_sweep("published") is SWEEPS["published"]
    assert get_profile("quick") is PROFILES["quick"]


# ----------------------------------------------------------------------------------- overrides


@dataclass(frozen=True)
class Optimizer:
    name: str = "sgd"
    lr: float = 0.1
    nesterov: bool = True


@dataclass(frozen=True)
class Train:
    epochs: int = 1
    milestones: tuple[int, ...] = ()
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass(frozen=True)
class Config:
    seed: int = 0
    train: Train = field(default_factory=Train)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, Config()),
        ({"seed": 3}, Config(seed=3)),
        ({"train.epochs": 2}, Config(train=Train(epochs=2))),
        ({"train.optimizer.name": "adam"}, Config(train=Train(optimizer=Optimizer("adam")))),
        (
            {"train.optimizer.lr": 0.5, "train.optimizer.nesterov": False, "train.epochs": 9},
            Config(train=Train(9, (), Optimizer("sgd", 0.5, False))),
        ),
        ({"train.milestones": [3, 5]}, Config(train=Train(milestones=(3, 5)))),
        ({"train.optimizer.lr": 1}, Config(train=Train(optimizer=Optimizer(lr=1.0)))),
        ({"train": Train(epochs=4)}, Config(train=Train(epochs=4))),
    ],
)
def test_overrides_reach_nested_fields(overrides, expected):
    found = with_overrides(Config(), overrides)
    assert found == expected
    assert type(found.train.optimizer.lr) is float
    assert type(found.train.milestones) is tuple
    assert hash(found) == hash(expected)


def test_the_original_stays_as_it_was():
    config = Config()
    with_overrides(config, {"train.optimizer.lr": 0.5})
    assert config == Config()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epochs": 1}, "unknown key of Config 'epochs'; choose from seed, train"),
        (
            {"train.epoch": 1},
            "unknown key of Train 'epoch'; choose from epochs, milestones, optimizer",
        ),
        (
            {"train.optimizer.momentum": 1},
            "unknown key of Optimizer 'momentum'; choose from name, lr, nesterov",
        ),
        ({"": 1}, "unknown key of Config ''; choose from seed, train"),
        ({"train.epochs.first": 1}, "'epochs' of Train has no keys of its own"),
        ({"seed": "3"}, "override seed='3': expected int"),
        ({"seed": 3.0}, "override seed=3.0: expected int"),
        ({"seed": True}, "override seed=True: expected int"),
        ({"seed": None}, "override seed=None: expected int"),
        ({"train": 3}, "override train=3: expected Train"),
        ({"train.milestones": 3}, "expected tuple"),
        ({"train.optimizer.nesterov": 1}, "expected bool"),
        ({"train.optimizer.name": ["a"]}, "expected str"),
    ],
)
def test_a_wrong_key_or_type_is_refused(overrides, message):
    with pytest.raises(InputError) as caught:
        with_overrides(Config(), overrides)
    assert message in str(caught.value)


def test_a_recipe_is_overridden_as_on_the_command_line():
    recipe = with_overrides(
        Recipe(), {"checkpoint": "micronet_v2_pr_60", "savings": ["dead_gates"], "weight_bits": 8}
    )
    assert recipe == Recipe(checkpoint="micronet_v2_pr_60", savings=("dead_gates",), weight_bits=8)
