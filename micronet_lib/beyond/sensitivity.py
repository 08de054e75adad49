"""How much each number of a network matters: the Fisher information, in seconds.

Rounding a number by `e` moves the predictions by about `F e^2 / 2` nats of KL divergence, where `F`
is the mean squared derivative of the log-probability of a label that is drawn from the network's
own prediction [amari1998]. So the price of every rounding, zero and removed channel is predicted
before anything is trained. The sum over many is a guide and no promise: together they hurt more.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from micronet_lib.beyond.layers import Quantizer
from micronet_lib.beyond.network import IntegerMicroNet
from micronet_lib.beyond.quantizers import CLIPS
from micronet_lib.errors import InputError

ACTIVATION_WIDTHS = (3, 4, 5, 6, 7, 8)
ROUNDED_BATCHES = 12
BATCH_SIZE = 32


@dataclass(eq=False)
class Sensitivity:
    """What a network predicts to lose, in nats of KL divergence.

    Attributes:
        weights: layer -> Fisher information of each weight, of its shape.
        biases: layer -> the same of each bias.
        rounding: quantizer -> width -> loss by rounding its values to that width.
        channels: block -> loss by replacing each hidden channel with its mean, `[hidden_chs]`.
        means: block -> mean of each hidden channel after the second HardSwish, of the first batch.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    rounding: dict[str, dict[int, float]] = field(default_factory=dict)
    channels: dict[int, Tensor] = field(default_factory=dict)
    means: dict[int, Tensor] = field(default_factory=dict)


def measure_sensitivity(network: IntegerMicroNet, images: Tensor, seed: int = 0) -> Sensitivity:
    """Return the sensitivities of a network in floats.

    Args:
        network: with every width at 32 bits.
        images: normalised, `[N, 3, H, W]`.
        seed: of the labels.

    Raises:
        InputError: no images, or a network that is rounded already.
    """
    if not len(images):
        raise InputError("no images to measure sensitivities with")
    if network.is_rounded:
        raise InputError("sensitivities are of a network in floats, and this one is rounded")
    generator = torch.Generator().manual_seed(seed)
    found = Sensitivity(
        {name: torch.zeros_like(layer.weight) for name, layer in network.layers.items()},
        {name: torch.zeros_like(layer.bias) for name, layer in network.layers.items()},
        {name: defaultdict(float) for name in network.quantizers},
    )
    names = {quantizer: name for name, quantizer in network.quantizers.items()}
    tapped: dict[str, Tensor] = {}

    def keep(quantizer: Quantizer, value: Tensor) -> Tensor:
        value = value * 1.0  # its own tensor, whose gradient nobody else adds to
        value.retain_grad()
        tapped[names[quantizer]] = value
        return value

    training = network.training
    learned = {name: p.requires_grad for name, p in network.named_parameters()}
    network.train().requires_grad_(True)
    steps: dict[tuple[str, int], tuple[float, int]] = {}
    with network.tapped(keep):
        for number, batch in enumerate(images.split(BATCH_SIZE)):
            network.zero_grad()
            logits = network(batch.contiguous(memory_format=torch.channels_last))
            # Drawn on the CPU, so that every machine has the same random numbers.
            shares = logits.detach().softmax(1).cpu()
            labels = torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)
            F.cross_entropy(logits, labels, reduction="sum").backward()
            for name, layer in network.layers.items():
                found.weights[name] += layer.weight.grad**2
                found.biases[name] += layer.bias.grad**2
            with torch.no_grad():
                _add_channels(found, network, tapped)
                if number < ROUNDED_BATCHES:
                    _add_rounding(found, network, tapped, steps)
    rounded = min(len(images), ROUNDED_BATCHES * BATCH_SIZE)
    for group in (found.weights, found.biases, found.channels):
        for value in group.values():
            value /= len(images)
    for widths in found.rounding.values():
        for bits in widths:
            widths[bits] /= rounded
    network.zero_grad()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(learned[name])
    network.train(training)
    return found


def _add_channels(found: Sensitivity, network: IntegerMicroNet, tapped: dict[str, Tensor]) -> None:
    for index in range(len(network.blocks)):
        value = tapped[f"blocks.{index}.quant_project"]
        assert value.grad is not None
        if index not in found.means:
            found.means[index] = value.mean((0, 2, 3))
            found.channels[index] = torch.zeros_like(found.means[index])
        change = value - found.means[index].view(1, -1, 1, 1)
        found.channels[index] += 0.5 * (change * value.grad).sum((2, 3)).square().sum(0)


def _add_rounding(
    found: Sensitivity,
    network: IntegerMicroNet,
    tapped: dict[str, Tensor],
    steps: dict[tuple[str, int], tuple[float, int]],
) -> None:
    for name, quantizer in network.quantizers.items():
        value, grad = tapped[name], tapped[name].grad
        assert grad is not None
        weight = grad.square()
        for bits in ACTIVATION_WIDTHS:
            if (name, bits) not in steps:
                steps[name, bits] = _least_harmful(value, weight, bits, quantizer.hard_swish)
            step, zero = steps[name, bits]
            error = _rounded(value, step, zero, bits) - value
            found.rounding[name][bits] += 0.5 * (error.square() * weight).sum().item()


def _least_harmful(value: Tensor, weight: Tensor, bits: int, hard_swish: bool) -> tuple[float, int]:
    low, high = -min(0.0, value.min().item()), max(1e-6, value.max().item())
    best, smallest = (1.0, 0), float("inf")
    for ratio in CLIPS:
        below = 0.375 if hard_swish else low * ratio
        step = (below + high * ratio) / (2**bits - 1)
        zero = round(below / step)
        harm = ((_rounded(value, step, zero, bits) - value).square() * weight).sum().item()
        if harm < smallest:
            best, smallest = (step, zero), harm
    return best


def _rounded(value: Tensor, step: float, zero: int, bits: int) -> Tensor:
    return (value / step).round().clamp(-zero, 2**bits - 1 - zero) * step
