"""The common style of figures: size, type, colour-blind-safe colours, and the footer.

A figure looks the same whatever a reader's matplotlibrc says, and appears in a notebook whatever
MPLBACKEND says.
"""

import io
import json
import sys
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator
from matplotlib.transforms import Bbox
from PIL import Image

from micronet_lib.plots.layouts import FOOTER, parts_of

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    *("#0072B2", "#D55E00", "#009E73", "#CC3311"),
    *("#AA4499", "#56B4E9", "#DDAA33", "#888888"),
)
WIDTH = 7.2
FOOTER_CHARS = 125
"""Characters in a line of a figure's footer."""
CHART = 0.8
"""Share of pixels that the dozen commonest colours cover: above it, a picture is a chart."""

# Label and colour of every kind of layer, in the order in which figures show them.
KIND_STYLES = {
    "conv": ("stem", GREY),
    "expand": ("expand", BLUE),
    "depthwise": ("depthwise", ORANGE),
    "project": ("project", GREEN),
    "shortcut": ("shortcut", YELLOW),
    "se": ("squeeze-excite", PURPLE),
    "fc": ("classifier", "#444444"),
    "pointwise": ("pointwise", RED),
    "other": ("other", "#dddddd"),
}

_RC: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 9.5,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.hashsalt": "micronet",
}


def show_inline() -> None:
    """Let figures appear below a notebook's cells, whatever MPLBACKEND or matplotlibrc asks for.

    Outside a Jupyter kernel nothing changes. A later `%matplotlib` overrules it.
    """
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    if hasattr(shell, "kernel"):
        shell.enable_matplotlib("inline")
        shell.display_formatter.formatters["image/png"].for_type(Figure, sharp_png)


