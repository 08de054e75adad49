"""A recipe's id: what changes it, and what leaves it alone."""

import re
from dataclasses import dataclass, fields, replace

from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.distillation import DistillationConfig
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Price, Recipe
from micronet_lib.label_smoothing import SmoothingConfig
from micronet_lib.pruning.schedules import PruneConfig, PruneTo
from micronet_lib.srip.penalty import SripConfig

CHANGES = {
    "model": "micronet_v2",
    "options": {"num_classes": 10},
    "width_mult": 0.5,
    "checkpoint": "micronet_v1_pr_60",
    "start": Recipe(),
    "changes": (PruneTo(0.5),),
    "teacher": Recipe(checkpoint="micronet_v2_pr_30"),
    "distillation": DistillationConfig(weight=0.5),
    "savings": ("dead_gates",),
    "price": Price(weight_bits=8),
    "train": TrainConfig(epochs=1),
    "srip": SripConfig(),
    "smoothing": SmoothingConfig("uniform"),
    "augment": AugmentConfig(flip=False),
    "prune": PruneConfig((0.5,)),
}


def test_recipe_id_is_ten_hex_digits_of_what_differs_from_the_default():
    assert recipe_id(Recipe()) == "44136fa355"  # the digest of {}
    assert re.fullmatch(r"[0-9a-f]{10}", recipe_id(Recipe(model="micronet_v2")))


def test_every_field_changes_the_id():
    assert set(CHANGES) == {field.name for field in fields(Recipe)}
    ids = {recipe_id(Recipe(**{name: value})) for name, value in CHANGES.items()}
    assert len(ids | {recipe_id(Recipe())}) == len(CHANGES) + 1


def test_a_nested_field_changes_the_id_and_its_default_does_not():
    recipe = Recipe(train=TrainConfig(epochs=1))
    assert recipe_id(Recipe(train=TrainConfig(epochs=1, lr=0.1))) == recipe_id(recipe)
    assert recipe_id(Recipe(train=TrainConfig(epochs=1, lr=0.2))) != recipe_id(recipe)
    assert recipe_id(Recipe(srip=SripConfig(coef=0.0))) == recipe_id(Recipe())


def test_order_of_savings_changes_the_id():
    one, other = ("dead_gates", "sixth"), ("sixth", "dead_gates")
    assert recipe_id(Recipe(savings=one)) != recipe_id(Recipe(savings=other))


def test_what_a_change_or_a_start_says_changes_the_id():
    recipes = [
        *(Recipe(start=start) for start in (None, Recipe(), Recipe(model="micronet_v2"))),
        *(Recipe(changes=(PruneTo(sparsity),)) for sparsity in (0.3, 0.5)),
        *(Recipe(options={"num_classes": number}) for number in (10, 20)),
        Recipe(teacher=Recipe()),
    ]
    assert len({recipe_id(recipe) for recipe in recipes}) == len(recipes)


def test_a_field_added_later_leaves_older_ids_alone():
    @dataclass(frozen=True)
    class Later(Recipe):
        added: float = 1.0

    recipes = [point.recipe for sweep in SWEEPS.values() for point in sweep.points()]
    ids = [recipe_id(recipe) for recipe in recipes]
    later = [Later(**vars(recipe)) for recipe in recipes]
    assert [recipe_id(recipe) for recipe in later] == ids
    assert recipe_id(replace(later[0], added=2.0)) not in ids
