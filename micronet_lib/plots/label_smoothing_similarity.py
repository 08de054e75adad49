"""The matrix of class similarities [kim2020, section 3.2] as figures, as a page, and in numbers.

A matrix is `[C, C]` of cosines; `classes` is a table with one row per class and the columns `class`
and `superclass`. Chapter `03_label_smoothing`.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from micronet_lib.errors import InputError, check_choice
from micronet_lib.label_smoothing import class_clusters, class_tree
from micronet_lib.plots.style import apply_style, component, figure, footer

__all__ = [
    "Similarity",
    "nearest_table",
    "similarity_clustermap",
    "similarity_explorer",
    "similarity_matrix",
    "superclass_agreement",
]

# Blue for opposite, white for orthogonal, red for alike; safe for colour-blind readers.
_COLOURS = "RdBu_r"


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
    found = class_clusters(similarity, truth.max() + 1)
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
    tree, limit = class_tree(similarity), _limit(similarity)
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


@dataclass(frozen=True, eq=False)
class Similarity:
    """A network's matrix, as the explorer shows it.

    Attributes:
        label: the network's name.
        matrix: `[C, C]` of cosines.
        classes: one row per class: class, superclass. Networks of equal classes can be compared.
        source: where the matrix comes from.
        pictures: of each class, uint8 `[C, 3, H, H]`, or None.
        confusions: rows of true class, answer and number of test images, or None.
    """

    label: str
    matrix: np.ndarray
    classes: pd.DataFrame
    source: str
    pictures: np.ndarray | None = None
    confusions: np.ndarray | None = None


def similarity_explorer(
    networks: Sequence[Similarity],
    start: str,
    name: str,
    buttons: Sequence[str] = (),
    form: str = "part",
) -> HTML:
    """Return an interactive matrix: pairs on hover, search, zoom, orders, differences of networks.

    It needs no network connection and no other file. Cosines are rounded to thousandths.

    Args:
        networks: the first one is shown at first.
        start: class whose nearest classes are listed at first.
        name: id of the element on the page, the same in every run.
        buttons: classes that a button chooses.
        form: `page` keeps its state in the page's link, `part` does not, `card` is small.

    Raises:
        InputError: no network, or another form.
    """
    check_choice("form", form, ("page", "part", "card"))
    if not networks:
        raise InputError("the explorer needs at least one network")
    sets: list[dict[str, Any]] = []
    shown = []
    for network in networks:
        entry = _class_set(network)
        known = [k for k, each in enumerate(sets) if each["classes"] == entry["classes"]]
        if not known:
            sets.append(entry)
        shown.append(
            {
                "label": network.label,
                "source": network.source,
                "confusions": None if network.confusions is None else network.confusions.tolist(),
                "set": known[0] if known else len(sets) - 1,
                **_tree(network.matrix, len(entry["superclasses"])),
                "thousandths": np.rint(
                    1000 * network.matrix[np.tril_indices(len(network.matrix), -1)]
                )
                .astype(int)
                .tolist(),
            }
        )
    data = {"sets": sets, "networks": shown, "start": start, "buttons": list(buttons), "form": form}
    return component("similarity_explorer.html", "class-similarity", name, data)


def _class_set(network: Similarity) -> dict[str, Any]:
    """Return the classes of a network for the explorer, and their pictures as one JPEG."""
    superclasses = sorted(network.classes["superclass"].unique())
    found: dict[str, Any] = {
        "classes": list(network.classes["class"]),
        "superclasses": superclasses,
        "superclass_of": [superclasses.index(each) for each in network.classes["superclass"]],
    }
    if network.pictures is not None:
        from PIL import Image

        _, channels, _, size = network.pictures.shape
        rows = -(-len(network.pictures) // 10)
        sheet = np.zeros((10 * rows, channels, size, size), np.uint8)
        sheet[: len(network.pictures)] = network.pictures
        grid = sheet.reshape(rows, 10, channels, size, size).transpose(0, 3, 1, 4, 2)
        file = io.BytesIO()
        Image.fromarray(grid.reshape(rows * size, 10 * size, channels)).save(file, "jpeg")
        found["pictures"] = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        found["picture_size"] = size
    return found


def _tree(similarity: np.ndarray, count: int) -> dict[str, Any]:
    """Return the tree for the explorer: its leaves in order, sizes of `count` clusters, its merges.

    A merge is `[one, other, height]`; numbers from C on are earlier merges.
    """
    from scipy.cluster.hierarchy import leaves_list

    tree = class_tree(similarity)
    leaves = [int(leaf) for leaf in leaves_list(tree)]
    cluster = pd.Series(class_clusters(similarity, count)[leaves])
    return {
        "leaves": leaves,
        "clusters": cluster.groupby(cluster, sort=False).size().tolist(),
        "merges": [[int(a), int(b), round(float(height), 3)] for a, b, height, _ in tree],
    }
