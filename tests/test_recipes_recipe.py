"""A recipe is a step between networks: what it needs, what excludes what, how it is overridden."""

from dataclasses import replace

import pytest

from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Price, Recipe, with_overrides
from micronet_lib.pruning.schedules import PruneConfig, PruneTo
from micronet_lib.srip.penalty import SripConfig

FILE = Recipe(checkpoint="micronet_v1_pr_60")


def test_the_parent_of_a_round_is_the_round_before_and_of_the_first_the_dense_network():
    recipe = replace(PAPER, prune=PruneConfig((0.3, 0.6), rewind="initial"))
    assert recipe.parent == replace(PAPER, prune=PruneConfig((0.3,), rewind="initial"))
    assert recipe.parent.parent == PAPER
    assert PAPER.parent is None


def test_a_recipe_needs_what_it_starts_from_and_learns_from():
    assert PAPER.needs == FILE.needs == ()
    assert Recipe(start=PAPER).needs == (PAPER,)
    assert Recipe(teacher=PAPER).needs == (PAPER,)
    assert Recipe(start=PAPER, teacher=RELEASED).needs == (PAPER, RELEASED)
    pruned = replace(PAPER, prune=PruneConfig((0.3,)), teacher=RELEASED)
    assert pruned.needs == (replace(PAPER, teacher=RELEASED), RELEASED)


def test_a_network_has_learned_something_if_one_it_starts_from_has():
    assert PAPER.learns
    assert FILE.learns
    assert Recipe(start=Recipe(start=FILE)).learns
    assert not Recipe().learns
    assert not Recipe(start=Recipe(), teacher=PAPER).learns


@pytest.mark.parametrize(
    "fields",
    [
        {"checkpoint": "micronet_v1", "start": PAPER},
        {"checkpoint": "micronet_v1", "prune": PruneConfig((0.5,))},
        {"start": PAPER, "prune": PruneConfig((0.5,))},
    ],
    ids=lambda fields: " and ".join(fields),
)
def test_two_ways_to_start_are_refused_in_one_line(fields):
    for made in (lambda: Recipe(**fields), lambda: with_overrides(Recipe(), fields)):
        with pytest.raises(InputError) as caught:
            made()
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"teacher.checkpoint": "micronet_v1_pr_60"}, Recipe(teacher=FILE)),
        ({"start.teacher.width_mult": 2}, Recipe(start=Recipe(teacher=Recipe(width_mult=2.0)))),
        ({"teacher": {"checkpoint": "micronet_v1_pr_60"}}, Recipe(teacher=FILE)),
        (
            {"teacher": FILE, "teacher.price.weight_bits": 8},
            Recipe(teacher=replace(FILE, price=Price(8))),
        ),
        ({"teacher": FILE, "teacher.checkpoint": ""}, Recipe(teacher=Recipe())),
        (
            {"start": FILE, "start.train": {"epochs": 2}},
            Recipe(start=replace(FILE, train=TrainConfig(2))),
        ),
        ({"teacher": FILE, "checkpoint": "x"}, Recipe(teacher=FILE, checkpoint="x")),
        ({"options.num_classes": 10}, Recipe(options={"num_classes": 10})),
        ({"options": {"a": 1}, "options.b": [2]}, Recipe(options={"a": 1, "b": [2]})),
        (
            {"train.lr_factors.blocks.*.weight": 0.1},
            Recipe(train=TrainConfig(lr_factors={"blocks.*.weight": 0.1})),
        ),
        ({"train.freeze": ["stem"]}, Recipe(train=TrainConfig(freeze=("stem",)))),
        ({"changes": [PruneTo(0.5)]}, Recipe(changes=(PruneTo(0.5),))),
        ({"prune.sparsities": [0, 0.5]}, Recipe(prune=PruneConfig((0.0, 0.5)))),
        ({"srip": SripConfig(0.5)}, Recipe(srip=SripConfig(0.5))),
        (
            {"train.optimizer": "adam", "train.lr": 1},
            Recipe(train=TrainConfig(optimizer="adam", lr=1.0)),
        ),
    ],
)
def test_overrides_reach_every_field(overrides, expected):
    assert with_overrides(Recipe(), overrides) == expected


def test_a_field_that_was_something_becomes_nothing():
    assert with_overrides(Recipe(teacher=PAPER), {"teacher": None}) == Recipe()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"teacher.weight": 1}, "'weight'; choose from model, options"),
        ({"teacher": "micronet_v1"}, "expected Recipe or nothing"),
        ({"teacher": TrainConfig()}, "expected Recipe or nothing"),
        ({"checkpoint": None}, "expected str"),
        ({"train.freeze": "stem"}, "override train.freeze='stem': expected a list in JSON"),
        ({"train.freeze": [1]}, "freeze=1: expected str"),
        ({"savings": ["dead_gates", 6]}, "savings=6: expected str"),
        ({"changes": [{"sparsity": 0.5}]}, "expected Change"),
        ({"changes": PruneTo(0.5)}, "expected a list in JSON"),
        ({"options": 3}, "expected Mapping"),
        ({"prune.sparsities": ["0.5"]}, "expected float"),
        ({"train.optimizer": "lamb"}, "optimizer 'lamb'; choose from sgd, adam, adamw"),
        ({"changes.sparsity": 0.5}, "changes has no entry"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, named):
    with pytest.raises(InputError) as caught:
        with_overrides(Recipe(), overrides)
    assert named in str(caught.value)
