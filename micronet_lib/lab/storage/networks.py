"""Files of our own networks: a spec to build them from, and their tensors.

A file for others is safetensors. Its metadata hold the spec and further entries, each as JSON.
Loading needs the spec and no recipe. Ternary layers are two bitmasks and two scales there
(`ternary.stored`), so such a network cannot be trained on. A network in integers can also be a
packed file, which holds nothing but its integers (`beyond.packed`), and one of floats an ONNX file
for other runtimes, which is not read into a network again (`exchange`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import micronet_lib.adjustable_quantization  # noqa: F401  registers a network
from micronet_lib.architecture.network import Network, NetworkSpec, build
from micronet_lib.beyond.conversion import check_packable, network_bytes, unpacked
from micronet_lib.beyond.packed import SUFFIX as PACKED
from micronet_lib.beyond.packed import load_packed
from micronet_lib.errors import InputError
from micronet_lib.lab.host.files import check_output, write_atomically
from micronet_lib.lab.host.machine import environment
from micronet_lib.lab.recipes.identity import plain_recipe, recipe_id
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.storage.exchange import SUFFIX as ONNX
from micronet_lib.lab.storage.exchange import check_onnx, needed, onnx_bytes
from micronet_lib.lab.storage.published import load_published
from micronet_lib.lab.storage.states import is_own, load_own
from micronet_lib.ternary import TernaryNetwork, in_bitmasks

SUFFIX = ".safetensors"
SUFFIXES = (SUFFIX, PACKED, ONNX)
SAID_OF_PACKED = ("recipe_id", "sweep", "point", "profile", "seed", "commit")
"""What a packed file says of its network, where it is known."""


def pack(network: Network) -> dict[str, Any]:
    """Return the content of a file for `restore`: `spec`, plain JSON, and `model`, tensors."""
    return {"spec": asdict(network.spec), "model": network.state_dict()}


def restore(spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> Network:
    """Build a network from the content of a file (`pack`), on the CPU in evaluation mode.

    It has the precision of the tensors.

    Raises:
        InputError: the network is not registered, the tensors belong to another network, or a value
            is NaN or infinite.
    """
    network = build(NetworkSpec(**spec))
    with torch.no_grad():
        for name, value in network.state_dict(keep_vars=True).items():
            value.data = value.data.to(state[name].dtype if name in state else value.dtype)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        why = _misfit(network.state_dict(), state) or str(error).partition("\n")[0]
        raise InputError(f"tensors of another network than {network.spec.name}: {why}") from error
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise InputError(f"the weights of this {network.spec.name} hold NaN or infinite values")
    return network.eval()


def _misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Return in a few words why tensors do not fit a network, or nothing if they do."""
    kinds = {
        "missing": sorted(own.keys() - given.keys()),
        "unknown": sorted(given.keys() - own.keys()),
        "of another shape": [n for n in own if n in given and own[n].shape != given[n].shape],
    }
    return ", ".join(
        f"{len(names)} of them {what}, such as {names[0]!r}"
        for what, names in kinds.items()
        if names
    )


def export_network(
    network: Network, path: Path, recipe: Recipe | None = None, **more: Any
) -> dict[str, Any]:
    """Write a network for others to read, trimmed ones included, and return the file's metadata.

    The recipe is that of its training, resolved for its profile. `more` are further entries, such
    as `top1=0.8` and `score={...}`. A packed file holds those of `SAID_OF_PACKED`.

    Raises:
        InputError: as for `check_export` and `check_exportable`.
    """
    check_export(path)
    check_exportable(network, path)
    if isinstance(network, TernaryNetwork):
        network = in_bitmasks(network)
    env = environment()
    metadata = {"spec": asdict(network.spec), "torch": env["torch"], "commit": env["commit"]}
    if recipe is not None:
        metadata |= {"recipe": plain_recipe(recipe), "recipe_id": recipe_id(recipe)}
    metadata |= more
    if path.suffix == PACKED:
        metadata = {key: metadata[key] for key in SAID_OF_PACKED if key in metadata}
        content = network_bytes(network, **metadata)
        write_atomically(path, content, f"the network {path.name}")
        return metadata
    if path.suffix == ONNX:
        write_atomically(path, onnx_bytes(network, **metadata), f"the network {path.name}")
        return metadata
    # Copies, because safetensors refuses tensors that share memory.
    state = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    content = _safetensors().torch.save(state, metadata=texts)
    write_atomically(path, content, f"the network {path.name}")
    return metadata


def check_export(path: Path) -> None:
    """Raise an error if no network can be exported to this file.

    Raises:
        InputError: another ending, a folder that cannot be written, or a package not installed.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path} is not a name for a network: end it in {', '.join(SUFFIXES[:-1])} or {ONNX}"
        )
    check_output(path)
    if path.suffix == SUFFIX:
        _safetensors()
    if path.suffix == ONNX:
        needed("onnxscript", f"writing {ONNX}")


def check_exportable(network: Network, path: Path) -> None:
    """Raise an error if this network cannot be exported to a file of that name.

    Raises:
        InputError: a packed file for a network that is not in integers, or an ONNX file for one
            that is quantised or has several exits.
    """
    checks: dict[str, Callable[[Network], object]] = {PACKED: check_packable, ONNX: check_onnx}
    if path.suffix in checks:
        try:
            checks[path.suffix](network)
        except InputError as error:
            raise InputError(f"{path}: {error}; {SUFFIX} holds any network") from error


def load_exported(path: Path) -> tuple[Network, dict[str, Any]]:
    """Read a file of `export_network`: the network in evaluation mode, and the metadata.

    Raises:
        InputError: no such file, unreadable, damaged, another format, or safetensors not installed.
    """
    safetensors = _safetensors()
    if not path.is_file():
        raise InputError(f"no network at {path}; `micronet export` writes one")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = restore(metadata["spec"], state)
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror or error}): make it readable"
        ) from error
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        line = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged or no network of this library ({line})") from error
    return network, metadata


def load_network(path: Path) -> Network:
    """Load a network from any file: exported, packed, of a training run, or published by a team.

    Raises:
        InputError: the file is missing, unreadable, damaged, or holds no network.
    """
    if path.suffix == SUFFIX:
        return load_exported(path)[0]
    if path.suffix == PACKED:
        return unpacked(load_packed(path))
    if path.suffix == ONNX and path.is_file():
        raise InputError(
            f"{path} holds operations for other runtimes, which `micronet evaluate` runs with "
            f"OpenVINO; anything else reads {SUFFIX}"
        )
    if not is_own(path):
        return load_published(path)
    content = load_own(path)
    if content is None or not {"spec", "model"} <= content.keys():
        raise InputError(f"{path} is damaged or holds no network")
    return restore(content["spec"], content["model"])


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise InputError("reading and writing networks needs the package safetensors") from error
    return safetensors
