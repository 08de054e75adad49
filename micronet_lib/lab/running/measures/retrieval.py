"""The measure of retrieval of unseen classes, chapter `10_assembled_cnn`."""

from typing import TYPE_CHECKING

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.network import Network
from micronet_lib.assembled_cnn.retrieval import EmbeddingNetwork, Embeddings, recall_at_k
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.host.machine import default_device
from micronet_lib.lab.running.measures.found import Found
from micronet_lib.lab.training.evaluation import logits_of

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case

RANKS = (1, 2, 4, 8)


def check(case: "Case", network: Network) -> EmbeddingNetwork:
    """Return a network that `retrieval` can rate.

    Raises:
        InputError: a network without embeddings, or a recipe that leaves no class out.
    """
    if not isinstance(network, EmbeddingNetwork) or not case.recipe.train.num_classes:
        raise InputError(
            f"{case.name}: retrieval needs the change Embed, and a train.num_classes that leaves "
            "classes out"
        )
    return network


def retrieval(case: "Case", network: Network, progress: bool) -> Found:
    """Search for test images of the classes that the training left out, each among all others.

    `recall_at_<k>` is the fraction that has its class among its k nearest, `num_queries` the number
    of images.

    Raises:
        InputError: see `check`.
    """
    network, seen = check(case, network), case.recipe.train.num_classes
    test, device = load_split(case.profile.dataset, "test"), default_device()
    unseen = test.subset((test.targets >= seen).nonzero().flatten())
    folded = fold_batch_norm(Embeddings(network)).to(device)
    embeddings = logits_of(folded, unseen.images, progress=progress).cpu()
    recalls = {f"recall_at_{k}": recall_at_k(embeddings, unseen.targets, k) for k in RANKS}
    return Found({**recalls, "num_queries": len(unseen)})
