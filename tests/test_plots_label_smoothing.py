"""Pictures and numbers of the similarity matrix, and the figures of `03_label_smoothing`."""

import base64
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from figures import texts
from made_records import top1_table
from PIL import Image

from micronet_lib import plots
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.data.images import load_labels
from micronet_lib.lab.recipes.grids import SWEEPS

SWEEP = SWEEPS["label_smoothing"]
PAPER = records.paper("label_smoothing")
CLASSES = load_labels("cifar100").table()
SUPERCLASS = pd.factorize(CLASSES["superclass"])[0]


def cosines(rows: np.ndarray) -> np.ndarray:
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return directions @ directions.T


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return cosines(np.random.default_rng(0).normal(size=(100, 106)))


@pytest.fixture(scope="module")
def blocks() -> np.ndarray:
    """Rows of one superclass lie about a direction of their own, [100, 100]."""
    rng = np.random.default_rng(0)
    return cosines(rng.normal(size=(20, 106))[SUPERCLASS] + 0.7 * rng.normal(size=(100, 106)))


# ------------------------------------------------------------------------------ the superclasses


def test_superclasses_are_found_where_they_are_and_not_elsewhere(noise, blocks):
    found = plots.superclass_agreement(blocks, CLASSES["superclass"])
    assert found["ARI"] == pytest.approx(1)
    assert found["nearest"] == 1
    assert found["within"] > 0.5 > 0.1 > abs(found["across"])
    found = plots.superclass_agreement(noise, CLASSES["superclass"])
    assert abs(found["ARI"]) < 0.1
    assert found["nearest"] < 0.15
    # The structure is there, but the names are of other classes.
    shuffled = np.random.default_rng(1).permutation(100)
    found = plots.superclass_agreement(blocks[np.ix_(shuffled, shuffled)], CLASSES["superclass"])
    assert abs(found["ARI"]) < 0.1


def test_agreement_by_hand():
    """Two superclasses of three; the sixth class lies with the wrong one."""
    angles = np.array([0, 5, 10, 90, 95, 14]) * np.pi / 180
    similarity = cosines(np.stack([np.cos(angles), np.sin(angles)], 1))
    found = plots.superclass_agreement(similarity, pd.Series(list("aaabbb")))
    # Clusters {0, 1, 2, 5} and {3, 4}. Of 15 pairs, 4 are together in both partitions; the
    # clusters hold 7 pairs, the superclasses 6.
    expected = 7 * 6 / 15
    assert found["ARI"] == pytest.approx((4 - expected) / ((7 + 6) / 2 - expected))
    assert found["nearest"] == pytest.approx(4 / 6)  # 10 and 14 degrees are each other's
    pairs = np.cos(angles[:, None] - angles)
    within = [pairs[i, j] for i, j in ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5))]
    assert found["within"] == pytest.approx(np.mean(within))
    assert found["across"] == pytest.approx(pairs[:3, 3:].mean())


# ---------------------------------------------------------------------------------- the matrices


def test_matrix_is_drawn_superclass_by_superclass(blocks, noise):
    fig = plots.similarity_matrix({"here": blocks, "there": noise}, CLASSES, "measured somewhere")
    order = np.lexsort([CLASSES["class"], CLASSES["superclass"]])
    for ax, matrix in zip(fig.axes, (blocks, noise), strict=False):
        assert np.array_equal(ax.images[0].get_array(), matrix[np.ix_(order, order)])
    low, high = fig.axes[0].images[0].get_clim()
    off = np.abs([blocks, noise])[:, ~np.eye(100, dtype=bool)]
    assert (low, high) == pytest.approx((-off.max(), off.max()))
    shown = texts(fig)
    for name in ("here", "there", "trees", "large man-made outdoor things", "measured somewhere"):
        assert name in shown


