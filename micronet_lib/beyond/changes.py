"""Changes that a recipe makes on the way to a network in integers."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from micronet_lib.architecture.layers import layer_weights
from micronet_lib.architecture.network import Network
from micronet_lib.beyond.network import IntegerMicroNet, Widths, in_integers
from micronet_lib.hooks import Hook
from micronet_lib.pruning.masks import HeldMasks, current_masks


@dataclass(frozen=True)
class Quantize:
    """Round all weights and activations to the same widths, without training.

    Attributes:
        weight_bits: of weights.
        activation_bits: of the inputs of every layer but the stem, which reads pixels.
        bias_bits: of biases.
        pre_bits: of the integer before HardSwish.
        clip: whether the largest weights and activations may be cut off, by squared error.
        num_images: training images for the steps of activations.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    bias_bits: int = 12
    pre_bits: int = 12
    clip: bool = True
    num_images: int = 512

    def apply(self, network: Network, images: Tensor) -> IntegerMicroNet:
        """Return the network in integers.

        Raises:
            InputError: a network that cannot be put in integers, or a width out of range.
        """
        made = in_integers(network)
        made.set_widths(
            Widths(
                dict.fromkeys(made.layers, self.weight_bits),
                dict.fromkeys(made.quantizers, self.activation_bits),
                dict.fromkeys(made.layers, self.bias_bits),
                self.pre_bits,
            )
        )
        made.calibrate(images, self.clip)
        return made

    def hooks(self, network: Network) -> Sequence[Hook]:
        """Return the hook that holds pruned weights at 0."""
        return held_zeros(network)


def held_zeros(network: Network) -> list[Hook]:
    """Return the hook that holds pruned weights at 0, if there are any."""
    if all(weight.all() for weight in layer_weights(network).values()):
        return []
    return [HeldMasks(network, current_masks(network))]
