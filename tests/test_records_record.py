"""Records: identity, atomic files, tables; and every committed record is still what it claims."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.errors import InputError
from micronet_lib.lab.host.places import MEASURED
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep
from micronet_lib.lab.records import record as records
from micronet_lib.lab.records.record import Record
from micronet_lib.lab.records.tables import NOT_RUN
from micronet_lib.label_smoothing import SmoothingConfig
from micronet_lib.pruning.schedules import PruneConfig
from micronet_lib.srip.penalty import SripConfig

COMMITTED = sorted(MEASURED.rglob("*.json"))
SWEEP = Sweep(
    name="toy",
    title="Three recipes",
    chapter="01_architecture",
    axes={"model": ("micronet_v1", "micronet_v2", "table1_3.0")},
    make=lambda model: Recipe(model=model),
    metrics=("score", "top1"),
)


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The fields as they come back from a file: tuples are lists there."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def record(point: str = "micronet_v1", seed: int = 0, **changes: Any) -> Record:
    recipe = SWEEP.point(point).recipe
    return replace(
        Record(
            sweep="toy",
            point=point,
            recipe_id=recipe_id(recipe),
            recipe=as_json(recipe),
            profile="quick",
            seed=seed,
            dataset="cifar100",
            metrics={"score": 1.5 + seed, "top1": 0.5},
            env={"device": "2 CPU threads", "torch": "2.15.0", "commit": "abc1234"},
        ),
        **changes,
    )


# ---------------------------------------------------------------------------------- identity


def test_recipe_id_is_ten_hex_digits_of_what_differs_from_the_default():
    assert recipe_id(Recipe()) == "44136fa355"  # the digest of {}
    assert re.fullmatch(r"[0-9a-f]{10}", recipe_id(Recipe(model="micronet_v2")))


def test_every_field_changes_the_id():
    changes = {
        "model": "micronet_v2",
        "checkpoint": "micronet_v1_pr_60",
        "savings": ("dead_gates",),
        "weight_bits": 8,
        "activation_bits": 8,
        "accumulator": "integer",
        "width_mult": 0.5,
        "train": TrainConfig(epochs=1),
        "srip": SripConfig(),
        "smoothing": SmoothingConfig("uniform"),
        "augment": AugmentConfig(flip=False),
        "prune": PruneConfig((0.5,)),
        "inspect": ("spectrum",),
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Recipe)}
    ids = {recipe_id(Recipe(**{name: value})) for name, value in changes.items()}
    assert len(ids | {recipe_id(Recipe())}) == len(changes) + 1


def test_a_nested_field_changes_the_id_and_its_default_does_not():
    recipe = Recipe(train=TrainConfig(epochs=1))
    assert recipe_id(Recipe(train=TrainConfig(epochs=1, lr=0.1))) == recipe_id(recipe)
    assert recipe_id(Recipe(train=TrainConfig(epochs=1, lr=0.2))) != recipe_id(recipe)
    assert recipe_id(Recipe(srip=SripConfig(coef=0.0))) == recipe_id(Recipe())


def test_order_of_savings_changes_the_id():
    one, other = ("dead_gates", "sixth"), ("sixth", "dead_gates")
    assert recipe_id(Recipe(savings=one)) != recipe_id(Recipe(savings=other))


def test_a_field_added_later_leaves_older_ids_alone(monkeypatch):
    @dataclass(frozen=True)
    class Later(Recipe):
        temperature: float = 1.0

    recipes = [point.recipe for sweep in SWEEPS.values() for point in sweep.points()]
    ids = [recipe_id(recipe) for recipe in recipes]
    monkeypatch.setattr(records, "Recipe", Later)
    later = [Later(**vars(recipe)) for recipe in recipes]
    assert [recipe_id(recipe) for recipe in later] == ids
    assert recipe_id(replace(later[0], temperature=2.0)) not in ids


def test_path_says_what_was_measured():
    assert record(seed=3).path == Path("quick/toy/micronet_v1-s3.json")
    assert records.record_path("toy", "a-b", "full", 0) == Path("full/toy/a-b-s0.json")


# ------------------------------------------------------------------------------------- files


def test_written_record_is_read_back(tmp_path):
    original = record(metrics={"score": 1 / 3, "top1": 1}, layers=[{"layer": "stem", "count": 3}])
    path = records.write(original, tmp_path)
    assert path == tmp_path / original.path
    assert records.read(path) == original
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.read_text().endswith("}\n")


def test_same_record_gives_the_same_bytes(tmp_path):
    one = record(metrics={"score": 1.0, "top1": 0.5})
    other = record(metrics={"top1": 0.5, "score": 1.0})
    texts = [records.write(r, tmp_path / str(i)).read_bytes() for i, r in enumerate((one, other))]
    assert texts[0] == texts[1]


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_is_never_written(tmp_path, value):
    with pytest.raises(ValueError, match="Out of range float"):
        records.write(record(metrics={"score": value}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_fault_while_writing_leaves_the_old_record_and_nothing_else(
    tmp_path, monkeypatch, step, fault
):
    old = records.write(record(), tmp_path)
    text = old.read_text()

    def fail(*args: object) -> None:
        raise fault

    monkeypatch.setattr(*((records.os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    expected = InputError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        records.write(record(metrics={"score": 9.0, "top1": 0.9}), tmp_path)
    assert old.read_text() == text
    assert files(tmp_path) == [str(record().path)]


def test_fault_while_writing_is_explained(tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(InputError) as caught:
        records.write(record(), tmp_path)
    assert str(caught.value) == (
        f"cannot write the record quick/toy/micronet_v1-s0.json under {tmp_path} (No space left on "
        "device): make room and get the right to write there; MICRONET_RUNS names another folder "
        "for runs"
    )


def test_a_killed_process_leaves_no_record(tmp_path, monkeypatch):
    """Killed before the rename, nothing lies at the name, and readers pass over what does lie."""

    def killed(*args: object, **kwargs: object) -> None:
        raise SystemExit

    monkeypatch.setattr(Path, "replace", killed)
    monkeypatch.setattr(Path, "unlink", killed)  # a killed process tidies nothing up
    with pytest.raises(SystemExit):
        records.write(record(), tmp_path)
    assert len(files(tmp_path)) == 1
    assert not (tmp_path / record().path).exists()
    assert records.read_sweep(SWEEP, "quick", tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: text[: len(text) // 2], id="truncated"),
        pytest.param(lambda text: "[]", id="list"),
        pytest.param(lambda text: "null", id="null"),
        pytest.param(lambda text: text.replace('"point"', '"punkt"'), id="unknown field"),
    ],
)
def test_damaged_record_is_refused(tmp_path, damage):
    path = records.write(record(), tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=re.escape(f"{path} is not a readable record (")):
        records.read(path)
    with pytest.raises(InputError, match="delete it and measure again"):
        records.read_sweep(SWEEP, "quick", tmp_path)


def test_a_damaged_record_of_this_machine_is_as_good_as_none(tmp_path):
    path = records.write(record(), tmp_path)
    identity = record().recipe_id
    assert records.kept(path) == records.find(tmp_path, "quick", identity, 0) == record()
    path.write_bytes(b"\xff")
    assert records.kept(path) is None
    assert records.kept(tmp_path / "nothing.json") is None
    assert records.find(tmp_path, "quick", identity, 0) is None


def test_missing_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a readable record"):
        records.read(tmp_path / "nothing.json")


def test_record_of_another_schema_is_refused(tmp_path):
    path = records.write(record(schema=99), tmp_path)
    with pytest.raises(InputError, match="has schema 99, this version reads 1: delete it"):
        records.read(path)


def test_sweep_is_read_in_its_own_order(tmp_path):
    written = [record("table1_3.0"), record("micronet_v1", 1), record("micronet_v1")]
    stranger = record(point="micronet_v1")
    for entry in (*written, replace(stranger, point="gone"), record(profile="full")):
        records.write(entry, tmp_path)
    assert records.read_sweep(SWEEP, "quick", tmp_path) == [written[2], written[1], written[0]]
    assert records.read_sweep(SWEEP, "smoke", tmp_path) == []


def test_runs_lie_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("MICRONET_RUNS", str(tmp_path))
    assert records.runs_root() == tmp_path
    monkeypatch.setenv("MICRONET_RUNS", "")
    assert records.runs_root() == records.ROOT / "runs"
    monkeypatch.delenv("MICRONET_RUNS")
    assert records.runs_root() == records.ROOT / "runs"


# ----------------------------------------------------------------------------------- promote


@pytest.fixture
def toy(monkeypatch) -> Sweep:
    monkeypatch.setitem(SWEEPS, "toy", SWEEP)
    return SWEEP


def test_promoted_record_is_the_same(tmp_path, toy):
    path = records.write(record(), tmp_path / "runs")
    promoted = records.promote(path, tmp_path / "measured")
    assert promoted == tmp_path / "measured" / record().path
    assert promoted.read_bytes() == path.read_bytes()


def test_record_of_another_recipe_is_not_promoted(tmp_path, toy):
    stale = record(recipe_id=recipe_id(Recipe(model="micronet_v2")))
    path = records.write(stale, tmp_path / "runs")
    with pytest.raises(InputError, match="measured from another recipe; measure the point again"):
        records.promote(path, tmp_path / "measured")
    assert not (tmp_path / "measured").exists()


@pytest.mark.parametrize("commit", ["abc1234+", "unknown", "", None])
def test_record_of_code_that_nobody_can_look_up_is_not_promoted(tmp_path, toy, commit):
    env = record().env | {"commit": commit}
    path = records.write(record(env=env), tmp_path / "runs")
    with pytest.raises(InputError, match="from uncommitted code; commit it and measure again"):
        records.promote(path, tmp_path / "measured")
    assert not (tmp_path / "measured").exists()


def test_record_of_a_sweep_or_point_that_is_gone_is_not_promoted(tmp_path, monkeypatch):
    path = records.write(record(), tmp_path / "runs")
    with pytest.raises(InputError, match="there is no sweep 'toy' any more"):
        records.promote(path, tmp_path / "measured")
    monkeypatch.setitem(SWEEPS, "toy", replace(SWEEP, axes={"model": ("micronet_v2",)}))
    with pytest.raises(InputError, match="unknown point of toy 'micronet_v1'"):
        records.promote(path, tmp_path / "measured")
    assert not (tmp_path / "measured").exists()


# ------------------------------------------------------------------------------------- tables


def test_table_gives_mean_spread_and_number_of_runs():
    runs = [
        record(seed=seed, metrics={"score": value, "top1": 0.5, "extra": 2})
        for seed, value in enumerate((1.0, 2.0, 6.0))
    ]
    rows = records.table(SWEEP, runs).set_index("point")
    assert list(rows.index) == [point.name for point in SWEEP.points()]
    first = rows.loc["micronet_v1"]
    assert (first["n"], first["profile"], first["source"]) == (3, "quick", "measured")
    assert first["score"] == pytest.approx(3)
    assert first["score_std"] == pytest.approx(math.sqrt(7))  # of a sample: n - 1
    assert (first["top1"], first["top1_std"], first["extra"]) == (0.5, 0, 2)
    assert (first["device"], first["torch"], first["commit"]) == (
        "2 CPU threads",
        "2.15.0",
        "abc1234",
    )


def test_one_run_has_no_spread():
    row = records.table(SWEEP, [record()]).set_index("point").loc["micronet_v1"]
    assert row["n"] == 1
    assert row["score"] == 1.5
    assert math.isnan(row["score_std"])


def test_point_that_nobody_ran_stays_in_the_table():
    rows = records.table(SWEEP, [record()]).set_index("point")
    for name in ("micronet_v2", "table1_3.0"):
        assert rows.loc[name, "n"] == 0
        assert rows.loc[name, ["score", "top1", "score_std"]].isna().all()
        assert rows.loc[name, "device"] == ""


def test_table_without_any_record():
    rows = records.table(SWEEP, [])
    assert list(rows["point"]) == [point.name for point in SWEEP.points()]
    assert (rows["n"] == 0).all()
    assert rows["score"].isna().all()
    assert records.provenance(rows) == NOT_RUN


def test_profiles_are_never_averaged_together():
    runs = [record(), record(profile="full", metrics={"score": 9.0, "top1": 0.9})]
    rows = records.table(SWEEP, runs)
    ran = rows[rows["n"] > 0].set_index("profile")
    assert len(rows) == 2 * len(SWEEP.points())
    assert (ran.loc["quick", "score"], ran.loc["full", "score"]) == (1.5, 9.0)
    assert (ran["n"] == 1).all()


def test_provenance_says_everything_once():
    runs = [record(), record(seed=1), record("micronet_v2")]
    assert records.provenance(records.table(SWEEP, runs, source="this run")) == (
        "this run · quick · 2 CPU threads · torch 2.15.0 · n=1/2 · abc1234"
    )


def test_provenance_of_several_machines_names_them_all():
    env = {"device": "1x H200", "torch": "2.16.0", "commit": "def5678"}
    rows = records.table(SWEEP, [record(), record("micronet_v2", env=env)])
    assert records.provenance(rows) == (
        "measured · quick · 2 CPU threads + 1x H200 · torch 2.15.0 + 2.16.0 · n=1 · "
        "abc1234 + def5678"
    )


# ---------------------------------------------------------------------------------- the paper


@pytest.fixture
def quoted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(records, "PAPER", tmp_path)
    (tmp_path / "toy.csv").write_text(
        "point,metric,value,source,locator\n"
        'micronet_v1,top1_percent,80.07,kim2020,"Table 2, row A"\n'
        'micronet_v2,top1_percent,80.04,kim2020,"Table 2, row B"\n'
        "1.0,score_thousandths,5.4,gale2020,page 3\n"
    )


def test_paper_keeps_names_as_text(quoted):
    rows = records.paper("toy")
    assert list(rows["point"]) == ["micronet_v1", "micronet_v2", "1.0"]
    assert rows["value"].dtype == float


def test_paper_in_wide_form_has_one_source(quoted):
    wide = records.paper_wide("toy", "kim2020")
    assert list(wide.columns) == ["point", "top1_percent"]
    assert wide.to_dict("list") == {
        "point": ["micronet_v1", "micronet_v2"],
        "top1_percent": [80.07, 80.04],
    }


def test_comparison_takes_points_that_have_both(quoted):
    rows = records.table(SWEEP, [record(metrics={"score": 1.0, "top1": 0.8})])
    found = records.compare(rows, "toy", {"top1_percent": ("top1", 100.0)})
    assert len(found) == 1
    line = found.iloc[0]
    assert (line["point"], line["paper"], line["n"]) == ("micronet_v1", 80.07, 1)
    assert line["measured"] == pytest.approx(80)
    assert line["difference"] == pytest.approx(-0.07)
    assert line["locator"] == "Table 2, row A"


# ------------------------------------------------------------------------- the committed records

each_committed = pytest.mark.parametrize(
    "path", COMMITTED, ids=lambda path: str(path.relative_to(MEASURED))
)
ENV_KEYS = {"device", "torch", "cuda", "python", "commit", "date", "wall_s"}


def test_records_are_committed():
    assert COMMITTED


@each_committed
def test_committed_record_lies_where_it_says(path):
    found = records.read(path)
    assert found.path == path.relative_to(MEASURED)
    assert found.profile in PROFILES
    assert found.profile in SWEEPS[found.sweep].profiles
    assert PROFILES[found.profile].dataset != "embedded", "smoke proves nothing"


@each_committed
def test_committed_record_was_made_from_the_recipe_of_today(path):
    found = records.read(path)
    recipe = PROFILES[found.profile].apply(SWEEPS[found.sweep].point(found.point).recipe)
    assert found.recipe_id == recipe_id(recipe), "measure the point again"
    today, defaults = as_json(recipe), as_json(Recipe())
    for name, value in today.items():
        then = found.recipe.get(name, defaults[name])
        assert (defaults[name] | then if isinstance(value, dict) else then) == value, name


@each_committed
def test_committed_record_holds_finite_numbers(path):
    found = records.read(path)
    missing = set(SWEEPS[found.sweep].metrics) - set(found.metrics)
    if not found.recipe["savings"]:
        # There is nothing to compare: it is what the others are compared with.
        missing -= {"max_logit_difference", "max_logit_difference_stored", "bit_identical"}
    if not found.recipe.get("prune", {}).get("sparsities"):
        missing -= {"sparsity"}  # of the dense network before the rounds
    assert not missing, f"{missing} were not measured: measure the point again"
    for name, value in found.metrics.items():
        assert isinstance(value, int | float), name
        assert math.isfinite(value), name
        assert 0 <= value <= 1 or not name.startswith("top"), f"{name} is a fraction"
    rated = "correct" in found.metrics
    assert found.dataset == (PROFILES[found.profile].dataset if rated else "none")


@each_committed
def test_committed_record_says_where_it_was_measured(path):
    env = records.read(path).env
    assert set(env) == ENV_KEYS
    assert env["device"]
    assert re.match(r"\d+\.\d+", env["torch"])
    assert re.fullmatch(r"3\.\d+\.\d+\S*", env["python"])
    assert env["wall_s"] >= 0
    assert datetime.fromisoformat(env["date"]).tzinfo is not None
    assert (env["cuda"] is None) == ("CPU" in env["device"])


@each_committed
def test_committed_record_was_measured_at_a_clean_commit(path):
    commit = records.read(path).env["commit"]
    assert re.fullmatch(r"[0-9a-f]{7,40}", commit), (
        f"measured at {commit!r}: commit the code first, then measure, then promote"
    )


@each_committed
def test_bill_of_a_committed_record_adds_up(path):
    found = records.read(path)
    if not found.layers:
        return
    rows = pd.DataFrame(found.layers)
    for name in ("param_storage", "math_ops"):
        assert rows[name].sum() == pytest.approx(found.metrics[f"published.{name}"])
    assert records.bill(SWEEPS[found.sweep], found.point, found.profile).equals(rows)


def test_bill_of_a_point_without_one_is_refused():
    with pytest.raises(InputError, match=r"no record of expand_ratio/1\.0 at quick"):
        records.bill(SWEEPS["expand_ratio"], "1.0", "quick")
