"""The status page's tables, from records made up here."""

from dataclasses import replace
from typing import Any

import pytest
from made_records import SWEEP, failed_record, record

from micronet_lib.lab import records
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records import status
from micronet_lib.lab.records.record import Record
from micronet_lib.lab.records.tables import NOT_RUN

CURVE = {"lr": [0.1]}


def trained(sweep: Sweep, point: str, seed: int, env: dict[str, Any]) -> Record:
    """A record of a training at the profile `quick`."""
    recipe = resolved(sweep.point(point).recipe, PROFILES["quick"])
    return record(point, seed, recipe_id=recipe_id(recipe), env=env, curve=CURVE)


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(status, "MEASURED", tmp_path)
    monkeypatch.setattr(status, "SWEEPS", {"toy": SWEEP})


def test_status_counts_what_was_measured(tmp_path, monkeypatch):
    # One training stands under two names.
    models = {"micronet_v1": "micronet_v1", "micronet_v2": "micronet_v2"}
    twice = replace(SWEEP, make=lambda model: Recipe(model=models.get(model, "micronet_v1")))
    monkeypatch.setattr(status, "SWEEPS", {"toy": twice})
    copy = record("micronet_v1").recipe_id
    for entry in (record(), record(seed=1), record("table1_3.0", recipe_id=copy)):
        records.write(replace(entry, curve=CURVE), tmp_path)
    found = status.coverage().set_index("profile")
    assert list(found.index) == ["quick", "day", "full"]  # smoke says nothing about accuracy
    quick, full = found.loc["quick"], found.loc["full"]
    counts = ["points", "measured", "n", "records", "measurements"]
    assert quick[counts].tolist() == [3, 2, "2", 4, 2]  # both seeds under both names
    assert quick[["hardware", "missing"]].tolist() == ["2 CPU threads", "micronet_v2"]
    assert full[counts].tolist() == [3, 0, "0", 0, 0]
    assert full[["hardware", "missing"]].tolist() == [NOT_RUN, NOT_RUN]


def test_a_point_that_diverged_is_neither_measured_nor_missing(tmp_path):
    for entry in (record(), failed_record(seed=1), failed_record("micronet_v2")):
        records.write(entry, tmp_path)
    quick = status.coverage().set_index("profile").loc["quick"]
    assert quick[["measured", "records", "missing"]].tolist() == [1, 1, "table1_3.0"]
    assert quick["diverged"] == "micronet_v2: diverged (epoch 1, 1 of 1 seed)"
    listed = status.listing()
    counts = [f"quick.{name}" for name in ("measured", "diverged", "runs")]
    assert listed.loc[0, counts].tolist() == [1, 1, 1]
    assert "1 + 1 diverged, 1 s x 1" in status.as_text(listed) or "1 + 1 diverged, 2 s x 1" in (
        status.as_text(listed)
    )
    (machine,) = status.machines().to_dict("records")
    counts = [machine[name] for name in ("records", "measurements", "diverged")]
    assert counts == [3, 3, 2]


def test_the_list_counts_a_training_once_and_adds_up_its_time(tmp_path):
    for seed, point in ((0, "micronet_v1"), (1, "micronet_v1"), (0, "table1_3.0")):
        recipe = SWEEP.point(point).recipe
        env = record().env | {"wall_s": 10.0 + seed}
        records.write(record(point, seed, recipe_id=records.recipe_id(recipe), env=env), tmp_path)
    (row,) = status.listing().to_dict("records")
    assert (row["sweep"], row["points"], row["printed"]) == ("toy", 3, "")
    assert (row["quick.measured"], row["quick.runs"], row["quick.seconds"]) == (2, 3, 31.0)
    assert row["quick.per_run"] == pytest.approx(31 / 3)
    assert (row["full.measured"], row["full.seconds"]) == (0, 0)


def test_machines_add_up_what_each_of_them_did(tmp_path):
    here = record().env
    there = here | {"device": "1x H200"}
    for seed, env, date, wall_s in (
        (0, here, "2026-11-22T21:00:00Z", 1.5),
        (1, here, "2026-11-23T21:00:00Z", 2.5),
        (2, there, "2026-11-21T21:00:00Z", 9.0),
    ):
        run = record(seed=seed, env=env | {"date": date, "wall_s": wall_s}, curve=CURVE)
        records.write(run, tmp_path)
    records.write(record(sweep="again", curve=CURVE), tmp_path)  # a copy of seed 0
    found = status.machines().set_index("device")
    counts = ["records", "measurements", "seconds"]
    assert found.loc["2 CPU threads", counts].tolist() == [3, 2, 4.0]
    assert found.loc["2 CPU threads", "newest"] == "2026-11-23T21:00:00Z"
    assert found.loc["1x H200", counts].tolist() == [1, 1, 9.0]


def test_the_time_of_a_chapter_is_one_run_of_each_point(tmp_path, monkeypatch):
    """A mean over seeds, and a training with two names once, measured or not."""
    train = TrainConfig(epochs=40)
    toy = replace(SWEEP, make=lambda model: Recipe(model=model, train=train))
    monkeypatch.setattr(status, "SWEEPS", {"toy": toy, "again": replace(toy, name="again")})
    for point, seed, wall_s in (("micronet_v1", 0, 60), ("micronet_v1", 1, 80)):
        env = record().env | {"wall_s": wall_s}
        records.write(trained(toy, point, seed, env), tmp_path)
    env = record().env | {"wall_s": 3600, "device": "1x H200"}
    records.write(trained(toy, "micronet_v2", 0, env), tmp_path)
    assert status.durations_text().splitlines()[2:] == [
        "| `01_architecture` | quick | 1 of 3 | 1 min | 2 CPU threads |",
        "| `01_architecture` | quick | 1 of 3 | 1 h | 1x H200 |",
    ]
