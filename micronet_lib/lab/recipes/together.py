"""Settings of a recipe that are valid each, but wrong together; refused before anything runs."""

import math

from micronet_lib.architecture import NETWORKS
from micronet_lib.distillation import DistillationConfig
from micronet_lib.early_exit import AddExit
from micronet_lib.errors import InputError, check_choice
from micronet_lib.lab.data.images import NUM_CLASSES, NUM_IMAGES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.pruning.schedules import PruneTo
from micronet_lib.scoring.dead_channels import SAVINGS
from micronet_lib.scoring.rules import rules_of


def check_together(recipe: Recipe, dataset: str) -> None:
    """Check a resolved recipe, its start and its teachers.

    A setting that a recipe has no use for, such as `mix_alpha` without a mix, is ignored. Refused
    is what would train, rate or price something else than the settings say.

    Args:
        recipe: as it runs.
        dataset: a name of `DATA_SETS`.

    Raises:
        InputError: the two settings, and how to correct them.
    """
    check_choice("model", recipe.model, NETWORKS)
    for saving in recipe.savings:
        check_choice("saving", saving, SAVINGS)
    if not 0 < recipe.width_mult < math.inf:
        raise InputError(f"width_mult is {recipe.width_mult}; give a finite number above 0")
    _check_images(recipe, dataset)
    _check_mix(recipe)
    _check_rounds(recipe)
    _check_teacher(recipe)
    _check_exit(recipe)
    _check_margin(recipe)
    price = recipe.price
    rules_of("official", price.weight_bits, price.activation_bits, price.accumulator)
    train = recipe.train
    if train.epochs and recipe.savings:
        raise InputError(
            f"savings are for a network that is not trained; train.epochs is {train.epochs}: "
            "let another recipe start from this one"
        )
    if (train.initialization == "trained_distribution") != bool(train.initialize_from):
        raise InputError(
            f"train.initialize_from is {train.initialize_from!r} and train.initialization is "
            f"{train.initialization!r}; trained_distribution needs a file, and no other takes one"
        )
    if recipe.start is not None:
        check_together(recipe.start, dataset)
    for teacher in recipe.teachers:
        check_together(teacher, dataset)


def _check_images(recipe: Recipe, dataset: str) -> None:
    train, sizes = recipe.train, NUM_IMAGES[dataset]
    if not train.epochs:
        return
    share = (train.num_classes or NUM_CLASSES) / NUM_CLASSES
    learned = sizes["train"] + (0 if train.hold_out else sizes["validation"])
    there = {
        "num_images": round(share * learned),
        "num_validation": round(share * sizes["validation"]),
    }
    for name, most in there.items():
        if getattr(train, name) > most:
            raise InputError(
                f"train.{name} is {getattr(train, name)}; the data set {dataset} has {most}"
                + f" of {train.num_classes} classes" * bool(train.num_classes)
            )
    num = train.num_images or there["num_images"]
    if train.batch_size > num:
        raise InputError(
            f"train.batch_size is {train.batch_size}, more than the {num} training images: no "
            "batch would be full"
        )


def _check_mix(recipe: Recipe) -> None:
    train = recipe.train
    if train.epochs and recipe.augment.mix == "mixup_one_batch" and train.batch_size % 2:
        raise InputError(
            f"augment.mix mixup_one_batch mixes half with half; train.batch_size is "
            f"{train.batch_size}: give an even one"
        )


def _check_rounds(recipe: Recipe) -> None:
    if recipe.prune.rewind != "none" and recipe.train.relative_lr:
        raise InputError(
            f"prune.rewind is {recipe.prune.rewind!r}: rates relative to the weights (train."
            "relative_lr) would be those of other weights after a stop; leave one out"
        )
    if recipe.prune.sparsities and not recipe.train.epochs:
        raise InputError("prune.sparsities needs a dense training; train.epochs is 0")
    before = 0.0 if recipe.start is None else _sparsity(recipe.start)
    for change in recipe.changes:
        if isinstance(change, PruneTo) and change.sparsity is not None:
            if change.sparsity < before:
                raise InputError(
                    f"a change prunes to {change.sparsity}, less than the {before} before it; a "
                    "pruned weight stays pruned"
                )
            before = change.sparsity


def _sparsity(recipe: Recipe) -> float:
    """Return the sparsity that a recipe's own settings and those of its starts lead to."""
    said = [change.sparsity or 0.0 for change in recipe.changes if isinstance(change, PruneTo)]
    started = 0.0 if recipe.start is None else _sparsity(recipe.start)
    return max(started, *said, *recipe.prune.sparsities, 0.0)


def _check_teacher(recipe: Recipe) -> None:
    if recipe.teacher is None:
        if recipe.more_teachers:
            raise InputError("more_teachers are besides a teacher: set teacher too")
        if recipe.distillation != DistillationConfig():
            raise InputError("distillation needs a teacher: set teacher too, or leave it out")
        return
    if not recipe.train.epochs:
        raise InputError("a teacher needs a training; train.epochs is 0")
    if not all(teacher.learns for teacher in recipe.teachers):
        raise InputError("the teacher was never trained: give it a checkpoint, or train.epochs")


def _check_margin(recipe: Recipe) -> None:
    if recipe.arcface.margin and recipe.augment.mix != "none":
        raise InputError(
            f"arcface.margin is {recipe.arcface.margin}, but augment.mix is "
            f"{recipe.augment.mix!r}: a mixed image has no true class to widen"
        )
    if recipe.arcface.margin and recipe.teacher is not None:
        raise InputError("arcface.margin and a teacher do not go together: leave one out")


def _check_exit(recipe: Recipe) -> None:
    if recipe.exits.weight and not _has_exit(recipe):
        raise InputError(
            f"exits.weight is {recipe.exits.weight}, but the network has no early exit: add one by "
            "the change AddExit"
        )
    if _adds_exit(recipe) and recipe.train.epochs and not recipe.train.hold_out:
        raise InputError(
            "train.hold_out is false, but the threshold of an exit is chosen on held-out images"
        )
    if _adds_exit(recipe) and recipe.train.epochs and not recipe.exits.weight:
        raise InputError("the change AddExit adds an exit that nothing trains: set exits.weight")
    if recipe.teacher is not None and recipe.exits.weight == 1:
        raise InputError("exits.weight is 1, so no loss is left for the teacher: set less than 1")


def _adds_exit(recipe: Recipe) -> bool:
    return any(isinstance(change, AddExit) for change in recipe.changes)


def _has_exit(recipe: Recipe) -> bool:
    return _adds_exit(recipe) or (recipe.start is not None and _has_exit(recipe.start))
