"""Chapter 08: weights of three values, or of two, from the published networks."""

from micronet_lib.lab.recipes.grids.beyond import TEACHERS, TRIMMED, distilled
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.ternary import Ternarize

DENSE = Recipe(checkpoint="micronet_v2_pr_15")
"""The published network with the fewest zeros."""


def _distilled(start: Recipe, change: Ternarize) -> Recipe:
    """Return one epoch of `day` by the answers of a published network."""
    return distilled(
        change,
        start=start,
        teachers=TEACHERS[:1],
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
        metrics=(
            *("correct", "top1", "loss", "validation_divergence", "zeros", "moved"),
            *("bits_per_weight", "official.score", "narrow_sums.score", "half.correct"),
        ),
        measures=("accuracy", "ternary"),
        profiles=("day", "full"),
    ),
)
