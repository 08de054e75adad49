"""Seed and overrides as a notebook, papermill or the command line gives them."""

import json
from collections.abc import Mapping
from numbers import Real
from typing import Any

from micronet_lib.errors import InputError

MAX_SEED = 2**32 - 1  # NumPy and scikit-learn take no larger one


def checked_seed(seed: Any) -> int:
    """Return a seed as an integer. A whole number such as 1.0 is accepted, as papermill passes it.

    Raises:
        InputError: anything else, or a number outside 0 to `MAX_SEED`.
    """
    whole = isinstance(seed, Real) and not isinstance(seed, bool) and seed == seed // 1
    if not whole or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed {seed!r}: expected a whole number from 0 to {MAX_SEED}")
    return int(seed)


def checked_overrides(overrides: Any) -> dict[str, Any]:
    """Return overrides as a dictionary. Its JSON text is accepted, as papermill's `-p` passes it.

    Raises:
        InputError: neither a mapping of dotted keys nor nothing.
    """
    found = overrides
    if isinstance(overrides, str):
        try:
            found = json.loads(overrides or "{}")
        except ValueError:
            found = overrides
    found = {} if found is None else found
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise InputError(
            f"overrides {overrides!r}: expected dotted keys and values, such as "
            '{"train.epochs": 2}'
        )
    return dict(found)
