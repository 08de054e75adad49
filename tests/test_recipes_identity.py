"""A recipe's id: what changes it, and what leaves it alone."""

import json
import re
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from micronet_lib.assembled_cnn import ArcFaceConfig
from micronet_lib.assembled_cnn.drop_block import DropBlockConfig
from micronet_lib.augmentation.policies import AugmentConfig
from micronet_lib.distillation import DistillationConfig
from micronet_lib.early_exit import ExitLoss
from micronet_lib.lab.recipes import identity
from micronet_lib.lab.recipes.bases import PAPER
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import changed_fields, plain_recipe, recipe_id, run_id
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.recipe import Price, Recipe
from micronet_lib.label_smoothing import SmoothingConfig
from micronet_lib.pruning.schedules import PruneConfig, PruneTo
from micronet_lib.srip.penalty import SripConfig

VALUES = {  # the default, and what differs from it
    "model": ["micronet_v1", "micronet_v2"],
    "options": [{}, {"num_classes": 10}, {"num_classes": 10, "dropout": 0.5}, {"dropout": 1}],
    "width_mult": [1.0, 0.5, 2.0],
    "checkpoint": ["", "micronet_v1_pr_60"],
    "start": [None, Recipe(), Recipe(checkpoint="micronet_v1_pr_60"), PAPER, Recipe(start=PAPER)],
    "changes": [(), (PruneTo(),), (PruneTo(0.5),), (PruneTo(0.5), PruneTo(0.6, "layer"))],
    "teacher": [None, Recipe(), PAPER],
    "more_teachers": [(), (PAPER,), (PAPER, Recipe()), (Recipe(), PAPER)],
    "distillation": [DistillationConfig(), DistillationConfig(0.5), DistillationConfig(1.0, 4.0)],
    "arcface": [ArcFaceConfig(), ArcFaceConfig(0.3), ArcFaceConfig(0.5)],
    "exits": [ExitLoss(), ExitLoss(0.5), ExitLoss(0.5, confidence=False), ExitLoss(1.0)],
    "savings": [(), ("dead_gates",), ("dead_gates", "sixth"), ("sixth", "dead_gates")],
    "price": [Price(), Price(8), Price(0, 8), Price(8, 8, "integer")],
    "train": [
        TrainConfig(),
        TrainConfig(epochs=1),
        TrainConfig(lr=0.2),
        TrainConfig(optimizer="adam"),
        TrainConfig(lr_factors={"head.*": 0.5}),
        TrainConfig(lr_factors={"stem.*": 0.5}),
        TrainConfig(freeze=("stem",)),
        TrainConfig(num_classes=80),
        TrainConfig(labels="superclass"),
    ],
    "srip": [SripConfig(0.0), SripConfig(), SripConfig(0.0, start="warm")],
    "smoothing": [SmoothingConfig(), SmoothingConfig("uniform"), SmoothingConfig("paper")],
    "augment": [AugmentConfig(), AugmentConfig(flip=False), AugmentConfig(mix="cutmix")],
    "drop_block": [
        DropBlockConfig(),
        DropBlockConfig(keep_prob=0.7),
        DropBlockConfig({"blocks.*": 1.0}),
        DropBlockConfig({"blocks.*": 0.25}),
    ],
    "prune": [PruneConfig(), PruneConfig((0.5,)), PruneConfig((0, 0.5)), PruneConfig((0.5, 0.5))],
}


def test_recipe_id_is_ten_hex_digits_of_what_differs_from_the_default():
    assert recipe_id(Recipe()) == "44136fa355"  # the digest of {}
    assert re.fullmatch(r"[0-9a-f]{10}", recipe_id(Recipe(model="micronet_v2")))
    assert run_id(Recipe(), 3) == "44136fa355-s3"


def test_every_value_of_every_field_changes_the_id():
    assert set(VALUES) == {each.name for each in fields(Recipe)}
    assert Recipe(**{name: values[0] for name, values in VALUES.items()}) == Recipe()
    changed = [(name, value) for name, values in VALUES.items() for value in values[1:]]
    ids = {recipe_id(Recipe(**{name: value})) for name, value in changed}
    assert len(ids | {recipe_id(Recipe())}) == len(changed) + 1


def recipes() -> st.SearchStrategy[Recipe]:
    drawn = st.fixed_dictionaries(
        {name: st.sampled_from(values) for name, values in VALUES.items()}
    )

    def possible(chosen: dict) -> bool:
        starts = (
            chosen["checkpoint"] != "",
            chosen["start"] is not None,
            chosen["prune"] != PruneConfig(),
        )
        return sum(starts) < 2 and not (chosen["prune"].sparsities and chosen["changes"])

    return drawn.filter(possible).map(lambda chosen: Recipe(**chosen))


