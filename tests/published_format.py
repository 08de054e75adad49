"""Checkpoints as the authors publish them, made from networks of this library.

The names are written down here a second time on purpose: a slip in the library's own table would
otherwise cancel itself out. `test_checkpoints` holds them against a published file where there is
one.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from micronet_lib.architecture import build
from micronet_lib.architecture.micronet import MicroNet

PARTS = {
    "conv_expand": "conv1",
    "bn_expand": "bn1",
    "conv_dw": "conv2",
    "bn_dw": "bn2",
    "conv_project": "conv3",
    "bn_project": "bn3",
    "conv_shortcut": "shortcut.0",
    "bn_shortcut": "shortcut.1",
    "se.conv_reduce": "fc1",
    "se.conv_expand": "fc2",
}


def authors_name(name: str) -> str:
    """Theirs for one of our tensor names: `blocks.3.conv_dw.weight` -> `layers.3.conv2.weight`."""
    inside = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", name)
    if inside:
        block, part, leaf = inside.groups()
        return f"layers.{block}.{PARTS[part]}.{leaf}"
    for ours, theirs in (("stem.conv", "conv1"), ("stem.bn", "bn1"), ("head.classifier", "linear")):
        name = name.replace(ours, theirs)
    return name


def published_state(model: MicroNet) -> dict[str, Tensor]:
    """A copy of the network's tensors under the authors' names, with the masks beside the weights.

    Their pruned layers are the convolutions and the classifier; a mask is 0 where a weight is 0.
    """
    state = {}
    for name, value in model.state_dict().items():
        state[authors_name(name)] = value.clone()
        if name.endswith(".weight") and value.ndim > 1:
            state[authors_name(name).replace(".weight", ".mask")] = (value != 0).float()
    return state


def pruned_network(name: str = "micronet_v1_released", sparsity: float = 0.6) -> MicroNet:
    """A fresh network in evaluation mode that lost its smallest weights, tensor by tensor."""
    torch.manual_seed(0)
    model = build(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                size = parameter.abs()
                parameter[size < size.quantile(sparsity)] = 0
    return model


def save(state: Mapping[str, object], path: Path, *, as_zip: bool = True) -> Path:
    """Write a checkpoint in the zip format of today or, like the published files, the old one."""
    torch.save(state, path, _use_new_zipfile_serialization=as_zip)
    return path
