"""Chapter 05: the whole entry in rounds, schedules, and rewinding."""

from dataclasses import replace

from micronet_lib.lab.recipes.bases import PAPER, PAPER_SRIP
from micronet_lib.lab.recipes.recipe import Recipe, with_overrides
from micronet_lib.lab.recipes.sweep import TRAINED, Sweep
from micronet_lib.pruning.schedules import PAPER_PRUNING, SCHEDULES, PruneConfig, linear

EARLY_SHARE = 30 / 600  # epochs


def _round(base: Recipe, config: PruneConfig, number: int) -> Recipe:
    """Return the base after that many rounds of pruning; the base itself for 0."""
    if number == 0:
        return base
    return replace(base, prune=replace(config, sparsities=config.sparsities[:number]))


def _rewound(rewind: str, srip: str, number: int) -> Recipe:
    coef = PAPER_SRIP.coef if srip == "srip" else 0.0
    base = replace(PAPER, srip=replace(PAPER_SRIP, coef=coef))
    early = {"early_share": EARLY_SHARE} if rewind == "early" else {}
    config = with_overrides(PruneConfig(linear(0.6, 2)), {"rewind": rewind, **early})
    return _round(base, config, number)


SWEEPS = (
    Sweep(
        name="pipeline",
        title="The whole entry: dense training, then four rounds of pruning",
        chapter="05_pruning",
        axes={"sparsity": ("dense", "0.15", "0.30", "0.45", "0.60")},
        make=lambda sparsity: _round(
            PAPER, PAPER_PRUNING, 0 if sparsity == "dense" else round(float(sparsity) / 0.15)
        ),
        metrics=("sparsity", *TRAINED[:3], "published.score", "official.score"),
        measures=("accuracy", "sparsity"),
    ),
    Sweep(
        name="prune_schedule",
        title="How much goes in which of four rounds",
        chapter="05_pruning",
        axes={"schedule": tuple(SCHEDULES), "round": (0, 1, 2, 3, 4)},
        make=lambda schedule, round: _round(PAPER, PruneConfig(SCHEDULES[schedule](0.6, 4)), round),
        metrics=("sparsity", *TRAINED[:3], "published.score"),
        measures=("accuracy", "sparsity"),
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
        metrics=("sparsity", *TRAINED),
        measures=("accuracy", "sparsity"),
    ),
)
