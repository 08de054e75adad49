"""Settings that are wrong together are refused together, and before anything runs."""

from dataclasses import replace
from itertools import permutations

import pytest
from tiny_lab import sweep_of, tiny_lab

from micronet_lib.distillation import DistillationConfig
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import NUM_IMAGES, SPLITS, load_split
from micronet_lib.lab.recipes.bases import PAPER, RELEASED, STAGES
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.optimisation import TrainConfig
from micronet_lib.lab.recipes.profile import PROFILES, resolved
from micronet_lib.lab.recipes.recipe import Price, Recipe, with_overrides
from micronet_lib.lab.running.measure import ensure
from micronet_lib.pruning.schedules import PruneConfig, PruneTo

ROUNDS = replace(PAPER, prune=PruneConfig((0.3, 0.6), rewind="early", early_share=0.05))
FILE = Recipe(checkpoint="micronet_v1_pr_60")
CHAIN = Recipe(start=PAPER, changes=(PruneTo(0.5),), train=PAPER.train)
EXIT = SWEEPS["early_exit"].point("block_6").recipe
STUDENT = replace(CHAIN, teacher=FILE)

WRONG = [
    (ROUNDS, {"prune.early_share": 0}, ("rewind", "early_share")),
    (ROUNDS, {"prune.rewind": "early", "prune.early_share": 30}, ("early_share", "fraction")),
    (ROUNDS, {"train.epochs": 0}, ("sparsities", "epochs")),
    (CHAIN, {"prune.rewind": "initial"}, ("rewind", "starts from")),
    (FILE, {"prune.rewind": "early", "prune.early_share": 0.1}, ("rewind", "starts from")),
    (PAPER, {"train.batch_size": 64, "train.num_images": 63}, ("batch_size", "63")),
    (PAPER, {"train.num_images": 50_001}, ("num_images", "data set")),
    (PAPER, {"train.num_classes": 80, "train.num_images": 36_001}, ("num_images", "80 classes")),
    (PAPER, {"train.num_classes": 101}, ("num_classes", "100")),
    (PAPER, {"train.labels": "coarse"}, ("labels", "superclass")),
    (PAPER, {"train.num_validation": 5_001}, ("num_validation", "data set")),
    (CHAIN, {"start.train.num_images": 50_001}, ("num_images", "data set")),
    (PAPER, {"train.initialize_from": "micronet_v1_pr_60"}, ("initialize_from", "initialization")),
    (PAPER, {"train.initialization": "trained_distribution"}, ("initialize_from",)),
    (PAPER, {"savings": ["dead_gates"]}, ("savings", "epochs")),
    (PAPER, {"distillation.temperature": 4}, ("distillation", "teacher")),
    (CHAIN, {"start.distillation.weight": 0.5}, ("distillation", "teacher")),
    (PAPER, {"distillation.offline": True}, ("distillation", "teacher")),
    (
        PAPER,
        {"augment.mix": "mixup_one_batch", "train.batch_size": 33},
        ("mixup_one_batch", "33"),
    ),
    (RELEASED, {"train.warm_up": 0.1}, ("warm_up", "cycle")),
    (PAPER, {"train.warm_up": 1}, ("warm_up", "less than 1")),
    (STUDENT, {"train.epochs": 0}, ("teacher", "epochs")),
    (STUDENT, {"teacher": Recipe()}, ("teacher", "never trained")),
    (CHAIN, {"changes": (PruneTo(0.6), PruneTo(0.5))}, ("0.5", "0.6")),
    (CHAIN, {"start.prune": PruneConfig((0.7,)), "start.start": None}, ("0.5", "0.7")),
    (Recipe(start=CHAIN, changes=(PruneTo(0.4),)), {}, ("0.4", "0.5")),
    (ROUNDS, {"train.relative_lr": True}, ("rewind", "relative_lr")),
    (EXIT, {"train.hold_out": False}, ("hold_out", "exit")),
    (PAPER, {"price.weight_bits": 8}, ("weight and activation bits",)),
    (PAPER, {"price.accumulator": "integer"}, ("accumulator",)),
    (PAPER, {"price": Price(64, 64)}, ("from 1 to 32",)),
    (PAPER, {"train.optimizer": "adam", "train.momentum": 1}, ("momentum", "less than 1")),
    (PAPER, {"train.ema_decay": 1}, ("ema_decay", "less than 1")),
    (RELEASED, {"train.epochs": 6}, ("epochs", "cycles")),
    (PAPER, {"train.lr": 1e-4}, ("min_lr", "0.0001")),
    (PAPER, {"train.lr": float("inf")}, ("train.lr", "finite")),
]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("recipe", [ROUNDS, FILE, CHAIN, STUDENT, PAPER, RELEASED])
def test_without_them_the_recipes_are_fine(recipe, profile):
    resolved(recipe, PROFILES[profile])


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("recipe", "overrides", "said"), WRONG, ids=[" and ".join(o) or "chain" for _, o, _ in WRONG]
)
def test_they_are_refused_at_every_profile_in_one_line(recipe, overrides, said, profile):
    for order in permutations(overrides.items()):
        with pytest.raises(InputError) as caught:
            resolved(recipe, PROFILES[profile], dict(order))
        assert all(word in str(caught.value) for word in said), caught.value
        assert "\n" not in str(caught.value)