def sharp_png(fig: Figure) -> tuple[bytes, dict[str, int]]:
    """Return a figure as PNG with two pixels for one, and the size at which a page shows it.

    A chart keeps 256 colours, so that it is no larger than all its colours at one pixel for one.
    The file says where the parts of the figure lie (`layouts.Parts`).
    """
    drawn, written = io.BytesIO(), io.BytesIO()
    dpi = fig.dpi
    fig.set_dpi(2 * dpi)
    fig.draw_without_rendering()
    shown = Bbox(fig.get_tightbbox()).padded(mpl.rcParams["savefig.pad_inches"])
    # A legend of the figure is placed by the box of what is saved. It stays where it is drawn here.
    engine = fig.get_layout_engine()
    fig.set_layout_engine("none")
    moving = [legend for legend in fig.legends if legend.get_bbox_to_anchor() is fig.bbox]
    for legend in moving:
        legend.set_bbox_to_anchor((0, 0, 1, 1), fig.transFigure)
    parts = parts_of(fig, shown)
    fig.savefig(drawn, format="png", dpi=fig.dpi, bbox_inches=shown)
    for legend in moving:
        legend.set_bbox_to_anchor(None)
    fig.set_layout_engine(engine)
    fig.set_dpi(dpi)
    picture = Image.open(drawn).convert("RGB")
    size = picture.width * picture.height
    commonest = sorted(n for n, _ in picture.getcolors(size) or [])[-12:]
    if sum(commonest) > CHART * size:
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    picture.save(written, "png", optimize=True, pnginfo=parts.note())
    return written.getvalue(), {"width": picture.width // 2, "height": picture.height // 2}


show_inline()


def apply_style() -> None:
    """Set matplotlib to its own defaults and then to the book's style, backend excepted."""
    # Not a context: leaving one would switch the notebook's backend off.
    mpl.style.use(["default", _RC])


def figure(
    height: float = 3.4, columns: int = 1, rows: int = 1, widths: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure in the book's style with `rows * columns` axes, row by row.

    It stays open in pyplot, so that a cell that ends with `fig = plots.name(table)` shows it once.

    Args:
        height: in inches; the width is that of the page.
        columns: axes side by side.
        rows: axes above each other.
        widths: relative widths of the columns.
    """
    apply_style()
    fig = plt.figure(figsize=(WIDTH, height), dpi=110, facecolor="white", layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False, width_ratios=widths)
    return fig, list(axes.flat)


def footer(fig: Figure, text: str) -> Figure:
    """Write the source of the numbers under a figure, and return the figure."""
    # A longer line would make the picture wider than its page, and so its type small.
    lines = [wrap(line, FOOTER_CHARS, break_on_hyphens=False) or [""] for line in text.split("\n")]
    text = "\n".join(line for part in lines for line in part)
    fig.supxlabel(text, fontsize=7.5, color="#666666", x=0.01, ha="left").set_gid(FOOTER)
    return fig


def note(
    ax: Axes, text: str, at: tuple[Any, Any], shift: tuple[float, float], **style: Any
) -> None:
    """Write a small text beside a point; `shift` is in points of type."""
    ax.annotate(text, at, shift, textcoords="offset points", **{"size": 8, **style})


def yours(ax: Axes, mine: pd.DataFrame, x: pd.Series, y: pd.Series, legend: bool = True) -> None:
    """Mark the runs of the reader's machine, with an entry in the legend; nothing without any.

    Args:
        ax: the axes.
        mine: from `records.mine`.
        x: where each row of it lies; NaN leaves it out.
        y: the same.
        legend: draw one above the axes, where the figure has none for all of them.
    """
    run = (mine["n"] > 0) & x.notna() & y.notna()
    if run.any():
        n = "/".join(str(n) for n in sorted(set(mine["n"][run])))
        style: dict[str, Any] = {"color": RED, "mec": "white", "ms": 11, "zorder": 5}
        label = f"yours, {mine['profile'].iloc[0]}, n={n}"
        handles = ax.plot(x[run], y[run], "*", clip_on=False, label=label, **style)
        for axis in (ax.xaxis, ax.yaxis):
            if not len(axis.get_majorticklocs()):  # nothing else was drawn there
                axis.set_major_locator(AutoLocator())
                ax.autoscale(axis="x" if axis is ax.xaxis else "y")
        fig = ax.get_figure(root=True)
        if legend and fig is not None:
            fig.legend(handles=handles, loc="outside upper right", fontsize=8.5)


def panel_of(mine: pd.DataFrame, axes: Sequence[Axes]) -> Axes:
    """Return the axes whose title ends in the profile of the reader's runs, or the first ones."""
    profile = str(mine["profile"].iloc[0])
    return next((ax for ax in axes if ax.get_title().endswith(profile)), axes[0])


def not_run(ax: Axes) -> None:
    """Say that there is nothing to draw."""
    ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", va="center", size=9)


# ------------------------------------------------------------------------------ interactive parts


@cache
def _text(file: str) -> str:
    return (files("micronet_lib.plots") / file).read_text(encoding="utf-8")


def component(page: str, css_class: str, name: str, data: Any) -> HTML:
    """Return an interactive part of a page. It needs no network connection and no other file.

    Args:
        page: file beside this module. `__STYLE__` and `__START__` in it stand for what all such
            parts share: `component.css` with the colours of both themes, and `component.js`, which
            calls the rest of the script with the element and the data.
        css_class: of the element, for its own style.
        name: id of the element on the page, the same in every run.
        data: plain JSON.
    """
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    found = _text(page).replace("__STYLE__", _text("component.css"))
    found = found.replace("__START__", _text("component.js")).replace("__CLASS__", css_class)
    return HTML(found.replace("__NAME__", name).replace("__DATA__", text))


def whole_page(part: HTML, title: str, refresh_s: int = 0) -> str:
    """Return a page of its own around an interactive part, in the colours of the system.

    Args:
        part: from `component`.
        title: plain text.
        refresh_s: seconds after which a browser reads the page again; 0 for never.
    """
    refresh = f'\n<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    found = _text("page.html").replace("__TITLE__", escape(title)).replace("__REFRESH__", refresh)
    return found.replace("__PART__", str(part.data))
