"""Every grid of the book, one module per chapter; each declares its `SWEEPS`.

`sweep.points()` is the only list of points. Measuring, tables, figures, the status page and the
README read it.
"""

from importlib import import_module
from pkgutil import iter_modules

from micronet_lib.errors import Registry
from micronet_lib.lab.recipes.sweep import Sweep


def _sweeps() -> Registry[Sweep]:
    modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    sweeps = [sweep for module in modules for sweep in module.SWEEPS]
    ordered = sorted(sweeps, key=lambda sweep: sweep.chapter)
    return Registry("sweep", {sweep.name: sweep for sweep in ordered})


SWEEPS = _sweeps()
"""Every sweep by name, in the order of the chapters."""
