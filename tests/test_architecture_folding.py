"""Folding: every batch norm merged that can be, and nothing else changed."""

import pytest
import torch
import torch.nn.functional as F
from small_networks import TORCHVISION, scrambled
from torch import nn

from micronet_lib.architecture import Network, build
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.lab.data.images import load_split
from micronet_lib.lab.training.evaluation import logits_of


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


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
    first, second = plain.topk(2).values.T
    clear = first - second > 1e-3 * plain.std()  # rounding decides the others
    assert clear.sum() > 40
    assert torch.equal(folded.argmax(1)[clear], plain.argmax(1)[clear])


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
