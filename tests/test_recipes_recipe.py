"""A profile changes the budget of a recipe and nothing of its method."""

from dataclasses import asdict, replace

import pytest

from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.pruning.schedules import PruneConfig

BUDGET = {"epochs", "num_images", "num_validation", "batch_size", "bn_momentum", "precision"}


@pytest.mark.parametrize("recipe", [PAPER, RELEASED], ids=["paper", "released"])
@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_a_profile_changes_budget_only(recipe, profile):
    before, after = asdict(recipe), asdict(profile.apply(recipe))
    assert {name for name in before if before[name] != after[name]} <= {"train", "width_mult"}
    changed = {name for name, value in before["train"].items() if value != after["train"][name]}
    assert changed <= BUDGET


def test_rewinding_goes_back_to_the_same_part_of_the_schedule():
    recipe = replace(PAPER, prune=PruneConfig((0.5,), rewind="early", early_epoch=30))
    half = replace(PROFILES["quick"], epoch_share=0.5)
    assert half.apply(recipe).prune.early_epoch == 15
    assert PROFILES["smoke"].apply(recipe).prune.early_epoch == 1


def test_the_parent_of_a_round_is_the_round_before_and_of_the_first_the_dense_network():
    recipe = replace(PAPER, prune=PruneConfig((0.3, 0.6), rewind="initial"))
    assert recipe.parent == replace(PAPER, prune=PruneConfig((0.3,), rewind="initial"))
    assert recipe.parent.parent == PAPER


def test_full_is_the_recipe_itself_in_bfloat16():
    in_bfloat16 = replace(PAPER, train=replace(PAPER.train, precision="bf16"))
    assert PROFILES["full"].apply(PAPER) == in_bfloat16 != PAPER


def test_a_recipe_that_trains_nothing_is_left_alone():
    assert PROFILES["smoke"].apply(Recipe()) == Recipe()


def test_every_cycle_keeps_at_least_an_epoch():
    short = replace(PROFILES["quick"], epoch_share=1e-6)
    assert short.apply(RELEASED).train.epochs == RELEASED.train.cycles == 4
    half = replace(PROFILES["quick"], epoch_share=0.5)
    assert half.apply(Recipe(train=TrainConfig(epochs=9))).train.epochs == 4
