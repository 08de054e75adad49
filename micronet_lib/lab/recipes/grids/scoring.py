"""Chapter 06: the published networks, their free savings, and fewer bits."""

from micronet_lib.lab.recipes.recipe import Price, Recipe
from micronet_lib.lab.recipes.sweep import ACCURACY, Printed, Sweep

_PUBLISHED = ("v1_pr_60", "v2_pr_15", "v2_pr_30", "v2_pr_45", "v2_pr_60")

_STEPS = {
    "as_published": (),
    "dead_gates": ("dead_gates",),
    "dead_channels": ("dead_gates", "dead_channels"),
    "sixth": ("dead_gates", "dead_channels", "sixth"),
}

_WIDTHS = {"w8a8": (8, 8), "w4a8": (4, 8), "w4a4": (4, 4)}

SWEEPS = (
    Sweep(
        name="published",
        title="The published networks: accuracy and score",
        chapter="06_scoring",
        axes={"checkpoint": _PUBLISHED},
        make=lambda checkpoint: Recipe(checkpoint=f"micronet_{checkpoint}"),
        metrics=(
            *ACCURACY,
            "half.correct",
            "half_folded.correct",
            "first.score",
            "revised.score",
            "published.score",
            "official.score",
        ),
        measures=("accuracy", "half_precision", "sparsity", "bill"),
        profiles=("full",),
        printed=(
            Printed("scoring", "top1_percent", "top1", factor=100),
            Printed("scoring", "top5_percent", "top5", factor=100),
            Printed("scoring", "loss", "loss"),
            Printed("scoring", "score_first", "first.score"),
            Printed("scoring", "score_revised", "revised.score"),
            Printed("scoring", "param_storage_revised", "revised.param_storage"),
            Printed("scoring", "math_ops_revised", "revised.math_ops"),
            # The revised notebook prints six operations more for the same list.
            Printed("scoring", "score_final", "published.score", tolerance=1e-6),
            Printed("scoring", "param_storage_final", "published.param_storage"),
            Printed("scoring", "math_ops_final", "published.math_ops", tolerance=1e-6),
        ),
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
        measures=("same_logits",),
        profiles=("full",),
    ),
    Sweep(
        name="bit_widths",
        title="What the official rules would charge the winning network at fewer bits",
        chapter="06_scoring",
        axes={"widths": tuple(_WIDTHS), "accumulator": ("fp32", "integer", "adder_tree")},
        make=lambda widths, accumulator: Recipe(
            checkpoint="micronet_v1_pr_60",
            price=Price(*_WIDTHS[widths], accumulator),
        ),
        metrics=("official.param_storage", "official.math_ops", "official.score"),
        measures=(),
        profiles=("full",),
    ),
)
