"""Every grid of the book, one module per chapter; each declares its `SWEEPS`.

`sweep.points()` is the only list of points. Measuring, tables, figures, the status page and the
README read it.
"""

from importlib import import_module
from pkgutil import iter_modules

from micronet_lib.errors import unknown
from micronet_lib.lab.recipes.sweep import Sweep


def _sweeps() -> dict[str, Sweep]:
    modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    sweeps = [sweep for module in modules for sweep in module.SWEEPS]
    return {sweep.name: sweep for sweep in sorted(sweeps, key=lambda sweep: sweep.chapter)}


SWEEPS = _sweeps()
"""Every sweep by name, in the order of the chapters."""


def get_sweep(name: str) -> Sweep:
    """Return the sweep of that name.

    Raises:
        InputError: the name is not in `SWEEPS`.
    """
    if name not in SWEEPS:
        raise unknown("sweep", name, SWEEPS)
    return SWEEPS[name]
