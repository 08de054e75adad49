"""The matrix of class similarities [kim2020, section 3.2] as figures, as a page, and in numbers.

A matrix is `[C, C]` of cosines; `classes` is a table with one row per class and the columns `class`
and `superclass`. Chapter `03_label_smoothing`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from micronet_lib.plots.style import apply_style, component, figure, footer

__all__ = [
    "nearest_table",
    "similarity_clustermap",
    "similarity_explorer",
    "similarity_matrix",
    "superclass_agreement",
]

# Blue for opposite, white for orthogonal, red for alike; safe for colour-blind readers.
_COLOURS = "RdBu_r"


def _linkage(similarity: np.ndarray) -> np.ndarray:
    """Return the average linkage of the classes at distance 1 - cosine, as scipy's linkage matrix.

    Neighbours on the page are as similar as the tree allows (optimal leaf ordering).
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = 1 - np.asarray(similarity, dtype=np.float64)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    return linkage(squareform(distance), "average", optimal_ordering=True)


def _clusters(tree: np.ndarray, count: int) -> np.ndarray:
    """Return the tree cut into `count` clusters, numbered from 1, `[C]`."""
    from scipy.cluster.hierarchy import fcluster

    return fcluster(tree, count, "maxclust")


def superclass_agreement(similarity: np.ndarray, superclasses: pd.Series) -> dict[str, float]:
    """Return how well the similarities agree with the superclasses, which training never uses.

    The classes are clustered (average linkage), the tree is cut into as many clusters as there are
    superclasses, and the two partitions are compared.

    Args:
        similarity: `[C, C]` of cosines.
        superclasses: of each class, in the order of the matrix.

    Returns:
        `ARI`, the adjusted Rand index: 1 for the same partition, 0 on average for random ones.
        `nearest`, the share of classes whose nearest other class is of the same superclass.
        `within` and `across`, the mean cosine of two different classes of the same superclass and
        of two superclasses.
    """
    from sklearn.metrics import adjusted_rand_score

    truth = pd.factorize(superclasses)[0]
    found = _clusters(_linkage(similarity), truth.max() + 1)
    same = truth[:, None] == truth
    others = ~np.eye(len(truth), dtype=bool)
    nearest = np.where(others, similarity, -np.inf).argmax(axis=1)
    return {
        "ARI": float(adjusted_rand_score(truth, found)),
        "nearest": float((truth[nearest] == truth).mean()),
        "within": float(similarity[same & others].mean()),
        "across": float(similarity[~same].mean()),
    }


def nearest_table(
    nearest: np.ndarray, similarity: np.ndarray, classes: pd.DataFrame, of: list[str]
) -> pd.DataFrame:
    """Return the nearest other classes of some classes and their cosines, as text.

    Args:
        nearest: `[C, k]`, most similar first.
        similarity: `[C, C]` of cosines.
        classes: one row per class: class, superclass.
        of: names of the classes to list.
    """
    names = list(map(_readable, classes["class"]))
    rows = []
    for row in (list(classes["class"]).index(name) for name in of):
        listed = [f"{names[other]} {similarity[row, other]:.2f}" for other in nearest[row]]
        rows.append({"class": names[row], "nearest": ", ".join(listed)})
    return pd.DataFrame(rows)


def _by_superclass(classes: pd.DataFrame) -> list[int]:
    """Return the numbers of the classes by superclass, each in alphabetical order."""
    return list(classes.reset_index(drop=True).sort_values(["superclass", "class"]).index)


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _limit(similarity: np.ndarray) -> float:
    """Return the end of the colour scale: the largest cosine off the diagonal."""
    return float(np.abs(similarity[~np.eye(len(similarity), dtype=bool)]).max())


def similarity_matrix(
    matrices: Mapping[str, np.ndarray], classes: pd.DataFrame, source: str
) -> Figure:
    """Draw matrices of the same classes, ordered by superclass, on one colour scale.

    Args:
        matrices: title -> `[C, C]` of cosines.
        classes: one row per class: class, superclass.
    """
    order = _by_superclass(classes)
    sizes = classes["superclass"].value_counts().sort_index()
    edges = np.concatenate([[0], sizes.cumsum()])
    limit = max(map(_limit, matrices.values()))
    fig, axes = figure(height=5.6 if len(matrices) == 1 else 4.2, columns=len(matrices))
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        picture = ax.imshow(
            matrix[np.ix_(order, order)], cmap=_COLOURS, vmin=-limit, vmax=limit,
            extent=(0, edges[-1], edges[-1], 0), interpolation="nearest",
        )  # fmt: skip
        ax.hlines(edges, 0, edges[-1], color="white", lw=0.5)
        ax.vlines(edges, 0, edges[-1], color="white", lw=0.5)
        ax.set_xticks([])
        first = ax is axes[0]
        ax.set_yticks((edges[:-1] + edges[1:]) / 2 if first else [])
        if first:
            ax.set_yticklabels(map(_readable, sizes.index), fontsize=8 if len(axes) == 1 else 7)
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.set_title(title)
    fig.colorbar(
        picture, ax=axes, location="bottom", shrink=0.5, aspect=40, label="cosine", extend="max"
    )
    return footer(fig, source)


