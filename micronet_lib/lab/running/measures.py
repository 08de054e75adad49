"""Measures: the contents of a record besides the score. A `Sweep` names those that it wants."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from micronet_lib.architecture.layers import layer_weights, named_kind, weight_kinds
from micronet_lib.architecture.network import Network
from micronet_lib.augmentation.policies import augment, draw
from micronet_lib.beyond.network import IntegerMicroNet
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
from micronet_lib.lab.data.images import ImageSet, load_split, normalize
from micronet_lib.lab.host.machine import default_device
from micronet_lib.lab.host.places import MEASURED, checkpoint_path, of_checkout, runs_root
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.networks import content_of, network_of, policies_of
from micronet_lib.lab.storage.networks import restore
from micronet_lib.lab.storage.published import load_published
from micronet_lib.lab.training.divergence import SEED as HELD_OUT_SEED
from micronet_lib.lab.training.evaluation import (
    BATCH_SIZE,
    calibration_error,
    evaluate,
    fold_batch_norm,
    logits_of,
    rate,
)
from micronet_lib.label_smoothing import class_similarity
from micronet_lib.pruning.density import density_table
from micronet_lib.scoring.bill import score_network, score_operations
from micronet_lib.scoring.dead_channels import apply_savings
from micronet_lib.scoring.operations import record_operations
from micronet_lib.scoring.rules import RULE_SETS, UnpricedError
from micronet_lib.srip.penalty import exact_deviation, spectrum, srip_weights
from micronet_lib.ternary.network import (
    SCALE_BITS,
    TernaryNetwork,
    assigned,
    narrow_sums,
)
from micronet_lib.ternary.packed import pack_ternary

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case

DIGITS = 5
RATINGS = ("correct", "num_examples", "top1", "top5", "loss", "ece")


@dataclass
class Found:
    """The result of a measure: numbers, arrays for figures, rows of a per-layer table."""

    metrics: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Measure:
    """A measurement of a case's network.

    Attributes:
        of: function of the case, its network (on the CPU, in evaluation mode) and a switch for
            progress bars.
        on_test: whether it reads test images.
    """

    of: "Callable[[Case, Network, bool], Found]"
    on_test: bool = False


def accuracy(case: "Case", network: Network, progress: bool) -> Found:
    """Rate a network on the test images. An untrained network is not rated.

    For a network trained here, `top1`, `top5`, `loss` and `correct` are after the last epoch,
    `selected_top1` after the best epoch on the validation images. `best_on_test_top1`, which the
    authors report, is the best test accuracy of all epochs. A network that was trained on the
    validation images has no validation accuracy and no selected epoch.
    """
    if not case.recipe.learns:
        return Found()
    test = load_split(case.profile.dataset, "test")
    if not case.recipe.train.epochs:
        return Found(evaluate(network, test, progress).metrics())
    content, device = content_of(case.recipe, case.profile, case.seed), default_device()
    test = test.to(device)
    found = evaluate(network.to(device), test, progress).metrics()
    network.cpu()
    metrics = {name: found[name] for name in RATINGS}
    curve = content["curve"]
    metrics |= {
        "train_loss": curve["train_loss"][-1],
        "srip_penalty": curve["srip_penalty"][-1],
        "train_images_per_s": content["images_per_s"],
    }
    if "test_top1" in curve:
        metrics["best_on_test_top1"] = max(curve["test_top1"])
    if "validation_top1" not in curve:
        return Found(metrics)
    metrics |= {
        "validation_top1": curve["validation_top1"][-1],
        "best_validation_top1": max(curve["validation_top1"]),
        "selected_top1": metrics["top1"],
    }
    last, best = content["model"], content["best"]
    if not all(torch.equal(value, best[name]) for name, value in last.items()):
        selected = restore(content["spec"], best).to(device)
        metrics["selected_top1"] = evaluate(selected, test, progress).top1
    return Found(metrics)


def same_logits(case: "Case", network: Network, progress: bool) -> Found:
    """Rate a trimmed network, and compare every logit with the published file's.

    `max_logit_difference` compares in float64, savings included, so that rounding hides no error.
    `max_logit_difference_stored` makes the savings in float32, which rounds weights, and runs in
    float64. `bit_identical` is 1 if the float32 logits are equal to the last bit, and
    `same_predictions` the number of images with the same answer.
    """
    recipe, test = case.recipe, load_split(case.profile.dataset, "test")
    if not recipe.savings:
        return accuracy(case, network, progress)
    path = checkpoint_path(recipe.checkpoint)
    single, double = _published_logits(path, case.profile.dataset, progress)
    logits = logits_of(network, test.images, progress=progress)
    found = rate(logits, test.targets, seconds=float("inf")).metrics()
    exact = apply_savings(load_published(path).double(), recipe.savings)
    stored = copy.deepcopy(network).double()
    change = (double - logits_of(exact, test.images, progress=progress)).abs().max().item()
    rounded = change
    if not all(map(torch.equal, exact.state_dict().values(), stored.state_dict().values())):
        rounded = (double - logits_of(stored, test.images, progress=progress)).abs().max().item()
    return Found(
        {name: found[name] for name in RATINGS}
        | {
            "max_logit_difference": change,
            "max_logit_difference_stored": rounded,
            "bit_identical": int(torch.equal(single, logits)),
            "same_predictions": int((single.argmax(1) == logits.argmax(1)).sum()),
        }
    )


@lru_cache(maxsize=1)
def _published_logits(path: Path, dataset: str, progress: bool) -> tuple[Tensor, Tensor]:
    """Return the logits of a published file in float32 and float64, cached for all its savings."""
    network, images = load_published(path), load_split(dataset, "test").images
    single = logits_of(network, images, progress=progress)
    return single, logits_of(network.double(), images, progress=progress)


def half_precision(case: "Case", network: Network, progress: bool) -> Found:
    """Rate a network whose numbers really have the 16 bits that the score charges.

    Parameters and batch norm's averages are rounded to float16; the arithmetic is in float32.
    `half.correct` is of the network as it is, `half_folded.correct` of the network with batch norm
    merged into the convolutions before rounding, which is what the score counts.
    """
    test = load_split(case.profile.dataset, "test")
    metrics: dict[str, float] = {}
    networks: dict[str, nn.Module] = {
        "half": copy.deepcopy(network),
        "half_folded": fold_batch_norm(network),
    }
    for name, made in networks.items():
        metrics[f"{name}.correct"] = evaluate(_in_half(made), test, progress).correct
    return Found(metrics)


def _in_half(network: nn.Module) -> nn.Module:
    """Round parameters and averages to float16 in place, and return the network."""
    for value in network.state_dict(keep_vars=True).values():
        if value.is_floating_point():
            value.data = value.data.half().float()
    return network


def compression(case: "Case", network: Network, progress: bool) -> Found:
    """Rate a network in integers once, and say what a judge would ask.

    `agreement` is the fraction of test images on which it gives the first teacher's answer, a
    yardstick that nothing was chosen by; without a teacher, the answer of the network it starts
    from. `divergence` is the distance to the teachers on validation images after the last epoch.
    `test_touches` counts the networks of this sweep that were rated on the test images before and
    now. `compliance` is the judge's list. `bill` has the cost of each kind of layer.

    Raises:
        InputError: a network that is not in integers.
    """
    if not isinstance(network, IntegerMicroNet) or network.in_floats:
        raise InputError(f"{case.name}: compression rates a network in integers, and this is none")
    recipe, test = case.recipe, load_split(case.profile.dataset, "test")
    logits = logits_of(network.eval(), test.images, progress=progress)
    found = rate(logits, test.targets, seconds=float("inf")).metrics()
    metrics = {name: found[name] for name in RATINGS}
    other = next(iter(recipe.teachers), recipe.start or recipe)
    answers = _answers(replace(case, recipe=other))
    metrics["agreement"] = (logits.argmax(1) == answers).double().mean().item()
    metrics["test_touches"] = _touches(case)
    chosen = "widths set by hand; nothing was chosen by any measurement of this network"
    if recipe.train.epochs:
        content = content_of(recipe, case.profile, case.seed)
        metrics["divergence"] = content["curve"]["validation_divergence"][-1]
        metrics["train_loss"] = content["curve"]["train_loss"][-1]
        metrics["train_images_per_s"] = content["images_per_s"]
        chosen = "the last epoch of a fixed schedule"
    rows = score_network(network, "official").table()
    kinds = rows["layer"].map(named_kind)
    kinds = kinds.where(kinds != "other", rows["kind"])
    costs = rows.groupby([kinds, "quantity"], sort=False)["score"].sum()
    bill = {f"{kind}.{quantity}": round(value, 9) for (kind, quantity), value in costs.items()}
    first = recipe
    while first.start is not None:
        first = first.start
    compliance = {
        "outside_data": f"none: images of {case.profile.dataset}, and networks trained on them",
        "starts_from": first.checkpoint or recipe_id(first),
        "start_saw": PUBLISHED_SAW if first.checkpoint else "images of this recipe's training",
        "chosen_by": chosen,
        "accumulator": "simulated: exact integers, of a width that is proven for every order",
        "bits_executed": "every layer's integers have the width that is charged",
        "num_test_images": len(test),
        "seed": case.seed,
    }
    return Found(metrics, {"compliance": compliance, "bill": bill})


MAY_CHANGE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
THRESHOLDS = tuple(round(k / 100, 2) for k in range(101))
NUM_TO_TIME = 500
ROUNDS_TO_TIME = 3


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
        InputError: a network without an early exit.
    """
    if not isinstance(network, ExitNetwork):
        raise InputError(f"{case.name}: early_exit rates a network with an exit, and this has none")
    recipe, dataset = case.recipe, case.profile.dataset
    folded = fold_batch_norm(AllExits(network)).to(default_device())
    held, test = load_split(dataset, "validation"), load_split(dataset, "test")
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