def test_clustermap_keeps_superclasses_together(blocks):
    fig = plots.similarity_clustermap(blocks, CLASSES, "measured somewhere")
    ax = max(fig.axes, key=lambda ax: len(ax.get_yticklabels()))
    named = [label.get_text().replace(" ", "_") for label in ax.get_yticklabels()]
    assert sorted(named) == sorted(CLASSES["class"])
    superclass = CLASSES.set_index("class")["superclass"]
    runs = [name for name, before in zip(named, ["", *named[:-1]], strict=True)
            if not before or superclass[name] != superclass[before]]  # fmt: skip
    assert len(runs) == 20
    assert "measured somewhere" in texts(fig)


def test_nearest_table_names_classes_and_cosines(blocks):
    nearest = np.argsort(-blocks, axis=1)[:, 1:4]
    table = plots.nearest_table(nearest, blocks, CLASSES, ["maple_tree"])
    assert list(table["class"]) == ["maple tree"]
    maple = list(CLASSES["class"]).index("maple_tree")
    for listed, other in zip(table["nearest"][0].split(", "), nearest[maple], strict=True):
        name, value = listed.rsplit(" ", 1)
        assert name.replace(" ", "_") == CLASSES["class"][other]
        assert float(value) == pytest.approx(blocks[maple, other], abs=0.005)


# ---------------------------------------------------------------------------------- the explorer


def explorer_data(html: str) -> dict:
    found = re.search(r"const data = (\{.*?\});\n", html)
    assert found
    return json.loads(found.group(1))


def explorer(networks: list[plots.Similarity], **settings) -> str:
    return plots.similarity_explorer(networks, "maple_tree", "similarity-test", **settings).data


def test_explorer_holds_every_pair_and_the_tree_and_loads_nothing(blocks):
    networks = [plots.Similarity("here", blocks, CLASSES, "measured somewhere")]
    html, again = explorer(networks), explorer(networks)
    assert html == again
    assert 'id="similarity-test"' in html
    assert not re.search(r"__[A-Z]+__", html)
    assert not re.search(r"https?://|src=|@import|url\(|fetch\(|import\(", html)
    assert len(html) < 80_000

    data = explorer_data(html)
    (classes,), (network,) = data["sets"], data["networks"]
    assert classes["classes"] == list(CLASSES["class"])
    named = [classes["superclasses"][k] for k in classes["superclass_of"]]
    assert named == list(CLASSES["superclass"])
    assert (network["label"], network["source"]) == ("here", "measured somewhere")
    below = blocks[np.tril_indices(100, -1)]
    assert np.array(network["thousandths"]) / 1000 == pytest.approx(below, abs=0.0005001)

    superclasses = CLASSES["superclass"].to_numpy()
    assert sorted(network["leaves"]) == list(range(100))
    clustered = superclasses[network["leaves"]].reshape(20, 5)
    assert all(len(set(group)) == 1 for group in clustered)
    assert network["clusters"] == [5] * 20
    # Every class and every merge but the last is merged once; heights grow.
    merged = [part for one, other, _ in network["merges"] for part in (one, other)]
    assert sorted(merged) == list(range(198))
    heights = [height for *_, height in network["merges"]]
    assert heights == sorted(heights)


def test_explorer_shares_the_classes_of_networks_that_have_the_same(blocks, noise):
    other = CLASSES.assign(**{"class": [f"drawn {k}" for k in range(100)]})
    pictures = np.zeros((100, 3, 32, 32), np.uint8)
    pictures[11] = 255
    html = explorer(
        [
            plots.Similarity("one", blocks, CLASSES, ""),
            plots.Similarity("drawn", noise, other, "", pictures),
            plots.Similarity("two", noise, CLASSES, ""),
        ],
        buttons=["worm"],
        form="page",
    )
    data = explorer_data(html)
    assert [network["set"] for network in data["networks"]] == [0, 1, 0]
    assert (data["buttons"], data["form"]) == (["worm"], "page")
    assert "pictures" not in data["sets"][0]
    _, text = data["sets"][1]["pictures"].split(",")
    with Image.open(io.BytesIO(base64.b64decode(text))) as sheet:
        assert sheet.size == (320, 320)
        assert sheet.getpixel((48, 48)) > (200, 200, 200)  # the second row's second
        assert sheet.getpixel((16, 48)) < (50, 50, 50)