def similarity_clustermap(similarity: np.ndarray, classes: pd.DataFrame, source: str) -> Figure:
    """Draw the matrix in the order of its tree (seaborn's clustermap), with superclass colours.

    Args:
        similarity: `[C, C]` of cosines.
        classes: one row per class: class, superclass.
    """
    import seaborn as sns

    apply_style()
    names = list(map(_readable, classes["class"]))
    table = pd.DataFrame(similarity, index=names, columns=names)
    superclasses = sorted(classes["superclass"].unique())
    colours = dict(zip(superclasses, sns.color_palette("husl", len(superclasses)), strict=True))
    strip = pd.Series([colours[name] for name in classes["superclass"]], index=names, name="")
    tree, limit = _linkage(similarity), _limit(similarity)
    grid = sns.clustermap(
        table, row_linkage=tree, col_linkage=tree, row_colors=strip, cmap=_COLOURS,
        vmin=-limit, vmax=limit, figsize=(7.2, 8.2), dendrogram_ratio=(0.12, 0.12),
        colors_ratio=0.018, cbar_pos=(0.04, 0.885, 0.018, 0.085), xticklabels=False,
        yticklabels=True,
    )  # fmt: skip
    grid.ax_heatmap.tick_params(axis="y", labelsize=5, length=0, pad=1)
    grid.ax_heatmap.grid(visible=False)
    grid.ax_row_colors.tick_params(length=0)
    grid.ax_cbar.tick_params(labelsize=7)
    grid.ax_cbar.set_title("cosine", size=8)
    grid.figure.text(0.01, 0.005, source, fontsize=7.5, color="#666666")
    return grid.figure


def _orders(similarity: np.ndarray, classes: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the explorer's orders: label, classes in order, groups [name, size], boxed or not."""
    from scipy.cluster.hierarchy import leaves_list

    names = list(classes["class"])
    alphabetical = sorted(range(len(names)), key=names.__getitem__)
    tree = _linkage(similarity)
    leaves = [int(leaf) for leaf in leaves_list(tree)]
    cluster = _clusters(tree, classes["superclass"].nunique())
    keys: list[tuple[str, list[int], Any, bool]] = [
        ("by superclass", _by_superclass(classes), lambda k: classes["superclass"].iloc[k], True),
        ("clustered", leaves, lambda k: int(cluster[k]), True),
        ("alphabetical", alphabetical, lambda k: names[k][0].upper(), False),
    ]
    orders = []
    for label, order, key, boxes in keys:
        groups = pd.Series(order).groupby([key(k) for k in order], sort=False).agg(list)
        named = [
            [", ".join(names[k] for k in group) if label == "clustered" else name, len(group)]
            for name, group in groups.items()
        ]
        orders.append({"label": label, "classes": order, "groups": named, "boxes": boxes})
    return orders


def similarity_explorer(
    similarity: np.ndarray, classes: pd.DataFrame, start: str, name: str
) -> HTML:
    """Return an interactive matrix: pairs on hover, zoom, three orders, nearest classes on a click.

    It needs no network connection and no other file. Cosines are rounded to thousandths.

    Args:
        similarity: `[C, C]` of cosines.
        classes: one row per class: class, superclass.
        start: class whose nearest classes are listed at first.
        name: id of the element on the page, the same in every run.
    """
    superclasses = sorted(classes["superclass"].unique())
    data = {
        "classes": list(classes["class"]),
        "superclasses": superclasses,
        "superclass_of": [superclasses.index(each) for each in classes["superclass"]],
        "start": list(classes["class"]).index(start),
        "limit": round(_limit(similarity), 2),
        "orders": _orders(similarity, classes),
        "thousandths": np.rint(1000 * similarity[np.tril_indices(len(similarity), -1)])
        .astype(int)
        .tolist(),
    }
    return component("similarity_explorer.html", "class-similarity", name, data)