PUBLISHED_SAW = "all 50 000 training images; its epoch was chosen on the test images"
_ANSWERS: dict[str, Tensor] = {}


def _answers(case: "Case") -> Tensor:
    """Return the answers of a network on the test images, `[N]`, kept for other points."""
    key = f"{case.profile.name}/{case.id}"
    if key not in _ANSWERS:
        network = network_of(case.recipe, case.profile, case.seed)
        images = load_split(case.profile.dataset, "test").images
        _ANSWERS[key] = logits_of(fold_batch_norm(network), images).argmax(1)
    return _ANSWERS[key]


def _touches(case: "Case") -> int:
    """Return how many networks of a case's sweep were rated on the test images, its own included.

    Networks with a record, here or committed, at any seed of this profile.
    """
    folder = Path(case.profile.name) / case.sweep.name
    there = {
        p.name
        for root in (runs_root(), of_checkout(MEASURED))
        for p in (root / folder).glob("*.json")
    }
    return len(there | {case.record_path.name})


def ternary(case: "Case", network: Network, progress: bool) -> Found:
    """Say what the ternary layers of a network hold, what they cost, and what training has moved.

    `zeros` and `bits_per_weight` (the entropy of the bins, layer by layer) are of all ternary
    weights together; `moved` is the fraction that has changed its bin since before the training.
    `narrow_sums.score` charges additions of dot products 16 bits, which the organisers refused;
    `official.score` 32. `half.correct` is of the exported network, batch norm folded, whose numbers
    really have the 16 bits that the score charges. `histogram` has the latent weights of the
    largest layer before and after, in units of their largest magnitude before, and the scales.

    Raises:
        InputError: a network without ternary layers.
    """
    if not isinstance(network, TernaryNetwork):
        raise InputError(f"{case.name}: the measure ternary is for a network with ternary layers")
    recipe = case.recipe
    untrained = Recipe(checkpoint=recipe.checkpoint, start=recipe.start, changes=recipe.changes)
    before = network_of(untrained, case.profile, case.seed)
    assert isinstance(before, TernaryNetwork)
    kinds, packed, first = weight_kinds(network.network), network.packed(), assigned(before)
    rows = list[dict[str, Any]]()
    for name, signs in assigned(network).items():
        shares = [(signs == value).double().mean().item() for value in (1, 0, -1)]
        row: dict[str, Any] = {
            "layer": name,
            "kind": kinds[f"{name}.weight"],
            "num_weights": signs.numel(),
        }
        row |= dict(zip(("plus", "zeros", "minus"), shares, strict=True))
        row |= {"moved": (signs != first[name]).double().mean().item()}
        row |= {"bits_per_weight": -sum(share * math.log2(share) for share in shares if share)}
        rows.append(row | {each: getattr(packed[name], each) for each in ("positive", "negative")})
    number = sum(row["num_weights"] for row in rows)
    operations = record_operations(network)
    narrow = score_operations(narrow_sums(operations, SCALE_BITS), RULE_SETS["official_integer"])
    metrics = {"num_ternary": number, "narrow_sums.score": narrow.score}
    for name in ("zeros", "moved", "bits_per_weight"):
        metrics[name] = sum(row[name] * row["num_weights"] for row in rows) / number
    if recipe.learns:
        test = load_split(case.profile.dataset, "test")
        rounded = _in_half(fold_batch_norm(network.plain()))
        metrics["half.correct"] = evaluate(rounded, test, progress).correct
    if recipe.train.epochs:
        curve = content_of(recipe, case.profile, case.seed)["curve"]
        if "validation_divergence" in curve:
            metrics["validation_divergence"] = curve["validation_divergence"][-1]
    return Found(metrics, {"histogram": _latent_histogram(before, network)}, rows)


