"""Schedules of pruning: the sparsity of each round, the weights ranked, and rewinding.

A round makes masks from the trained weights, then trains under them (chapter `05_pruning`).
[kim2020, section 5] raises the sparsity by equal steps and continues with the trained weights.
[frankle2018] prunes the same fraction of the remaining weights each round and returns to the
initial weights; [frankle2019] returns to those of an early epoch. Masks are nested: a pruned weight
stays pruned.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from micronet_lib.architecture.network import Network
from micronet_lib.errors import InputError, check_choice
from micronet_lib.hooks import Hook
from micronet_lib.pruning.masks import (
    HeldMasks,
    Masks,
    Scope,
    apply_masks,
    current_masks,
    magnitude_masks,
    prunable_weights,
    weight_groups,
)

Rewind = Literal["none", "initial", "early"]
ThresholdFrom = Literal["same", "last_epoch"]


def linear(final: float, rounds: int, start: float = 0.0) -> tuple[float, ...]:
    """Return sparsities that rise by the same step each round [kim2020, section 5].

    Args:
        final: sparsity of the last round.
        rounds: number of rounds.
        start: sparsity before the first round.

    Raises:
        InputError: not `0 <= start <= final < 1`, or fewer than one round.
    """
    _check(final, rounds, start)
    steps = (start + (final - start) * k / rounds for k in range(1, rounds))
    return _rounded(steps, final, start)


def exponential(final: float, rounds: int, start: float = 0.0) -> tuple[float, ...]:
    """Return sparsities that prune the same fraction of what is left each round [frankle2018].

    [kim2020] gives this fraction as p^(1/n) per cent, which does not lead to sparsity p. We use 1 -
    (1 - p)^(1/n), which does after n rounds. Arguments and errors are those of `linear`.
    """
    _check(final, rounds, start)
    ratio = (1 - final) / (1 - start)
    steps = (1 - (1 - start) * ratio ** (k / rounds) for k in range(1, rounds))
    return _rounded(steps, final, start)


def one_shot(final: float, rounds: int = 1, start: float = 0.0) -> tuple[float, ...]:
    """Return the final sparsity for every round. Later rounds only train, for an equal budget."""
    _check(final, rounds, start)
    return (final,) * rounds


SCHEDULES = {"linear": linear, "exponential": exponential, "one_shot": one_shot}


def _rounded(steps: Iterable[float], final: float, start: float) -> tuple[float, ...]:
    """Return sparsities of 10 decimals, so that a record says 0.45, within [start, final]."""
    return (*(min(max(round(step, 10), start), final) for step in steps), final)


def _check(final: float, rounds: int, start: float) -> None:
    if rounds < 1:
        raise InputError(f"{rounds} rounds of pruning; give 1 or more")
    if not 0 <= start <= final < 1:
        raise InputError(
            f"sparsity cannot go from {start} to {final}; give fractions, 0 <= start <= final < 1"
        )


@dataclass(frozen=True)
class PruneConfig:
    """Settings of pruning in rounds. Without sparsities nothing is pruned.

    Attributes:
        sparsities: after each round, fractions of all prunable weights. They must not fall. An
            equal one trains again under the same masks; a round at 0 only trains.
        scope: which weights share a threshold, see `weight_groups`. The published networks use
            `global`.
        threshold_from: weights whose magnitudes are ranked: `same`, those that training continues
            with; `last_epoch`, the released code's mix-up, see `prune_round`.
        rewind: weights that training continues with: `none`, the trained ones; `initial`, those
            before any training; `early`, those after `early_share` of the dense training.
        early_share: fraction of the dense training's optimiser steps, above 0; only for `early`.
        mask_updates: mask gradients and momentum too, see `masks.HeldMasks`.
        loads_anew: rounds, from 0, that start a new command; only for `last_epoch`. Such a round
            has only the file of the round before, so it ranks the weights that training continues
            with.

    Raises:
        InputError: a number outside its range, or an unknown name.
    """

    sparsities: tuple[float, ...] = ()
    scope: Scope = "global"
    threshold_from: ThresholdFrom = "same"
    rewind: Rewind = "none"
    early_share: float = 0.0
    mask_updates: bool = False
    loads_anew: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name, known in (
            ("scope", get_args(Scope)),
            ("threshold_from", get_args(ThresholdFrom)),
            ("rewind", get_args(Rewind)),
        ):
            check_choice(f"pruning {name}", getattr(self, name), known)
        for sparsity in self.sparsities:
            if not (isinstance(sparsity, int | float) and 0 <= sparsity < 1):
                raise InputError(
                    f"prune.sparsities has {sparsity!r}; give fractions in [0, 1), such as 0.6"
                )
        if list(self.sparsities) != sorted(self.sparsities):
            given = ", ".join(str(sparsity) for sparsity in self.sparsities)
            raise InputError(f"prune.sparsities {given} fall; a pruned weight stays pruned")
        if not 0 <= self.early_share <= 1:
            raise InputError(f"prune.early_share is {self.early_share}; give a fraction up to 1")
        if self.rewind == "early" and not self.early_share:
            raise InputError(
                "prune.rewind is 'early' and prune.early_share is 0; give a fraction of the dense "
                "training, such as 0.05, or rewind to initial"
            )

    def steps_kept(self, num_steps: int) -> int:
        """Return after how many steps of the dense training the weights to rewind to are.

        That is the whole step nearest to `early_share`, but at least the first; 0 for `initial`.

        Args:
            num_steps: optimiser steps of the whole dense training.
        """
        return max(1, round(self.early_share * num_steps)) if self.rewind == "early" else 0


# Section 5 of the paper: 60 per cent in four rounds, without rewinding.
PAPER_PRUNING = PruneConfig(linear(0.6, 4))
# The two commands of its README, one after the other; the best published file has 60 per cent.
README_PRUNING = PruneConfig(
    (*linear(0.45, 4), *linear(0.65, 4, start=0.45)), threshold_from="last_epoch", loads_anew=(0, 4)
)


@dataclass(frozen=True)
class PruneTo:
    """The change of a recipe that prunes the start network and holds its zeros.

    Attributes:
        sparsity: after the change, a fraction of all prunable weights. Existing zeros count and
            stay. None holds the existing zeros and prunes nothing more.
        scope: which weights share a threshold, see `masks.weight_groups`.
        mask_updates: mask gradients and momentum too, see `masks.HeldMasks`.
    """

    sparsity: float | None = None
    scope: Scope = "global"
    mask_updates: bool = False
    num_images: ClassVar[int] = 0

    def apply(self, network: Network, images: Tensor | None = None) -> Network:
        """Prune in place.

        Raises:
            InputError: a sparsity outside [0, 1], or below that of the network.
        """
        if self.sparsity is not None:
            weights, before = prunable_weights(network), current_masks(network)
            groups = weight_groups(network, self.scope)
            apply_masks(network, magnitude_masks(weights, self.sparsity, before, groups))
        return network

    def hooks(self, network: Network) -> Sequence[Hook]:
        """Return the hook that holds pruned weights at 0."""
        return [HeldMasks(network, current_masks(network), self.mask_updates)]


def prune_round(
    model: nn.Module,
    config: PruneConfig,
    index: int,
    before: Mapping[str, Tensor] | None = None,
    last_epoch: Mapping[str, Tensor] | None = None,
    rewound: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Start a round: load the weights to train, set pruned ones to 0 in place, return the masks.

    At the end of a round the released code has two sets of weights: those of the last epoch in the
    network, and a copy of the epoch that was best on the test images. It makes the masks from the
    former, then loads the latter and masks them. So it prunes by magnitudes of other weights. In
    the first round of a command (`loads_anew`) both sets are the loaded network.

    Args:
        model: with the weights at the end of the last round; for `threshold_from="last_epoch"`,
            with those that training continues with.
        config: of all rounds.
        index: of this round, from 0.
        before: masks of the last round; required from the second round on.
        last_epoch: weights of the last epoch, such as a state dict, for `threshold_from`; not used
            in a round of `loads_anew`.
        rewound: complete state dict to return to, batch norm and its averages included.

    Returns:
        The masks of the round.

    Raises:
        InputError: no such round; a required argument is missing or belongs to another network; NaN
            or infinite weights. The network is then unchanged.
    """
    if not 0 <= index < len(config.sparsities):
        raise InputError(f"no pruning round {index}; there are {len(config.sparsities)}, from 0")
    if index and before is None:
        raise InputError(f"pruning round {index} needs the masks of the round before")
    weights: dict[str, Tensor] = dict(prunable_weights(model))
    if config.threshold_from == "last_epoch" and index not in config.loads_anew:
        weights = _same_weights(weights, last_epoch, "threshold_from 'last_epoch'")
    if config.rewind != "none":
        ours = model.state_dict()
        rewound = _same_weights(ours, rewound, f"rewind {config.rewind!r}", only=True)
    groups = weight_groups(model, config.scope)
    masks = magnitude_masks(weights, config.sparsities[index], before, groups)
    if config.rewind != "none" and rewound is not None:
        model.load_state_dict(rewound)
    apply_masks(model, masks)
    return masks


def _same_weights(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor] | None,
    purpose: str,
    only: bool = False,
) -> dict[str, Tensor]:
    """Return the tensors of `theirs` that `ours` has too, in the order of `ours`.

    With `only`, there may be no others.
    """
    if theirs is None:
        raise InputError(f"{purpose} needs those weights, and none were given")
    for name, tensor in ours.items():
        if name not in theirs or theirs[name].shape != tensor.shape:
            raise InputError(f"{purpose} got the weights of another network: see {name}")
    if only and (more := [name for name in theirs if name not in ours]):
        raise InputError(f"{purpose} got the weights of another network: see {more[0]}")
    return {name: theirs[name] for name in ours}
