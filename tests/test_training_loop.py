"""The training loop: it learns, resumes to the last bit, and stops when a loss is no number."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from small_networks import seeded, single_thread

from micronet_lib.augmentation.policies import AugmentConfig, uniform_policies
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import ImageSet
from micronet_lib.lab.host import progress
from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.networks import fresh_network
from micronet_lib.lab.storage.states import load_state
from micronet_lib.lab.training import loop as training
from micronet_lib.lab.training.loop import DivergedError, Run, TrainingData, train

EPOCHS = 4


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


def tiny(recipe: Recipe, **changes: object) -> Recipe:
    settings = {"epochs": EPOCHS, "batch_size": 16, "bn_momentum": 0.2} | changes
    return replace(recipe, width_mult=0.1, train=replace(recipe.train, **settings))


def images(num: int, seed: int) -> ImageSet:
    """Ten classes that differ in brightness, so that there is something to learn."""
    targets = torch.arange(num) % 10
    noise = torch.randint(60, (num, 3, 32, 32), generator=seeded(seed))
    pixels = (noise + 19 * targets[:, None, None, None]).to(torch.uint8)
    return ImageSet(pixels, targets, targets)


def start(recipe: Recipe, seed: int = 0, num: int = 40) -> Run:
    policies = uniform_policies(seeded(0), 20) if recipe.augment.policy != "none" else None
    test = images(20, 2) if recipe.train.watch_test else None
    data = TrainingData(images(num, 0), images(30, 1), test, policies)
    return Run(fresh_network(recipe, seed), recipe, data, seed)


def weights(run: Run) -> list[torch.Tensor]:
    return [*run.model.state_dict().values(), *run.rated.state_dict().values()]


RECIPES = {
    "paper, moving average, warm SRIP": replace(
        tiny(PAPER, ema_decay=0.9), srip=replace(PAPER.srip, start="warm")
    ),
    "released, warm restarts": tiny(RELEASED),
    "mixup, plain": tiny(replace(PAPER, augment=AugmentConfig(mix="mixup", mix_prob=0.5))),
}


@pytest.mark.parametrize(
    ("recipe", "cut"), list(zip(RECIPES.values(), (1, 3, 2), strict=True)), ids=RECIPES
)
def test_a_resumed_run_ends_in_the_same_bits(recipe, cut):
    alone = start(recipe)
    for _ in range(EPOCHS):
        alone.run_epoch()
    first = start(recipe)
    for _ in range(cut):
        first.run_epoch()
    state = copy.deepcopy(first.state_dict())
    first.run_epoch()  # what is lost when the process dies
    torch.rand(7)
    second = start(recipe)
    second.load_state_dict(state)
    while second.epoch < EPOCHS:
        second.run_epoch()
    assert second.curve == alone.curve
    assert all(map(torch.equal, weights(second), weights(alone)))
    assert all(map(torch.equal, second.best_state.values(), alone.best_state.values()))


def test_the_seed_decides_everything_and_the_callers_generators_are_left_alone():
    recipe = tiny(PAPER, epochs=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    runs = []
    for seed in (0, 0, 1):
        runs.append(start(recipe, seed))
        torch.manual_seed(5)
        runs[-1].run_epoch()
        assert torch.equal(torch.rand(3), expected)
    assert all(map(torch.equal, weights(runs[0]), weights(runs[1])))
    assert not torch.equal(weights(runs[0])[0], weights(runs[2])[0])


def test_it_learns():
    recipe = tiny(Recipe(), epochs=8, lr=0.05, dropout=0.0)
    run = start(replace(recipe, augment=AugmentConfig(crop=False, flip=False)), num=80)
    trained = train(run, None, "toy", progress=False)
    assert trained.curve["train_loss"][-1] < 0.7 * trained.curve["train_loss"][0]
    assert trained.curve["validation_top1"][-1] >= 0.3  # by chance 0.1 of ten classes
    assert not trained.model.training


def test_the_last_batch_is_dropped_and_every_epoch_has_another_order():
    run = start(tiny(PAPER))
    assert run.steps == 40 // 16
    seen: list[torch.Tensor] = []
    run.step.table.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run.run_epoch()
    run.run_epoch()
    first, second = torch.cat(seen[: run.steps]), torch.cat(seen[run.steps :])
    assert len(first) == len(second) == 32
    assert not torch.equal(first, second)


def test_label_smoothing_follows_the_classifier_epoch_by_epoch():
    run = start(tiny(PAPER))
    tables = []
    for _ in range(2):
        run.run_epoch()
        tables.append(run.step.table.table.clone())
    assert not torch.equal(*tables)


def test_momentum_is_forgotten_at_a_warm_restart_only():
    run = start(tiny(RELEASED, cycles=2, lr=0.0, min_lr=0.0, weight_decay=0.0))
    forgotten = []
    run._forget_momentum = lambda: forgotten.append(run.epoch)
    for _ in range(EPOCHS):
        run.run_epoch()
    assert forgotten == [0, 2]


def test_watching_the_test_images_changes_nothing():
    watched, alone = start(tiny(RELEASED)), start(tiny(RELEASED, watch_test=False))
    for run in (watched, alone):
        run.run_epoch()
    assert all(map(torch.equal, weights(watched), weights(alone)))
    assert len(watched.curve["test_top1"]) == 1
    assert "test_top1" not in alone.curve


def test_the_moving_average_is_what_is_rated():
    run = start(tiny(PAPER, ema_decay=0.5))
    run.run_epoch()
    assert run.rated is not run.model
    assert not torch.equal(run.rated.stem.conv.weight, run.model.stem.conv.weight)


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="12 training images do not fill one batch of 16"):
        start(tiny(PAPER), num=12)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    run = start(tiny(PAPER))
    whole_epoch = Run.run_epoch

    def poisoned(self, bar=None):
        if self.epoch == 2:
            self.model.stem.conv.weight.data.fill_(torch.nan)
        whole_epoch(self, bar)

    monkeypatch.setattr(Run, "run_epoch", poisoned)
    with pytest.raises(DivergedError, match=r"loss became nan in epoch 3 .* no record is written"):
        train(run, tmp_path, "toy", progress=False)
    state = load_state(tmp_path, "toy")
    assert state is not None
    assert state["epoch"] == 2
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_weights_that_break_in_the_last_step_stop_the_run():
    run = start(tiny(PAPER))
    train_epoch = run._train_epoch

    def broken_at_the_end(generator, bar):
        train_epoch(generator, bar)
        run.model.stem.conv.weight.data[0, 0, 0, 0] = torch.inf

    run._train_epoch = broken_at_the_end
    with pytest.raises(DivergedError, match=r"weights became .* last step of epoch 1: no record"):
        run.run_epoch()
    assert run.epoch == 0


def test_the_bar_tells_loss_accuracy_speed_and_time_left(capsys, monkeypatch):
    options = {"file": sys.stderr, "mininterval": 0.0, "miniters": 1, "disable": False}
    monkeypatch.setattr(progress, "_options", lambda shown: options)
    train(start(tiny(PAPER, epochs=2)), None, "toy run")
    told = capsys.readouterr().err
    for word in ("toy run", "img/s", "epoch 1/2", "loss 4."):
        assert word in told