def test_explorer_refuses_no_network_and_an_unknown_form(blocks):
    with pytest.raises(InputError, match="at least one"):
        explorer([])
    with pytest.raises(InputError, match="poster"):
        explorer([plots.Similarity("one", blocks, CLASSES, "")], form="poster")


# ------------------------------------------------------------------------------- forms and sweep


def test_forms_show_what_the_tables_say():
    targets = pd.DataFrame({"uniform": [0.1] * 3, "paper": [0.2, 0.05, 0.01]})
    entropy = pd.DataFrame({"temperature": [0.1, 1], "cosine": [0.4, 1], "absolute": [0.5, 1.05]})
    used = pd.DataFrame([{"form": "paper", "temperature": 0.2, "entropy": 0.7}])
    fig = plots.smoothing_forms(targets, entropy, used, "measured somewhere")
    left, right = fig.axes
    assert [list(line.get_ydata()) for line in left.lines] == [[0.1] * 3, [0.2, 0.05, 0.01]]
    curves = [list(line.get_ydata()) for line in right.lines]
    assert [0.4, 1] in curves
    assert [0.5, 1.05] in curves
    assert [pytest.approx(np.log(3))] * 2 in curves
    assert all(word in texts(fig) for word in ("uniform", "paper", "|cos|", "measured somewhere"))


def test_target_bars_are_the_targets_and_only_the_true_class_is_cut_off():
    forms = {"none": [1, 0, 0.0], "uniform": [0.8, 0.1, 0.1], "paper": [0.8, 0.15, 0.05]}
    targets = pd.DataFrame(forms, index=["maple_tree", "oak_tree", "castle"])
    targets = targets.reindex(["maple_tree", "oak_tree", "…", "castle"])
    fig = plots.target_bars(targets, "measured somewhere")
    for ax, form in zip(fig.axes, targets, strict=True):
        widths = [bar.get_width() for bar in ax.patches]
        assert widths[1:] == pytest.approx(list(targets[form])[1:], nan_ok=True)
        assert ax.get_xlim() == (0, widths[0])
        assert widths[0] < 0.3
    shown = texts(fig)
    for text in ("maple tree", "oak tree", "…", "hard", "adaptive smoothing", "measured somewhere"):
        assert text in shown
    assert all(value in shown for value in ("0.8", "0.1500", "0.0500"))


def test_sweep_is_drawn_with_whatever_was_measured():
    gain = plots.als_gain(PAPER)
    assert list(gain["i"]) == ["1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"]
    assert list(gain["gain"].round(2)) == [1.03, 0.02, 0.16, 0.09, 0.41, 0.31, 0.44]
    everything = {point.name: [0.2, 0.3] for point in SWEEP.points()}
    # A panel of nothing says so once.
    for top1, missing in (({}, 1), ({"paper": [0.3]}, 4), (everything, 0)):
        measured = top1_table("label_smoothing", top1)
        fig = plots.smoothing_sweep({"ours": measured}, gain, "measured somewhere")
        shown = texts(fig)
        assert shown.count("not run") == missing
        assert not top1 or all(point.name in shown for point in SWEEP.points())
        assert all(text in shown for text in ("+1.03", "ours", "measured somewhere"))
        drawn = [bar for bar in fig.axes[1].containers if type(bar).__name__ == "ErrorbarContainer"]
        values = [bar.lines[0].get_xdata()[0] for bar in drawn]
        assert values == pytest.approx([100 * np.mean(each) for each in top1.values()])
    committed = {p: records.measured(SWEEP, p) for p in ("day", "quick")}
    fig = plots.smoothing_sweep(committed, gain, "")
    missing = [(t["n"] == 0).sum() if t["n"].any() else 1 for t in committed.values()]
    assert texts(fig).count("not run") == sum(missing)
