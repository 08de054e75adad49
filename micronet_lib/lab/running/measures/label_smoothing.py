"""The measure of what a network's classifier has learned about its classes, chapter 03."""

from typing import TYPE_CHECKING

import numpy as np

from micronet_lib.architecture.network import Network
from micronet_lib.lab.data.images import load_labels
from micronet_lib.lab.host.progress import say
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records.tables import arrays
from micronet_lib.lab.running.measures.found import Found
from micronet_lib.label_smoothing import class_clusters, class_similarity

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case

PUBLISHED = "v1_pr_60"
"""The published network whose committed matrix the others are compared with."""


def matrix_agreement(case: "Case", network: Network, progress: bool) -> Found:
    """Compare the similarities of a network's classes with superclasses and a published network.

    The classes are clustered into as many groups as there are superclasses (`class_clusters`), and
    groups are compared by the adjusted Rand index: 1 for the same groups, 0 on average for random
    ones. `superclass_ari` compares with the superclasses. On CIFAR-100, `published_ari` compares
    with the clusters of the published network, and `published_correlation` is Pearson's correlation
    of the cosines of all pairs of classes in the two matrices.

    Without scipy or scikit-learn a line says so, and only the correlation is measured.
    """
    labels = load_labels(case.profile.dataset)
    matrix = class_similarity(network.classifier.weight.detach()).double().numpy()
    groups, metrics = {"superclass_ari": labels.superclass_of.numpy()}, dict[str, float]()
    published = None
    if case.profile.dataset == "cifar100":
        published = arrays(SWEEPS["class_similarity"], PUBLISHED)["class_similarity"]
        pairs = np.triu_indices(len(matrix), 1)
        correlation = np.corrcoef(matrix[pairs], published[pairs])[0, 1]
        metrics["published_correlation"] = float(correlation)
    count = len(labels.superclass_names)
    try:
        from sklearn.metrics import adjusted_rand_score

        found = class_clusters(matrix, count)
        if published is not None:
            groups["published_ari"] = class_clusters(published, count)
    except ImportError as error:
        say(f"{case.name}: clusters of classes are not compared: {error}")
        return Found(metrics)
    indices = {name: float(adjusted_rand_score(group, found)) for name, group in groups.items()}
    return Found(metrics | indices)