HALF_BINS = 40


def _latent_histogram(before: TernaryNetwork, after: TernaryNetwork) -> dict[str, Any]:
    """Return how the latent weights of the largest layer lie before and after a training."""
    name = max(before.layers, key=lambda each: before.layers[each].weight.numel())
    unit = before.layers[name].parametrizations.weight.original.detach().abs().max()
    found: dict[str, Any] = {"layer": name}
    for when, network in (("before", before), ("after", after)):
        layer = network.layers[name]
        latent = layer.parametrizations.weight.original.detach()
        signs, packed = assigned(network)[name], pack_ternary(layer.weight)
        places = ((latent / unit + 1) * HALF_BINS).floor().clamp(0, 2 * HALF_BINS - 1).long()
        found[when] = {
            side: places[signs == value].bincount(minlength=2 * HALF_BINS).tolist()
            for side, value in (("minus", -1), ("zero", 0), ("plus", 1))
        }
        scales = (-packed.negative, packed.positive)
        found[when]["scales"] = [round(scale / unit.item(), DIGITS) for scale in scales]
    return found


def similarity(case: "Case", network: Network, progress: bool) -> Found:
    """Return the cosine similarities of the classifier's rows, `[C, C]`, and their statistics."""
    matrix = class_similarity(network.classifier.weight.detach())
    others = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    metrics = {
        "similarity_mean": others.mean().item(),
        "similarity_min": others.min().item(),
        "similarity_max": others.max().item(),
    }
    rows = [[round(value, DIGITS) for value in row] for row in matrix.tolist()]
    return Found(metrics, {"class_similarity": rows})


