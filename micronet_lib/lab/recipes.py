"""Every recipe and every grid of the book, each declared once.

`PAPER` and `RELEASED` are what the paper says and what its authors' code does; a `Sweep` says which
recipes make one figure or table. `sweep.points()` is the only grid: measuring, tables, figures, the
status page and the README read it.
"""

from dataclasses import replace

from micronet_lib import label_smoothing
from micronet_lib.architecture import EXPAND_RATIOS
from micronet_lib.augmentation import AugmentConfig
from micronet_lib.errors import unknown
from micronet_lib.initialization import INITIALIZATIONS
from micronet_lib.lab.schedule import TrainConfig
from micronet_lib.lab.settings import Recipe, with_overrides
from micronet_lib.lab.sweeps import Sweep
from micronet_lib.label_smoothing import SmoothingConfig
from micronet_lib.pruning_schedules import PAPER as _PAPER_PRUNING
from micronet_lib.pruning_schedules import SCHEDULES, PruneConfig, linear
from micronet_lib.srip import SripConfig

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

_RECIPES = {
    "paper": replace(PAPER, train=replace(PAPER.train, watch_test=True)),
    "released_cycle": replace(RELEASED, train=replace(RELEASED.train, epochs=600, cycles=1)),
    "released": RELEASED,
}
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


def _round(base: Recipe, config: PruneConfig, number: int) -> Recipe:
    """A base after that many rounds of pruning; after none it is the base itself."""
    if number == 0:
        return base
    return replace(base, prune=replace(config, sparsities=config.sparsities[:number]))


def _rewound(rewind: str, srip: str, number: int) -> Recipe:
    coef = _PAPER_SRIP.coef if srip == "srip" else 0.0
    base = replace(PAPER, srip=replace(_PAPER_SRIP, coef=coef))
    config = with_overrides(PruneConfig(linear(0.6, 2), early_epoch=30), {"rewind": rewind})
    return _round(base, config, number)


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
        Sweep(
            name="recipes",
            title="The paper's dense recipe, one cycle of the released code's, and all four",
            chapter="04_augmentation",
            axes={"recipe": tuple(_RECIPES)},
            make=lambda recipe: _RECIPES[recipe],
            metrics=("top1", "selected_top1", "best_on_test_top1", "validation_top1"),
        ),
        Sweep(
            name="pipeline",
            title="The whole entry: dense training, then four rounds of pruning",
            chapter="05_pruning",
            axes={"sparsity": ("dense", "0.15", "0.30", "0.45", "0.60")},
            make=lambda sparsity: _round(
                PAPER, _PAPER_PRUNING, 0 if sparsity == "dense" else round(float(sparsity) / 0.15)
            ),
            metrics=("sparsity", *_TRAINED[:3], "published.score", "official.score"),
        ),
        Sweep(
            name="prune_schedule",
            title="How much goes in which of four rounds",
            chapter="05_pruning",
            axes={"schedule": tuple(SCHEDULES), "round": (0, 1, 2, 3, 4)},
            make=lambda schedule, round: _round(
                PAPER, PruneConfig(SCHEDULES[schedule](0.6, 4)), round
            ),
            metrics=("sparsity", *_TRAINED[:3], "published.score"),
        ),
        Sweep(
            name="rewind",
            title="Going back to early weights, with SRIP and without, in two rounds",
            chapter="05_pruning",
            axes={
                "rewind": ("none", "early", "initial"),
                "srip": ("srip", "no_srip"),
                "round": (0, 1, 2),
            },
            make=lambda rewind, srip, round: _rewound(rewind, srip, round),
            metrics=("sparsity", *_TRAINED),
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
