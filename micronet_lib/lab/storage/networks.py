"""A trained network as one file that others can read: weights, recipe and score in safetensors."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from micronet_lib.architecture.micronet import MicroNet
from micronet_lib.errors import InputError
from micronet_lib.lab.host.files import write_atomically
from micronet_lib.lab.host.machine import environment
from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.recipes.recipe import Recipe, with_overrides
from micronet_lib.lab.running.networks import fresh_network
from micronet_lib.lab.storage.published import load_published
from micronet_lib.scoring.bill import score_network

SUFFIX = ".safetensors"


def export_network(model: MicroNet, recipe: Recipe, path: Path, **told: Any) -> dict[str, Any]:
    """Write a network with its recipe, its score and what else there is to tell; returns all that.

    Args:
        model: trained as the recipe says.
        recipe: resolved for its profile.
        path: ends in `.safetensors`.
        told: more entries of the file's metadata, such as `top1=0.8`.

    Raises:
        InputError: another ending, a folder that cannot be written, or no safetensors installed.
    """
    if path.suffix != SUFFIX:
        raise InputError(f"{path} is not a name for a network: end it in {SUFFIX}")
    env = environment()
    metadata = {
        "recipe": asdict(recipe),
        "recipe_id": recipe_id(recipe),
        "score": score_network(model, "published").metrics(),
        "torch": env["torch"],
        "commit": env["commit"],
        **told,
    }
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    content = _safetensors().torch.save(state, metadata=texts)
    write_atomically(path, content, f"the network {path.name}")
    return metadata


def load_exported(path: Path) -> tuple[MicroNet, dict[str, Any]]:
    """A network that `export_network` wrote, in evaluation mode, and its metadata.

    Raises:
        InputError: no such file, damaged, of another make, or no safetensors installed.
    """
    safetensors = _safetensors()
    if not path.is_file():
        raise InputError(f"no network at {path}; `micronet export` writes one")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recipe = with_overrides(Recipe(), _network_only(metadata["recipe"]))
        model = fresh_network(recipe, seed=0)
        model.load_state_dict(state, strict=True)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged or no network of this library ({reason})") from error
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise InputError(f"{path} holds NaN or infinite values")
    return model.eval(), metadata


def load_network(path: Path) -> MicroNet:
    """A network from a file: one of ours by its ending, else one of the published format.

    Raises:
        InputError: see `load_exported` and `checkpoints.load_published`.
    """
    return load_exported(path)[0] if path.suffix == SUFFIX else load_published(path)


def _network_only(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a stored recipe decides the network: the rest may be of another version."""
    return {name: recipe[name] for name in ("model", "width_mult")}


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise InputError("reading and writing networks needs the package safetensors") from error
    return safetensors
