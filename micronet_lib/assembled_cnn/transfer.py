"""Transfer to other classes: a trained network with a new classifier (chapter 10).

Page `10_assembled_cnn_transfer` trains on superclasses, and goes on with classes.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from micronet_lib.architecture.network import Network, build
from micronet_lib.errors import InputError
from micronet_lib.hooks import Hook


@dataclass(frozen=True)
class NewClassifier:
    """The change of a recipe that replaces the classifier by a fresh one; all else stays.

    Attributes:
        num_classes: logits of the new classifier.

    Raises:
        InputError: fewer than two classes.
    """

    num_classes: int = 100
    num_images: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise InputError(f"a new classifier has {self.num_classes} classes; give 2 or more")

    def apply(self, network: Network, images: Tensor | None = None) -> Network:
        """Return a network of the same kind, whose classifier PyTorch's generator draws.

        Raises:
            InputError: a network that cannot be built with another number of classes.
        """
        try:
            fresh = build(network.spec, num_classes=self.num_classes)
        except InputError as error:
            raise InputError(
                f"{network.spec.name} has no option num_classes, so its classifier cannot be "
                "replaced"
            ) from error
        owner = next(n for n, m in network.named_modules() if m is network.classifier)
        state = fresh.state_dict()
        kept = {
            name: value
            for name, value in network.state_dict().items()
            if not name.startswith(f"{owner}.")
        }
        fresh.load_state_dict({**state, **kept})
        return fresh.to(network.classifier.weight).train(network.training)

    def hooks(self, network: Network) -> list[Hook]:
        """Return no hook."""
        return []
