"""What a measure returns, and what a measure is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from micronet_lib.architecture.network import Network

if TYPE_CHECKING:
    from micronet_lib.lab.running.lineage import Case

DIGITS = 5
RATINGS = ("correct", "num_examples", "top1", "top5", "loss", "ece")


@dataclass
class Found:
    """The result of a measure: numbers, arrays for figures, rows of a per-layer table."""

    metrics: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)


def by_image(values: Tensor) -> str:
    """Return a number for each test image as text, which takes one line of a record.

    `records.by_image` reads it.
    """
    return " ".join(f"{value:.4f}" for value in values.tolist())


@dataclass(frozen=True)
class Measure:
    """A measurement of a case's network.

    Attributes:
        of: function of the case, its network (on the CPU, in evaluation mode) and a switch for
            progress bars.
        on_test: whether it reads test images.
        on_device: whether it computes on `default_device()`, of a recipe that trains nothing, too.
        of_untrained: whether it reads images also if the network has learned nothing.
        check: function of the case and a network of the kind that its recipe ends with. It raises
            `InputError` for one that the measure cannot rate, and returns any other.
    """

    of: "Callable[[Case, Network, bool], Found]"
    on_test: bool = False
    on_device: bool = False
    of_untrained: bool = False
    check: "Callable[[Case, Network], Network] | None" = None
