"""Values that readers give in a notebook or on a command line, checked in one place."""

import json
import operator
from collections.abc import Iterable, Mapping
from typing import Any

from micronet_lib.errors import InputError

SEEDS = 2**32
"""Seeds are below this number, because NumPy and scikit-learn take no larger one."""


def as_seed(value: object) -> int:
    """Return a seed as a plain integer.

    Raises:
        InputError: no whole number (1.0, True and "1" are none), negative, or too large. Otherwise
            one run would get several records.
    """
    try:
        seed = -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        seed = -1
    if not 0 <= seed < SEEDS:
        raise InputError(f"seed is {value!r}; give a whole number from 0 to 2^32 - 1, such as 1")
    return seed


def as_overrides(value: object) -> dict[str, Any]:
    """Return overrides as a dictionary: from a mapping, from None, or from text.

    papermill passes `-p overrides '{"train.epochs": 2}'` as text.

    Raises:
        InputError: neither a mapping with text as keys, nor such a mapping in JSON; a key twice.
    """
    found = value
    if isinstance(value, str):
        try:
            found = parsed_json(value or "{}")
        except InputError:
            raise
        except ValueError:
            found = value
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise InputError(
            f'overrides are {value!r}; give dotted keys with values, such as {{"train.epochs": 2}}'
        )
    return dict(found)


def parsed_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        InputError: an object holds a key twice.
        ValueError: no JSON.
    """
    return json.loads(text, object_pairs_hook=_with_each_key_once)


def _with_each_key_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a mapping. JSON itself would take the last value of a key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"key {key!r} is given twice: give it once")
        found[key] = value
    return found
