"""Chapter 10: published networks, and those of chapter 11, on corrupted and perturbed images."""

from micronet_lib.lab.recipes.grids import beyond
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep

_PUBLISHED = ("v2_pr_15", "v2_pr_30", "v2_pr_45", "v2_pr_60", "v1_pr_60")
(_RUNGS,) = (sweep for sweep in beyond.SWEEPS if sweep.name == "beyond")

_NETWORKS = {name: Recipe(checkpoint=f"micronet_{name}") for name in _PUBLISHED}
# A recipe of its own, whose record is not that of the training.
_NETWORKS |= {point.name: Recipe(start=point.recipe) for point in _RUNGS.points()}

SWEEPS = (
    Sweep(
        name="corruptions",
        title="Do zeros and few bits cost robustness",
        chapter="10_assembled_cnn",
        axes={"network": tuple(_NETWORKS)},
        make=lambda network: _NETWORKS[network],
        metrics=("top1", "corrupted_top1"),
        measures=("corruptions",),
        profiles=("day", "full"),
    ),
    Sweep(
        name="perturbations",
        title="Do zeros cost stability",
        chapter="10_assembled_cnn",
        axes={"network": _PUBLISHED},
        make=lambda network: _NETWORKS[network],
        metrics=("top1", "flip_rate"),
        measures=("perturbations",),
        profiles=("day", "full"),
    ),
)
