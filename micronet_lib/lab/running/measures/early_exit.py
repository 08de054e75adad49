"""The measure of a network with an early exit, chapter `07_early_exit`."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from micronet_lib.architecture.network import Network
from micronet_lib.augmentation.policies import augment, draw
from micronet_lib.early_exit import (
    AllExits,
    ExitNetwork,
    chosen_threshold,
    confidence_of,
    expected_score,
    fitted_temperature,
    leave_early,
)
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import ImageSet, normalize
from micronet_lib.lab.host.machine import default_device
from micronet_lib.lab.running.measures.found import DIGITS, Found
from micronet_lib.lab.running.networks import content_of, images_of, policies_of
from micronet_lib.lab.training.divergence import SEED as HELD_OUT_SEED
from micronet_lib.lab.training.evaluation import (
    BATCH_SIZE,
    calibration_error,
    fold_batch_norm,
    logits_of,
    rate,
)
from micronet_lib.scoring.bill import score_network

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case

MAY_CHANGE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
THRESHOLDS = tuple(round(k / 100, 2) for k in range(101))
NUM_TO_TIME = 500
ROUNDS_TO_TIME = 3


def check(case: "Case", network: Network) -> ExitNetwork:
    """Return a network that `early_exit` can rate.

    Raises:
        InputError: a network without an early exit.
    """
    if not isinstance(network, ExitNetwork):
        raise InputError(f"{case.name}: early_exit rates a network with an exit, and this has none")
    return network


def early_exit(case: "Case", network: Network, progress: bool) -> Found:
    """Rate a network with an early exit at a threshold that was chosen on held-out images.

    The held-out images are the validation images, freshly augmented as in training. A head on a
    frozen trunk has not learned from them; a published trunk has, unaugmented ones included. So
    nothing is chosen by labels: see `early_exit.chosen_threshold`. The temperature, an option, is
    fitted to labels there; `calibrated.*` is the same with it.

    `top1`, `correct` and `exit_rate` are on the test images at that threshold. `last_top1` and
    `exit_top1` are those of the last and of the early exit alone. `<rules>.expected_score` is the
    score at the exit rate, `decision.expected_score` by the official rules with softmax and
    comparison, `<rules>.trunk_score` without the exit. `time_ratio` compares inference that skips
    with the whole trunk, `ops_ratio` the operations charged.

    Arrays, for figures: both curves at every threshold; what is chosen if more or fewer held-out
    images may change their answer (`MAY_CHANGE`); the scores if nobody or everybody leaves.

    Raises:
        InputError: see `check`.
    """
    network = check(case, network)
    recipe = case.recipe
    folded = fold_batch_norm(AllExits(network)).to(default_device())
    held, test = (images_of(recipe, case.profile, split) for split in ("validation", "test"))
    policies, _ = policies_of(recipe, case.profile)
    draws = draw(
        policies, len(held), torch.Generator().manual_seed(HELD_OUT_SEED), held.images.device,
        crop=recipe.augment.crop, flip=recipe.augment.flip,
    )  # fmt: skip
    held = ImageSet(augment(held.images, draws), held.targets)
    held_early, held_last = logits_of(folded, held.images, progress=progress).cpu().unbind(1)
    early, last = logits_of(folded, test.images, progress=progress).cpu().unbind(1)
    agrees = held_early.argmax(1) == held_last.argmax(1)
    right = torch.stack([logits.argmax(1) == test.targets for logits in (early, last)])
    temperature = fitted_temperature(held_early, held.targets)
    metrics = {
        "temperature": temperature,
        "last_top1": right[1].double().mean().item(),
        "exit_top1": right[0].double().mean().item(),
        "held_out_agreement": agrees.double().mean().item(),
        "exit_ece": calibration_error(early, right[0]),
        "calibrated.exit_ece": calibration_error(early / temperature, right[0]),
    }
    curves: dict[str, Any] = {"thresholds": list(THRESHOLDS)}
    choices: dict[str, Any] = {"may_change": list(MAY_CHANGE)}
    for prefix, t in (("", 1.0), ("calibrated.", temperature)):
        held_sure, sure = confidence_of(held_early, t), confidence_of(early, t)
        threshold = chosen_threshold(held_sure, agrees)
        left = sure > threshold
        found = rate(torch.where(left[:, None], early, last), test.targets, float("inf"))
        metrics |= {
            f"{prefix}threshold": threshold,
            f"{prefix}exit_rate": left.double().mean().item(),
            f"{prefix}held_out_exit_rate": (held_sure > threshold).double().mean().item(),
            f"{prefix}top1": found.top1,
        }
        if not prefix:
            metrics |= {"correct": found.correct, "num_examples": found.num_examples}
        leaves = [sure > threshold for threshold in THRESHOLDS]
        chosen = [sure > chosen_threshold(held_sure, agrees, most) for most in MAY_CHANGE]
        choices[f"{prefix}exit_rate"] = [_share(each) for each in chosen]
        choices[f"{prefix}top1"] = [
            _share(torch.where(each, right[0], right[1])) for each in chosen
        ]
        curves[f"{prefix}exit_rate"] = [_share(each) for each in leaves]
        curves[f"{prefix}top1"] = [_share(torch.where(each, right[0], right[1])) for each in leaves]
    scores, expected = _exit_scores(network, metrics["exit_rate"], metrics["calibrated.exit_rate"])
    metrics |= expected | _skipping_time(network, test, metrics["threshold"])
    if recipe.train.epochs:
        content = content_of(recipe, case.profile, case.seed)
        metrics["train_loss"] = content["curve"]["train_loss"][-1]
        metrics["train_images_per_s"] = content["images_per_s"]
    arrays = {"exit_curves": curves, "exit_choices": choices, "exit_scores": scores}
    return Found(metrics, arrays)


def _share(values: Tensor) -> float:
    return round(values.double().mean().item(), DIGITS)


def _exit_scores(
    network: ExitNetwork, rate: float, calibrated: float
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the scores if nobody and if everybody leaves, and the metrics at two exit rates."""
    scores, metrics = dict[str, list[float]](), dict[str, float]()
    for name in ("published", "official"):
        scores[name] = [expected_score(network, p, name).score for p in (0.0, 1.0)]
        found = expected_score(network, rate, name)
        trunk = score_network(network.trunk, name)
        metrics |= {
            f"{name}.expected_score": found.score,
            f"{name}.trunk_score": trunk.score,
            f"calibrated.{name}.expected_score": expected_score(network, calibrated, name).score,
        }
        metrics["ops_ratio"] = found.math_ops / trunk.math_ops
    charged = expected_score(network, rate, decision=True)
    return scores, metrics | {"decision.expected_score": charged.score}


@torch.no_grad()
def _skipping_time(network: ExitNetwork, test: ImageSet, threshold: float) -> dict[str, float]:
    """Return the time of inference that skips over that of the trunk, the best of a few rounds."""
    network = network.to(memory_format=torch.channels_last)
    images = normalize(test.images[:NUM_TO_TIME]).contiguous(memory_format=torch.channels_last)
    ways: dict[str, Callable[[Tensor], Any]] = {
        "skips": lambda x: leave_early(network, x, threshold),
        "whole": network.trunk,
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS_TO_TIME):
        for name, way in ways.items():
            start = time.perf_counter()
            for batch in images.split(BATCH_SIZE):
                way(batch)
            best[name] = min(best[name], time.perf_counter() - start)
    return {"time_ratio": best["skips"] / best["whole"]}
