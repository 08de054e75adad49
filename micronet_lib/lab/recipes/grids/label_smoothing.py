"""Chapter 03: forms of label smoothing, and the similarity of classes."""

from dataclasses import replace

from micronet_lib.lab.recipes.bases import ORN
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import TRAINED, Printed, Sweep
from micronet_lib.label_smoothing import (
    HARD_LABELS,
    PAPER_SMOOTHING,
    RELEASED_DENSE,
    SLIDE,
    SmoothingConfig,
)

_SMOOTHINGS = {
    "none": HARD_LABELS,
    "uniform": SmoothingConfig("uniform", smoothing=0.2),
    "paper": PAPER_SMOOTHING,
    "released": RELEASED_DENSE,
    "slide": SLIDE,
}

SWEEPS = (
    Sweep(
        name="label_smoothing",
        title="Forms of label smoothing",
        chapter="03_label_smoothing",
        axes={"form": tuple(_SMOOTHINGS)},
        make=lambda form: replace(ORN, smoothing=_SMOOTHINGS[form]),
        metrics=(*TRAINED, "ece", "superclass_ari", "published_ari", "published_correlation"),
        measures=("accuracy", "matrix_agreement"),
        printed=(
            Printed("label_smoothing", "top1_orn_percent", "top1", {"none": "ratio_3.0"}, 100),
            Printed("label_smoothing", "top1_als_percent", "top1", {"paper": "ratio_3.0"}, 100),
        ),
    ),
    Sweep(
        name="class_similarity",
        title="Which classes the published networks find alike",
        chapter="03_label_smoothing",
        axes={"checkpoint": ("v1_pr_60", "v2_pr_30", "v2_pr_60")},
        make=lambda checkpoint: Recipe(checkpoint=f"micronet_{checkpoint}"),
        metrics=("similarity_mean", "similarity_min", "similarity_max"),
        measures=("class_similarity",),
        profiles=("full",),
    ),
    Sweep(
        name="confusions",
        title="Which classes the published networks take for which",
        chapter="03_label_smoothing",
        axes={"checkpoint": ("v1_pr_60", "v2_pr_30", "v2_pr_60")},
        make=lambda checkpoint: Recipe(checkpoint=f"micronet_{checkpoint}"),
        metrics=("top1",),
        measures=("confusions",),
        profiles=("full",),
    ),
)
