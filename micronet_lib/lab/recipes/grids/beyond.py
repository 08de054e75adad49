"""Chapter 11: networks below the winning score, from the published ones."""

from micronet_lib.beyond.changes import Allocate, Quantize
from micronet_lib.distillation import DistillationConfig
from micronet_lib.hooks import Change
from micronet_lib.lab.recipes.bases import PAPER_POLICY
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import ACCURACY, Sweep

TRIMMED = Recipe(checkpoint="micronet_v1_pr_60", savings=("dead_gates", "dead_channels"))
"""The winning network without what no logit depends on."""

TEACHERS = (Recipe(checkpoint="micronet_v2_pr_30"), Recipe(checkpoint="micronet_v2_pr_15"), TRIMMED)
"""The two most accurate of the published networks, and the network itself before any rounding."""


def _distilled(start: Recipe, *changes: Change, epochs: int, lr: float) -> Recipe:
    """Return a training by a teacher alone. `epochs` are those of `day`, a fortieth."""
    return Recipe(
        start=start,
        changes=changes,
        teacher=TEACHERS[0],
        more_teachers=TEACHERS[1:],
        distillation=DistillationConfig(temperature=2.0),
        augment=PAPER_POLICY,
        train=TrainConfig(
            epochs=40 * epochs,
            batch_size=64,
            optimizer="adam",
            lr=lr,
            min_lr=0.0,
            relative_lr=True,
            weight_decay=0.0,
            dropout=0.0,
            num_validation=2000,
        ),
    )


_POINTS = {
    "distilled": _distilled(TRIMMED, Quantize(8, 8, 10, 12), epochs=1, lr=5e-4),
    "allocated-33": _distilled(TRIMMED, Allocate(0.0033), epochs=4, lr=5e-4),
    "allocated-28": _distilled(TRIMMED, Allocate(0.00285), epochs=8, lr=5e-4),
}

SWEEPS = (
    Sweep(
        name="beyond",
        title="Below the winning score, rung by rung",
        chapter="11_beyond",
        axes={"point": tuple(_POINTS)},
        make=lambda point: _POINTS[point],
        metrics=(*ACCURACY, "official.score"),
        profiles=("day", "full"),
    ),
)
