"""Rating: accuracy, loss and calibration, fast and by hand."""

import pytest
import torch
import torch.nn.functional as F
from small_networks import scrambled

from micronet_lib.architecture import build
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.lab.training.evaluation import (
    calibration_error,
    evaluate,
    logits_of,
    rate,
)

# ------------------------------------------------------------------------------ rating


def test_fast_evaluation_equals_the_plain_one() -> None:
    model, test = scrambled(build("micronet_v1", width_mult=0.5)), load_split("embedded", "test")
    fast = evaluate(model, test)
    with torch.no_grad():
        logits = torch.cat([model(normalize(batch)) for batch in test.images.split(100)])
    assert fast.correct == (logits.argmax(1) == test.targets).sum().item()
    assert fast.num_examples == 1000
    assert fast.top1 == fast.correct / 1000
    assert fast.loss == pytest.approx(F.cross_entropy(logits, test.targets).item(), rel=1e-5)
    top5 = (logits.topk(5).indices == test.targets[:, None]).any(1).float().mean().item()
    assert fast.top5 == pytest.approx(top5)
    assert fast.images_per_s > 0


def test_rating_by_hand() -> None:
    logits = torch.tensor([[9.0, 1, 0, 0, 0, 0], [0.0, 1, 2, 3, 4, 5], [0.0, 5, 4, 3, 2, 1]])
    targets = torch.tensor([0, 0, 5])
    found = rate(logits, targets, seconds=1.5)
    assert (found.correct, found.top1, found.top5) == (1, 1 / 3, 2 / 3)
    by_hand = -torch.log_softmax(logits, 1)[range(3), targets].mean().item()
    assert found.loss == pytest.approx(by_hand)
    assert found.images_per_s == 2.0


def test_few_classes_are_rated_and_missing_ones_are_named() -> None:
    logits = torch.eye(3)
    found = rate(logits, torch.tensor([0, 1, 1]), seconds=1)
    assert (found.correct, found.top5) == (2, 1)
    with pytest.raises(InputError, match="tells 3 classes apart, and these images have 98"):
        rate(logits, torch.tensor([0, 1, 97]), seconds=1)


def test_batch_size_does_not_matter() -> None:
    model, test = (
        scrambled(build("micronet_v1", width_mult=0.5)).double(),
        load_split("embedded", "test").images[:60],
    )
    whole = logits_of(model, test, batch_size=60)
    assert whole.shape == (60, 100)
    torch.testing.assert_close(logits_of(model, test, batch_size=7), whole)


def test_logits_that_are_not_finite_are_refused() -> None:
    model = build("micronet_v1").eval()
    model.classifier.weight.data *= float("inf")
    with pytest.raises(InputError, match="NaN or infinite"):
        evaluate(model, load_split("embedded", "test").subset(torch.arange(10)))


# ------------------------------------------------------------------------------ calibration


def test_the_calibration_error_is_the_weighted_gap_of_each_bin() -> None:
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(500, 10), torch.randint(10, (500,))
    confidences, predicted = logits.double().softmax(1).max(1)
    right = predicted == targets
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            gap = right[inside].double().mean() - confidences[inside].mean()
            expected += inside.double().mean().item() * abs(gap.item())
    assert calibration_error(logits, right) == pytest.approx(expected, rel=1e-9)
    assert rate(logits, targets, 1.0).ece == pytest.approx(expected, rel=1e-9)


def test_certain_predictions_are_calibrated_if_they_are_right() -> None:
    certain = 1e3 * torch.eye(4)
    assert calibration_error(certain, torch.tensor([True] * 4)) == 0
    assert calibration_error(certain, torch.tensor([True, False, False, False])) == 0.75
