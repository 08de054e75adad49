"""Chapter 08: weights of three values, or of two, from published networks and from one of ours."""

from collections.abc import Sequence

from micronet_lib.lab.recipes.bases import PAPER
from micronet_lib.lab.recipes.grids.beyond import TEACHERS, TRIMMED, distilled
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.ternary import SCHEMES, Ternarize

DENSE = Recipe(checkpoint="micronet_v2_pr_15")
"""The published network with the fewest zeros."""


METRICS = (
    *("correct", "top1", "loss", "validation_divergence", "zeros", "moved"),
    *("bits_per_weight", "official.score", "narrow_sums.score", "half.correct"),
)


def _distilled(
    start: Recipe, change: Ternarize, teachers: Sequence[Recipe] = TEACHERS[:1]
) -> Recipe:
    """Return one epoch of `day` by the answers of another network."""
    return distilled(
        change,
        start=start,
        teachers=teachers,
        lr=3e-3,
        bn_momentum=0.05,
        num_validation=1000,
    )


_WAYS = {
    "rounded": Recipe(start=TRIMMED, changes=(Ternarize(),)),
    "ttq": _distilled(TRIMMED, Ternarize()),
    "ttq_75": _distilled(TRIMMED, Ternarize(sparsity=0.75)),
    "ttq_all": _distilled(TRIMMED, Ternarize(keep=())),
    "entropy": _distilled(TRIMMED, Ternarize("entropy")),
    "fixed": _distilled(TRIMMED, Ternarize("fixed")),
    "binary": _distilled(TRIMMED, Ternarize("binary")),
    "dense_ttq": _distilled(DENSE, Ternarize()),
    "dense_binary": _distilled(DENSE, Ternarize("binary")),
}

SWEEPS = (
    Sweep(
        name="ternary",
        title="Weights of three values, scheme by scheme",
        chapter="08_ternary",
        axes={"way": tuple(_WAYS)},
        make=lambda way: _WAYS[way],
        metrics=METRICS,
        measures=("accuracy", "ternary"),
        profiles=("day", "full"),
    ),
    Sweep(
        name="ternary_training",
        title="Four schemes, in a network trained here that is its own teacher",
        chapter="08_ternary",
        axes={"scheme": SCHEMES},
        make=lambda scheme: _distilled(PAPER, Ternarize(scheme), (PAPER,)),
        metrics=METRICS,
        measures=("accuracy", "ternary"),
    ),
)
