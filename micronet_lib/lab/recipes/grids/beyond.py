"""Chapter 11: networks below the winning score, from the published ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from micronet_lib.beyond.adaptive_rounding import RoundAdaptively
from micronet_lib.beyond.changes import Allocate, Quantize
from micronet_lib.beyond.gates import RemoveGates
from micronet_lib.distillation import DistillationConfig
from micronet_lib.early_exit import AddExit, ExitLoss
from micronet_lib.hooks import Change
from micronet_lib.lab.recipes.bases import DAYS, PAPER_POLICY
from micronet_lib.lab.recipes.grids.early_exit import EXIT_METRICS, FROZEN
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.pruning.schedules import PruneTo

TRIMMED = Recipe(checkpoint="micronet_v1_pr_60", savings=("dead_gates", "dead_channels"))
"""The entry's network of 60 per cent zeros without what no logit depends on."""

TEACHERS = (Recipe(checkpoint="micronet_v2_pr_30"), Recipe(checkpoint="micronet_v2_pr_15"), TRIMMED)
"""The two published networks that we found most accurate, and the network before any rounding."""


def _rounded(*changes: Change) -> Recipe:
    """Return the network after some changes, without training."""
    return Recipe(start=TRIMMED, changes=changes)


def distilled(
    *changes: Change,
    start: Recipe = TRIMMED,
    teachers: Sequence[Recipe] = TEACHERS,
    epochs: int = 1,
    **train: Any,
) -> Recipe:
    """Return a training by the teachers alone, without labels.

    Args:
        changes: of the network, before it is trained.
        start: the network.
        teachers: the first one's answers are those that `agreement` compares with.
        epochs: at the profile `day`.
        train: settings that differ.
    """
    settings = {
        **{"batch_size": 64, "optimizer": "adam", "lr": 5e-4, "min_lr": 0.0, "relative_lr": True},
        **{"weight_decay": 0.0, "dropout": 0.0, "num_validation": 2000},
        **train,
    }
    return Recipe(
        start=start,
        changes=changes,
        teacher=teachers[0],
        more_teachers=tuple(teachers[1:]),
        distillation=DistillationConfig(temperature=2.0),
        augment=PAPER_POLICY,
        train=TrainConfig(epochs=DAYS * epochs, **settings),
    )


_RUNGS = {
    "rounded": _rounded(Quantize(8, 10)),
    "adaptive": _rounded(RoundAdaptively(weight_bits=6, activation_bits=10)),
    "distilled": distilled(Quantize(8, 8, 10), epochs=1),
    "allocated_33": distilled(Allocate(0.0033), epochs=4),
    "allocated_31": distilled(Allocate(0.0031), epochs=6),
    "allocated_28": distilled(Allocate(0.00285), epochs=8),
}

_ELSE = {
    "distilled": _RUNGS["distilled"],
    "activations_6": distilled(Quantize(8, 6, 10), epochs=1),
    "activations_4": distilled(Quantize(8, 4, 10), epochs=1),
    "ternary_expand": distilled(Quantize(8, 8, 10, expand_bits=1), epochs=1),
    "shared_scales": distilled(Quantize(8, 8, 10, shared_scales=True), epochs=1),
    "no_gates": distilled(RemoveGates(), Quantize(8, 8, 10), epochs=1),
    "allocated_33": _RUNGS["allocated_33"],
    "all_channels": distilled(Allocate(0.0033, remove_channels=False), epochs=4),
}

_EXITS = {
    f"block_{block}": Recipe(
        start=_RUNGS["allocated_33"],
        changes=(AddExit(f"blocks.{block}", hidden_chs=64, stride=2),),
        exits=ExitLoss(1.0),
        train=FROZEN,
    )
    for block in (6, 10)
}

_WIDTHS = {
    "w9a10": Quantize(9, 10),
    **{f"w8a{bits}": Quantize(8, bits) for bits in (12, 10, 9, 8)},
    **{f"w{bits}a8": Quantize(bits, 8) for bits in (6, 4)},
}

_SPARSITIES = ("0.60", "0.65", "0.70", "0.75", "0.80")
_BITS = (8, 7, 6, 5, 4)


def _thinned(sparsity: str, bits: int) -> Recipe:
    # The published network has its 60 % of zeros already.
    zeros = PruneTo(None if sparsity == _SPARSITIES[0] else float(sparsity))
    return _rounded(zeros, Quantize(bits, 10))


def _clipped(widths: str, clip: str) -> Recipe:
    return _rounded(replace(_WIDTHS[widths], clip=clip == "clipped"))


def _chosen(bits: int, rounding: str) -> Recipe:
    kind = {"nearest": Quantize, "adaptive": RoundAdaptively}[rounding]
    return _rounded(kind(weight_bits=bits, activation_bits=10))


_METRICS = (
    *("correct", "top1", "agreement", "official.score"),
    *("official_integer.score", "official_adder_tree.score", "test_touches"),
)


def _sweep(name: str, title: str, axes: Mapping[str, Iterable], make: Callable) -> Sweep:
    return Sweep(
        name,
        title,
        "11_beyond",
        {axis: tuple(values) for axis, values in axes.items()},
        make,
        metrics=_METRICS,
        measures=("compression",),
        profiles=("day", "full"),
    )


SWEEPS = (
    _sweep(
        "beyond",
        "Below the winning score, rung by rung",
        {"rung": _RUNGS},
        lambda rung: _RUNGS[rung],
    ),
    _sweep(
        "what_else",
        "What else pays, each change beside the network without it",
        {"change": _ELSE},
        lambda change: _ELSE[change],
    ),
    Sweep(
        "exit_on_top",
        "An early exit on a network in integers, its head in floats of 16 bits",
        "11_beyond",
        {"exit": tuple(_EXITS)},
        lambda exit: _EXITS[exit],
        metrics=EXIT_METRICS,
        measures=("early_exit",),
        profiles=("day", "full"),
    ),
    _sweep(
        "rounding",
        "How far plain rounding goes, with and without cutting extremes off",
        {"widths": _WIDTHS, "clip": ("clipped", "unclipped")},
        _clipped,
    ),
    _sweep(
        "zeros_and_bits",
        "More zeros against fewer bits, without training",
        {"sparsity": _SPARSITIES, "bits": _BITS},
        _thinned,
    ),
    _sweep(
        "adaptive_rounding",
        "How few bits without labels: each weight to nearest, or so that its block fits",
        {"bits": (6, 5, 4), "rounding": ("nearest", "adaptive")},
        _chosen,
    ),
)
