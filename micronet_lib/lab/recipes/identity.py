"""The identity of a recipe: a short digest of what it changes."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from micronet_lib.lab.recipes.recipe import Recipe


def recipe_id(recipe: Recipe) -> str:
    """Ten hex digits that name a recipe: a digest of its non-default fields, sorted.

    A field that a later version adds with a default leaves every older name as it was.
    """
    changed = _changed(asdict(recipe), asdict(Recipe()))
    canonical = json.dumps(changed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def run_key(recipe: Recipe, seed: int) -> str:
    """Recipe and seed of a run, so that no file of another run is taken for this one's."""
    return f"{recipe_id(recipe)}-s{seed}"


def _changed(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ, level by level."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            value = _changed(value, defaults[name])
            if value:
                found[name] = value
        elif value != defaults[name]:
            found[name] = value
    return found
