"""Records as files: identity, atomic writing, promotion; every committed one is what it claims."""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from made_records import SWEEP, as_json, failed_record, record

from micronet_lib.architecture import build
from micronet_lib.beyond.changes import Quantize
from micronet_lib.errors import InputError
from micronet_lib.lab.host.machine import in_history
from micronet_lib.lab.host.places import MEASURED
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.records import record as records
from micronet_lib.lab.records.record import Record
from micronet_lib.lab.running.measure import ON_IMAGES

EPOCH = TrainConfig(epochs=1)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_path_says_what_was_measured():
    assert record(seed=3).path == Path("quick/toy/micronet_v1-s3.json")
    assert records.record_path("toy", "a-b", "full", 0) == Path("full/toy/a-b-s0.json")


# ------------------------------------------------------------------------------------- files


def test_written_record_is_read_back(tmp_path):
    layers = [{"layer": "stem  [0]", "count": 3, "bits": None}, {"layer": "a, {b}", "count": 1e-9}]
    layers.append({"layer": "head", "count": 4})
    arrays = {"spectrum": {"stem": [1.5, 2.0], "none": []}, "matrix": [[1, 2], [3, 4]]}
    changes = {"layers": layers, "arrays": arrays, "notes": ["a  note"]}
    original = record(metrics={"score": 1 / 3, "top1": 1}, **changes)
    path = records.write(original, tmp_path)
    assert path == tmp_path / original.path
    assert records.read(path) == original
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.read_text().endswith("}\n")
    # Rows of numbers and of layers have a line each, everything else a line a value.
    lines = path.read_text().splitlines()
    assert '  {"count": 4, "layer": "head"}' in lines
    assert "   [3, 4]" in lines
    assert '  "top1": 1' in lines
    other = record(metrics={"top1": 1, "score": 1 / 3}, **changes)
    assert records.write(other, tmp_path / "other").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_is_never_written(tmp_path, value):
    with pytest.raises(ValueError, match="a metric is not finite"):
        record(metrics={"score": value})
    with pytest.raises(ValueError, match="Out of range float"):
        records.write(record(arrays={"score": value}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"env": None},
        {"sweep": ["a"]},
        {"seed": "x/../../y"},
        {"seed": True},
        {"point": "../a"},
        {"metrics": {"top1": math.nan}},
    ],
)
def test_a_file_with_another_kind_of_value_is_no_record(tmp_path, wrong):
    path = records.write(record(), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(InputError, match=r"is not a readable record .*: delete it"):
        records.read(path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_fault_while_writing_leaves_the_old_record_and_nothing_else(
    tmp_path, monkeypatch, step, fault
):
    old = records.write(record(), tmp_path)
    text = old.read_text()

    def fail(*args: object) -> None:
        raise fault

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    expected = InputError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        records.write(record(metrics={"score": 9.0, "top1": 0.9}), tmp_path)
    if expected is InputError:
        (line,) = str(caught.value).splitlines()
        assert all(part in line for part in (str(record().path), str(tmp_path), fault.args[1]))
    assert old.read_text() == text
    assert files(tmp_path) == [str(record().path)]


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


def test_damaged_record_is_refused(tmp_path):
    path = records.write(record(), tmp_path)
    text = path.read_text()
    unknown_field, other_schema = (
        text.replace(*change) for change in (('"point"', '"punkt"'), ('"schema": 1', '"schema": 9'))
    )
    assert len({text, unknown_field, other_schema}) == 3
    for damaged in ("", text[: len(text) // 2], "[]", "null", unknown_field, other_schema):
        path.write_text(damaged)
        for read in (records.read, lambda _: records.read_sweep(SWEEP, "quick", tmp_path)):
            with pytest.raises(InputError, match=re.escape(str(path))):
                read(path)


def test_a_refused_file_says_what_it_is(tmp_path):
    for text, said in (("[]", "it holds no object"), ('{"schema": 9, "new": 1}', "has schema 9")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=said):
            records.read(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"Is a directory\): name the \.json files in it"):
        records.read(tmp_path)


def test_a_damaged_or_missing_record_of_this_machine_is_none(tmp_path):
    path = records.write(record(), tmp_path)
    assert records.readable(path) == record()
    path.write_bytes(b"\xff")
    assert records.readable(path) is None
    assert records.readable(tmp_path / "nothing.json") is None
    with pytest.raises(InputError):
        records.read(tmp_path / "nothing.json")


def test_a_damaged_record_is_set_aside_and_a_whole_one_stays(tmp_path, capsys):
    path = records.write(record(), tmp_path)
    records.set_aside_damaged(path)
    records.set_aside_damaged(tmp_path / "nothing.json")
    assert files(tmp_path) == [str(record().path)]
    assert capsys.readouterr().err == ""
    path.write_text("{")
    records.set_aside_damaged(path)
    assert files(tmp_path) == [f"{record().path}.damaged"]
    assert str(path) in capsys.readouterr().err
    assert records.read_sweep(SWEEP, "quick", tmp_path) == []


def test_a_file_is_parsed_again_only_if_it_was_written_again(tmp_path):
    path = records.write(record(metrics={"score": 1.0}), tmp_path)
    found = records.read(path)
    assert records.read(path) is found
    (row,) = records.read_runs(SWEEP, "quick", tmp_path)
    assert row.metrics is found.metrics
    records.write(record(metrics={"score": 2.0}), tmp_path)  # of the same size
    assert records.read(path).metrics == {"score": 2.0}
    path.unlink()
    assert records.readable(path) is None


# ------------------------------------------------------------------------------ reading a sweep


def test_sweep_is_read_in_its_own_order(tmp_path):
    written = [record("table1_3.0"), record("micronet_v1", 1), record("micronet_v1")]
    stranger = replace(record(), point="gone")
    for entry in (*written, stranger, record(profile="full")):
        records.write(entry, tmp_path)
    assert records.read_sweep(SWEEP, "quick", tmp_path) == [written[2], written[1], written[0]]
    assert records.read_sweep(SWEEP, "smoke", tmp_path) == []


def test_seeds_that_decide_nothing_are_one_run(tmp_path):
    fixed = replace(SWEEP, measures=("accuracy",))
    rounded = replace(fixed, make=lambda model: Recipe(model=model, changes=(Quantize(),)))
    trained = replace(fixed, make=lambda model: Recipe(model=model, start=Recipe(train=EPOCH)))
    for sweep, expected in ((fixed, [0]), (SWEEP, [0, 1]), (rounded, [0, 1]), (trained, [0, 1])):
        identity = recipe_id(resolved(sweep.point("micronet_v1").recipe, PROFILES["quick"]))
        for seed in (1, 0):
            records.write(record(seed=seed, recipe_id=identity), tmp_path)
        assert [run.seed for run in records.read_sweep(sweep, "quick", tmp_path)] == expected


def test_no_sweep_leaves_new_layers_untrained():
    """The seed would decide them, and `read_runs` would take other networks for copies."""
    kinds = {
        point.recipe.changes
        for sweep in SWEEPS.values()
        for point in sweep.points()
        if not records._takes_seed(point.recipe)
    }
    assert len(kinds) > 1
    for changes in kinds:
        states = []
        for seed in (0, 1):
            torch.manual_seed(7)
            network = build("micronet_v1", width_mult=0.25)
            torch.manual_seed(seed)
            for change in changes:
                network = change.apply(network, torch.empty(0, 3, 32, 32))
            states.append(network.state_dict())
        assert all(map(torch.equal, *(state.values() for state in states))), changes


def test_a_failed_run_is_no_measurement(tmp_path):
    lost, elsewhere = failed_record(), replace(failed_record(seed=3), sweep="other", point="dense")
    measured = record(seed=1)
    for entry in (lost, measured, elsewhere):
        records.write(entry, tmp_path)
    assert records.read(tmp_path / lost.path) == lost
    assert records.read_sweep(SWEEP, "quick", tmp_path) == [measured]
    named = replace(elsewhere, sweep="toy", point="micronet_v1")
    assert records.failures(SWEEP, "quick", tmp_path) == [lost, named]
    assert records.read_runs(SWEEP, "quick", tmp_path) == [lost, measured, named]
    # Older records have no such field.
    old = json.loads((tmp_path / measured.path).read_text())
    del old["failed"]
    (tmp_path / measured.path).write_text(json.dumps(old))
    assert records.read_sweep(SWEEP, "quick", tmp_path) == [measured]


def test_what_stands_for_not_run_counts_epochs_and_seeds():
    three = [failed_record(seed=seed, epoch=epoch) for seed, epoch in enumerate((2, 1, 2))]
    text = "diverged (epochs 1 and 2, 3 of 3 seeds)"
    assert records.diverged(three) == {"micronet_v1": text}
    assert records.diverged([failed_record()]) == {"micronet_v1": "diverged (epoch 1, 1 of 1 seed)"}
    some = [*three[:1], record(seed=1), record("micronet_v2")]
    assert records.diverged(some) == {}
    text = "diverged (epoch 2, 1 of 2 seeds)"
    assert records.diverged(some, some=True) == {"micronet_v1": text}


def test_a_training_is_found_under_the_name_of_another_sweep(tmp_path):
    own = record(metrics={"score": 1.0}, curve={"lr": [0.1]})
    elsewhere = replace(record(seed=1, curve={"lr": [0.1]}), sweep="other", point="dense")
    same_again = replace(elsewhere, seed=0)
    only_counted = replace(record("micronet_v2"), sweep="other")
    for entry in (own, elsewhere, same_again, only_counted):
        records.write(entry, tmp_path)
    records.write(replace(elsewhere, seed=2), tmp_path).write_text("{")  # damaged: passed over
    renamed = replace(elsewhere, sweep="toy", point="micronet_v1")
    assert records.read_sweep(SWEEP, "quick", tmp_path) == [own, renamed]


# ----------------------------------------------------------------------------------- promote


REFUSED = {
    "another recipe": record(recipe_id=recipe_id(Recipe(model="micronet_v2"))),
    "drawn images": record(profile="smoke"),
    "a sweep that is gone": record(sweep="gone"),
    "a point that is gone": record(point="micronet_v1", sweep="published"),
    **{
        f"commit {commit!r}": record(env=record().env | {"commit": commit})
        for commit in ("abc1234+", "unknown", "", None)
    },
    "a later commit": record(env=record().env | {"commits": ["abc1234", "abc1235+"]}),
    "a commit of another history": record(env=record().env | {"commit": "0123456"}),
}


def test_promotion_refuses_or_copies(tmp_path, monkeypatch):
    monkeypatch.setitem(SWEEPS, "toy", SWEEP)
    monkeypatch.setattr(records, "in_history", "abc1234".__eq__)
    for what, refused in REFUSED.items():
        path = records.write(refused, tmp_path / "runs")
        with pytest.raises(InputError):
            records.promote([path], tmp_path / "measured")
        assert not (tmp_path / "measured").exists(), what
    for made in (record(), failed_record("micronet_v2")):
        path = records.write(made, tmp_path / "runs")
        promoted = records.promote([path], tmp_path / "measured")[0].path
        assert promoted == tmp_path / "measured" / made.path
        assert promoted.read_bytes() == path.read_bytes()
        # Once more it is left as it is, byte by byte, also where a field has been added since.
        older = json.dumps({k: v for k, v in asdict(made).items() if k != "overrides"})
        promoted.write_text(older)
        records.promote([path], tmp_path / "measured")
        assert promoted.read_text() == older
    uncommitted = record().env | {"commit": "abc1234+"}
    path = records.write(failed_record(env=uncommitted), tmp_path / "runs")
    with pytest.raises(InputError, match="uncommitted code"):
        records.promote([path], tmp_path / "measured")
    # A mixture is no record.
    lost = asdict(failed_record())
    for mixture in ({"metrics": {"top1": 0.5}}, {"failed": {"what": "loss"}}):
        path.write_text(json.dumps(lost | mixture))
        with pytest.raises(InputError, match="what, epoch, message, and no metrics"):
            records.promote([path], tmp_path / "measured")


def test_promotion_replaces_another_measurement_only_when_told(tmp_path, monkeypatch):
    monkeypatch.setitem(SWEEPS, "toy", SWEEP)
    monkeypatch.setattr(records, "in_history", "abc1234".__eq__)
    runs, measured = tmp_path / "runs", tmp_path / "measured"
    path = records.write(record(), runs)
    (first,) = records.promote([path], measured)
    place = first.path
    (again,) = records.promote([path], measured)  # the same measurement is no other one
    assert (again.before, again.changes) == (None, {})

    other = record(metrics={"score": 1.5, "top1": 0.25, "loss": 3.0})
    records.write(other, runs)
    before = place.read_bytes()
    with pytest.raises(InputError, match="--replace") as caught:
        records.promote([path], measured)
    assert "abc1234; " in str(caught.value)
    assert "top1 0.5 -> 0.25; loss None -> 3.0" in str(caught.value)
    assert place.read_bytes() == before

    (replaced,) = records.promote([path], measured, replacing=True)
    assert replaced.changes == {"top1": (0.5, 0.25), "loss": (None, 3.0)}
    assert replaced.before == record()
    assert records.read(place) == other
    # Another day's run with equal numbers is another measurement too.
    records.write(replace(other, env=other.env | {"date": "2026-11-23T21:00:00Z"}), runs)
    with pytest.raises(InputError, match="change no number"):
        records.promote([path], measured)
    elsewhere = records.write(other, tmp_path / "elsewhere")
    with pytest.raises(InputError, match="given twice"):
        records.promote([path, elsewhere], measured, replacing=True)
    assert records.read(place) == other


def test_promotion_says_why_a_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setitem(SWEEPS, "toy", SWEEP)
    for reason in ("git refuses to read /a (dubious ownership)", "/a is in no git repository"):
        env = record().env | {"commit": "unknown", "no_commit": reason}
        path = records.write(record(env=env), tmp_path)
        with pytest.raises(InputError) as caught:
            records.promote([path], tmp_path / "measured")
        assert reason in str(caught.value)
        assert "uncommitted" not in str(caught.value)


# ------------------------------------------------------------------------- the committed records

ENV_KEYS = {"device", "torch", "cuda", "python", "commit", "date", "wall_s"}


def test_every_committed_record_is_what_it_claims():
    paths = sorted(MEASURED.rglob("*.json"))
    assert paths
    offenders = []
    for path in paths:
        found = records.read(path)
        for what in (*_place(found, path), *_recipe(found), *_numbers(found), *_machine(found)):
            offenders.append(f"{path.relative_to(MEASURED)}: {what}")
    assert offenders == []


def test_every_record_names_a_commit_of_this_history():
    commits = {records.read(path).env["commit"] for path in MEASURED.rglob("*.json")}
    assert sorted(each for each in commits if not in_history(each)) == []


WITH_LAYERS = ("published", "ternary", "adjustable_quantization")


def _place(found: Record, path: Path) -> Iterator[str]:
    if found.path != path.relative_to(MEASURED):
        yield f"belongs at {found.path}"
    if found.profile not in SWEEPS[found.sweep].profiles:
        yield f"{found.sweep} is not measured at {found.profile}"
    if PROFILES[found.profile].dataset == "embedded":
        yield "drawn images say nothing about accuracy"
    if not found.failed and bool(found.layers) != (found.sweep in WITH_LAYERS):
        yield f"a per-layer table belongs to the sweeps {', '.join(WITH_LAYERS)}, and to no other"


def _recipe(found: Record) -> Iterator[str]:
    """Made from the recipe of today; a field that came later has its default.

    A field that is gone had its default then, or the id would be another.
    """
    recipe = resolved(SWEEPS[found.sweep].point(found.point).recipe, PROFILES[found.profile])
    if found.recipe_id != recipe_id(recipe):
        yield "measured from another recipe: measure the point again"
    today = as_json(recipe)
    then = as_today(found.recipe, today, RECIPE)
    for name, value in today.items():
        if then[name] != value:
            yield f"{name} was {then[name]}, is {value}"


RECIPE = as_json(Recipe())
RECIPES = ("start", "teacher", "more_teachers")
CHANGES = {
    type(change).__name__: asdict(type(change)())
    for sweep in SWEEPS.values()
    for point in sweep.points()
    for change in point.recipe.changes
}


def as_today(then: Any, value: Any, defaults: Any) -> Any:
    """A recorded value with the fields of today's: new ones at their default, lost ones gone."""
    if isinstance(then, list) and isinstance(value, list) and len(then) == len(value):
        return [as_today(*pair, defaults) for pair in zip(then, value, strict=True)]
    if not (isinstance(then, dict) and isinstance(value, dict)):
        return then
    return {
        key: as_today(
            then.get(key, defaults.get(key)),
            part,
            RECIPE if key in RECIPES else CHANGES.get(key) or defaults.get(key) or {},
        )
        for key, part in value.items()
    }


def _numbers(found: Record) -> Iterator[str]:
    if found.failed:
        if {len(values) for values in found.curve.values()} != {found.failed["epoch"] - 1}:
            yield "the curve does not end before the epoch that failed"
        return
    missing = set(SWEEPS[found.sweep].metrics) - set(found.metrics)
    if not found.recipe["savings"]:
        # There is nothing to compare: it is what the others are compared with.
        missing -= {"max_logit_difference", "max_logit_difference_stored", "bit_identical"}
    if not found.recipe.get("prune", {}).get("sparsities"):
        missing -= {"sparsity"}  # of the dense network before the rounds
    if not found.recipe["train"]["epochs"]:
        missing -= {"validation_divergence"}
        if "recall_at_1" in found.metrics:
            missing -= {"top1"}  # images are found by the features of an untrained network
    if not found.recipe.get("train", {}).get("hold_out", True):
        missing -= {"validation_top1", "selected_top1"}
    if missing:
        yield f"{sorted(missing)} were not measured"
    for name, value in found.metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            yield f"{name} is {value}"
        elif name.startswith("top") and not 0 <= value <= 1:
            yield f"{name} is {value}, no fraction"
    rated = not ON_IMAGES.isdisjoint(found.metrics)
    if found.dataset != (PROFILES[found.profile].dataset if rated else "none"):
        yield f"data set {found.dataset}"
    for name in ("param_storage", "math_ops"):
        if found.sweep == "published":
            total = sum(row.get(name, 0) for row in found.layers)
            if not math.isclose(total, found.metrics.get(f"published.{name}", 0), rel_tol=1e-9):
                yield f"the layers' {name} add up to {total}"


def _machine(found: Record) -> Iterator[str]:
    env = found.env
    if not set(env) >= ENV_KEYS:
        yield f"no {sorted(ENV_KEYS - set(env))}"
        return
    good = {
        "commit": re.fullmatch(r"[0-9a-f]{7,40}", env["commit"]),
        "device": env["device"],
        "torch": re.match(r"\d+\.\d+", env["torch"]),
        "python": re.fullmatch(r"3\.\d+\.\d+\S*", env["python"]),
        "wall_s": env["wall_s"] >= 0,
        "date": datetime.fromisoformat(env["date"]).tzinfo is not None,
        "cuda": (env["cuda"] is None) == ("CPU" in env["device"]),
    }
    yield from (f"{name} is {env[name]!r}" for name, is_good in good.items() if not is_good)


def test_an_edited_record_is_noticed():
    path = next(path for path in sorted(MEASURED.rglob("*.json")) if "published" not in path.parts)
    content = json.loads(path.read_text())
    for change in (
        {"seed": 99},
        {"dataset": "embedded"},
        {"layers": [{"layer": "stem"}]},
        {"recipe_id": "0" * 10},
        {"metrics": {"top1": 80.0}},
        {"env": {"commit": "abc1234"}},
    ):
        found = Record(**(content | change))
        assert [*_place(found, path), *_recipe(found), *_numbers(found), *_machine(found)], change


def test_a_training_that_failed_under_one_name_and_went_well_under_another_counts(tmp_path):
    lost = replace(failed_record(), sweep="a_first", point="dense", curve={"lr": [0.1]})
    good = replace(record(curve={"lr": [0.1]}), sweep="b_second", point="dense")
    for entry in (lost, good):
        records.write(entry, tmp_path)
    found = records.read_sweep(SWEEP, "quick", tmp_path)
    assert [entry.metrics for entry in found] == [good.metrics]
    assert records.failures(SWEEP, "quick", tmp_path) == []
