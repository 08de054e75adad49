"""Every hyper-parameter and every grid of the book, each declared once.

A `Recipe` says what is measured, a `Profile` on which budget, a `Sweep` which recipes make one
figure or table. `sweep.points()` is the only grid: measuring, tables, figures, the status page and
the README read it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from typing import Any

from micronet_lib.architecture import EXPAND_RATIOS
from micronet_lib.errors import InputError, unknown


@dataclass(frozen=True)
class Recipe:
    """One network and what is done with it.

    Attributes:
        model: a name of `architecture.ARCHITECTURES`; ignored when a checkpoint says what it is.
        checkpoint: a published file, `kaist/<checkpoint>.t7` under the data folder; empty for a
            fresh network, which is counted but not rated.
        savings: names of `dead_channels.SAVINGS`, applied in this order.
        weight_bits: width the official rules charge for weights; 0 for the unquantised network.
        activation_bits: the same for activations. Both are a price, not a quantised network.
        accumulator: how the official rules charge additions inside a quantised dot product.
    """

    model: str = "micronet_v1"
    checkpoint: str = ""
    savings: tuple[str, ...] = ()
    weight_bits: int = 0
    activation_bits: int = 0
    accumulator: str = "fp32"


@dataclass(frozen=True)
class Profile:
    """A budget, never a method. `dataset` is a name of `lab.data.load_dataset`."""

    name: str
    dataset: str
    purpose: str


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", "embedded", "two CPU cores, half a minute a chapter; the committed pages"),
        Profile("quick", "cifar100", "a CPU and up to an hour a sweep; the direction of an effect"),
        Profile("full", "cifar100", "the paper's schedule on one GPU; the reproduction"),
    )
}


@dataclass(frozen=True)
class Point:
    """One recipe of a sweep under its name on disk."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """A grid of recipes.

    Attributes:
        name: on the command line and as a folder of records.
        title: what it asks, for headings.
        chapter: the notebook that shows it, for example `06_scoring`.
        axes: the values of each axis; a point's name joins its values with `-`.
        make: turns one value an axis into a recipe.
        metrics: what its tables show, in order.
        profiles: the budgets on which the question makes sense.
    """

    name: str
    title: str
    chapter: str
    axes: Mapping[str, tuple[Any, ...]]
    make: Callable[..., Recipe]
    metrics: tuple[str, ...]
    profiles: tuple[str, ...] = tuple(PROFILES)

    def points(self) -> tuple[Point, ...]:
        """Every point, in the order of the axes."""
        grid = product(*self.axes.values())
        return tuple(
            Point(
                "-".join(str(v) for v in values),
                self.make(**dict(zip(self.axes, values, strict=True))),
            )
            for values in grid
        )

    def point(self, name: str) -> Point:
        """The point of that name.

        Raises:
            InputError: for a name that is not in the sweep.
        """
        points = {point.name: point for point in self.points()}
        if name not in points:
            raise unknown(f"point of {self.name}", name, points)
        return points[name]


_PUBLISHED = ("v1_pr_60", "v2_pr_15", "v2_pr_30", "v2_pr_45", "v2_pr_60")
_STEPS = {
    "as_published": (),
    "dead_gates": ("dead_gates",),
    "dead_channels": ("dead_gates", "dead_channels"),
    "sixth": ("dead_gates", "dead_channels", "sixth"),
}
_WIDTHS = {"w8a8": (8, 8), "w4a8": (4, 8), "w4a4": (4, 4)}
_ACCURACY = ("correct", "top1", "top5", "loss")

SWEEPS = {
    sweep.name: sweep
    for sweep in (
        Sweep(
            name="expand_ratio",
            title="C-EfficientNet-i: storage and operations by expansion ratio",
            chapter="01_architecture",
            axes={"expand_ratio": EXPAND_RATIOS},
            make=lambda expand_ratio: Recipe(model=f"c_efficientnet_{expand_ratio:.1f}_released"),
            metrics=("revised.param_storage", "revised.math_ops", "revised.score"),
        ),
        Sweep(
            name="printed_table",
            title="Table 1 as printed, by expansion ratio",
            chapter="01_architecture",
            axes={"expand_ratio": EXPAND_RATIOS},
            make=lambda expand_ratio: Recipe(model=f"table1_{expand_ratio:.1f}"),
            metrics=("revised.param_storage", "revised.math_ops", "revised.score"),
        ),
        Sweep(
            name="published",
            title="The published networks: accuracy and score",
            chapter="06_scoring",
            axes={"checkpoint": _PUBLISHED},
            make=lambda checkpoint: Recipe(checkpoint=f"micronet_{checkpoint}"),
            metrics=(
                *_ACCURACY,
                "first.score",
                "revised.score",
                "published.score",
                "official.score",
            ),
            profiles=("full",),
        ),
        Sweep(
            name="free_savings",
            title="What the published networks carry for nothing",
            chapter="06_scoring",
            axes={"checkpoint": ("v1_pr_60", "v2_pr_60"), "step": tuple(_STEPS)},
            make=lambda checkpoint, step: Recipe(
                checkpoint=f"micronet_{checkpoint}", savings=_STEPS[step]
            ),
            metrics=(
                *("published.score", "official.score", "correct"),
                *("max_logit_difference", "bit_identical"),
            ),
            profiles=("full",),
        ),
        Sweep(
            name="bit_widths",
            title="What the official rules would charge the winning network at fewer bits",
            chapter="06_scoring",
            axes={"widths": tuple(_WIDTHS), "accumulator": ("fp32", "integer", "adder_tree")},
            make=lambda widths, accumulator: Recipe(
                checkpoint="micronet_v1_pr_60",
                weight_bits=_WIDTHS[widths][0],
                activation_bits=_WIDTHS[widths][1],
                accumulator=accumulator,
            ),
            metrics=("official.param_storage", "official.math_ops", "official.score"),
            profiles=("full",),
        ),
    )
}


def get_sweep(name: str) -> Sweep:
    """The sweep of that name.

    Raises:
        InputError: for a name that is not in `SWEEPS`.
    """
    if name not in SWEEPS:
        raise unknown("sweep", name, SWEEPS)
    return SWEEPS[name]


def get_profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        InputError: for a name that is not in `PROFILES`.
    """
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]


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
