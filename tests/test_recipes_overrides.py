"""Dotted overrides reach nested fields, and refuse what does not fit."""

import re
from dataclasses import dataclass, field, fields

import pytest

from micronet_lib.adjustable_quantization import Adjust
from micronet_lib.early_exit import AddExit
from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.recipe import Price, Recipe, with_overrides
from micronet_lib.pruning.schedules import PruneTo
from micronet_lib.ternary import Ternarize


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
    ("overrides", "named"),
    [
        ({"epochs": 1}, ["Config", "'epochs'", "seed, train"]),
        ({"train.epoch": 1}, ["Train", "'epoch'", "epochs, milestones, optimizer"]),
        ({"train.optimizer.momentum": 1}, ["Optimizer", "'momentum'", "name, lr, nesterov"]),
        ({"": 1}, ["Config", "''", "seed, train"]),
        ({"train.epochs.first": 1}, ["Train", "'epochs'"]),
        ({"seed": "3"}, ["seed", "int"]),
        ({"seed": 3.0}, ["seed", "int"]),
        ({"seed": True}, ["seed", "int"]),
        ({"seed": None}, ["seed", "int"]),
        ({"train": 3}, ["train", "Train"]),
        ({"train.milestones": 3}, ["train.milestones", "a list in JSON"]),
        ({"train.optimizer.nesterov": 1}, ["nesterov", "bool"]),
        ({"train.optimizer.name": ["a"]}, ["name", "str"]),
    ],
)
def test_a_wrong_key_or_type_is_refused(overrides, named):
    with pytest.raises(InputError) as caught:
        with_overrides(Config(), overrides)
    assert all(name in str(caught.value) for name in named)


def test_a_recipe_is_overridden_as_on_the_command_line():
    given = {"checkpoint": "micronet_v2_pr_60", "savings": ["dead_gates"], "price.weight_bits": 8}
    assert with_overrides(Recipe(), given) == Recipe(
        checkpoint="micronet_v2_pr_60", savings=("dead_gates",), price=Price(weight_bits=8)
    )


CHANGED = Recipe(changes=(AddExit("blocks.3"), PruneTo(0.5)))


def test_the_settings_of_a_change_are_below_its_place():
    given = {"changes.0.after": "blocks.6", "changes.0.stride": 2, "changes.1.sparsity": None}
    found = with_overrides(CHANGED, given)
    assert found.changes == (AddExit("blocks.6", stride=2), PruneTo())
    assert with_overrides(CHANGED, {"changes.1": {"sparsity": 0.6}}).changes[1] == PruneTo(0.6)
    whole = {"changes": [PruneTo(0.1)], "changes.0.sparsity": 0.2}
    assert with_overrides(CHANGED, whole).changes == (PruneTo(0.2),)
    nested = with_overrides(Recipe(start=CHANGED), {"start.changes.0.after": "blocks.9"})
    assert nested.start is not None
    assert nested.start.changes[0] == AddExit("blocks.9")
    teachers = Recipe(teacher=CHANGED, more_teachers=(Recipe(),))
    found = with_overrides(teachers, {"more_teachers.0.checkpoint": "a"})
    assert found.more_teachers == (Recipe(checkpoint="a"),)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"changes.2.after": "x"}, "unknown place in changes '2'; choose from 0, 1"),
        ({"changes.-1.after": "x"}, "unknown place in changes '-1'; choose from 0, 1"),
        ({"changes.after": "x"}, "unknown place in changes 'after'; choose from 0, 1"),
        (
            {"changes.0.block": "x"},
            "unknown key of AddExit 'block'; choose from after, hidden_chs, stride",
        ),
        ({"changes.0.stride": 0}, "stride of an exit head is 0; give a whole number, 1 or more"),
        ({"changes.0.stride": 1.5}, "override changes.0.stride=1.5: expected int"),
        ({"changes.0": 3}, "override changes.0=3: expected keys of AddExit"),
        ({"savings.0.a": 3}, "savings has no entry with keys, so none at '0'"),
    ],
)
def test_a_place_or_setting_that_is_not_there_is_refused(overrides, line):
    with pytest.raises(InputError) as caught:
        with_overrides(CHANGED, overrides)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("change", "key", "value", "said"),
    [
        (Adjust(), "weight_bits", 0, "weight_bits is 0; give 2 to 8 bits"),
        (Adjust(), "activation_bits", 33, "activation_bits is 33; give 2 to 8 bits"),
        (Adjust(), "target", -1, "target is -1.0; give a score above 0"),
        (Ternarize(), "threshold", -0.1, "ternary threshold is -0.1; give a number"),
        (Ternarize(), "scheme", "x", "unknown ternary scheme 'x'; choose from ttq"),
    ],
)
def test_a_change_refuses_what_it_cannot_be(change, key, value, said):
    with pytest.raises(InputError, match=re.escape(said)):
        with_overrides(Recipe(changes=(change,)), {f"changes.0.{key}": value})


def test_every_setting_of_every_change_can_be_given():
    for point in (point for sweep in SWEEPS.values() for point in sweep.points()):
        for place, change in enumerate(point.recipe.changes):
            own = {f"changes.{place}.{each.name}": getattr(change, each.name)
                   for each in fields(change)}  # fmt: skip
            assert with_overrides(point.recipe, own) == point.recipe


def test_a_key_below_none_fills_in_the_defaults():
    found = with_overrides(Recipe(), {"teacher.checkpoint": "a", "options.num_classes": 10})
    assert found == Recipe(teacher=Recipe(checkpoint="a"), options={"num_classes": 10})
