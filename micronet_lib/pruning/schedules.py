"""How much is pruned in which round, from which weights, and what training goes on with.

A round is: masks from the trained weights, then training again under them (chapter `05_pruning`).
[kim2020, section 5] raises the sparsity by the same step each round and goes on with the trained
weights. [frankle2018] prunes the same fraction of what is left each round and goes back to the
initial weights; [frankle2019] to those of an early epoch. The masks are nested:
what one round has pruned stays pruned.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from micronet_lib.architecture.network import Network
from micronet_lib.errors import InputError, unknown
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
    """Sparsities that rise by the same step each round [kim2020, section 5].

    Args:
        final: sparsity of the last round.
        rounds: how many.
        start: sparsity before the first.

    Raises:
        InputError: not `0 <= start <= final < 1`, or no round.
    """
    _check(final, rounds, start)
    steps = (start + (final - start) * k / rounds for k in range(1, rounds))
    return _rounded(steps, final, start)


def exponential(final: float, rounds: int, start: float = 0.0) -> tuple[float, ...]:
    """Sparsities that take the same fraction of what is left each round [frankle2018].

    [kim2020] writes that fraction as p^(1/n) per cent of the remaining weights, which does not lead
    to sparsity p. After n rounds, 1 - (1 - p)^(1/n) does, and is what we take. Arguments and errors
    are those of `linear`.
    """
    _check(final, rounds, start)
    ratio = (1 - final) / (1 - start)
    steps = (1 - (1 - start) * ratio ** (k / rounds) for k in range(1, rounds))
    return _rounded(steps, final, start)


def one_shot(final: float, rounds: int = 1, start: float = 0.0) -> tuple[float, ...]:
    """All in the first round; further ones only train, for a comparison on the same budget."""
    _check(final, rounds, start)
    return (final,) * rounds


SCHEDULES = {"linear": linear, "exponential": exponential, "one_shot": one_shot}


def _rounded(steps: Iterable[float], final: float, start: float) -> tuple[float, ...]:
    """To 10 decimals, so that a record says 0.45; never out of the way from start to final."""
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
    """What is pruned, round by round. Without a round nothing is.

    Attributes:
        sparsities: after each round, as fractions of all prunable weights; they never fall. Equal
            ones train again under the same masks, and a round at 0 only trains.
        scope: which weights share a threshold, of `masks.weight_groups`; the published networks
            have one for all.
        threshold_from: whose magnitudes count: `same`, those of the weights that training goes on
            with; `last_epoch`, the released code's mix-up, see `prune_round`.
        rewind: what training goes on with: `none`, the trained weights; `initial`, those before
            any training; `early`, those after `early_epoch`.
        early_epoch: counted in epochs of the dense training, 1 or more; of `early` only.
        mask_updates: mask gradients and momentum too, see `masks.HeldMasks`.
        loads_anew: rounds, from 0, that begin a command of their own; of `last_epoch` only. Such a
            round has nothing but the file that the one before wrote, so its thresholds are of the
            weights that training goes on with.

    Raises:
        InputError: a number out of its range, or an unknown name.
    """

    sparsities: tuple[float, ...] = ()
    scope: Scope = "global"
    threshold_from: ThresholdFrom = "same"
    rewind: Rewind = "none"
    early_epoch: int = 1
    mask_updates: bool = False
    loads_anew: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name, known in (
            ("scope", get_args(Scope)),
            ("threshold_from", get_args(ThresholdFrom)),
            ("rewind", get_args(Rewind)),
        ):
            if getattr(self, name) not in known:
                raise unknown(f"pruning {name}", getattr(self, name), known)
        for sparsity in self.sparsities:
            if not (isinstance(sparsity, int | float) and 0 <= sparsity < 1):
                raise InputError(
                    f"prune.sparsities has {sparsity!r}; give fractions in [0, 1), such as 0.6"
                )
        if list(self.sparsities) != sorted(self.sparsities):
            given = ", ".join(str(sparsity) for sparsity in self.sparsities)
            raise InputError(f"prune.sparsities {given} fall; a pruned weight stays pruned")
        if self.early_epoch < 1:
            raise InputError(
                f"prune.early_epoch is {self.early_epoch}; give 1 or more, or rewind to initial"
            )


# Section 5 of the paper: 60 per cent in four rounds, without rewinding.
PAPER_PRUNING = PruneConfig(linear(0.6, 4))
# The released code's handling, at the sparsities of the published v2 files.
RELEASED_PRUNING = PruneConfig(linear(0.6, 4), threshold_from="last_epoch")
# The two commands of its README, one after the other; the best published file has 60 per cent.
README_PRUNING = PruneConfig(
    (*linear(0.45, 4), *linear(0.65, 4, start=0.45)), threshold_from="last_epoch", loads_anew=(0, 4)
)
# What the paper compares itself with: its schedule, its rewinding, and both.
EXPONENTIAL = PruneConfig(exponential(0.6, 4))
REWOUND = PruneConfig(linear(0.6, 4), rewind="initial")
LOTTERY = PruneConfig(exponential(0.6, 4), rewind="initial")
ONE_SHOT = PruneConfig(one_shot(0.6))


@dataclass(frozen=True)
class PruneTo:
    """The change of a recipe that prunes the network it starts from, and holds its zeros.

    Attributes:
        sparsity: afterwards, as a fraction of all prunable weights; zeros that are there count and
            stay. None prunes nothing more and holds the zeros that are there.
        scope: which weights share a threshold, of `masks.weight_groups`.
        mask_updates: mask gradients and momentum too, see `masks.HeldMasks`.
    """

    sparsity: float | None = None
    scope: Scope = "global"
    mask_updates: bool = False

    def apply(self, network: Network) -> Network:
        """Prune in place.

        Raises:
            InputError: a sparsity that is no fraction, or less than the network has already.
        """
        if self.sparsity is not None:
            weights, before = prunable_weights(network), current_masks(network)
            groups = weight_groups(network, self.scope)
            apply_masks(network, magnitude_masks(weights, self.sparsity, before, groups))
        return network

    def hooks(self, network: Network) -> Sequence[Hook]:
        """Return what keeps pruned weights at 0."""
        return [HeldMasks(network, current_masks(network), self.mask_updates)]


def prune_round(
    model: nn.Module,
    config: PruneConfig,
    index: int,
    before: Mapping[str, Tensor] | None = None,
    last_epoch: Mapping[str, Tensor] | None = None,
    rewound: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Begin a round: the network gets the weights it trains on with, pruned ones at 0, in place.

    The released code keeps two sets of weights at the end of a round: the last epoch's are still in
    its network, those of the epoch that was best on the test images are in a copy. It makes the
    masks from the former, then loads the latter and masks them. So weights go by magnitudes that
    are not theirs. In the first round of a command (`loads_anew`) both sets are the loaded network.

    Args:
        model: with the weights that the last round ended on; of `threshold_from="last_epoch"`, with
            those it goes on with.
        config: of all rounds.
        index: of this round, from 0.
        before: masks of the last round; needed from the second on.
        last_epoch: the last epoch's weights, such as a state dict, for `threshold_from`; not used
            in a round that `loads_anew`.
        rewound: the whole state dict to go back to, batch norm and its averages too.

    Returns:
        The round's masks.

    Raises:
        InputError: no such round, something that is needed is missing or of another network, or
            weights that are NaN or infinite. The network is as it was then.
    """
    if not 0 <= index < len(config.sparsities):
        raise InputError(f"no pruning round {index}; there are {len(config.sparsities)}, from 0")
    if index and before is None:
        raise InputError(f"pruning round {index} needs the masks of the round before")
    weights: dict[str, Tensor] = dict(prunable_weights(model))
    if config.threshold_from == "last_epoch" and index not in config.loads_anew:
        weights = _same_weights(weights, last_epoch, "threshold_from 'last_epoch'")
    if config.rewind != "none":
        _same_weights(model.state_dict(), rewound, f"rewind {config.rewind!r}")
    groups = weight_groups(model, config.scope)
    masks = magnitude_masks(weights, config.sparsities[index], before, groups)
    if config.rewind != "none" and rewound is not None:
        model.load_state_dict(rewound)
    apply_masks(model, masks)
    return masks


def _same_weights(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor] | None, purpose: str
) -> dict[str, Tensor]:
    """Those of their tensors that we have too, in our order."""
    if theirs is None:
        raise InputError(f"{purpose} needs those weights, and none were given")
    for name, tensor in ours.items():
        if name not in theirs or theirs[name].shape != tensor.shape:
            raise InputError(f"{purpose} got the weights of another network: see {name}")
    return {name: theirs[name] for name in ours}
