"""Hooks of the training loop itself: targets, frozen modules, momentum, weight average."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from micronet_lib.architecture.folding import copy_of
from micronet_lib.architecture.layers import weight_of
from micronet_lib.architecture.network import Network
from micronet_lib.errors import InputError
from micronet_lib.hooks import Hook
from micronet_lib.label_smoothing import SmoothingConfig, smoothed_targets, target_table


class TargetTable(Hook):
    """The table of targets, computed from the classifier's weight at the start of every epoch.

    As in the released code, it does not change within an epoch. It is written in place, so a
    captured step reads the new values.

    Args:
        classifier: its weight is `[C, D]`.
        config: form, smoothing and temperature.
    """

    def __init__(self, classifier: nn.Linear, config: SmoothingConfig) -> None:
        self._classifier, self._config = classifier, config
        self.table = target_table(weight_of(classifier), config)

    def __call__(
        self, targets: Tensor, partners: Tensor | None = None, lam: float | Tensor | None = None
    ) -> Tensor:
        """Return the targets of a batch, `[N, C]`, see `smoothed_targets`."""
        return smoothed_targets(self.table, targets, partners, lam)

    def start_epoch(self, epoch: int) -> None:
        """Compute the table anew."""
        self.table.copy_(target_table(weight_of(self._classifier), self._config))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the table."""
        return {"table": self.table}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the table."""
        self.table.copy_(state["table"])


class FrozenModules(Hook):
    """Hold modules in evaluation mode, so that their batch norm keeps its averages."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules

    def start_epoch(self, epoch: int) -> None:
        """Set the modules to evaluation mode again; the loop sets the network to training mode."""
        for module in self._modules:
            module.eval()


def freeze(network: nn.Module, patterns: Sequence[str]) -> FrozenModules:
    """Exclude modules from training; return the hook that holds them in evaluation mode.

    Args:
        network: `requires_grad` of its parameters is set in place.
        patterns: of module names, such as `blocks.*`.

    Raises:
        InputError: a pattern that fits no module, or no parameter left to train.
    """
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        named = {n: m for n, m in network.named_modules() if n and fnmatchcase(n, pattern)}
        if not named:
            raise InputError(f"train.freeze: no module of this network is named {pattern!r}")
        found |= named
    for module in found.values():
        module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError("train.freeze leaves no parameter to train")
    return FrozenModules(list(found.values()))


class MomentumRestart(Hook):
    """Reset momentum at the start of every cycle of the schedule.

    Args:
        optimizer: whose state is reset.
        epochs: length of a cycle.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, epochs: int) -> None:
        self._optimizer, self._epochs = optimizer, max(1, epochs)

    def start_epoch(self, epoch: int) -> None:
        """Set the optimiser's state to 0 at the start of a cycle."""
        if epoch % self._epochs == 0:
            for state in self._optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor):
                        value.zero_()


class WeightAverage(Hook):
    """An exponential moving average of weights and batch-norm averages, in the attribute `network`.

    The first step copies the network. Later steps move by `1 - decay` towards it.

    Args:
        network: the trained network, on its device.
        decay: of the average.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy_of(network).requires_grad_(False)
        self._decay = decay
        own, trained = self.network.state_dict(), network.state_dict()
        self._pairs = [(own[name], trained[name]) for name in own]
        self._begun = torch.zeros((), device=next(network.parameters()).device)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average towards the current weights."""
        share = 1 - self._decay * self._begun
        for average, value in self._pairs:
            if average.is_floating_point():
                average.lerp_(value, share)
            else:
                average.copy_(value)
        self._begun.fill_(1)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, and whether it has begun."""
        return {"network": self.network.state_dict(), "begun": self._begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`."""
        self.network.load_state_dict(state["network"])
        self._begun.copy_(state["begun"])
