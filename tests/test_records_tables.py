"""Tables of records and of transcribed numbers."""

import math
from dataclasses import replace

import pytest
from made_records import ENV, SWEEP, failed_record, record

from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.records import tables
from micronet_lib.lab.records.tables import NOT_RUN

POINTS = [point.name for point in SWEEP.points()]


def test_table_gives_mean_spread_and_number_of_runs():
    runs = [
        record(seed=seed, metrics={"score": value, "top1": 0.5, "extra": 2})
        for seed, value in enumerate((1.0, 2.0, 6.0))
    ]
    rows = records.table(SWEEP, runs).set_index("point")
    assert list(rows.index) == POINTS
    first = rows.loc["micronet_v1"]
    assert first[["n", "profile", "source"]].tolist() == [3, "quick", "measured"]
    assert first["score"] == pytest.approx(3)
    assert first["score_std"] == pytest.approx(math.sqrt(7))  # of a sample: n - 1
    assert first[["top1", "top1_std", "extra"]].tolist() == [0.5, 0, 2]
    assert first[["device", "torch", "commit"]].to_dict().items() <= ENV.items()
    # What nobody ran stays in the table.
    others = rows.drop("micronet_v1")
    assert list(others["n"]) == [0, 0]
    assert others[["score", "top1", "score_std"]].isna().all(axis=None)
    assert list(others["device"]) == ["", ""]


def test_a_measurement_counts_once_and_one_run_has_no_spread():
    copied = replace(record(), notes=["copied"])
    row = records.table(SWEEP, [record(), copied]).set_index("point").loc["micronet_v1"]
    assert row[["n", "score"]].tolist() == [1, 1.5]
    assert math.isnan(row["score_std"])
    row = records.table(SWEEP, [record(), copied, record(seed=1)]).set_index("point").iloc[0]
    assert row[["n", "score"]].tolist() == [2, 2.0]


def test_failed_runs_are_counted_and_in_no_mean():
    runs = [record(), failed_record(seed=1), failed_record("micronet_v2", 0), record(seed=2)]
    rows = records.table(SWEEP, [*runs, failed_record("micronet_v2", 1, epoch=2)])
    found = rows.set_index("point")
    assert found["n"].tolist() == [2, 0, 0]
    assert found["failed"].tolist() == [1, 2, 0]
    assert found.at["micronet_v1", "score"] == pytest.approx((1.5 + 3.5) / 2)
    assert found.loc["micronet_v2", ["score", "top1"]].isna().all()
    said = {"micronet_v2": "diverged (epochs 1 and 2, 2 of 2 seeds)"}
    # The text travels with the table to whatever prints it.
    shown = rows[rows["point"] != "table1_3.0"].assign(x=1)[["point", "n", "score"]]
    assert shown.rename(columns={"n": "runs"}).reset_index(drop=True).attrs["diverged"] == said
    assert " · n=2 · 3 diverged · abc1234" in records.provenance(rows)
    lost = records.table(SWEEP, [failed_record()])
    assert records.provenance(lost) == "measured · quick · 1 diverged"


def test_table_without_any_record():
    rows = records.table(SWEEP, [])
    assert list(rows["point"]) == POINTS
    assert (rows["n"] == 0).all()
    assert rows["score"].isna().all()
    assert records.provenance(rows) == NOT_RUN


def test_profiles_are_never_averaged_together():
    runs = [record(), record(profile="full", metrics={"score": 9.0, "top1": 0.9})]
    rows = records.table(SWEEP, runs)
    ran = rows[rows["n"] > 0].set_index("profile")
    assert len(rows) == 2 * len(POINTS)
    assert ran["score"].to_dict() == {"quick": 1.5, "full": 9.0}
    assert (ran["n"] == 1).all()


def test_provenance_names_every_machine_once():
    runs = [record(), record(seed=1), record("micronet_v2")]
    assert records.provenance(records.table(SWEEP, runs, source="this run")) == (
        "this run · quick · 2 CPU threads · torch 2.15.0 · n=1/2 · abc1234"
    )
    other = {"device": "1x H200", "torch": "2.16.0", "commit": "def5678"}
    rows = records.table(SWEEP, [record(), record("micronet_v2", env=other)])
    assert records.provenance(rows) == (
        "measured · quick · 2 CPU threads + 1x H200 · torch 2.15.0 + 2.16.0 · n=1 · "
        "abc1234 + def5678"
    )


