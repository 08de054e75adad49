"""The figures and the table of the reviewer's page."""

import pandas as pd
from figures import texts

from micronet_lib import plots


def test_each_claim_has_a_point_under_its_verdict():
    claims = pd.DataFrame({"claim": ["a.", "b.", "c."], "verdict": ["no", "yes", "no"]})
    fig = plots.claim_verdicts(claims, ["yes", "no"], "somewhere")
    (points,) = fig.axes[0].collections
    assert points.get_offsets().tolist() == [[1, 0], [0, 1], [1, 2]]
    assert "yes\n1" in texts(fig)
    assert "no\n2" in texts(fig)


def test_hours_of_a_sweep_are_added_up_over_profiles():
    compute = pd.DataFrame(
        {"sweep": ["a", "b", "a", "c"], "core_hours": [1.0, 2.5, 2.0, 0.0]},
    )
    fig = plots.core_hours(compute, "somewhere")
    assert [bar.get_width() for bar in fig.axes[0].patches] == [2.5, 3.0]
    assert "not run" in texts(plots.core_hours(compute.iloc[:0], "somewhere"))


def test_settings_stand_side_by_side_with_their_place_in_print():
    rows = [
        ("training", "lr", "0.1", "kim2020", "section 2.2"),
        ("training", "lr", "0.10", "micronet_code", "README"),
        ("training", "bn_average_decay", "0.99", "kim2020", "section 2.2"),
        ("readme", "coef", "0.01", "micronet_code", "here"),
        ("readme_list", "coef", "0.7", "micronet_code", "there"),
    ]
    quoted = pd.DataFrame(rows, columns=["point", "metric", "value", "source", "locator"])
    ours = {"train.lr": 0.2, "prune.sparsities": [0.1, 0.2]}
    found = plots.hyperparameters(quoted, {"ours": ours}).set_index("setting")
    assert found.loc["train.lr"].tolist() == ["0.1", "0.1", "–", "0.2", "section 2.2; README"]
    assert found.loc["train.bn_momentum", ["paper", "ours"]].tolist() == ["0.01", "–"]
    assert found.at["srip.coef", "README"] == "0.01; 0.7"
    assert found.at["prune.sparsities", "ours"] == "2"
