"""Interfaces between a method and the training loop: `Hook` and `Change`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from micronet_lib.architecture.network import Network


class Hook:
    """A part of training besides the loss: a regulariser, masks, a weight average, a schedule.

    A method overrides the methods that it needs. On a GPU, everything from `after_backward` to
    `after_step` is captured once and replayed. So tensor shapes must be fixed there, state must be
    written in place, and nothing may wait for the device.
    """

    def start_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, counted from 0. The network is in training mode."""

    def after_backward(self, generator: torch.Generator | None) -> Tensor | None:
        """Change gradients. Return the loss term whose gradient was added, 0-d, or None.

        Args:
            generator: random numbers, on the device of the network.
        """
        return None

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Change gradients or optimiser state before the optimiser's step."""

    def after_step(self) -> None:
        """Change weights after the optimiser's step."""

    def finish(self) -> None:
        """Remove what the hook attached to the network, after the last epoch."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state that the next step depends on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict` in place."""


@runtime_checkable
class Change(Protocol):
    """A change that a recipe makes to a network before training: a frozen dataclass of settings."""

    @property
    def num_images(self) -> int:
        """The number of training images that `apply` reads, 0 for none. They carry no labels."""

    def apply(self, network: Network, images: Tensor) -> Network:
        """Return the changed network, which may be the same object.

        Args:
            network: on the CPU.
            images: `[num_images, 3, 32, 32]`, augmented as the recipe says, and normalised.

        Raises:
            InputError: the change does not fit the network.
        """

    def hooks(self, network: Network) -> Sequence[Hook]:
        """Return the hooks that maintain the change during training.

        Args:
            network: the changed network, on the device that trains it.
        """
