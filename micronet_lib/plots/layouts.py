"""Other layouts of a finished figure: panels below each other for a phone, and a dark page.

`parts_of` notes where the parts of a figure lie, and `style.sharp_png` keeps that in the PNG. The
site makes both layouts from this one picture, so a notebook holds a figure once.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

__all__ = ["FOOTER", "Parts", "dark", "parts_of", "stacked"]

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels, right and bottom exclusive, as Pillow has them."""

FOOTER = "footer"
"""Group id of the text that names the source of a figure's numbers."""
NARROW = 0.75
"""Panels are stacked where that takes at most this share of the picture's width."""
_KEY = "Parts"
_WORD_GAP, _ENTRY_GAP = 5, 27  # columns without ink between words, and entries of a legend
_ROOM = 12  # pixels between two pieces


@dataclass(frozen=True)
class Parts:
    """Where the parts of a picture lie.

    Args:
        panels: columns of axes with their labels, from left to right; none if they overlap.
        legend: what is above the panels, if the figure has legends of its own.
        footer: the lines that name the source.
        data: areas whose colours are data: photographs, heat maps, colour bars.
    """

    panels: Sequence[Box] = field(default_factory=list)
    legend: Sequence[Box] = field(default_factory=list)
    footer: Sequence[Box] = field(default_factory=list)
    data: Sequence[Box] = field(default_factory=list)

    @classmethod
    def read(cls, picture: Image.Image) -> "Parts | None":
        """Return the parts that a PNG file names, or None for a picture from elsewhere."""
        text = picture.info.get(_KEY)
        return cls(**json.loads(text)) if text else None

    def note(self) -> PngInfo:
        """Return what `Image.save` writes into a PNG file, for `read`."""
        found = PngInfo()
        found.add_text(_KEY, json.dumps(asdict(self)))
        return found


def parts_of(fig: Figure, shown: Bbox) -> Parts:
    """Return the parts of a figure that has been drawn.

    Args:
        fig: the figure.
        shown: what of it became the picture, in inches.
    """

    def box(extents: Iterable[Bbox]) -> Box:
        x0, y0, x1, y1 = Bbox.union(list(extents)).extents
        left, top = shown.x0 * fig.dpi, shown.y1 * fig.dpi
        return (
            *(max(0, int(x0 - left)), max(0, int(top - y1))),
            *(int(np.ceil(x1 - left)), int(np.ceil(top - y0))),
        )

    # A legend outside the axes moves while the figure is saved, so no box of its own is asked for.
    columns = [box(_tight(ax) for ax in column) for column in _columns(fig)]
    apart = all(one[2] <= other[0] for one, other in pairwise(columns))
    top = min((top for _, top, _, _ in columns), default=0)
    return Parts(
        panels=columns if apart else [],
        legend=[(0, 0, columns[-1][2], top)] if fig.legends and columns else [],
        footer=[box([text.get_window_extent()]) for text in fig.findobj(_is_footer)],
        data=[box([ax.get_window_extent()]) for ax in fig.axes if _shows_colours(ax)],
    )


def _tight(ax: Axes) -> Bbox:
    """Return the extent of axes with labels, title and all that is drawn around them."""
    found = ax.get_tightbbox()
    return Bbox.null() if found is None else Bbox(found)


def _is_footer(artist: Any) -> bool:
    return artist.get_gid() == FOOTER


def _shows_colours(ax: Axes) -> bool:
    return bool(ax.images) or any(isinstance(each, QuadMesh) for each in ax.collections)


def _columns(fig: Figure) -> list[list[Axes]]:
    """Return the axes by column. Colour bars and insets belong to the axes they are nearest to."""
    columns: dict[int, list[Axes]] = {}
    for ax in fig.axes:
        place = ax.get_subplotspec()
        if place is not None:
            columns.setdefault(place.colspan.start, []).append(ax)
    for ax in fig.axes:
        if ax.get_subplotspec() is None and columns:
            middle = ax.get_window_extent().x0
            nearest = min(
                columns.values(), key=lambda column: abs(column[0].get_window_extent().x1 - middle)
            )
            nearest.append(ax)
    return [columns[key] for key in sorted(columns)]


