"""The settings of one run: a `Recipe` says what is done, a `Profile` on which budget."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.errors import InputError, unknown
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.label_smoothing import SmoothingConfig
from micronet_lib.pruning.schedules import PruneConfig
from micronet_lib.srip.penalty import SripConfig


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
