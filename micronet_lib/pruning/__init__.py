"""Pruning: masks, schedules, and the distribution of zeros (chapter 05)."""

from micronet_lib.pruning.density import density_table
from micronet_lib.pruning.masks import (
    HeldMasks,
    apply_masks,
    current_masks,
    magnitude_masks,
    prunable_weights,
    weight_groups,
)
from micronet_lib.pruning.schedules import (
    README_PRUNING,
    SCHEDULES,
    PruneConfig,
    PruneTo,
    exponential,
)

__all__ = [
    "README_PRUNING",
    "SCHEDULES",
    "HeldMasks",
    "PruneConfig",
    "PruneTo",
    "apply_masks",
    "current_masks",
    "density_table",
    "exponential",
    "magnitude_masks",
    "prunable_weights",
    "weight_groups",
]
