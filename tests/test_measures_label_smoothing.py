"""What a record says of a classifier's classes, on classifiers whose classes are known."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from micronet_lib.lab import records
from micronet_lib.lab.data.images import load_labels
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.running.measures import MEASURES
from micronet_lib.lab.running.measures.label_smoothing import PUBLISHED

DRAWN = SimpleNamespace(name="drawn", profile=PROFILES["smoke"])
REAL = SimpleNamespace(name="real", profile=PROFILES["quick"])
MATRIX = records.arrays(SWEEPS["class_similarity"], PUBLISHED)["class_similarity"]


def agreement(case: SimpleNamespace, rows: np.ndarray) -> dict[str, float]:
    """The measure of a network of which only the classifier's rows matter."""
    classifier = nn.Linear(rows.shape[1], len(rows))
    classifier.weight = nn.Parameter(torch.from_numpy(rows).float())
    found = MEASURES["matrix_agreement"].of(case, SimpleNamespace(classifier=classifier), False)
    assert json.loads(json.dumps(found.metrics, allow_nan=False)) == found.metrics
    assert not found.arrays
    return found.metrics


def test_the_published_matrix_agrees_with_itself():
    found = agreement(REAL, np.linalg.cholesky(MATRIX))
    assert found["published_correlation"] == pytest.approx(1, abs=1e-6)
    assert found["published_ari"] == 1
    # Half of each cosine is half of what is shared, in the same order: still the same groups.
    longer = np.concatenate([np.linalg.cholesky(MATRIX), np.eye(100)], axis=1)
    half = agreement(REAL, longer)
    assert half["published_correlation"] == pytest.approx(1, abs=1e-6)
    assert half["published_ari"] == 1
    assert half["superclass_ari"] == found["superclass_ari"]


def test_the_correlation_is_of_pairs_not_of_the_diagonal():
    """Unit rows but for two pairs of classes at 60 degrees: cosines 1/2 twice, else 0."""
    rows = np.eye(100)
    for one, other in ((0, 1), (2, 3)):
        rows[one, other] = 3**-0.5  # (1, tan 30) and (0, 1): cosine 1/2
    found = agreement(REAL, rows)["published_correlation"]
    pairs = MATRIX[np.triu_indices(100, 1)]
    two, count = [MATRIX[0, 1], MATRIX[2, 3]], len(pairs)
    covariance = (sum(two) / 2 - pairs.mean() * 1) / count
    spread = (2 * 0.25 / count - (1 / count) ** 2) ** 0.5
    assert count == 4950
    assert found == pytest.approx(covariance / (spread * pairs.std()), abs=1e-6)


@pytest.mark.parametrize("case", [DRAWN, REAL], ids=lambda case: case.name)
def test_classes_by_superclass_have_its_index_and_shuffled_ones_do_not(case):
    rng = np.random.default_rng(0)
    superclass = load_labels(case.profile.dataset).superclass_of.numpy()
    rows = rng.normal(size=(20, 106))[superclass] + 0.3 * rng.normal(size=(100, 106))
    found = agreement(case, rows)
    assert found["superclass_ari"] == 1
    assert abs(agreement(case, rows[rng.permutation(100)])["superclass_ari"]) < 0.1
    assert ("published_ari" in found) == ("published_correlation" in found) == (case is REAL)


def test_without_scikit_learn_a_line_says_what_is_not_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    found = agreement(REAL, np.linalg.cholesky(MATRIX))
    assert set(found) == {"published_correlation"}
    (line,) = capsys.readouterr().err.splitlines()
    assert "real: clusters of classes are not compared" in line
    assert "sklearn" in line
