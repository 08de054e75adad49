"""Networks and training states on disk: our own files, and the authors' published ones [kim2020].

Nothing in either can run code. Our own begin with a digest of the rest, so that half of a file is
never taken for a whole one, and a training state has its predecessor beside it.

A published file is a dictionary of tensors, bare or under a key such as `net4`. Its names are the
authors' (`layers.3.conv2.weight`), each prunable tensor has a `.mask` twin, and nothing in it says
which network it is: the shapes do.
"""

import re
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from micronet_lib.architecture.micronet import ARCHITECTURES, Architecture, MicroNet
from micronet_lib.errors import InputError

_PARTS = {
    "conv1": "conv_expand",
    "bn1": "bn_expand",
    "conv2": "conv_dw",
    "bn2": "bn_dw",
    "conv3": "conv_project",
    "bn3": "bn_project",
    "fc1": "se.conv_reduce",
    "fc2": "se.conv_expand",
    "shortcut.0": "conv_shortcut",
    "shortcut.1": "bn_shortcut",
}
_STEM_AND_HEAD = {"conv1": "stem.conv", "bn1": "stem.bn", "linear": "head.classifier"}
_KEY = re.compile(r"^(?:layers\.(\d+)\.)?(.+)\.(\w+)$")
_REMEDY = "`micronet data fetch kaist` gets the published ones"


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a published checkpoint under the authors' names, on the CPU.

    Unpickling is restricted to tensors and plain containers, so a file cannot run code.

    Raises:
        InputError: no such file; truncated; not a checkpoint; holds anything but dense tensors of
            real numbers, or more than one network.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; {_REMEDY}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd files, which get one line of ours below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"{path} is not a checkpoint of plain tensors (damaged, or it asks to run code); "
            f"nothing of it was executed; {_REMEDY}"
        ) from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): make it readable") from error
    except Exception as error:  # damaged bytes make the unpickler raise anything
        raise InputError(
            f"{path} is truncated or not a checkpoint: copy it again; {_REMEDY}"
        ) from error
    entries = content if isinstance(content, Mapping) else {}
    networks = {key: value for key, value in entries.items() if _is_network(value)}
    if len(networks) > 1:
        names = ", ".join(str(key) for key in networks)
        raise InputError(f"{path} holds {len(networks)} networks ({names}); save one of them alone")
    state = next(iter(networks.values()), entries)
    if not _is_network(state):
        raise InputError(
            f"{path} holds no network, which is a dictionary of named dense tensors; {_REMEDY}"
        )
    return dict(state)


def _is_network(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and _is_plain(tensor) for key, tensor in value.items())
    )


def _is_plain(value: object) -> bool:
    """A dense tensor of real numbers, with its data."""
    return isinstance(value, Tensor) and not (
        value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex()
    )


def rename(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and masks under this library's names.

    Args:
        state: tensors under the authors' names; a `module.` prefix (data parallel) is dropped.

    Raises:
        InputError: for a name that is not of the authors' scheme.
    """
    weights: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for key, value in state.items():
        match = _KEY.match(key.removeprefix("module."))
        block, part, leaf = match.groups() if match else (None, "", "")
        table = _STEM_AND_HEAD if block is None else _PARTS
        if part not in table:
            raise InputError(f"checkpoint of another network: no place for the tensor {key!r}")
        prefix = "" if block is None else f"blocks.{block}."
        (masks if leaf == "mask" else weights)[
            f"{prefix}{table[part]}.{'weight' if leaf == 'mask' else leaf}"
        ] = value
    return weights, masks


def identify(weights: Mapping[str, Tensor]) -> Architecture:
    """The named architecture whose tensors have exactly these names and shapes.

    Raises:
        InputError: when none has; the message names the nearest one and its first difference.
    """
    found = {name: tuple(value.shape) for name, value in weights.items()}
    differences: dict[str, list[str]] = {}
    for architecture in ARCHITECTURES.values():
        expected = _shapes(architecture)
        different = [
            f"{name} is {found.get(name, 'absent')}, not {expected.get(name, 'absent')}"
            for name in sorted(found.keys() | expected.keys())
            if found.get(name) != expected.get(name)
        ]
        if not different:
            return architecture
        differences[architecture.name] = different
    nearest = min(differences, key=lambda name: len(differences[name]))
    raise InputError(
        f"checkpoint of another network: nearest is {nearest} with {len(differences[nearest])} "
        f"differences, the first: {differences[nearest][0]}"
    )


@cache
def _shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = MicroNet(architecture)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def load_published(path: Path) -> MicroNet:
    """A published network in evaluation mode, its masks applied as the authors' layers do.

    Raises:
        InputError: see `read_state`, `rename` and `identify`; also for weights that are not finite
            in float32 and masks that do not fit.
    """
    state = read_state(path)
    try:
        weights, masks = rename(state)
        architecture = identify(weights)
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}; {_REMEDY}") from error
    for name, mask in masks.items():
        if name not in weights or mask.shape != weights[name].shape:
            raise InputError(f"{path}: the mask of {name} does not fit its weight; {_REMEDY}")
        weights[name] = weights[name].float() * mask.float()
    for name, value in weights.items():
        if not torch.isfinite(value.float()).all():
            raise InputError(f"{path}: {name} holds NaN or infinite values; {_REMEDY}")
    model = MicroNet(architecture)
    model.load_state_dict(weights, strict=True)
    return model.eval()
