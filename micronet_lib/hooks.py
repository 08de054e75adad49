"""What a training loop calls around every step; a method overrides the moments it needs."""

from collections.abc import Mapping
from typing import Any

import torch


class Hook:
    """A part of training besides the loss: regulariser, masks, target table, weight average.

    On a GPU everything between `after_backward` and `after_step` is captured once and replayed:
    shapes are fixed there, nothing waits for the device, and state is written in place.
    """

    def start_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, counted from 0."""

    def after_backward(self, generator: torch.Generator | None) -> None:
        """Change gradients.

        Args:
            generator: of random numbers, on the device.
        """

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Change what the optimiser is about to use."""

    def after_step(self) -> None:
        """Change weights."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what the next step depends on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
