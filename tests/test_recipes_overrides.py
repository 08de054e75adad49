"""Dotted overrides reach nested fields, and refuse what does not fit."""

from dataclasses import dataclass, field

import pytest

from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.recipe import Price, Recipe, with_overrides


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
        ({"train.milestones": 3}, ["milestones", "tuple"]),
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


def test_a_key_below_none_fills_in_the_defaults():
    found = with_overrides(Recipe(), {"teacher.checkpoint": "a", "options.num_classes": 10})
    assert found == Recipe(teacher=Recipe(checkpoint="a"), options={"num_classes": 10})
