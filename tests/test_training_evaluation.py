from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from micronet_lib.architecture import build
from micronet_lib.architecture.micronet import MicroNet, get_architecture
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import load_split, normalize
from micronet_lib.lab.training.evaluation import evaluate, fold_batch_norm, logits_of, rate


def trained_looking(name: str = "micronet_v1") -> MicroNet:
    """Random weights with batch-norm statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = MicroNet(replace(get_architecture(name), width_mult=0.5))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def test_folding_changes_no_logit_beyond_rounding() -> None:
    model = trained_looking().double()
    folded = fold_batch_norm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


def test_fast_evaluation_equals_the_plain_one() -> None:
    model, test = trained_looking(), load_split("embedded", "test")
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
    model, test = trained_looking().double(), load_split("embedded", "test").images[:60]
    whole = logits_of(model, test, batch_size=60)
    assert whole.shape == (60, 100)
    torch.testing.assert_close(logits_of(model, test, batch_size=7), whole)


def test_logits_that_are_not_finite_are_refused() -> None:
    model = build("micronet_v1").eval()
    model.head.classifier.weight.data *= float("inf")
    with pytest.raises(InputError, match="NaN or infinite"):
        evaluate(model, load_split("embedded", "test").subset(torch.arange(10)))
