import pytest
import torch
import torch.nn.functional as F
from small_networks import TORCHVISION
from torch import nn

from micronet_lib.architecture import Network, build
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.lab.training.evaluation import (
    calibration_error,
    evaluate,
    fold_batch_norm,
    logits_of,
    rate,
)


def scrambled(model: nn.Module) -> nn.Module:
    """In evaluation mode, with batch-norm statistics that are not the initial ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


# ------------------------------------------------------------------------------ folding

MICRONETS = ("micronet_v1", "micronet_v1_released")


@pytest.mark.parametrize("name", [*MICRONETS, *TORCHVISION])
def test_folding_merges_every_batch_norm_and_changes_no_logit(name: str) -> None:
    model = scrambled(build(name)).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count = norms(model)
    folded = fold_batch_norm(model)
    assert norms(folded) == 0
    assert norms(model) == count > 0
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    given = x.clone()
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    assert torch.equal(x, given)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_network_of_another_library_predicts_the_same_folded(name: str) -> None:
    model, images = scrambled(build(name)), load_split("embedded", "test").images[:50]
    plain, folded = (logits_of(each, images) for each in (model, fold_batch_norm(model)))
    assert torch.equal(folded.argmax(1), plain.argmax(1))


def test_dead_gates_are_not_computed() -> None:
    folded = fold_batch_norm(scrambled(build("micronet_v1_released")))
    twin = fold_batch_norm(scrambled(build("micronet_v1")))
    assert len(list(folded.parameters())) == len(list(twin.parameters()))


class Shared(Network):
    """Every case in which a batch norm cannot be merged, and one in which it can."""

    def __init__(self) -> None:
        super().__init__()
        self.called_twice = nn.Conv2d(3, 3, 1)
        self.read_elsewhere = nn.Conv2d(3, 3, 1)
        self.output_read_twice = nn.Conv2d(3, 3, 1)
        self.another_make = _OtherConv2d(3, 3, 1)
        self.batch_statistics = nn.Conv2d(3, 3, 1)
        self.alone = nn.Conv2d(3, 3, 1)
        self.a, self.b, self.c, self.d = (nn.BatchNorm2d(3) for _ in range(4))
        self.e = nn.BatchNorm2d(3, track_running_stats=False)
        self.f, self.g, self.h = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.called_twice(self.a(self.called_twice(x))))
        x = self.c(self.read_elsewhere(x)) * self.read_elsewhere.weight.sum()
        y = self.output_read_twice(x)
        y = F.relu(y) + self.d(y)
        y = self.e(self.batch_statistics(self.f(self.another_make(y))))
        y.clamp_(-1, 1)  # its result is read by nobody
        F.relu(y, inplace=True)
        y = y - 0.5
        return self.h(F.hardswish(self.g(self.alone(y)))).mean((2, 3))


class _OtherConv2d(nn.Conv2d):
    """Such as a quantised one: what it does with its weight is its own business."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight.sign(), self.bias)


def test_only_what_can_be_merged_is_merged() -> None:
    model = scrambled(Shared()).double()
    folded = fold_batch_norm(model)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    assert norms(folded) == norms(model) - 1
    assert not hasattr(folded, "g")


class Unfoldable(Shared):
    foldable = False


class Branching(Shared):
    """A network whose way depends on its input cannot be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.mean() > 0 else -x)


@pytest.mark.parametrize("kind", [Unfoldable, Branching])
def test_a_network_that_must_not_or_cannot_be_folded_is_copied(kind: type[nn.Module]) -> None:
    model = scrambled(kind()).train()
    copied = fold_batch_norm(model)
    assert norms(copied) == norms(model)
    assert model.training
    assert not copied.training
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(copied(x), model.eval()(x))
    assert next(copied.parameters()) is not next(model.parameters())


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
