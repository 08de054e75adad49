"""The files that decide a network are in its record, as they were when they were used."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_records import record
from published_format import pruned_network, published_state, save
from tiny_lab import rounds, sweep_of, tiny_lab

from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.errors import InputError
from micronet_lib.lab import records
from micronet_lib.lab.data.downloads import ASSETS, published_digests
from micronet_lib.lab.recipes import profile as profiles
from micronet_lib.lab.recipes.bases import PAPER, PAPER_POLICY, PLAIN
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.inputs import all_input_paths
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.records import record as record_files
from micronet_lib.lab.running.measure import ensure
from micronet_lib.lab.training import loop
from micronet_lib.pruning.schedules import PruneConfig, PruneTo

FILES = {
    "micronet_v1_pr_60.t7": "kaist",
    "micronet_v2_pr_30.t7": "kaist",
    "fast_autoaugment_cifar100.json": "policies",
}
V1, V2 = (Recipe(checkpoint=Path(name).stem) for name in list(FILES)[:2])
SEARCHED = AugmentConfig(policy="searched")
BASE = replace(PLAIN, augment=PAPER_POLICY)


@pytest.fixture
def lab(tmp_path):
    with tiny_lab(tmp_path) as lab:
        for number, (name, folder) in enumerate(FILES.items()):
            place = lab.data / folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if folder == "kaist":
                save(published_state(pruned_network("micronet_v1", 0.1 * number)), place)
            else:
                sub_policy = [["Invert", 0.5, 0.0], ["Rotate", 1.0, 1.0]]
                place.write_text(json.dumps({PAPER_POLICY.policy_set: [sub_policy]}))
        yield lab


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recorded(sweep, point: str, runs: Path) -> dict[str, str]:
    ensure(sweep, "smoke", progress=False)
    path = runs / records.record_path(sweep.name, point, "smoke", 0)
    return records.read(path).env.get("inputs", {})


def student(start: Recipe, teacher: Recipe | None) -> Recipe:
    return Recipe(start=start, changes=(PruneTo(0.7),), teacher=teacher, train=PAPER.train)


CASES = {
    "a file": (V1, ["v1"]),
    "fresh": (Recipe(), []),
    "no policy": (PLAIN, []),
    "policies": (BASE, ["fast"]),
    "searched": (replace(PLAIN, augment=SEARCHED), ["searched"]),
    "start": (student(V1, None), ["v1"]),
    "start and teacher": (student(V1, V2), ["v1", "v2"]),
    "only rated": (Recipe(start=student(V1, V2)), ["v1", "v2"]),
    "initialised": (
        Recipe(
            train=TrainConfig(
                0, 1, initialization="trained_distribution", initialize_from=V1.checkpoint
            )
        ),
        ["v1"],
    ),
}


@pytest.mark.parametrize(("recipe", "expected"), CASES.values(), ids=CASES)
def test_a_record_names_every_file_with_its_digest(lab, recipe, expected):
    paths = all_input_paths(recipe)
    found = recorded(sweep_of(only=recipe), "only", lab.runs)
    assert found == {path.name: digest(path) for path in paths}
    assert sorted(name for name in found) == sorted({p.name for p in paths})
    assert len(found) == len(expected)
    assert all(any(word in name for name in found) for word in expected)


def test_rounds_inherit_the_files_of_the_dense_training(lab):
    sweep = rounds(BASE, PruneConfig((0.3, 0.6)))
    before = recorded(sweep, "dense", lab.runs)
    assert list(before) == ["fast_autoaugment_cifar100.json"]
    assert recorded(sweep, "round2", lab.runs) == before


@pytest.mark.parametrize("name", FILES)
def test_they_are_digests_of_the_files_that_were_used(name, lab, tmp_path):
    """Whatever lies there when the record is written."""
    recipe = student(V1, V2) if name.endswith(".t7") else BASE
    path = lab.data / FILES[name] / name
    before = digest(path)
    sweep = sweep_of(only=recipe)
    recorded(sweep, "only", lab.runs)
    written = next(lab.runs.rglob("only-s0.json"))
    written.unlink()
    path.write_bytes(b"another file")
    assert recorded(sweep, "only", lab.runs)[name] == before


def test_a_training_does_not_go_on_with_another_file(lab, monkeypatch):
    sweep = sweep_of(only=replace(BASE, train=replace(BASE.train, epochs=1200)))
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0)
    whole = loop.Run.run_epoch

    def stop_after_one(run, bar=None):
        if run.epoch == 1:
            raise KeyboardInterrupt
        whole(run, bar)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "run_epoch", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            ensure(sweep, "smoke", progress=False)
    path = lab.data / "policies" / "fast_autoaugment_cifar100.json"
    old = path.read_bytes()
    path.write_bytes(old + b"\n")
    with pytest.raises(InputError, match=path.name):
        ensure(sweep, "smoke", progress=False)
    path.write_bytes(old)
    assert recorded(sweep, "only", lab.runs) == {path.name: digest(path)}


# -------------------------------------------------------------------------- the searched policies


def test_another_search_makes_another_recipe_of_the_searched_policy_only(tmp_path, monkeypatch):
    points = [point.recipe for sweep in SWEEPS.values() for point in sweep.points()]
    points += [student(replace(PLAIN, augment=SEARCHED), None), replace(V1, augment=SEARCHED)]
    quick = PROFILES["quick"]
    before = [recipe_id(resolved(recipe, quick)) for recipe in points]
    other = tmp_path / "searched.json"
    other.write_text("{}")
    monkeypatch.setattr(profiles, "policy_path", lambda kind: other)
    after = [recipe_id(resolved(recipe, quick)) for recipe in points]
    changed = [recipe for recipe, old, new in zip(points, before, after, strict=True) if old != new]
    assert [r for r in points if "policy='searched'" in repr(r)] == changed
    assert len(changed) == 3
    found = resolved(changed[0], quick)
    assert digest(other).startswith(found.augment.policy_digest)
    assert resolved(found, PROFILES["full"]).augment == found.augment  # a given one stays


# ------------------------------------------------------------------------------ promotion


def test_every_published_file_has_a_known_digest():
    known = published_digests()
    assert FILES.keys() <= known.keys()
    assert len(known) == sum(asset.group != "cifar100" for asset in ASSETS)
    assert all(len(value) == 64 for value in known.values())
    for sweep in SWEEPS.values():
        for point in sweep.points():
            assert {p.name for p in all_input_paths(point.recipe)} <= known.keys() | {
                "searched.json"
            }


@pytest.mark.parametrize(
    "sweep_and_point", ["published/v1_pr_60", "augmentation/searched", "stages/3.0-cutmix"]
)
def test_only_records_of_the_published_files_are_promoted(sweep_and_point, tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "in_history", "abc1234".__eq__)
    sweep, point = sweep_and_point.split("/")
    profile = "full" if sweep == "published" else "quick"
    recipe = resolved(SWEEPS[sweep].point(point).recipe, PROFILES[profile])
    known = published_digests() | {
        path.name: digest(path) for path in all_input_paths(recipe) if path.name == "searched.json"
    }
    (name,) = {path.name for path in all_input_paths(recipe)}
    for number, (inputs, good) in enumerate(
        [
            ({name: known[name]}, True),
            ({name: "0" * 64}, False),
            ({"other.t7": known[name]}, False),
            ({}, False),
        ]
    ):
        made = record(sweep=sweep, profile=profile, recipe_id=recipe_id(recipe))
        made = replace(made, point=point, env=made.env | {"inputs": inputs})
        path = records.write(made, tmp_path / f"runs{number}")
        if good:
            assert records.promote([path], tmp_path / "measured")[0].path.is_file()
            continue
        with pytest.raises(InputError, match=name):
            records.promote([path], tmp_path / "measured2")
        assert not (tmp_path / "measured2").exists()


def test_a_committed_record_of_another_recipe_is_to_be_measured_again(tmp_path):
    sweep = SWEEPS["augmentation"]
    made = {}
    for seed, digits in enumerate(("", "0" * 16)):
        recipe = resolved(sweep.point("searched").recipe, PROFILES["quick"])
        recipe = replace(recipe, augment=replace(recipe.augment, policy_digest=digits))
        made[seed] = replace(
            record(sweep=sweep.name, seed=seed, recipe_id=recipe_id(recipe)), point="searched"
        )
        records.write(made[seed], tmp_path)
    assert records.read_sweep(sweep, "quick", tmp_path) == []
    today = recipe_id(resolved(sweep.point("searched").recipe, PROFILES["quick"]))
    records.write(replace(made[1], recipe_id=today), tmp_path)
    assert [found.seed for found in records.read_sweep(sweep, "quick", tmp_path)] == [1]
