"""Profiles: the compute budget of a recipe, and the images it is trained on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from micronet_lib.architecture import takes
from micronet_lib.errors import InputError, Registry, check_choice
from micronet_lib.lab.data.images import DATA_SETS
from micronet_lib.lab.host.files import sha256_of
from micronet_lib.lab.host.given import as_overrides
from micronet_lib.lab.host.places import policy_path
from micronet_lib.lab.recipes.optimisation import Precision
from micronet_lib.lab.recipes.recipe import Recipe, with_overrides
from micronet_lib.lab.recipes.together import check_together
from micronet_lib.pruning.schedules import PruneConfig

DIGEST_DIGITS = 16


@dataclass(frozen=True)
class Profile:
    """A compute budget: data set, epochs and images, and the few settings that change with them.

    Attributes:
        name: on the command line.
        dataset: a name of `lab.data.images.DATA_SETS`.
        purpose: in a few words.
        epoch_share: fraction of a recipe's epochs that is trained.
        num_images: training images, the first of each class; 0 for all.
        num_validation: validation images rated after an epoch; 0 for all.
        width_mult: of every fresh network that is trained and has this option.
        batch_size: images per step. A short run needs a smaller batch to have enough steps. 0 keeps
            the recipe's value.
        bn_momentum: batch-norm momentum. A short run needs a larger one, because running averages
            would not converge otherwise. 0 keeps the recipe's value.
        precision: of the convolutions; empty keeps the recipe's value.

    Raises:
        InputError: unknown data set, or no budget at all.
    """

    name: str
    dataset: str
    purpose: str
    epoch_share: float = 1.0
    num_images: int = 0
    num_validation: int = 0
    width_mult: float = 1.0
    batch_size: int = 0
    bn_momentum: float = 0.0
    precision: Precision | Literal[""] = ""

    def __post_init__(self) -> None:
        check_choice("data set", self.dataset, DATA_SETS)
        for name in ("epoch_share", "width_mult"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} of profile {self.name!r} is {getattr(self, name)}")

    def apply(self, recipe: Recipe) -> Recipe:
        """Return the recipe on this budget, its start and teachers included.

        The settings of a recipe that trains nothing do not change.
        """
        train = recipe.train
        recipe = recipe.with_others(self.apply)
        if not train.epochs:
            return recipe
        fresh = not recipe.checkpoint and recipe.start is None
        narrowed = self.width_mult if fresh and takes(recipe.model, "width_mult") else 1
        epochs = train.cycles * max(1, round(train.epochs * self.epoch_share / train.cycles))
        return replace(
            recipe,
            width_mult=recipe.width_mult * narrowed,
            train=replace(
                train,
                epochs=epochs,
                num_images=self.num_images or train.num_images,
                num_validation=self.num_validation or train.num_validation,
                batch_size=self.batch_size or train.batch_size,
                bn_momentum=self.bn_momentum or train.bn_momentum,
                precision=self.precision or train.precision,
            ),
        )


PROFILES = Registry(
    "profile",
    {
        profile.name: profile
        for profile in (
            Profile(
                "smoke",
                "embedded",
                "two CPU cores, a minute a chapter; the committed pages",
                epoch_share=1 / 300,
                num_images=320,
                num_validation=100,
                batch_size=32,
                width_mult=0.25,
                bn_momentum=0.2,
            ),
            Profile(
                "quick",
                "cifar100",
                "a CPU core, up to an hour a sweep and seed; shows that it runs, and the spread",
                epoch_share=1 / 150,
                num_images=2000,
                num_validation=500,
                batch_size=32,
                bn_momentum=0.1,
            ),
            Profile(
                "day",
                "cifar100",
                "one CPU core, minutes to two hours a point: a fortieth of the paper's epochs",
                epoch_share=1 / 40,
            ),
            Profile(
                "full",
                "cifar100",
                "the paper's schedule on one GPU; the reproduction",
                precision="bf16",
            ),
        )
    },
)


def resolved(
    recipe: Recipe, profile: Profile, overrides: Mapping[str, Any] | str | None = None
) -> Recipe:
    """Return the recipe as it runs on a profile.

    The digest of the policies that our own search found becomes a part of it.

    Overrides change the recipe itself; the prefix `start.` or `teacher.` changes those two.
    Overrides of `prune` describe the rounds. A dense recipe ignores them, so that all kinds of
    rounds start from the same network; one that starts from another network refuses rewinding. A
    recipe that trains nothing ignores `train.epochs`: a budget is no reason to train it.

    Raises:
        InputError: unknown key, a value of another type, or settings that are wrong together.
    """
    applied = profile.apply(recipe)
    found: Recipe = with_overrides(applied, as_overrides(overrides))
    if not applied.train.epochs:
        found = replace(found, train=replace(found.train, epochs=0))
    if found.prune.rewind != "none" and (found.start is not None or found.checkpoint):
        raise InputError(
            f"prune.rewind is {found.prune.rewind!r}, but the recipe starts from another network; "
            "only rounds after a dense training of the same recipe can return to its weights"
        )
    if not found.prune.sparsities:
        found = replace(found, prune=PruneConfig())
    check_together(found, profile.dataset)
    return _with_digest(found)


def _with_digest(recipe: Recipe) -> Recipe:
    """Return the recipe with the digest of the searched policies, start and teachers included."""
    augment, path = recipe.augment, policy_path("searched")
    if augment.policy == "searched" and not augment.policy_digest and path.is_file():
        augment = replace(augment, policy_digest=sha256_of(path)[:DIGEST_DIGITS])
    return replace(recipe, augment=augment).with_others(_with_digest)
