"""Chapter 05: the whole entry in rounds, schedules, and rewinding."""

from dataclasses import replace

from micronet_lib.lab.recipes.bases import PAPER, PAPER_SRIP
from micronet_lib.lab.recipes.recipe import Recipe, with_overrides
from micronet_lib.lab.recipes.sweep import TRAINED, Printed, Sweep
from micronet_lib.pruning.schedules import (
    PAPER_PRUNING,
    SCHEDULES,
    PruneConfig,
    PruneTo,
    exponential,
    linear,
    one_shot,
)

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


_PUBLISHED = Recipe(checkpoint="micronet_v2_pr_15")
_WAYS = {
    "linear": linear(0.6, 3, start=0.15),
    "exponential": exponential(0.6, 3, start=0.15),
    "one_shot": one_shot(0.6, 3),
    "no_srip": linear(0.6, 3, start=0.15),
    "teacher": linear(0.6, 3, start=0.15),
}


def _continued(way: str, number: int) -> Recipe:
    """Return a short round from the published network of 15 per cent, after the rounds before."""
    before = _continued(way, number - 1) if number > 1 else None
    recipe = replace(
        PAPER,
        model=_PUBLISHED.model,
        checkpoint="" if before else _PUBLISHED.checkpoint,
        start=before,
        changes=(PruneTo(_WAYS[way][number - 1]),),
        train=replace(PAPER.train, epochs=240, initialization="default"),
    )
    if way == "no_srip":
        return replace(recipe, srip=replace(PAPER_SRIP, coef=0.0))
    if way == "teacher":
        return replace(recipe, teacher=Recipe(checkpoint="micronet_v2_pr_30"))
    return recipe


_ROUNDS = {"dense": "prune_0"} | {f"0.{s}": f"prune_{s}" for s in (15, 30, 45, 60)}

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
        printed=(
            Printed("pruning", "top1_percent", "top1", _ROUNDS, factor=100),
            Printed("pruning", "param_storage_millions", "published.param_storage", _ROUNDS, 1e-6),
            Printed("pruning", "math_ops_millions", "published.math_ops", _ROUNDS, 1e-6),
            Printed("pruning", "score", "published.score", _ROUNDS),
        ),
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
    Sweep(
        name="rounds",
        title="Three short rounds from the published network of 15 per cent to 60",
        chapter="05_pruning",
        axes={"way": tuple(_WAYS), "round": (1, 2, 3)},
        make=lambda way, round: _continued(way, round),
        metrics=("sparsity", *TRAINED[:3], "published.score"),
        measures=("accuracy", "sparsity"),
        profiles=("day", "full"),
    ),
)
