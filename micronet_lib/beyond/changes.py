"""Changes that a recipe makes on the way to a network in integers."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from micronet_lib.architecture.layers import layer_weights, named_kind
from micronet_lib.architecture.network import Network
from micronet_lib.beyond.allocation import (
    Allocator,
    allocated,
    cheapest_price,
    output_positions,
)
from micronet_lib.beyond.network import IntegerMicroNet, Widths, in_integers
from micronet_lib.beyond.sensitivity import measure_sensitivity
from micronet_lib.hooks import Hook
from micronet_lib.pruning.masks import HeldMasks, current_masks

NUM_TO_CALIBRATE = 512
NUM_TO_PRICE = 32


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
        expand_bits: of the weights of expand convolutions; by default `weight_bits`. One bit is a
            sign, so that with the zeros these weights are ternary.
        shared_scales: one scale for all filters of a layer.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    bias_bits: int = 12
    pre_bits: int = 12
    clip: bool = True
    num_images: int = 512
    expand_bits: int | None = None
    shared_scales: bool = False

    def apply(self, network: Network, images: Tensor) -> IntegerMicroNet:
        """Return the network in integers.

        Raises:
            InputError: a network that cannot be put in integers, or a width out of range.
        """
        made = in_integers(network)
        weights = dict.fromkeys(made.layers, self.weight_bits)
        if self.expand_bits is not None:
            expand = {name for name in weights if named_kind(name) == "expand"}
            weights |= dict.fromkeys(expand, self.expand_bits)
        made.set_widths(
            Widths(
                weights,
                dict.fromkeys(made.quantizers, self.activation_bits),
                dict.fromkeys(made.layers, self.bias_bits),
                self.pre_bits,
                self.shared_scales,
            )
        )
        made.calibrate(images, self.clip)
        return made

    def hooks(self, network: Network) -> Sequence[Hook]:
        """Return the hook that holds pruned weights at 0."""
        return held_zeros(network)


@dataclass(frozen=True)
class Allocate:
    """Choose widths, zeros and channels together, so that the network costs no more than a score.

    Attributes:
        score: by the official rules, additions at 32 bits, exact savings included.
        pre_bits: of the integer before HardSwish.
        rounding_weight: what a nat of rounding counts against one of zeros. Training repairs
            rounding better.
        remove_channels: whether hidden channels may go.
        num_images: training images to measure sensitivities with; the first 512 calibrate.
    """

    score: float = 0.0034
    pre_bits: int = 10
    rounding_weight: float = 1.0
    num_images: int = 2560
    remove_channels: bool = True

    def apply(self, network: Network, images: Tensor) -> IntegerMicroNet:
        """Return the network in integers.

        Raises:
            InputError: a network that cannot be put in integers, or a score that no plan reaches.
        """
        floats = in_integers(network)
        sensitivity = measure_sensitivity(floats, images)
        allocator = Allocator(
            floats,
            sensitivity,
            output_positions(floats),
            self.pre_bits,
            self.rounding_weight,
            self.remove_channels,
        )
        few = images[:NUM_TO_CALIBRATE]
        price = cheapest_price(floats, allocator, self.score, few[:NUM_TO_PRICE])
        return allocated(floats, allocator, price, few)

    def hooks(self, network: Network) -> Sequence[Hook]:
        """Return the hook that holds pruned weights at 0."""
        return held_zeros(network)


def held_zeros(network: Network) -> list[Hook]:
    """Return the hook that holds pruned weights at 0, if there are any."""
    if all(weight.all() for weight in layer_weights(network).values()):
        return []
    return [HeldMasks(network, current_masks(network))]
