"""Learning rates at the ends and corners of every schedule, and settings that are refused."""

import math

import pytest

from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.optimisation import TrainConfig, learning_rate


def rates(config: TrainConfig, num: int) -> list[float]:
    return [learning_rate(config, step / num) for step in range(num)]


def test_cosine_falls_from_the_highest_to_nearly_the_lowest():
    found = rates(TrainConfig(epochs=1), 1000)
    assert found[0] == 0.1
    assert found == sorted(found, reverse=True)
    assert found[500] == pytest.approx((0.1 + 0.0005) / 2)
    assert 0.0005 < found[-1] < 0.00051


def test_a_warm_up_rises_in_a_straight_line_and_the_schedule_takes_the_rest():
    config = TrainConfig(epochs=1, warm_up=0.2)
    found = rates(config, 1000)
    assert found[:200] == pytest.approx([0.1 * step / 200 for step in range(200)])
    assert found[200:] == pytest.approx(rates(TrainConfig(epochs=1), 800))
    config = TrainConfig(epochs=1, warm_up=0.2, schedule="steps")
    steps = [learning_rate(config, (step + 0.5) / 10) for step in range(10)]
    assert steps == pytest.approx([0.025, 0.075] + [0.1] * 4 + [0.01] * 2 + [0.001] * 2)


def test_every_cycle_starts_anew():
    one, four = TrainConfig(epochs=4), TrainConfig(epochs=4, cycles=4)
    assert rates(four, 400) == pytest.approx(4 * rates(one, 100))


def test_released_staircase_skips_the_first_level_and_ends_on_the_last():
    """PyTorch's scheduler, stepped before each of 150 epochs, is at t = epoch + 1."""
    config = TrainConfig(epochs=150, lr_levels=150)
    for epoch in range(150):
        expected = 0.0005 + 0.0995 * (1 + math.cos(math.pi * (epoch + 1) / 150)) / 2
        for step in (0, 7):
            assert learning_rate(config, (epoch + step / 8) / 150) == pytest.approx(expected)
    assert learning_rate(config, 0) < 0.1
    assert learning_rate(config, 0.9999) == pytest.approx(0.0005)


def test_steps_fall_to_a_tenth_and_a_hundredth():
    config = TrainConfig(epochs=1, schedule="steps")
    assert rates(config, 8) == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)


def test_a_wrong_setting_is_refused_in_one_line():
    for settings, named in (
        ({"epochs": -1}, "train.epochs is -1"),
        ({"lr": math.nan}, "train.lr is nan"),
        ({"min_lr": 0.2}, "train.min_lr is 0.2"),
        ({"dropout": 1.5}, "train.dropout is 1.5"),
        ({"warm_up": -0.1}, "train.warm_up is -0.1"),
        ({"warm_up": 1}, "train.warm_up is 1"),
        ({"warm_up": 0.1, "epochs": 4, "cycles": 2}, "warm_up is 0.1 with 2 cycles"),
        ({"batch_size": 1}, "train.batch_size is 1"),
        ({"epochs": 6, "cycles": 4}, "train.epochs is 6"),
        ({"schedule": "linear"}, "'linear'; choose from cosine, steps"),
        ({"precision": "fp16"}, "'fp16'; choose from fp32, bf16"),
        ({"optimizer": "lamb"}, "'lamb'; choose from sgd, adam, adamw"),
        ({"initialization": "he"}, "'he'; choose from default"),
    ):
        with pytest.raises(InputError, match=named) as caught:
            TrainConfig(**settings)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", ["abc", None, True, -1.0, float("nan"), float("inf")])
def test_a_factor_of_the_learning_rate_is_a_number(factor):
    with pytest.raises(InputError, match="lr_factors"):
        TrainConfig(lr_factors={"head.*": factor})
