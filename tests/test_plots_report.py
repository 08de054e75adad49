"""The figures and the table of the reviewer's page."""

import io

import pandas as pd
from figures import labels, texts
from PIL import Image

from micronet_lib import plots
from micronet_lib.lab import records
from micronet_lib.lab.recipes.bases import PAPER
from micronet_lib.lab.records import report
from micronet_lib.plots.layouts import Parts, stacked
from micronet_lib.plots.report import _QUOTED
from micronet_lib.plots.style import sharp_png

PHONE_WIDTH = 390


def test_each_claim_has_a_point_under_its_verdict():
    claims = pd.DataFrame({"claim": ["a.", "b.", "c."], "verdict": ["no", "yes", "no"]})
    fig = plots.claim_verdicts(claims, ["yes", "no"], "somewhere")
    places = [
        [tuple(point) for mark in ax.collections for point in mark.get_offsets()] for ax in fig.axes
    ]
    assert places == [[(1, 0), (0, 1)], [(1, 0)]]
    names = [[name.get_text() for name in ax.get_yticklabels()] for ax in fig.axes]
    assert names == [["a", "b"], ["c"]]
    assert {"yes: 1", "no: 2"} <= set(labels(fig))


def test_claims_stand_below_each_other_on_a_phone():
    claims = report.claims()
    drawn, _ = sharp_png(plots.claim_verdicts(claims, report.VERDICTS, "somewhere"))
    picture = Image.open(io.BytesIO(drawn))
    parts = Parts.read(picture)
    assert parts is not None
    assert len(parts.panels) == 2
    assert len(parts.legend) == len(report.VERDICTS)
    below = stacked(picture, parts)
    assert below is not None
    assert below.width / 2 < PHONE_WIDTH * 1.2  # two pixels for one, shown a little smaller


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


def test_a_dash_stands_only_where_a_source_gives_no_number():
    stems = ("pruning", "srip", "label_smoothing")
    quoted = pd.concat([records.printed_rows(stem) for stem in stems], ignore_index=True)
    table = plots.hyperparameters(quoted, {}).set_index("setting")
    readme = quoted["locator"].str.startswith("README")
    code = quoted["source"] == "micronet_code"
    rows = {"paper": quoted["source"] == "kim2020", "README": code & readme,
            "released code": code & ~readme}  # fmt: skip
    for column, of_source in rows.items():
        transcribed = set(quoted.loc[of_source, "metric"])
        for setting, (metric, *_) in _QUOTED.items():
            silent = table.at[setting, column] == "–"
            assert silent == (metric not in transcribed), f"{setting}, {column}"
    assert table.loc["prune.sparsities", list(rows)].tolist() == ["4", "4", "4"]
    assert table.loc["augment.mix_alpha", list(rows)].tolist() == ["1", "1", "1"]


def test_the_books_recipe_has_the_papers_settings():
    quoted = records.printed_rows("pruning")
    table = plots.hyperparameters(quoted, {"here": report.flat(PAPER)}).set_index("setting")
    said = table[table.index.str.startswith("train.") & (table["paper"] != "–")]
    assert len(said) == 8
    assert (said["paper"] == said["here"]).all()
    silent = said.index == "train.dropout"  # the README does not say
    assert (said["README"][~silent] == said["here"][~silent]).all()
    assert (said["README"][silent] == "–").all()