def test_curves_have_a_row_an_epoch():
    curve = {"lr": [0.1, 0.05], "train_loss": [4.0, 3.0]}
    found = records.curves_of([record(curve=curve), record(seed=1)])
    assert found[["point", "seed", "epoch"]].to_numpy().tolist() == [
        ["micronet_v1", 0, 1], ["micronet_v1", 0, 2]
    ]  # fmt: skip
    assert list(found["train_loss"]) == [4.0, 3.0]
    assert list(records.curves(SWEEP, "smoke").columns) == ["point", "seed", "epoch"]


# ---------------------------------------------------------------------------------- the paper


def test_quoted_numbers_and_the_points_that_have_both(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PAPER_TABLES", tmp_path)
    (tmp_path / "toy.csv").write_text(
        "point,metric,value,source,locator\n"
        'micronet_v1,top1_percent,80.07,kim2020,"Table 2, row A"\n'
        'micronet_v2,top1_percent,80.04,kim2020,"Table 2, row B"\n'
        "1.0,score_thousandths,5.4,gale2020,page 3\n"
    )
    rows = records.paper("toy")
    assert list(rows["point"]) == ["micronet_v1", "micronet_v2", "1.0"]  # names stay text
    assert rows["value"].dtype == float
    assert records.paper_wide("toy", "kim2020").to_dict("list") == {
        "point": ["micronet_v1", "micronet_v2"],
        "top1_percent": [80.07, 80.04],
    }
    rows = records.table(SWEEP, [record(metrics={"score": 1.0, "top1": 0.8})])
    (line,) = records.beside_paper(rows, "toy", {"top1_percent": ("top1", 100.0)}).to_dict(
        "records"
    )
    assert (line["point"], line["paper"], line["n"]) == ("micronet_v1", 80.07, 1)
    assert line["measured"] == pytest.approx(80)
    assert line["difference"] == pytest.approx(-0.07)
    assert line["locator"] == "Table 2, row A"


# ------------------------------------------------------------------------- bills and arrays


def test_bill_and_arrays_are_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MEASURED", tmp_path)
    layers = [{"layer": "stem.conv", "count": 3}]
    arrays = {"spectrum": {"stem": [2.0, 1.0]}, "matrix": [[1, 0]]}
    records.write(record(profile="full", layers=layers, arrays=arrays), tmp_path)
    assert records.bill(SWEEP, "micronet_v1").to_dict("records") == [
        {"layer": "stem.conv", "layer_kind": "conv", "count": 3}
    ]
    found = records.arrays(SWEEP, "micronet_v1")
    assert found["spectrum"]["stem"].tolist() == [2.0, 1.0]
    assert found["matrix"].shape == (1, 2)


def test_images_of_two_networks_form_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MEASURED", tmp_path)
    assert records.by_image(SWEEP, "full", "flips").empty
    for point, seed, text in (
        ("micronet_v1", 0, "0.2 0.4 0.1"),
        ("micronet_v1", 1, "0.9 0.9 0.9"),
        ("micronet_v2", 0, "0.3 0.6 0.1"),
    ):
        made = record(point, profile="full", seed=seed, arrays={"by_image": text})
        records.write(made, tmp_path)
    found = records.by_image(SWEEP, "full", "flips")
    assert found.query("point == 'micronet_v1'")["flips"].tolist() == [0.2, 0.4, 0.1]
    (row,) = records.gain(found, "micronet_v1", "flips", paired=True).to_dict("records")
    assert (row["point"], row["n"], row["gain"]) == ("micronet_v2", 3, pytest.approx(0.1))
    assert row["low"] < 0 < row["high"]


@pytest.mark.parametrize("of", [records.bill, records.arrays])
def test_a_point_without_a_record_is_refused(of):
    with pytest.raises(InputError, match=r"stages/1\.0-vanilla"):
        of(SWEEPS["stages"], "1.0-vanilla")
