"""Figures of chapter `99_status`."""

import numpy as np
from matplotlib.figure import Figure

from micronet_lib.plots.style import figure, footer

__all__ = ["embedded_set"]


def embedded_set(sheet: np.ndarray, superclass_names: tuple[str, ...], source: str) -> Figure:
    """Draw the embedded data set, one row per superclass.

    Args:
        sheet: uint8 picture `[H, W, 3]` whose rows are the superclasses, evenly spaced.
        superclass_names: from top to bottom.
    """
    fig, (ax,) = figure(height=9.6)
    ax.imshow(sheet, interpolation="nearest")
    step = sheet.shape[0] / len(superclass_names)
    ax.set_yticks([step * (row + 0.5) for row in range(len(superclass_names))], superclass_names)
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return footer(fig, source)
