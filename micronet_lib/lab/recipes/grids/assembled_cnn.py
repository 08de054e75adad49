"""Chapter 10: published networks and others on corrupted and perturbed images; transfer."""

from dataclasses import replace

from micronet_lib.assembled_cnn.retrieval import ArcFaceConfig, Embed
from micronet_lib.assembled_cnn.transfer import NewClassifier
from micronet_lib.lab.recipes.bases import PLAIN
from micronet_lib.lab.recipes.grids import beyond
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep

_PUBLISHED = ("v2_pr_15", "v2_pr_30", "v2_pr_45", "v2_pr_60", "v1_pr_60")
(_RUNGS,) = (sweep for sweep in beyond.SWEEPS if sweep.name == "beyond")

_NETWORKS = {name: Recipe(checkpoint=f"micronet_{name}") for name in _PUBLISHED}
# A recipe of its own, whose record is not that of the training.
_NETWORKS |= {point.name: Recipe(start=point.recipe) for point in _RUNGS.points()}

_SEEN = 80
"""Classes that are learned; the others are retrieved. The published networks have seen all."""
_SCALE, _MARGIN = 16.0, 0.3
_HEADS = {
    "untrained": Embed(),
    "softmax": Embed(),
    "gem": Embed("gem"),
    "cosine": Embed(scale=_SCALE),
    "arcface": Embed(scale=_SCALE),
    "gem_arcface": Embed("gem", _SCALE),
}


def _embedding(head: str) -> Recipe:
    train = replace(PLAIN.train, num_classes=_SEEN, epochs=0 if head == "untrained" else 600)
    margin = _MARGIN if "arcface" in head else 0.0
    return replace(
        PLAIN,
        options={"num_classes": _SEEN},
        train=train,
        changes=(_HEADS[head],),
        arcface=ArcFaceConfig(margin),
    )


_COARSE = replace(
    PLAIN, options={"num_classes": 20}, train=replace(PLAIN.train, labels="superclass")
)
_FINE = replace(PLAIN, train=replace(PLAIN.train, epochs=300))
_STARTED = Recipe(start=_COARSE, changes=(NewClassifier(),))
# [lee2020assembled, appendix B], whose batch norm averages over a tenth of an epoch's 351 steps.
_FINE_TUNING = TrainConfig(epochs=300, lr=0.01, weight_decay=1e-3, bn_momentum=10 / 351)
_TRANSFER = {
    "scratch": _FINE,
    "frozen": replace(_STARTED, train=replace(_FINE.train, freeze=("stem", "blocks"))),
    "fine_tuned": replace(_STARTED, train=_FINE_TUNING),
}

SWEEPS = (
    Sweep(
        name="corruptions",
        title="Do zeros and few bits cost robustness",
        chapter="10_assembled_cnn",
        axes={"network": tuple(_NETWORKS)},
        make=lambda network: _NETWORKS[network],
        metrics=("top1", "corrupted_top1"),
        measures=("corruptions",),
        profiles=("day", "full"),
    ),
    Sweep(
        name="perturbations",
        title="Do zeros cost stability",
        chapter="10_assembled_cnn",
        axes={"network": _PUBLISHED},
        make=lambda network: _NETWORKS[network],
        metrics=("top1", "flip_rate"),
        measures=("perturbations",),
        profiles=("day", "full"),
    ),
    Sweep(
        name="retrieval",
        title="Which head finds classes that it has never seen",
        chapter="10_assembled_cnn",
        axes={"head": tuple(_HEADS)},
        make=_embedding,
        metrics=("recall_at_1", "recall_at_8", "top1"),
        measures=("accuracy", "retrieval"),
    ),
    Sweep(
        name="transfer",
        title="Do superclasses teach classes",
        chapter="10_assembled_cnn",
        axes={"start": tuple(_TRANSFER)},
        make=lambda start: _TRANSFER[start],
        metrics=("top1", "top5", "loss"),
    ),
)
