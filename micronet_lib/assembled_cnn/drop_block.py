"""DropBlock [ghiasi2018]: set whole squares of a map to 0 in training.

A single pixel of a map tells little that its neighbours do not, so dropping pixels one by one
(dropout) drops nothing. A square of them takes a part of the object away.

    gamma = (1 - keep_prob) / block_size^2 * H W / ((H - block_size + 1) (W - block_size + 1))

is the probability that a square begins at a place where it fits. So about `1 - keep_prob` of a map
is dropped, less where squares overlap. What stays is multiplied so that its sum keeps its size. As
in [lee2020assembled], one mask serves the whole batch, it acts after every batch norm of the late
stages but the one that widens Big-Little's little branch, and `keep_prob` falls in a straight line
from 1. Chapter `10_assembled_cnn`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from micronet_lib.architecture.tweaks import SelectiveKernel
from micronet_lib.errors import InputError, is_integer, is_number
from micronet_lib.hooks import Hook


@dataclass(frozen=True)
class DropBlockConfig:
    """Settings of DropBlock. The numbers are those of [lee2020assembled].

    Attributes:
        at: pattern of a module's name, such as `blocks.9.*` -> share of the drop probability. The
            first pattern that fits counts. Empty for no DropBlock.
        keep_prob: what is kept at the end of the training, about.
        start_keep_prob: what is kept at its start.
        block_size: side of a square, cut to the side of the map. On 7 x 7 pixels, the last maps of
            ImageNet networks, a square of 7 is the whole map.
        batch_shared: draw one mask for all images of a batch, not one for each.

    Raises:
        InputError: a number outside its range.
    """

    at: Mapping[str, float] = field(default_factory=dict)
    keep_prob: float = 0.9
    start_keep_prob: float = 1.0
    block_size: int = 7
    batch_shared: bool = True

    def __post_init__(self) -> None:
        for name in ("keep_prob", "start_keep_prob"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(
                    f"drop_block.{name} is {getattr(self, name)}; give a fraction in (0, 1]"
                )
        _check_side(self.block_size, "drop_block.block_size")
        for pattern, share in self.at.items():
            if not is_number(share) or not 0 <= share <= 1:
                raise InputError(
                    f"drop_block.at has {share!r} for {pattern!r}; give a fraction in [0, 1]"
                )


def _check_side(block_size: object, name: str) -> None:
    if not is_integer(block_size, 1):
        raise InputError(f"{name} is {block_size!r}; give a whole number of at least 1")


def begins(drop_prob: float | Tensor, block_size: int, height: int, width: int) -> float | Tensor:
    """Return gamma, the probability that a square begins at one of the places where it fits.

    Args:
        drop_prob: `1 - keep_prob`.
        block_size: not above `height` and `width`.
        height: of the map.
        width: of the map.
    """
    places = (height - block_size + 1) * (width - block_size + 1)
    return drop_prob * (height * width / block_size**2 / places)


def drop_block(
    x: Tensor,
    drop_prob: float | Tensor,
    block_size: int = 7,
    batch_shared: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Set squares to 0, and scale the rest so that the mean of the mask is 1.

    Args:
        x: `[N, C, H, W]`.
        drop_prob: `1 - keep_prob`; a 0-d tensor in a captured step.
        block_size: side of a square, cut to H and W.
        batch_shared: one mask `[1, C, H, W]` for all images.
        generator: on the device of `x`; None for PyTorch's own, from which dropout draws.

    Returns:
        A tensor as `x`. A mask that keeps nothing gives zeros.

    Raises:
        InputError: a number for `drop_prob` outside [0, 1], or a side that is no whole number from
            1. A tensor is not looked at, because that would wait for the device.
    """
    _check_side(block_size, "block_size")
    if not isinstance(drop_prob, Tensor) and not 0 <= drop_prob <= 1:
        raise InputError(f"drop_prob is {drop_prob}; give a fraction in [0, 1]")
    num, chs, height, width = x.shape
    size = min(block_size, height, width)
    shape = (1 if batch_shared else num, chs, height - size + 1, width - size + 1)
    noise = torch.rand(shape, generator=generator, device=x.device)
    begun = (noise < begins(drop_prob, size, height, width)).to(noise.dtype)
    # A pixel is dropped if a square began at it or up to `size - 1` before it.
    dropped = F.max_pool2d(F.pad(begun, [size - 1] * 4), size, 1)
    mask = 1 - dropped
    scale = mask.numel() / mask.sum().clamp_min(1)
    return x * (mask * scale).to(x.dtype)


class DropBlock(Hook):
    """DropBlock in a network while it is trained. No module is added, and nothing stays behind.

    It acts on the outputs of batch norms, and of selective kernels in place of those inside. Maps
    of one pixel are left alone, and so is a module in evaluation mode.

    Args:
        network: any. Forward hooks are attached at the first epoch, and `finish` takes them off.
        config: `at` with at least one pattern.
        num_steps: of the training.

    Raises:
        InputError: a pattern that fits no batch norm or selective kernel.
    """

    def __init__(self, network: nn.Module, config: DropBlockConfig, num_steps: int) -> None:
        self._config, self._num_steps = config, max(1, num_steps)
        self.places = drop_block_places(network, config.at)
        self._done = torch.zeros((), device=next(network.parameters()).device)
        self._attached: list[RemovableHandle] = []

    @property
    def drop_prob(self) -> Tensor:
        """The drop probability of the coming step, 0-d, before the shares of the modules."""
        first, last = 1 - self._config.start_keep_prob, 1 - self._config.keep_prob
        return first + (last - first) * self._done / self._num_steps

    def start_epoch(self, epoch: int) -> None:
        """Attach to the modules, once."""
        if not self._attached:
            self._attached = [
                module.register_forward_hook(partial(self._drop, share))
                for module, share in self.places.values()
            ]

    def _drop(self, share: float, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if not module.training or output.shape[2:].numel() == 1:
            return None
        config = self._config
        return drop_block(output, share * self.drop_prob, config.block_size, config.batch_shared)

    def after_step(self) -> None:
        """Count the step, by which the drop probability follows."""
        self._done += 1

    def finish(self) -> None:
        """Take everything off the network."""
        for handle in self._attached:
            handle.remove()
        self._attached = []

    def state_dict(self) -> dict[str, Tensor]:
        """Return the number of steps taken."""
        return {"done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`."""
        self._done.copy_(state["done"])


def drop_block_places(
    network: nn.Module, at: Mapping[str, float]
) -> dict[str, tuple[nn.Module, float]]:
    """Return the modules on which DropBlock acts, by name, each with its share.

    The batch norm that widens a little branch is none of them [assembled_code].

    Raises:
        InputError: a pattern that fits no batch norm or selective kernel.
    """
    choosing = [n for n, m in network.named_modules() if isinstance(m, SelectiveKernel)]
    outputs = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d | SelectiveKernel)
        and not any(name.startswith(f"{above}.") for above in choosing)
        and ".widen." not in name
    }
    for pattern in at:
        if not any(fnmatchcase(name, pattern) for name in outputs):
            raise InputError(
                f"drop_block.at: no batch norm of this network is named {pattern!r}; the last one "
                f"is {next(reversed(outputs), 'missing')}"
            )
    found = dict[str, tuple[nn.Module, float]]()
    for name, module in outputs.items():
        shares = (share for pattern, share in at.items() if fnmatchcase(name, pattern))
        share = next(shares, math.nan)
        if share > 0:
            found[name] = (module, share)
    return found