def test_nothing_is_trained_before_the_refusal(tmp_path):
    """The wrong point is the last; the others are fine and would be trained first."""
    base = replace(PAPER, model="c_efficientnet_3.0")
    wrong = replace(base, train=replace(base.train, num_images=4_501))
    with tiny_lab(tmp_path) as lab:
        budget = replace(PROFILES["smoke"], num_images=0)
        pytest.MonkeyPatch().setitem(PROFILES, "smoke", budget)
        for last in (wrong, Recipe(start=base, distillation=DistillationConfig(0.5))):
            with pytest.raises(InputError):
                ensure(sweep_of(base=base, last=last), "smoke", progress=False)
        assert lab.trained == lab.recorded == []


@pytest.mark.parametrize(
    "overrides",
    [
        {"train.epochs": 8, "train.cycles": 4},
        {"train.min_lr": 1e-5, "train.lr": 1e-4},
        {"train.num_images": 64, "train.batch_size": 64},
        {"train.initialize_from": "a", "train.initialization": "trained_distribution"},
        {"distillation.temperature": 4, "teacher.checkpoint": "a"},
        {"start": None, "checkpoint": "a", "changes": []},
        {"prune.rewind": "early", "prune.early_share": 0.1},
    ],
    ids=lambda overrides: " and ".join(overrides),
)
def test_together_they_may_be_right_in_any_order(overrides):
    base = replace(PAPER, prune=PruneConfig((0.3,))) if "prune.rewind" in overrides else CHAIN
    for profile in PROFILES.values():
        orders = [dict(order) for order in permutations(overrides.items())]
        found = [resolved(base, profile, order) for order in orders]
        assert all(each == found[0] for each in found)


def test_later_keys_win_over_earlier_ones():
    several = {"train": {"epochs": 2, "lr": 1}, "train.epochs": 3, "train.freeze": ["a"]}
    assert with_overrides(Recipe(), several).train == TrainConfig(epochs=3, lr=1.0, freeze=("a",))
    whole = {"train.epochs": 3, "train": TrainConfig(lr=0.2)}
    assert with_overrides(Recipe(), whole).train == TrainConfig(lr=0.2)


def test_every_recipe_of_the_book_is_right_at_every_profile():
    for sweep in SWEEPS.values():
        for profile in sweep.profiles:
            for point in sweep.points():
                found = resolved(point.recipe, PROFILES[profile])
                plain = PROFILES[profile].apply(point.recipe)
                same = recipe_id(found) == recipe_id(plain)
                assert same is (found.augment.policy != "searched")  # it gets its file's digest
    assert all(
        recipe in [p.recipe for p in SWEEPS["stages"].points()] for recipe in STAGES.values()
    )


@pytest.mark.parametrize("split", SPLITS)
def test_the_sizes_are_those_of_the_data(split):
    assert NUM_IMAGES["embedded"][split] == len(load_split("embedded", split))
    assert {name: 10 * n for name, n in NUM_IMAGES["embedded"].items()} == NUM_IMAGES["cifar100"]
