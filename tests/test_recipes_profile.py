"""A profile changes the budget of a recipe and nothing of its method."""

from dataclasses import asdict, fields, is_dataclass, replace

import pytest

from micronet_lib.lab.data.images import NUM_IMAGES
from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Recipe, with_overrides
from micronet_lib.pruning.schedules import PruneConfig, PruneTo

BUDGET = {"epochs", "num_images", "num_validation", "batch_size", "bn_momentum", "precision"}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_a_profile_changes_budget_only(profile):
    recipes = [point.recipe for sweep in SWEEPS.values() for point in sweep.points()]
    for recipe in [PAPER, RELEASED, *recipes]:
        before, after = asdict(recipe), asdict(profile.apply(recipe))
        changed = {name for name in before if before[name] != after[name]}
        assert changed <= {"train", "width_mult", "start", "teacher"}
        changed = {name for name, value in before["train"].items() if value != after["train"][name]}
        assert changed <= BUDGET


def test_only_the_length_of_a_training_is_a_number_of_epochs():
    """Another one would be another fraction of the training at every profile."""
    counts = set()

    def walk(config):
        for each in fields(config):
            value = getattr(config, each.name)
            if is_dataclass(value):
                walk(value)
            elif isinstance(value, int | float) and ("epoch" in each.name or "step" in each.name):
                counts.add(each.name)

    for config in (Recipe(), PruneTo()):
        walk(config)
    assert counts == {"epochs"}


@pytest.mark.parametrize("share", [0.05, 0.2, 0.77])
def test_rewinding_goes_back_to_the_same_part_of_the_dense_training_at_every_profile(share):
    recipe = replace(PAPER, prune=PruneConfig((0.5,), rewind="early", early_share=share))
    shorter = (replace(PROFILES["quick"], epoch_share=part) for part in (0.5, 1 / 60, 1e-6))
    for profile in [*PROFILES.values(), *shorter]:
        found = resolved(recipe, profile)
        num = found.train.num_images or NUM_IMAGES[profile.dataset]["train"]
        num_steps = found.train.epochs * (num // found.train.batch_size)
        assert abs(found.prune.steps_kept(num_steps) / num_steps - share) <= 0.5 / num_steps


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


def test_the_whole_chain_is_put_on_the_budget():
    smoke = PROFILES["smoke"]
    pruned = Recipe(start=PAPER, changes=(PruneTo(0.5),), teacher=RELEASED, train=PAPER.train)
    found = smoke.apply(pruned)
    assert (found.start, found.teacher) == (smoke.apply(PAPER), smoke.apply(RELEASED))
    assert found.changes == pruned.changes
    assert found.train == smoke.apply(PAPER).train
    assert found.start.width_mult == smoke.width_mult
    assert found.width_mult == 1  # its network comes from the start, as wide as that is
    rated = Recipe(start=PAPER)
    assert smoke.apply(rated) == replace(rated, start=smoke.apply(PAPER))


def test_what_trains_nothing_is_not_trained_for_an_override_of_epochs():
    recipes = [point.recipe for sweep in SWEEPS.values() for point in sweep.points()]
    still = [recipe for recipe in recipes if not recipe.train.epochs]
    assert 0 < len(still) < len(recipes)
    for recipe in still:
        assert resolved(recipe, PROFILES["smoke"], {"train.epochs": 2}).train.epochs == 0
    assert resolved(PAPER, PROFILES["smoke"], {"train.epochs": 2}).train.epochs == 2


def test_overrides_come_after_the_profile_and_reach_start_and_teacher():
    smoke = PROFILES["smoke"]
    recipe = Recipe(start=PAPER, teacher=PAPER, train=PAPER.train)
    overrides = {"start.train.epochs": 7, "teacher.width_mult": 0.5}
    found = resolved(recipe, smoke, overrides)
    assert found.start == with_overrides(smoke.apply(PAPER), {"train.epochs": 7})
    assert found.teacher == replace(smoke.apply(PAPER), width_mult=0.5)


def test_a_dense_network_ignores_how_rounds_are_pruned():
    overrides = {"prune.rewind": "initial"}
    smoke = PROFILES["smoke"]
    assert resolved(PAPER, smoke, overrides) == resolved(PAPER, smoke)
    pruned = replace(PAPER, prune=PruneConfig((0.5,)))
    assert resolved(pruned, smoke, overrides).prune.rewind == "initial"
