"""Every recipe and every grid of the book, each declared once.

`PAPER` and `RELEASED` are what the paper says and what its authors' code does; a `Sweep` says which
recipes make one figure or table. `sweep.points()` is the only grid: measuring, tables, figures, the
status page and the README read it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from micronet_lib import label_smoothing
from micronet_lib.architecture import EXPAND_RATIOS
from micronet_lib.augmentation import AugmentConfig
from micronet_lib.errors import unknown
from micronet_lib.initialization import INITIALIZATIONS
from micronet_lib.lab.schedule import TrainConfig
from micronet_lib.lab.settings import PROFILES, Recipe
from micronet_lib.label_smoothing import SmoothingConfig
from micronet_lib.srip import SripConfig


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

    def matching(self, pattern: str | None) -> tuple[Point, ...]:
        """The points whose names match a pattern such as `3.0-*`; all of them for None.

        Raises:
            InputError: when none does.
        """
        points = self.points()
        chosen = tuple(p for p in points if pattern is None or fnmatchcase(p.name, pattern))
        if not chosen:
            raise unknown(f"point of {self.name}", pattern, [point.name for point in points])
        return chosen


_DENSE = TrainConfig(epochs=600, initialization="released")
_PLAIN = Recipe(model="c_efficientnet_3.0", train=_DENSE)
_PAPER_SRIP = SripConfig()
_ORN = replace(_PLAIN, train=replace(_DENSE, initialization="semi_orthogonal"), srip=_PAPER_SRIP)
_ALS = replace(_ORN, smoothing=label_smoothing.PAPER)
_PAPER_POLICY = AugmentConfig(policy="fast_autoaugment", policy_set="fa_wresnet28x10_cifar100")
_STAGES = {
    "vanilla": replace(_PLAIN, train=replace(_DENSE, decay_all=True)),
    "no_bias_decay": _PLAIN,
    "orn": _ORN,
    "als": _ALS,
    "fast_autoaugment": replace(_ALS, augment=_PAPER_POLICY),
    "cutmix": replace(_ALS, augment=replace(_PAPER_POLICY, mix="cutmix")),
}
"""The rows of [kim2020, Tables 2 to 4], each on top of the one before."""

PAPER = _STAGES["cutmix"]
"""The dense network as [kim2020] describes it."""

RELEASED = Recipe(
    model="micronet_v1_released",
    train=TrainConfig(
        epochs=2400,
        cycles=4,
        lr_levels=150,
        decay_all=True,
        initialization="released",
        watch_test=True,
    ),
    srip=SripConfig(coef=0.7, definition="released"),
    smoothing=label_smoothing.HARD_LABELS,
    augment=AugmentConfig(policy="fast_autoaugment", policy_set="all", mix="cutmix"),
)
"""The dense network as the released code trains it by the README's command for version 1.

150 epochs of four copies of the training set, four times over; `--batch_wd=False`, which the code
reads as true; plain cross-entropy. Unlike the code it holds the validation images out.
"""

_TRAINED = ("top1", "top5", "loss", "validation_top1", "srip_penalty")
_AUGMENTATIONS = {
    "none": AugmentConfig(crop=False, flip=False),
    "standard": AugmentConfig(),
    "random": AugmentConfig(policy="random"),
    "fast_autoaugment": _PAPER_POLICY,
    "searched": AugmentConfig(policy="searched"),
    "cutmix": AugmentConfig(mix="cutmix"),
    "mixup": AugmentConfig(mix="mixup"),
    "fast_autoaugment_cutmix": replace(_PAPER_POLICY, mix="cutmix"),
}
_SMOOTHINGS = {
    "none": label_smoothing.HARD_LABELS,
    "uniform": SmoothingConfig("uniform", smoothing=0.2),
    "paper": label_smoothing.PAPER,
    "released": label_smoothing.RELEASED_DENSE,
    "slide": label_smoothing.SLIDE,
}
_SPECTRA = {
    "v1_pr_60": Recipe(checkpoint="micronet_v1_pr_60"),
    "v2_pr_60": Recipe(checkpoint="micronet_v2_pr_60"),
}


def _placement(placement: str) -> Recipe:
    if placement == "none":
        return replace(_ORN, srip=replace(_PAPER_SRIP, coef=0.0))
    return replace(_ORN, srip=replace(_PAPER_SRIP, placement=placement))


def _initialized(initialization: str) -> Recipe:
    source = "micronet_v1_pr_60" if initialization == "trained_distribution" else ""
    train = TrainConfig(initialization=initialization, initialize_from=source)
    return Recipe(model="micronet_v1", train=train)


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
        Sweep(
            name="stages",
            title="The paper's stages, each on top of the one before, by expansion ratio",
            chapter="04_augmentation",
            axes={"expand_ratio": EXPAND_RATIOS, "stage": tuple(_STAGES)},
            make=lambda expand_ratio, stage: replace(
                _STAGES[stage], model=f"c_efficientnet_{expand_ratio:.1f}"
            ),
            metrics=_TRAINED,
        ),
        Sweep(
            name="srip_placement",
            title="SRIP on one kind of layer, on all, and on none",
            chapter="02_srip",
            axes={"placement": ("none", "fc", "depthwise", "pointwise", "all")},
            make=_placement,
            metrics=_TRAINED,
        ),
        Sweep(
            name="spectra",
            title="Singular values of the published networks and of fresh ones",
            chapter="02_srip",
            axes={"network": (*_SPECTRA, *INITIALIZATIONS)},
            make=lambda network: replace(
                _SPECTRA.get(network) or _initialized(network), inspect=("spectrum",)
            ),
            metrics=("srip_penalty_paper", "srip_penalty_released"),
            profiles=("full",),
        ),
        Sweep(
            name="label_smoothing",
            title="Forms of label smoothing",
            chapter="03_label_smoothing",
            axes={"form": tuple(_SMOOTHINGS)},
            make=lambda form: replace(_ORN, smoothing=_SMOOTHINGS[form]),
            metrics=_TRAINED,
        ),
        Sweep(
            name="class_similarity",
            title="Which classes the published networks find alike",
            chapter="03_label_smoothing",
            axes={"checkpoint": ("v1_pr_60", "v2_pr_30", "v2_pr_60")},
            make=lambda checkpoint: Recipe(
                checkpoint=f"micronet_{checkpoint}", inspect=("class_similarity",)
            ),
            metrics=("similarity_mean", "similarity_min", "similarity_max"),
            profiles=("full",),
        ),
        Sweep(
            name="augmentation",
            title="Ways of augmenting and mixing images",
            chapter="04_augmentation",
            axes={"augment": tuple(_AUGMENTATIONS)},
            make=lambda augment: replace(_ALS, augment=_AUGMENTATIONS[augment]),
            metrics=_TRAINED,
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
