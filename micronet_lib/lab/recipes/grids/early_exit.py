"""Chapter 07: early exits after the blocks of a published network, and of one trained here."""

from dataclasses import replace

from micronet_lib.early_exit import AddExit, ExitLoss
from micronet_lib.lab.recipes.bases import DAYS, PAPER
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.pruning.schedules import PruneTo

PUBLISHED = Recipe(checkpoint="micronet_v1_pr_60")
FROZEN = TrainConfig(
    epochs=3 * DAYS,
    batch_size=32,
    optimizer="adam",
    lr=1e-2,
    min_lr=0.0,
    freeze=("trunk",),
    dropout=0.0,
    num_validation=1000,
)
"""Only the head learns. No policy, mix or smoothing, as in the released code of [osi_code]."""

JOINT = replace(FROZEN, epochs=1 * DAYS, batch_size=64, lr=1e-3, freeze=())


def _exit(start: Recipe, block: str, joint: bool = False) -> Recipe:
    """Return the training of an exit head after a block."""
    changes = (AddExit(f"blocks.{block.removeprefix('block_')}", hidden_chs=64, stride=2),)
    return replace(
        start,
        # A pruned weight of the trunk must stay 0 if the trunk learns.
        changes=(*changes, PruneTo()) if joint else changes,
        exits=ExitLoss(0.5 if joint else 1.0),
        train=JOINT if joint else FROZEN,
    )


_EXITS = {
    "block_3": _exit(PUBLISHED, "block_3"),
    "block_6": _exit(PUBLISHED, "block_6"),
    "block_10": _exit(PUBLISHED, "block_10"),
    "block_6_joint": _exit(PUBLISHED, "block_6", joint=True),
}

_OWN = Recipe(start=PAPER)

EXIT_METRICS = (
    *("threshold", "exit_rate", "top1", "last_top1", "exit_top1"),
    *("published.expected_score", "official.expected_score"),
)

SWEEPS = (
    Sweep(
        "early_exit",
        "After which block of the published network an exit pays",
        "07_early_exit",
        {"exit": tuple(_EXITS)},
        lambda exit: _EXITS[exit],
        metrics=EXIT_METRICS,
        measures=("early_exit",),
        profiles=("day", "full"),
    ),
    Sweep(
        "exit_training",
        "The trunk frozen or trained along, after block 6 of a network trained here",
        "07_early_exit",
        {"trunk": ("frozen", "joint")},
        lambda trunk: _exit(_OWN, "block_6", joint=trunk == "joint"),
        metrics=EXIT_METRICS,
        measures=("early_exit",),
    ),
)
