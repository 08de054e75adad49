"""The training loop: it learns, resumes to the last bit, and stops when a loss is no number."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from small_networks import seeded, single_thread

from micronet_lib.assembled_cnn.drop_block import DropBlockConfig
from micronet_lib.augmentation.policies import AugmentConfig, uniform_policies
from micronet_lib.distillation import DistillationConfig
from micronet_lib.errors import InputError
from micronet_lib.hooks import Hook
from micronet_lib.lab.data.images import ImageSet
from micronet_lib.lab.host import progress
from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.running.networks import fresh_network
from micronet_lib.lab.storage.states import load_state
from micronet_lib.lab.training import loop as training
from micronet_lib.lab.training.loop import DivergedError, Run, TrainingData, train
from micronet_lib.lab.training.step import Step
from micronet_lib.pruning.schedules import PruneTo

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
    return ImageSet(pixels, targets)


def start(recipe: Recipe, seed: int = 0, num: int = 40, **more: object) -> Run:
    policies = uniform_policies(seeded(0), 20) if recipe.augment.policy != "none" else None
    test = images(20, 2) if recipe.train.watch_test else None
    data = TrainingData(images(num, 0), images(30, 1), test, policies)
    return Run(fresh_network(recipe, seed), recipe, data, seed, **more)


def weights(run: Run) -> list[torch.Tensor]:
    return [*run.network.state_dict().values(), *run.rated.state_dict().values()]


def start_pruned(recipe: Recipe) -> Run:
    """Half of the weights pruned and held, and a teacher."""
    run = start(recipe, teacher=fresh_network(tiny(PAPER), 1).eval())
    change = PruneTo(0.5)
    run.step.hooks += change.hooks(change.apply(run.network))
    return run


RESUMED = {  # how it starts, the recipe, the epochs before it is killed
    "every hook": (
        start_pruned,
        replace(
            tiny(PAPER, cycles=2, ema_decay=0.9, freeze=("stem", "blocks.1"), optimizer="adamw"),
            srip=replace(PAPER.srip, start="warm"),
            distillation=DistillationConfig(0.5, 2.0),
        ),
        3,
    ),
    "released, warm restarts": (start, tiny(RELEASED), 1),
    "two batches mixed, squares dropped, warm-up": (
        start,
        replace(
            tiny(PAPER, warm_up=0.3),
            augment=AugmentConfig(policy="random", mix="mixup_two_batches"),
            drop_block=DropBlockConfig({"blocks.*": 1.0}, keep_prob=0.7, block_size=3),
        ),
        2,
    ),
    "mixup, plain": (start, tiny(replace(PAPER, augment=AugmentConfig(mix="mixup"))), 2),
}


class Killed(BaseException):
    pass


def test_a_state_that_is_loaded_is_not_read_again(tmp_path, monkeypatch):
    recipe = tiny(PAPER, epochs=2)
    begun = start(recipe)
    begun.run_epoch()
    again = start(recipe)
    again.load_state_dict(copy.deepcopy(begun.state_dict()))
    monkeypatch.setattr(training, "load_state", lambda *_: pytest.fail("read again"))
    train(again, tmp_path, "toy", progress=False)
    begun.run_epoch()
    assert all(map(torch.equal, weights(again), weights(begun)))


def test_decisions_made_ahead_are_those_of_the_epoch():
    """As on a GPU, which still works on the epoch before."""
    recipe = tiny(PAPER)
    run, ahead = start(recipe), start(recipe)
    torch.rand(7)
    ahead._ahead[1] = ahead._decide(1)
    for each in (run, ahead):
        each.run_epoch()
        each.run_epoch()
    assert ahead._ahead == {}
    weights = (each.network.state_dict().values() for each in (run, ahead))
    assert all(map(torch.equal, *weights))


@pytest.mark.parametrize(("begin", "recipe", "cut"), RESUMED.values(), ids=RESUMED)
def test_a_run_that_is_killed_and_resumed_ends_in_the_same_bits(
    begin, recipe, cut, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    alone = train(begin(recipe), None, "toy", progress=False)
    killed, take_step = begin(recipe), Step.__call__

    def dies_within_an_epoch(self, *given):
        if killed.epoch == cut and self.loss.item():
            raise Killed
        take_step(self, *given)

    monkeypatch.setattr(Step, "__call__", dies_within_an_epoch)
    with pytest.raises(Killed):
        train(killed, tmp_path, "toy", progress=False)
    monkeypatch.setattr(Step, "__call__", take_step)
    torch.rand(7)
    state = load_state(tmp_path, "toy")
    monkeypatch.setattr(training, "COMMIT", "abc1234")  # a commit was made in between
    second = begin(recipe)
    resumed = train(second, tmp_path, "toy", progress=False)
    assert resumed.commits == [*state["commits"], "abc1234"]
    assert len(state["commits"]) == 1
    assert resumed.seconds > state["seconds"] > 0
    assert resumed.curve == alone.curve
    assert len(resumed.curve["lr"]) == EPOCHS
    for ours, theirs in (
        (resumed.network.state_dict(), alone.network.state_dict()),
        (resumed.best_state, alone.best_state),
    ):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert killed.epoch == cut


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
    recipe = tiny(Recipe(), epochs=6, lr=0.05, dropout=0.0)
    run = start(replace(recipe, augment=AugmentConfig(crop=False, flip=False)), num=160)
    trained = train(run, None, "toy", progress=False)
    assert trained.curve["train_loss"][-1] < 0.5 * trained.curve["train_loss"][0]
    assert trained.curve["validation_top1"][-1] >= 0.3  # by chance 0.1 of ten classes
    assert not trained.network.training


def test_the_last_batch_is_dropped_and_every_epoch_has_another_order():
    run, seen = start(tiny(PAPER)), []
    plain = run.step.loss_of
    run.step.loss_of = lambda images, targets, draw, taught: (
        seen.append(targets) or plain(images, targets, draw, taught)
    )
    assert run.steps == 40 // 16
    run.run_epoch()
    run.run_epoch()
    first, second = torch.cat(seen[: run.steps]), torch.cat(seen[run.steps :])
    assert len(first) == len(second) == 32
    assert not torch.equal(first, second)


def test_two_batches_are_mixed_without_more_steps_and_every_image_comes_twice():
    recipe = replace(tiny(PAPER), augment=AugmentConfig(mix="mixup_two_batches"))
    run, seen = start(recipe), []
    plain = run.step.loss_of
    run.step.loss_of = lambda images, targets, draw, taught: (
        seen.append((targets, draw)) or plain(images, targets, draw, taught)
    )
    assert run.steps == 40 // 16
    run.run_epoch()
    assert [len(targets) for targets, _ in seen] == [32, 32]
    assert all(draw.lam.shape == (16,) for _, draw in seen)
    # Ten classes of four images; each half of the batches is an order of 32 of the 40.
    for half in (slice(0, 16), slice(16, 32)):
        counts = torch.bincount(torch.cat([targets[half] for targets, _ in seen]), minlength=10)
        assert counts.sum() == 32
        assert counts.max() <= 4
    first, second = (torch.cat([t[half] for t, _ in seen]) for half in (slice(16), slice(16, 32)))
    assert not torch.equal(first, second)


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
    assert run.rated is not run.network
    assert not torch.equal(run.rated.stem.conv.weight, run.network.stem.conv.weight)


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match=r"12 training images .* 16"):
        start(tiny(PAPER), num=12)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)

    class Poison(Hook):
        def start_epoch(self, epoch: int) -> None:
            if epoch == 2:
                run.network.stem.conv.weight.data.fill_(torch.nan)

    run = start(tiny(PAPER), hooks=[Poison()])
    with pytest.raises(DivergedError, match=r"loss .*epoch 3$") as caught:
        train(run, tmp_path, "toy", progress=False)
    assert (caught.value.what, caught.value.epoch) == ("loss", 3)
    state = load_state(tmp_path, "toy")
    assert state is not None
    assert state["epoch"] == 2
    assert all(torch.isfinite(value).all() for value in state["network"].values())


def test_weights_that_break_in_the_last_step_stop_the_run():
    class Break(Hook):
        def after_step(self) -> None:
            steps.append(0)
            if len(steps) == run.steps:
                run.network.stem.conv.weight.data[0, 0, 0, 0] = torch.inf

    steps: list[int] = []
    run = start(tiny(PAPER), hooks=[Break()])
    with pytest.raises(DivergedError, match=r"weights .* last step of epoch 1") as caught:
        run.run_epoch()
    assert (caught.value.what, caught.value.epoch) == ("weights", 1)
    assert run.epoch == 0


def test_the_bar_tells_loss_accuracy_speed_and_time_left(capsys, monkeypatch):
    options = {"file": sys.stderr, "mininterval": 0.0, "miniters": 1, "disable": False}
    monkeypatch.setattr(progress, "_options", lambda shown: options)
    train(start(tiny(PAPER, epochs=2)), None, "toy run", "sweep/point")
    printed = capsys.readouterr().err
    for word in ("sweep/point", "img/s", "epoch 1/2", "loss 4."):
        assert word in printed