@given(recipes(), recipes(), st.sampled_from(sorted(VALUES)))
def test_recipes_have_the_same_id_exactly_if_they_are_equal(one, other, name):
    assert (recipe_id(one) == recipe_id(other)) == (one == other)
    if name not in ("checkpoint", "start", "changes", "prune"):  # some do not go together
        near = replace(one, **{name: getattr(other, name)})
        assert (recipe_id(one) == recipe_id(near)) == (one == near)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prune": PruneConfig((0, 0.5))}, {"prune": PruneConfig((0.0, 0.5))}),
        ({"prune": PruneConfig((0,))}, {"prune": PruneConfig((0.0,))}),
        ({"width_mult": 2}, {"width_mult": 2.0}),
        ({"options": {"dropout": 0}}, {"options": {"dropout": 0.0}}),
        ({"options": {"a": 1, "b": [2]}}, {"options": {"b": [2.0], "a": 1}}),
        ({"changes": (PruneTo(0),)}, {"changes": (PruneTo(0.0),)}),
        (
            {"train": TrainConfig(lr_factors={"a": 1})},
            {"train": TrainConfig(lr_factors={"a": 1.0})},
        ),
        ({"srip": SripConfig(coef=0)}, {}),
        ({"train": TrainConfig(epochs=0, lr=0.1)}, {}),
    ],
)
def test_equal_recipes_have_one_id(one, other):
    assert Recipe(**one) == Recipe(**other)
    assert recipe_id(Recipe(**one)) == recipe_id(Recipe(**other))


def later(kind: type, **values: object) -> type:
    """A configuration of the same name with fields that were added later."""
    added = [(name, type(value), field(default=value)) for name, value in values.items()]
    return make_dataclass(kind.__name__, added, bases=(kind,), frozen=True)


def test_a_field_added_later_leaves_older_ids_alone(monkeypatch):
    older = [point.recipe for sweep in SWEEPS.values() for point in sweep.points()]
    older.append(Recipe(start=PAPER, changes=(PruneTo(0.5),), teacher=Recipe()))
    ids = [recipe_id(recipe) for recipe in older]
    recipe_now, prune_now = later(Recipe, added=1.0), later(PruneTo, added="")

    def now(recipe: Recipe | None) -> Recipe | None:
        if recipe is None:
            return None
        changes = tuple(
            prune_now(**vars(change)) if isinstance(change, PruneTo) else change
            for change in recipe.changes
        )
        chain = {"start": now(recipe.start), "teacher": now(recipe.teacher), "changes": changes}
        chain["more_teachers"] = tuple(map(now, recipe.more_teachers))
        return recipe_now(**{**vars(recipe), **chain})

    monkeypatch.setattr(identity, "Recipe", recipe_now)
    newer = [now(recipe) for recipe in older]
    assert [recipe_id(recipe) for recipe in newer] == ids
    assert recipe_id(replace(newer[0], added=2.0)) not in ids
    assert recipe_id(replace(newer[-1], changes=(prune_now(0.5, added="x"),))) not in ids
    assert recipe_id(replace(newer[-1], start=replace(newer[-1].start, added=2.0))) not in ids


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    inner: Inner | None = None
    other: Inner | None = field(default_factory=lambda: Inner(2))
    needed: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        (Outer(), {}),
        (Outer(Inner()), {"inner": {}}),
        (Outer(Inner(3)), {"inner": {"size": 3}}),
        (Outer(other=None), {"other": None}),
        (Outer(other=Inner(2)), {}),
        (Outer(other=Inner(1)), {"other": {"size": 1}}),
        (Outer(needed=(Inner(), Inner(4))), {"needed": [{"Inner": {}}, {"Inner": {"size": 4}}]}),
    ],
)
def test_optional_configurations_and_tuples_of_them(config, changed):
    assert changed_fields(config) == changed


def test_a_plain_recipe_is_json_and_names_its_changes():
    student = Recipe(start=Recipe(checkpoint="a"), changes=(PruneTo(0.5),), teacher=Recipe())
    plain = json.loads(json.dumps(plain_recipe(student)))
    assert plain["changes"] == [{"PruneTo": asdict(PruneTo(0.5))}]
    assert plain["start"]["checkpoint"] == "a"
    assert plain["start"].keys() == plain["teacher"].keys() == plain.keys()
    assert plain["train"] == json.loads(json.dumps(asdict(student.train)))
