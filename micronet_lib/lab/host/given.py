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
            found = _parsed_json(value or "{}")
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


def assignments(texts: Iterable[str], what: str = "override") -> dict[str, Any]:
    """Return the values of texts such as `model=micronet_v2`, by key.

    A value is read as JSON. If it is none, it is the text itself.

    Raises:
        InputError: no such text, a key that is given twice, or a key beside one below it. `what`
            says of what it is.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{what} {text!r} is not KEY=VALUE, such as model=micronet_v2")
        if key in found:
            raise InputError(f"{what} {key} is given twice: give it once")
        try:
            found[key] = _parsed_json(value)
        except InputError:
            raise
        except ValueError:
            found[key] = value
    for key in found:
        below = next((other for other in found if other.startswith(f"{key}.")), None)
        if below is not None and not isinstance(found[key], Mapping):
            raise InputError(f"{what} {key} is given, and {below}: give one of them")
    return found


def _parsed_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        InputError: an object holds a key twice, or a number is not finite.
        ValueError: no JSON.
    """
    return json.loads(text, object_pairs_hook=_with_each_key_once, parse_constant=_refused_constant)


def _refused_constant(text: str) -> float:
    """Refuse NaN and Infinity, which Python's JSON knows and no other."""
    raise InputError(f"{text} is no number to give: give a finite one")


def _with_each_key_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a mapping. JSON itself would take the last value of a key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"key {key!r} is given twice: give it once")
        found[key] = value
    return found
