"""Chapter 09: bit widths channel by channel, learned or all the same, from a published network."""

from micronet_lib.adjustable_quantization import Adjust
from micronet_lib.distillation import DistillationConfig
from micronet_lib.lab.recipes.bases import PAPER_POLICY
from micronet_lib.lab.recipes.grids.beyond import DAYS, TRIMMED
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep

BIT_RATE = 4.0
"""Factor of the learning rate for widths, which are near 1 in units of 8 bits."""
SHIFT_RATE = 5000.0
"""For shifts of ranges: `relative_lr` takes them, 0 at the start, for very small ones."""


def _distilled(change: Adjust) -> Recipe:
    """Return one epoch of `day` by the answers of a published network, without labels."""
    factors = {"*.range_shift": SHIFT_RATE}
    if change.target is not None:
        factors |= {"*.bit_scale": BIT_RATE}
    return Recipe(
        start=TRIMMED,
        changes=(change,),
        teacher=Recipe(checkpoint="micronet_v2_pr_30"),
        distillation=DistillationConfig(temperature=2.0),
        augment=PAPER_POLICY,
        train=TrainConfig(
            epochs=DAYS,
            batch_size=64,
            optimizer="adam",
            lr=5e-4,
            min_lr=0.0,
            lr_factors=factors,
            relative_lr=True,
            weight_decay=0.0,
            dropout=0.0,
            num_validation=1000,
        ),
    )
