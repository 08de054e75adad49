"""The identity of a recipe: a short digest of the fields that differ from their defaults.

A field that a later version adds with a default does not change older identities.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, cast

from micronet_lib.lab.recipes.recipe import Recipe


def recipe_id(recipe: Recipe) -> str:
    """Return ten hex digits that name a recipe."""
    canonical = json.dumps(changed_fields(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def run_id(recipe: Recipe, seed: int) -> str:
    """Return the name of one training: of its folder, and the key inside its files."""
    return f"{recipe_id(recipe)}-s{seed}"


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return all settings of a recipe, for records and files; a change under its class name."""
    settings = asdict(recipe)
    settings["changes"] = [
        {type(change).__name__: asdict(cast(Any, change))} for change in recipe.changes
    ]
    for name, other in (("start", recipe.start), ("teacher", recipe.teacher)):
        settings[name] = None if other is None else plain_recipe(other)
    settings["more_teachers"] = [plain_recipe(teacher) for teacher in recipe.more_teachers]
    return settings


def flat_settings(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested settings under dotted keys, as in overrides."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= flat_settings(value, f"{above}{key}.") if nested else {f"{above}{key}": value}
    return found


def changed_fields(config: Any, default: Any = None) -> dict[str, Any]:
    """Return the fields of a configuration that differ from a default, level by level, as JSON.

    Args:
        config: a dataclass.
        default: an instance of the same class; by default the defaults of that class.
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
    """Return a value as JSON. Equal values give the same text, whether whole numbers are 1 or 1.0.

    A whole number becomes a float if its default is one or its tuple holds a fraction.
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
