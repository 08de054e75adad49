"""A profile is a budget: how much of a recipe is trained, on which images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from micronet_lib.architecture import takes
from micronet_lib.errors import unknown
from micronet_lib.lab.recipes.optimisation import Precision
from micronet_lib.lab.recipes.recipe import Recipe, with_overrides
from micronet_lib.pruning.schedules import PruneConfig


@dataclass(frozen=True)
class Profile:
    """A compute budget: data set, epochs and images, and the few settings that change with them.

    Attributes:
        name: on the command line.
        dataset: a name of `lab.data.load_dataset`.
        purpose: in a few words.
        epoch_share: the fraction of a recipe's epochs that are trained.
        num_images: training images, the first of each class; 0 for all.
        num_validation: validation images rated after an epoch; 0 for all.
        width_mult: of every fresh network that is trained and has such an option.
        batch_size: images a step. A short run needs a smaller one, or it has too few steps. 0 keeps
            the recipe's.
        bn_momentum: of batch norm. A short run needs a larger one, because its running averages
            would not converge otherwise. 0 keeps the recipe's.
        precision: of the convolutions; empty keeps the recipe's.
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

    def apply(self, recipe: Recipe) -> Recipe:
        """Return the recipe on this budget, with those it starts from and learns from.

        A recipe that trains nothing stays as it is.
        """
        train = recipe.train
        recipe = replace(
            recipe,
            start=recipe.start and self.apply(recipe.start),
            teacher=recipe.teacher and self.apply(recipe.teacher),
        )
        if not train.epochs:
            return recipe
        fresh = not recipe.checkpoint and recipe.start is None
        narrowed = self.width_mult if fresh and takes(recipe.model, "width_mult") else 1
        epochs = train.cycles * max(1, round(train.epochs * self.epoch_share / train.cycles))
        early_epoch = max(1, round(recipe.prune.early_epoch * self.epoch_share))
        return replace(
            recipe,
            prune=replace(recipe.prune, early_epoch=early_epoch),
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


PROFILES = {
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
            "a CPU and up to an hour a sweep; the direction of an effect",
            epoch_share=1 / 150,
            num_images=2000,
            num_validation=500,
            batch_size=32,
            bn_momentum=0.1,
        ),
        Profile(
            "full",
            "cifar100",
            "the paper's schedule on one GPU; the reproduction",
            precision="bf16",
        ),
    )
}


def get_profile(name: str) -> Profile:
    """Return the profile of that name.

    Raises:
        InputError: for a name that is not in `PROFILES`.
    """
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]


def resolved(
    recipe: Recipe, profile: Profile, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Return what is run of a recipe on a profile.

    Overrides change the recipe itself; `start.` and `teacher.` before a key change those two.
    Overrides of `prune` say how rounds are pruned. A dense network has no round and ignores them,
    so that every kind of rounds starts from the same one.

    Raises:
        InputError: unknown key, or a value of another type.
    """
    found: Recipe = with_overrides(profile.apply(recipe), overrides or {})
    return found if found.prune.sparsities else replace(found, prune=PruneConfig())