def spectra(case: "Case", network: nn.Module, progress: bool) -> Found:
    """Return the singular values of every matrix, and the exact penalty of pointwise layers.

    `srip_penalty_paper` and `srip_penalty_released` are the means of the spectral norm and of its
    square, which the training loss estimates from below.
    """
    kinds = weight_kinds(network)
    values = {
        name.removesuffix(".weight"): [round(value, DIGITS) for value in spectrum(weight).tolist()]
        for name, weight in layer_weights(network).items()
        if kinds[name] != "other"
    }
    weights = [weight.detach() for weight in srip_weights(network, "pointwise").values()]
    paper = torch.stack([exact_deviation(weight, "paper") for weight in weights])
    released = torch.stack([exact_deviation(weight, "released") for weight in weights])
    metrics = {
        "srip_penalty_paper": paper.mean().item(),
        "srip_penalty_released": released.square().mean().item(),
    }
    return Found(metrics, {"spectrum": values})


def sparsity(case: "Case", network: nn.Module, progress: bool) -> Found:
    """Return the fraction of all prunable weights that is zero."""
    return Found({"sparsity": density_table(network)["sparsity"].iloc[-1].item()})


def bill(case: "Case", network: nn.Module, progress: bool) -> Found:
    """Return the per-layer table of the winners' final counter, if it prices the network."""
    try:
        table = score_network(network, "published").table().drop(columns=["score"])
    except UnpricedError:
        return Found()
    return Found(layers=table.to_dict("records"))


MEASURES = {
    "accuracy": Measure(accuracy, on_test=True),
    "same_logits": Measure(same_logits, on_test=True),
    "half_precision": Measure(half_precision, on_test=True),
    "compression": Measure(compression, on_test=True),
    "early_exit": Measure(early_exit, on_test=True),
    "ternary": Measure(ternary, on_test=True),
    "class_similarity": Measure(similarity),
    "spectrum": Measure(spectra),
    "sparsity": Measure(sparsity),
    "bill": Measure(bill),
}
"""Measures by name, for `Sweep.measures`."""
