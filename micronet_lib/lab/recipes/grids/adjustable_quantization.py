"""Chapter 09: bit widths channel by channel, learned or all the same.

From a published network, and from one trained here.
"""

from collections.abc import Sequence

from micronet_lib.adjustable_quantization import Adjust
from micronet_lib.lab.recipes.bases import PAPER
from micronet_lib.lab.recipes.grids.beyond import TEACHERS, TRIMMED, distilled
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep

BIT_RATE = 20.0
"""Factor of the learning rate for widths, which are near 1 in units of 8 bits."""
SHIFT_RATE = 5000.0
"""For shifts of ranges: `relative_lr` takes them, 0 at the start, for very small ones."""
STRENGTH = 100.0
"""Of the steering. In the first steps from 5 bits everywhere the answers ask a width for more bits
with a mean gradient of 2e-4, and a strength of 1 asks for fewer with 3e-5: widths lost 0.0015 bits
in a step. With a strength of 100 they lose 0.04. Once the score is at its target, the sign of the
term turns again and again, so that only the answers are left to say which channel gets the bits."""

UNIFORM_SCORES = {5: 0.003373, 4: 0.003101, 3: 0.002679}
"""Official score of the network with that width everywhere, before training."""


def _learned(bits: int, **settings: bool) -> Recipe:
    """Return a training that steers to the score of a uniform network."""
    return _distilled(Adjust(target=UNIFORM_SCORES[bits], strength=STRENGTH, **settings))


def _distilled(
    change: Adjust,
    start: Recipe = TRIMMED,
    teachers: Sequence[Recipe] = TEACHERS[:1],
    bit_rate: float = BIT_RATE,
) -> Recipe:
    """Return one epoch of `day` by the answers of another network."""
    factors = {"*.range_shift": SHIFT_RATE}
    if change.target is not None or change.target_share is not None:
        factors |= {"*.bit_scale": bit_rate}
    return distilled(
        change, start=start, teachers=teachers, lr_factors=factors, num_validation=1000
    )


_WAYS = {
    "rounded_8": Recipe(start=TRIMMED, changes=(Adjust(),)),
    "rounded_4": Recipe(start=TRIMMED, changes=(Adjust(4, 4),)),
    "uniform_5": _distilled(Adjust(5, 5)),
    "learned_5": _learned(5),
    "uniform_4": _distilled(Adjust(4, 4)),
    "learned_4": _learned(4),
    "learned_4_bounds": _learned(4, bound_gradient=True),
    "uniform_3": _distilled(Adjust(3, 3)),
    "learned_3": _learned(3),
}

# Three quarters of the score of 8 bits are about that of 4, whatever a profile's width.
_OWN_CHANGES = {
    "uniform_4": Adjust(4, 4, num_images=128),
    "learned": Adjust(target_share=0.75, strength=STRENGTH, num_images=128),
}
_OWN = {  # at `smoke` there are ten steps
    name: _distilled(change, PAPER, (PAPER,), bit_rate=10 * BIT_RATE)
    for name, change in _OWN_CHANGES.items()
}

WIDTHS = (
    *("validation_divergence", "weight_bits", "activation_bits", "zeros", "official.score"),
    *("shifted.score", "official_integer.score", "same_answer"),
)
"""Metrics of a network with widths of its own in every channel."""

SWEEPS = (
    Sweep(
        name="adjustable_quantization",
        title="Widths channel by channel: learned, or all the same",
        chapter="09_adjustable_quantization",
        axes={"way": tuple(_WAYS)},
        make=lambda way: _WAYS[way],
        metrics=("correct", "top1", "loss", *WIDTHS),
        measures=("accuracy", "adjustable_quantization"),
        profiles=("day", "full"),
    ),
    Sweep(
        name="adjustable_training",
        title="Learned widths beside 4 bits, in a network trained here that is its own teacher",
        chapter="09_adjustable_quantization",
        axes={"way": tuple(_OWN)},
        make=lambda way: _OWN[way],
        metrics=("correct", "top1", *WIDTHS),
        measures=("adjustable_quantization",),
    ),
)
