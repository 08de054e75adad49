"""The files that decide a recipe's network: published networks and augmentation policies."""

from pathlib import Path

from micronet_lib.lab.host.places import POLICY_FILES, checkpoint_path, policy_path
from micronet_lib.lab.recipes.recipe import Recipe


def input_paths(recipe: Recipe) -> list[Path]:
    """Return the files that a recipe's own step reads; not those of its start and teachers."""
    names = [recipe.checkpoint]
    if not recipe.checkpoint and recipe.start is None:
        names.append(recipe.train.initialize_from)
    paths = [checkpoint_path(name) for name in names if name]
    if augments(recipe) and recipe.augment.policy in POLICY_FILES:
        paths.append(policy_path(recipe.augment.policy))
    return paths


def augments(recipe: Recipe) -> bool:
    """Return whether a recipe's own step reads augmented training images."""
    return bool(recipe.train.epochs) or any(change.num_images for change in recipe.changes)


def all_input_paths(recipe: Recipe) -> list[Path]:
    """Return the files that a recipe, its start and its teachers read."""
    others = [*([] if recipe.start is None else [recipe.start]), *recipe.teachers]
    return [*input_paths(recipe), *(path for other in others for path in all_input_paths(other))]
