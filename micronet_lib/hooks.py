"""What a method may do to a network besides its loss: before training, and around every step."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from micronet_lib.architecture.network import Network


class Hook:
    """A part of training besides the loss: a regulariser, masks, a weight average, a schedule.

    A method overrides the moments that it needs. On a GPU everything from `after_backward` to
    `after_step` is captured once and replayed, so shapes are fixed there, nothing waits for the
    device, and state is written in place.
    """

    def start_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, counted from 0; the network is in training mode."""

    def after_backward(self, generator: torch.Generator | None) -> Tensor | None:
        """Change gradients. Return the term of the loss that they are of, 0-d, if there is one.

        Args:
            generator: of random numbers, on the device.
        """
        return None

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Change what the optimiser is about to use."""

    def after_step(self) -> None:
        """Change weights."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what the next step depends on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, in place."""


@runtime_checkable
class Change(Protocol):
    """What a recipe does to a network before it trains it: a frozen dataclass of settings."""

    def apply(self, network: Network) -> Network:
        """Return the changed network, which may be the same object.

        Raises:
            InputError: the network cannot be changed that way.
        """

    def hooks(self, network: Network) -> Sequence[Hook]:
        """Return what training has to do so that the change holds.

        Args:
            network: changed, on the device that trains it.
        """
