"""The settings of one run: a `Recipe` says what is done, a `Profile` on which budget."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from micronet_lib.augmentation import AugmentConfig
from micronet_lib.errors import InputError, unknown
from micronet_lib.lab.schedule import Precision, TrainConfig
from micronet_lib.label_smoothing import SmoothingConfig
from micronet_lib.pruning_schedules import PruneConfig
from micronet_lib.srip import SripConfig


@dataclass(frozen=True)
class Recipe:
    """One network and what is done with it.

    Attributes:
        model: a name of `architecture.ARCHITECTURES`; ignored when a checkpoint says what it is.
        checkpoint: a published file, `kaist/<checkpoint>.t7` under the data folder; empty for a
            network of our own.
        savings: names of `dead_channels.SAVINGS`, applied in this order.
        weight_bits: width the official rules charge for weights; 0 for the unquantised network.
        activation_bits: the same for activations. Both are a price, not a quantised network.
        accumulator: how the official rules charge additions inside a quantised dot product.
        width_mult: of every channel count.
        train: how it is trained; with 0 epochs it is only counted.
        srip: orthogonality regularisation; `coef` 0 for none.
        smoothing: of the labels.
        augment: of the training images.
        prune: the rounds of pruning after the dense training, each trained as `train` says.
        inspect: names of `lab.inspection.INSPECTIONS`, kept in the record's `arrays`.
    """

    model: str = "micronet_v1"
    checkpoint: str = ""
    savings: tuple[str, ...] = ()
    weight_bits: int = 0
    activation_bits: int = 0
    accumulator: str = "fp32"
    width_mult: float = 1.0
    train: TrainConfig = field(default_factory=TrainConfig)
    srip: SripConfig = field(default_factory=lambda: SripConfig(coef=0.0))
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    inspect: tuple[str, ...] = ()

    @property
    def parent(self) -> "Recipe":
        """The recipe of the network that this one's last round of pruning begins with."""
        before = self.prune.sparsities[:-1]
        return replace(
            self, prune=replace(self.prune, sparsities=before) if before else PruneConfig()
        )


@dataclass(frozen=True)
class Profile:
    """A budget: how much is trained on what, and the settings that so little or so much asks for.

    Attributes:
        name: on the command line.
        dataset: a name of `lab.data.load_dataset`.
        purpose: in a few words.
        epoch_share: the fraction of a recipe's epochs that are trained.
        num_images: training images, the first of each class; 0 for all.
        num_validation: validation images rated after an epoch; 0 for all.
        width_mult: of every network that is trained.
        batch_size: of a run so short that the recipe's would leave it too few steps; 0 leaves it.
        bn_momentum: of batch norm in a run so short that averages with the recipe's would still
            hold their first values at its end; 0 leaves the recipe's.
        precision: of the convolutions; empty leaves the recipe's.
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
        """The recipe on this budget; one that trains nothing stays as it is."""
        train = recipe.train
        if not train.epochs:
            return recipe
        epochs = train.cycles * max(1, round(train.epochs * self.epoch_share / train.cycles))
        early_epoch = max(1, round(recipe.prune.early_epoch * self.epoch_share))
        return replace(
            recipe,
            prune=replace(recipe.prune, early_epoch=early_epoch),
            width_mult=recipe.width_mult * self.width_mult,
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
    """The profile of that name.

    Raises:
        InputError: for a name that is not in `PROFILES`.
    """
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]


def resolved(
    recipe: Recipe, profile: Profile, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """What is run of a recipe on a profile.

    Overrides of `prune` say how rounds are pruned. A dense network has none and is one and the
    same under all of them, so that the rounds find it.

    Raises:
        InputError: unknown key, or a value of another type.
    """
    found: Recipe = with_overrides(profile.apply(recipe), overrides or {})
    return found if found.prune.sparsities else replace(found, prune=PruneConfig())


def with_overrides(config: Any, overrides: Mapping[str, Any]) -> Any:
    """A copy of a (nested, frozen) configuration with dotted keys replaced.

    Args:
        config: for example a `Recipe`.
        overrides: for example `{"checkpoint": "micronet_v2_pr_60"}`; values must have the type of
            the field they replace (an integer will do for a float, a list for a tuple).

    Raises:
        InputError: unknown key, with the known ones listed, or a value of another type.
    """
    for key, value in overrides.items():
        head, _, rest = key.partition(".")
        known = {field.name: getattr(config, field.name) for field in fields(config)}
        if head not in known:
            raise unknown(f"key of {type(config).__name__}", head, known)
        old = known[head]
        if rest:
            if not is_dataclass(old):
                raise InputError(f"{head!r} of {type(config).__name__} has no keys of its own")
            value = with_overrides(old, {rest: value})
        else:
            value = tuple(value) if isinstance(value, list) else value
            value = float(value) if type(old) is float and type(value) is int else value
            if type(value) is not type(old):
                raise InputError(f"override {key}={value!r}: expected {type(old).__name__}")
        config = replace(config, **{head: value})
    return config
