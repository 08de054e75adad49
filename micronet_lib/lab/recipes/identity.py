"""The identity of a recipe: a short digest of every field that differs from its default.

A field that a later version adds with a default leaves every older identity as it was.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from micronet_lib.lab.recipes.recipe import Recipe


def recipe_id(recipe: Recipe) -> str:
    """Return ten hex digits that name a recipe."""
    canonical = json.dumps(changed_fields(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def run_id(recipe: Recipe, seed: int) -> str:
    """Return the name of one training run: of its folder, and inside its files."""
    return f"{recipe_id(recipe)}-s{seed}"


def changed_fields(config: Any, default: Any = None) -> dict[str, Any]:
    """Return the fields of a configuration that differ from a default, level by level, as JSON.

    Args:
        config: a dataclass.
        default: one of the same class; by default that class's own defaults.
    """
    found = {}
    for each in fields(config):
        value = getattr(config, each.name)
        usual = getattr(default, each.name) if default is not None else _default(each)
        if is_dataclass(value):
            below = changed_fields(value, usual if type(usual) is type(value) else None)
            if below or type(usual) is not type(value):
                found[each.name] = below
        elif value != usual:
            found[each.name] = _plain(value, as_float=type(usual) is float)
    return found


def _default(each: Any) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default


def _plain(value: Any, as_float: bool = False) -> Any:
    """A value as JSON; equal values give the same text, whether whole numbers are 1 or 1.0.

    They are floats where the default or another number of a tuple is one, else integers.
    """
    if is_dataclass(value):
        return {type(value).__name__: changed_fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        as_float = any(type(entry) is float and not entry.is_integer() for entry in value)
        return [_plain(entry, as_float) for entry in value]
    if as_float and type(value) is int:
        return float(value)
    whole = type(value) is float and value.is_integer()
    return int(value) if whole and not as_float else value
