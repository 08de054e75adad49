"""When each hook is called, and what the training's own hooks do."""

import copy
from dataclasses import replace

import pytest
import torch
from small_networks import seeded, single_thread
from test_training_loop import start, tiny
from test_training_step import batch
from torch import Tensor, nn

from micronet_lib.hooks import Hook
from micronet_lib.lab.recipes.bases import PAPER, RELEASED
from micronet_lib.lab.training.hooks import MomentumRestart, WeightAverage


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


class Recording(Hook):
    """What it is called with, and what it finds changed since the last call."""

    def __init__(self, name: str, calls: list[tuple[str, str]]) -> None:
        self.name, self.calls = name, calls
        self.weight = self.grad = torch.empty(0)
        self.optimizers: list[torch.optim.Optimizer] = []

    def look_at(self, weight: nn.Parameter) -> None:
        self.parameter, self.weight = weight, weight.detach().clone()

    def _called(self, moment: str) -> bool:
        """Whether weights moved since the last call."""
        self.calls.append((moment, self.name))
        moved = not torch.equal(self.parameter, self.weight)
        self.weight = self.parameter.detach().clone()
        return moved

    def start_epoch(self, epoch: int) -> None:
        self._called(f"start_epoch {epoch}")

    def after_backward(self, generator: torch.Generator | None) -> Tensor:
        assert not self._called("after_backward")
        assert generator is not None
        assert self.parameter.grad.any()
        return torch.tensor(0.25)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert not self._called("before_step")
        self.optimizers.append(optimizer)

    def after_step(self) -> None:
        assert self._called("after_step")


def test_every_moment_comes_in_order_and_hooks_in_theirs():
    calls: list[tuple[str, str]] = []
    hooks = [Recording("first", calls), Recording("second", calls)]
    recipe = replace(tiny(RELEASED, epochs=4), srip=replace(PAPER.srip, coef=0.0))
    run = start(recipe, hooks=hooks)
    for hook in hooks:
        hook.look_at(run.network.classifier.weight)
    for _ in range(2):
        run.run_epoch()
    a_step = ["after_backward", "before_step", "after_step"]
    moments = ["start_epoch 0", *a_step * run.steps, "start_epoch 1", *a_step * run.steps]
    assert calls == [(moment, name) for moment in moments for name in ("first", "second")]
    assert set(hooks[0].optimizers) == {run.step.optimizer}
    assert run.curve["srip_penalty"] == [0.5, 0.5]  # what hooks return is summed, a step's mean


def test_gradients_that_a_hook_changes_are_those_of_the_step():
    class Silence(Hook):
        def after_backward(self, generator):
            for parameter in run.network.parameters():
                parameter.grad.zero_()

    run = start(tiny(PAPER, weight_decay=0.0), hooks=[Silence()])
    before = [p.detach().clone() for p in run.network.parameters()]
    run.run_epoch()
    assert all(map(torch.equal, before, run.network.parameters()))
    assert run.step.penalty.item() > 0


def test_hooks_states_are_a_runs_state():
    class Counting(Hook):
        count = 0

        def after_step(self):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    counting, resumed = Counting(), Counting()
    run = start(tiny(PAPER), hooks=[counting])
    run.run_epoch()
    start(tiny(PAPER), hooks=[resumed]).load_state_dict(copy.deepcopy(run.state_dict()))
    assert counting.count == resumed.count == run.steps


# ------------------------------------------------------------------------- our own


def test_targets_follow_the_classifier_epoch_by_epoch():
    run = start(tiny(PAPER))
    tables = []
    for _ in range(2):
        run.run_epoch()
        tables.append(run.step.objective.table.table.clone())
    assert not torch.equal(*tables)


KINDS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_momentum_begins_anew_with_every_cycle(kind):
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = KINDS[kind]([parameter])
    hook, forgotten = MomentumRestart(optimizer, 2), []
    for epoch in range(5):
        parameter.grad = torch.ones(3)
        optimizer.step()
        hook.start_epoch(epoch)
        forgotten.append(not any(value.any() for value in optimizer.state[parameter].values()))
    assert forgotten == [True, False, True, False, True]


def test_a_run_restarts_its_momentum_where_a_cycle_begins():
    run = start(tiny(RELEASED, cycles=2, epochs=4))
    norms = []

    class Look(Hook):
        def start_epoch(self, epoch):
            states = run.step.optimizer.state.values()
            norms.append(sum(state["momentum_buffer"].norm().item() for state in states))

    run.step.hooks.append(Look())
    for _ in range(4):
        run.run_epoch()
    assert [norm > 0 for norm in norms] == [False, True, False, True]


def test_the_average_of_weights_is_the_closed_form():
    """Of the first weights decay^(n - 1) is left, of those of step k (1 - decay) decay^(n - k)."""
    run = start(tiny(PAPER, ema_decay=0.7))
    (average,) = (hook for hook in run.step.hooks if isinstance(hook, WeightAverage))
    run.network.train()
    seen: list[dict[str, Tensor]] = []
    num = 5
    for seed in range(num):
        run.step(*batch(16, seed), None, 0.1, seeded(seed))
        seen.append(copy.deepcopy(run.network.state_dict()))
    shares = [0.7 ** (num - 1)] + [0.3 * 0.7 ** (num - k) for k in range(2, num + 1)]
    assert sum(shares) == pytest.approx(1)
    for name, value in run.rated.state_dict().items():
        if value.is_floating_point():
            expected = sum(share * each[name] for share, each in zip(shares, seen, strict=True))
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(value, seen[-1][name])
    assert run.rated is average.network
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
