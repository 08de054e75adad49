"""The measure of a network with ternary layers, chapter `08_ternary`."""

import math
from typing import TYPE_CHECKING, Any

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.layers import weight_kinds
from micronet_lib.architecture.network import Network
from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.measures.found import DIGITS, Found
from micronet_lib.lab.running.measures.ratings import in_half
from micronet_lib.lab.running.networks import content_of, images_of, network_of
from micronet_lib.lab.training.evaluation import evaluate
from micronet_lib.scoring.bill import score_operations
from micronet_lib.scoring.operations import record_operations
from micronet_lib.scoring.rules import RULE_SETS
from micronet_lib.ternary.network import SCALE_BITS, TernaryNetwork, assigned, narrow_sums
from micronet_lib.ternary.packed import pack_ternary

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case

HALF_BINS = 40


def check(case: "Case", network: Network) -> TernaryNetwork:
    """Return a network that `ternary` can rate.

    Raises:
        InputError: a network without ternary layers.
    """
    if not isinstance(network, TernaryNetwork):
        raise InputError(f"{case.name}: the measure ternary is for a network with ternary layers")
    return network


def ternary(case: "Case", network: Network, progress: bool) -> Found:
    """Say what the ternary layers of a network hold, what they cost, and what training has moved.

    `zeros` and `bits_per_weight` (the entropy of the bins, layer by layer) are of all ternary
    weights together; `moved` is the fraction that has changed its bin since before the training.
    `narrow_sums.score` charges additions of dot products 16 bits, which the organisers refused;
    `official.score` 32. `half.correct` is with batch norm merged and every parameter rounded to
    the 16 bits that the score charges; the arithmetic is in float32. `histogram` has the latent
    weights of the largest layer before and after, in units of their largest magnitude before, and
    the scales.

    Raises:
        InputError: see `check`.
    """
    network = check(case, network)
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
        test = images_of(case.recipe, case.profile, "test")
        rounded = in_half(fold_batch_norm(network.plain()))
        metrics["half.correct"] = evaluate(rounded, test, progress).correct
    if recipe.train.epochs:
        curve = content_of(recipe, case.profile, case.seed)["curve"]
        if "validation_divergence" in curve:
            metrics["validation_divergence"] = curve["validation_divergence"][-1]
    return Found(metrics, {"histogram": _latent_histogram(before, network)}, rows)


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