# --------------------------------------------------------------------------------- for a phone


def stacked(picture: Image.Image, parts: Parts) -> Image.Image | None:
    """Return a picture with its panels below each other, or None where that gains nothing.

    Entries of the legend and words of the footer go onto as many lines as they need.
    """
    if len(parts.panels) < 2:
        return None
    pixels = np.asarray(picture.convert("RGB"))
    height, width = pixels.shape[:2]
    top = min((box[3] for box in parts.legend), default=0)
    bottom = min((box[1] for box in parts.footer), default=height)
    panels = [(left, top, right, bottom) for left, _, right, _ in parts.panels]
    pieces = [*_pieces(pixels, parts.legend, _ENTRY_GAP), panels]
    wide = max(width // 2, *(box[2] - box[0] for line in pieces for box in line))
    if wide > NARROW * width:
        return None
    pieces += _pieces(pixels, parts.footer, _WORD_GAP)
    return Image.fromarray(
        _set(pixels, [row for line in pieces for row in _lines(line, wide)], wide)
    )


def _lines(boxes: Sequence[Box], wide: int) -> list[list[Box]]:
    """Return boxes in lines that are at most so wide."""
    lines: list[list[Box]] = []
    left = wide
    for box in boxes:
        size = box[2] - box[0] + _ROOM
        if size > left + _ROOM or not lines:
            lines.append([])
            left = wide
        lines[-1].append(box)
        left -= size
    return lines


def _set(pixels: NDArray[np.uint8], lines: Sequence[Sequence[Box]], wide: int) -> Any:
    """Return the lines of boxes below each other."""
    ground = pixels[0, 0]
    rows = []
    for line in lines:
        height = max(bottom - top for _, top, _, bottom in line)
        row = np.tile(ground, (height + _ROOM // 2, wide + 2 * _ROOM, 1))
        at = _ROOM
        for left, top, right, bottom in line:
            cut = pixels[top:bottom, left : min(right, left + wide + _ROOM - at)]
            row[: cut.shape[0], at : at + cut.shape[1]] = cut
            at += right - left + _ROOM
        rows.append(row)
    return np.concatenate(rows)


def _pieces(pixels: NDArray[np.uint8], boxes: Sequence[Box], gap: int) -> Iterator[list[Box]]:
    """Yield the pieces of each line in the boxes, parted at so many columns without ink."""
    for left, top, right, bottom in boxes:
        ink = (pixels[top:bottom, left:right] != pixels[0, 0]).any(axis=2)
        for first, last in _runs(ink.any(axis=1), 1):
            words = _runs(ink[first:last].any(axis=0), gap)
            yield [(left + start, top + first, left + end, top + last) for start, end in words]


def _runs(inked: NDArray[np.bool_], gap: int) -> list[tuple[int, int]]:
    """Return first and last + 1 of the runs of true that `gap` or more false ones part."""
    at = np.flatnonzero(inked)
    if not len(at):
        return []
    breaks = np.flatnonzero(np.diff(at) > gap)
    return list(zip(at[[0, *breaks + 1]], at[[*breaks, -1]] + 1, strict=True))


# ------------------------------------------------------------------------------ for a dark page

# What `filter: invert(0.93) hue-rotate(180deg)` does to a colour in a style sheet.
INVERTED = 0.93
_HUES = np.array([[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]])


def dark(picture: Image.Image, parts: Parts) -> Image.Image:
    """Return a picture turned over, paper dark and hues kept, with the colours of data as they are.

    A style sheet can do this to a whole picture, so only pictures with areas of data need it.
    """
    pixels = np.asarray(picture.convert("RGB"))
    turned = 255 * INVERTED + (1 - 2 * INVERTED) * pixels.astype(np.float32)
    found = np.clip(turned @ _HUES.T.astype(np.float32), 0, 255).round().astype(np.uint8)
    for left, top, right, bottom in parts.data:
        found[top:bottom, left:right] = pixels[top:bottom, left:right]
    return Image.fromarray(found)
