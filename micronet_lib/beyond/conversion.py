"""From a network in integers to its file, and back: the same logits, bit for bit."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from micronet_lib.architecture.micronet import Architecture, BlockConfig, MicroNet
from micronet_lib.architecture.network import Network
from micronet_lib.beyond.description import BlockShape, Packed, PackedLayer
from micronet_lib.beyond.network import Block, IntegerMicroNet, Quantized, Widths
from micronet_lib.beyond.packed import read_packed, write_packed
from micronet_lib.beyond.quantizers import scale_grid
from micronet_lib.errors import InputError


def network_bytes(network: Network, **about: Any) -> bytes:
    """Return the file of a network in integers. It is read again and compared first.

    Args:
        network: with all widths set.
        about: what the file says of it, plain JSON, such as `recipe_id`.

    Raises:
        InputError: as for `check_packable`, or numbers that the format cannot hold.
    """
    content = write_packed(packed(network, **about))
    _check_same(check_packable(network), unpacked(read_packed(content, "the file")))
    return content


def check_packable(network: Network) -> IntegerMicroNet:
    """Return a network if it is one in integers.

    Raises:
        InputError: another kind of network, one in floats, or one with shared scales.
    """
    if type(network) is not IntegerMicroNet:  # the format has one width a layer
        raise InputError(
            f"only a network in integers can be packed, and this is a {type(network).__name__}"
        )
    if network.in_floats:
        raise InputError("this network is in floats: set all widths to pack it")
    if network.widths.shared_scales:  # the bill of what is read again would be another
        raise InputError("this network has one scale a layer, and the format one for each filter")
    return network


@torch.no_grad()
def packed(network: Network, **about: Any) -> Packed:
    """Return the integers of a network.

    Raises:
        InputError: as for `check_packable`.
    """
    network = check_packable(network)
    return Packed(
        stem_chs=network.stem.conv.out_channels,
        blocks=tuple(map(_shape, network.quantized_blocks())),
        num_classes=network.classifier.out_features,
        pre_bits=network.widths.pre,
        point=int(network.stream_bits_after_point.item()),
        layers={name: _packed_layer(layer) for name, layer in network.layers.items()},
        grids={name: each.grid() for name, each in network.quantizers.items()},
        about=about,
    )


def _shape(block: Block) -> BlockShape:
    c = block.config
    chs = (c.in_chs, c.hidden_chs, c.out_chs)
    return BlockShape(*chs, c.stride, c.se_chs, block.conv_shortcut is not None)


def _packed_layer(layer: Quantized) -> PackedLayer:
    bias, unit = layer.bias_codes()
    return PackedLayer(
        codes=_integers(layer.codes()),
        bits=layer.weight_bits,
        places=_integers(layer.stored_scales()),
        scale=layer.free_scales().max().item(),
        bias=_integers(bias),
        bias_bits=layer.bias_bits,
        unit=unit.item(),
    )


def _integers(values: Tensor) -> np.ndarray:
    return values.cpu().to(torch.int64).numpy()


@torch.no_grad()
def unpacked(packed: Packed) -> IntegerMicroNet:
    """Return the network of these integers, in evaluation mode.

    Raises:
        InputError: numbers that no network has.
    """
    configs = tuple(
        BlockConfig(
            *(block.in_chs, block.hidden_chs, block.out_chs, block.stride, block.se_chs),
            pointwise_shortcut=block.shortcut,
        )
        for block in packed.blocks
    )
    plain = MicroNet(
        Architecture(
            name="packed",
            stages=(),
            expand_ratio=1.0,
            stem_chs=packed.stem_chs,
            num_classes=packed.num_classes,
            cut_blocks=configs,
        )
    )
    widths = Widths(
        weights={name: layer.bits for name, layer in packed.layers.items()},
        inputs={name: grid.bits for name, grid in packed.grids.items()},
        biases={name: layer.bias_bits for name, layer in packed.layers.items()},
        pre=packed.pre_bits,
    )
    network = IntegerMicroNet(asdict(plain.spec), asdict(widths))
    for name, layer in network.layers.items():
        _fill(layer, packed.layers[name])
    for name, quantizer in network.quantizers.items():
        quantizer.step.fill_(packed.grids[name].step)
        quantizer.zero.fill_(packed.grids[name].zero)
    network.stream_bits_after_point.fill_(packed.point)
    return network.eval()


def _fill(layer: Quantized, stored: PackedLayer) -> None:
    scales = scale_grid(torch.tensor(stored.scale))[torch.from_numpy(stored.places)]
    layer.scale.copy_(scales)
    codes = torch.from_numpy(stored.codes).float()
    layer.weight.copy_(codes * scales.view(-1, *[1] * (codes.ndim - 1)))
    bias = torch.from_numpy(stored.bias).float()
    top = 2 ** (stored.bias_bits - 1) - 1
    layer.bias.copy_(bias * stored.unit)
    if bias.abs().max() == top:
        largest = _multiple(np.float32(stored.unit), top)
        layer.bias[bias.abs() == top] = largest * bias.sign()[bias.abs() == top]


def _multiple(unit: np.float32, times: int) -> float:
    """Return the float32 that is a unit when it is divided; a product is not always that one."""
    product = unit * np.float32(times)
    around = (product, *(np.nextafter(product, np.float32(end)) for end in (0, np.inf)))
    return float(next((each for each in around if each / np.float32(times) == unit), product))


def _check_same(network: IntegerMicroNet, again: IntegerMicroNet) -> None:
    """Check that two networks compute the same.

    Raises:
        InputError: where they differ.
    """
    theirs, grids = again.sums(), again.quantizers
    for name, ours in network.sums().items():
        for part in ("weight", "bias", "scale", "zeros"):
            one, other = getattr(ours, part).cpu(), getattr(theirs[name], part)
            if not torch.equal(one.double(), other.double()):
                raise InputError(f"{name} cannot be packed: its {part} does not come back the same")
    for name, quantizer in network.quantizers.items():
        if quantizer.grid() != grids[name].grid():
            raise InputError(f"{name} cannot be packed: its grid does not come back the same")
