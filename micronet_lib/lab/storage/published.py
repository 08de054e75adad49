"""Published files of teams, each in its own format, read into networks of this library.

A file cannot run code. It is a dictionary of tensors, bare or under a key such as `net4`. It does
not name its network; names and shapes of the tensors identify it. Each team's format is one
function in `FORMATS`, from the team's names to this library's. A plain `state_dict()` of a
registered network is read as well.
"""

import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from micronet_lib.architecture.network import NETWORKS, Network, NetworkSpec, build
from micronet_lib.errors import InputError

_ASKED = re.compile(r"GLOBAL (\S+)")
_REMEDY = "`micronet data fetch kaist` gets the published ones"


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a published checkpoint under the authors' names, on the CPU.

    Unpickling is restricted to tensors, plain containers, NumPy numbers and arrays, and the
    arguments of a command line, so a file cannot run code.

    Raises:
        InputError: no such file; truncated; not a checkpoint; other content than dense tensors of
            real numbers; more than one network.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; {_REMEDY}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # of odd files, which get one line of ours below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        asked = _ASKED.search(str(error))
        if asked is None:
            raise InputError(
                f"{path} is damaged or no checkpoint; nothing of it was executed; {_REMEDY}"
            ) from error
        raise InputError(
            f"{path} asks for {asked[1]}, which may run code; nothing of it was executed: save "
            "the network's state_dict() alone, or copy the file again if it may be damaged"
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


def _harmless() -> list[Any]:
    """Return what people save beside tensors, and what only holds data."""
    arrays = np._core.multiarray  # type: ignore[attr-defined]
    numbers = np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"
    makers = [
        (getattr(arrays, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")  # the name before NumPy 2, and since
    ]
    return [Namespace, bytes, np.ndarray, np.dtype, *{type(np.dtype(c)) for c in numbers}, *makers]


def _is_network(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(key, str) and _is_plain(tensor) for key, tensor in value.items())


def _is_plain(value: object) -> bool:
    """Return whether a value is a dense tensor of real numbers that holds its data."""
    return isinstance(value, Tensor) and not (
        value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex()
    )


Tensors = dict[str, Tensor]
Format = Callable[[Mapping[str, Tensor]], tuple[Tensors, Tensors]]

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


def from_kaist(state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """Return weights and masks of a file of [kim2020] under this library's names.

    Each prunable tensor has a mask, as in `layers.3.conv2.weight` and `layers.3.conv2.mask`. A
    prefix `module.` (data parallel) is removed.

    Raises:
        InputError: a name outside the authors' scheme.
    """
    weights: Tensors = {}
    masks: Tensors = {}
    for key, value in state.items():
        match = _KEY.match(key.removeprefix("module."))
        block, part, leaf = match.groups() if match else (None, "", "")
        table = _STEM_AND_HEAD if block is None else _PARTS
        if part not in table:
            raise InputError(f"checkpoint of another network: no place for the tensor {key!r}")
        prefix = "" if block is None else f"blocks.{block}."
        if leaf == "mask":
            masks[f"{prefix}{table[part]}.weight"] = value
        else:
            weights[f"{prefix}{table[part]}.{leaf}"] = value
    return weights, masks


def from_ours(state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """Return the weights of a plain `state_dict()` of a registered network, without masks.

    Raises:
        InputError: no tensor has a name of such a network.
    """
    weights = {key.removeprefix("module."): value for key, value in state.items()}
    if not any(weights.keys() & (_shapes(network) or {}).keys() for network in NETWORKS):
        raise InputError("no tensor has a name of a registered network")
    return weights, {}


FORMATS: dict[str, Format] = {"kaist": from_kaist, "ours": from_ours}
"""Every team's format. A function returns weights and masks, and raises for other names."""


def identify(weights: Mapping[str, Tensor]) -> NetworkSpec:
    """Return the registered network whose tensors have exactly these names and shapes.

    Of several networks with the same shapes, the first registered one is returned.

    Raises:
        InputError: no network fits. The message names the nearest one and its first difference.
    """
    found = {name: tuple(value.shape) for name, value in weights.items()}
    differences: dict[str, list[str]] = {}
    for network in NETWORKS:
        expected = _shapes(network)
        if expected is None:
            continue
        different = [
            f"{name} is {found.get(name, 'absent')}, not {expected.get(name, 'absent')}"
            for name in sorted(found.keys() | expected.keys())
            if found.get(name) != expected.get(name)
        ]
        if not different:
            return NetworkSpec(network)
        differences[network] = different
    nearest = min(differences, key=lambda name: len(differences[name]))
    raise InputError(
        f"checkpoint of another network: nearest is {nearest} with {len(differences[nearest])} "
        f"differences, the first: {differences[nearest][0]}"
    )


@cache
def _shapes(network: str) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of a registered network; None if it cannot be built without options."""
    try:
        with torch.device("meta"):
            model = build(network)
    except InputError:
        return None
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def load_published(path: Path) -> Network:
    """Return a published network in evaluation mode, its masks multiplied into its weights.

    Raises:
        InputError: see `read_state` and `identify`; also an unknown format, weights that are not
            finite in float32, or masks that do not fit.
    """
    state = read_state(path)
    try:
        spec, weights, masks = _understood(state)
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}; {_REMEDY}") from error
    for name, mask in masks.items():
        if name not in weights or mask.shape != weights[name].shape:
            raise InputError(f"{path}: the mask of {name} does not fit its weight; {_REMEDY}")
        weights[name] = weights[name].float() * mask.float()
    for name, value in weights.items():
        if not torch.isfinite(value.float()).all():
            raise InputError(f"{path}: {name} holds NaN or infinite values; {_REMEDY}")
    model = build(spec)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def _understood(state: Mapping[str, Tensor]) -> tuple[NetworkSpec, Tensors, Tensors]:
    """Return network, weights and masks of a file, by the first format that fits."""
    reasons = []
    for read in FORMATS.values():
        try:
            weights, masks = read(state)
            return identify(weights), weights, masks
        except InputError as error:
            reasons.append(str(error))
    raise InputError("; ".join(reasons))
