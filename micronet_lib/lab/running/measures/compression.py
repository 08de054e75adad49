"""The measure of a network in integers, chapter `11_beyond`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.layers import named_kind
from micronet_lib.architecture.network import Network
from micronet_lib.beyond.network import IntegerMicroNet
from micronet_lib.errors import InputError
from micronet_lib.lab.host.places import MEASURED, runs_root
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.records.record import readable
from micronet_lib.lab.running.measures.found import RATINGS, Found
from micronet_lib.lab.running.networks import content_of, images_of, network_of
from micronet_lib.lab.training.evaluation import logits_of, rate
from micronet_lib.scoring.bill import score_network

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case

PUBLISHED_SAW = "all 50 000 training images; its epoch was chosen on the test images"
_ANSWERS: dict[tuple[str, str, int], Tensor] = {}


def check(case: "Case", network: Network) -> IntegerMicroNet:
    """Return a network that `compression` can rate.

    Raises:
        InputError: a network that is not in integers.
    """
    if not isinstance(network, IntegerMicroNet) or network.in_floats:
        raise InputError(f"{case.name}: compression rates a network in integers, and this is none")
    return network


def compression(case: "Case", network: Network, progress: bool) -> Found:
    """Rate a network in integers once, and say what a judge would ask.

    `agreement` is the fraction of test images on which it gives the first teacher's answer, a
    yardstick that nothing was chosen by; without a teacher, the answer of the network it starts
    from. `divergence` is the distance to the teachers on validation images after the last epoch,
    if they were rated.
    `test_touches` counts the networks of this sweep that were rated on the test images before and
    now. `compliance` is the judge's list. `bill` has the cost of each kind of layer.

    Raises:
        InputError: see `check`.
    """
    network = check(case, network)
    recipe, test = case.recipe, images_of(case.recipe, case.profile, "test")
    logits = logits_of(network.eval(), test.images, progress=progress)
    found = rate(logits, test.targets, seconds=float("inf")).metrics()
    metrics = {name: found[name] for name in RATINGS}
    other = next(iter(recipe.teachers), recipe.start or recipe)
    answers = _answers(replace(case, recipe=other), test.images)
    metrics["agreement"] = (logits.argmax(1) == answers).double().mean().item()
    metrics["test_touches"] = _touches(case)
    chosen = "widths set by hand; nothing was chosen by any measurement of this network"
    if recipe.train.epochs:
        content = content_of(recipe, case.profile, case.seed)
        if "validation_divergence" in content["curve"]:
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


def _answers(case: "Case", images: Tensor) -> Tensor:
    """Return the answers of a network on the test images, `[N]`, kept for other points."""
    key = (case.profile.name, case.id, len(images))
    if key not in _ANSWERS:
        network = network_of(case.recipe, case.profile, case.seed)
        _ANSWERS[key] = logits_of(fold_batch_norm(network), images).argmax(1)
    return _ANSWERS[key]


def _touches(case: "Case") -> int:
    """Return how many networks of a case's sweep were rated on the test images, its own included.

    Networks with a record, here or committed, at any seed of this profile. A copy of the library
    without the repository has only its own.
    """
    folder = Path(case.profile.name) / case.sweep.name
    paths = [path for root in (runs_root(), MEASURED) for path in (root / folder).glob("*.json")]
    found = [record for path in paths if (record := readable(path)) and "top1" in record.metrics]
    rated = {(record.recipe_id, record.seed) for record in found}
    return len(rated | {(recipe_id(case.recipe), case.seed)})
