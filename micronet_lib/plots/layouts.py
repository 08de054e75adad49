"""Other layouts of a finished figure: panels below each other for a phone, and a dark page.

`parts_of` notes where the parts of a figure lie, and `style.sharp_png` keeps that in the PNG. The
site makes both layouts from this one picture, so a notebook holds a figure once.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
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
NARROW = 0.7
"""Panels are stacked where that takes at most this share of the picture's width."""
_KEY = "Parts"
_WORD_GAP, _MARGIN = 5, 12  # columns without ink between words; pixels around a line of boxes


@dataclass(frozen=True)
class Parts:
    """Where the parts of a picture lie.

    Args:
        panels: axes with their labels, in the order of reading. Axes that share labels with others
            of their column are one panel. One that takes its labels from the left of its row has
            these labels, too, as a box before its own. None if panels overlap.
        legend: entries and titles of the legends that are the figure's own, line by line.
        footer: the lines that name the source.
        data: areas whose colours are data: photographs, heat maps, colour bars, and handles of
            legends beside them.
        holed: those of them in which white is paper.
    """

    panels: Sequence[Sequence[Box]] = field(default_factory=list)
    legend: Sequence[Box] = field(default_factory=list)
    footer: Sequence[Box] = field(default_factory=list)
    data: Sequence[Box] = field(default_factory=list)
    holed: Sequence[Box] = field(default_factory=list)

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
        edges = (x0 - left, top - y1, x1 - left, top - y0)
        first, second, third, last = (max(0, round(edge)) for edge in edges)
        return first, second, third, last

    def box_of(ax: Axes) -> Box:
        return box([ax.get_window_extent()])

    groups = _columns(fig)
    panels = [box(map(_tight, group)) for group in groups]
    top = min((panel[1] for panel in panels), default=0)
    bottom = max((panel[3] for panel in panels), default=0)
    if all(map(_stands_alone, fig.axes)):
        panels = [box([_tight(ax)]) for ax in fig.axes]  # made row by row
    else:
        panels = [(left, top, right, bottom) for left, _, right, _ in panels]
    beside: list[list[Box]] = [[panel] for panel in panels]
    names = [extent for ax in groups[0] for extent in _row_names(ax)] if groups else []
    if names and len(panels) == len(groups):
        for own, (ax, *_) in zip(beside, groups, strict=True):
            if ax.axison and len(ax.get_yticks()) and not _row_names(ax):
                own.insert(0, box(names))
    coloured = [ax for ax in fig.axes if _shows_colours(ax)]
    # The legend explains the colours of data.
    handles = [box([handle]) for handle, text in _entries(fig) if coloured and handle is not text]
    return Parts(
        panels=[] if any(map(_overlap, combinations(panels, 2))) else beside,
        legend=[box([handle, text]) for handle, text in _entries(fig)],
        footer=[box([text.get_window_extent()]) for text in fig.findobj(_is_footer)],
        data=[*map(box_of, coloured), *handles],
        holed=[*map(box_of, filter(_lacks_data, coloured)), *handles],
    )


def _tight(ax: Axes) -> Bbox:
    """Return the extent of axes with labels, title and all that is drawn around them."""
    found = ax.get_tightbbox()
    return ax.get_window_extent() if found is None else Bbox(found)


def _is_footer(artist: Any) -> bool:
    return artist.get_gid() == FOOTER


def _shows_colours(ax: Axes) -> bool:
    return bool(ax.images) or any(isinstance(each, QuadMesh) for each in ax.collections)


def _lacks_data(ax: Axes) -> bool:
    return any(np.ma.is_masked(image.get_array()) for image in ax.images)


def _entries(fig: Figure) -> Iterator[tuple[Bbox, Bbox]]:
    """Yield where handle and text of each entry of the figure's legends lie; a title is twice."""
    for legend in fig.legends:
        if legend.get_title().get_text():
            title = legend.get_title().get_window_extent()
            yield title, title
        for text in legend.get_texts():
            extent = text.get_window_extent()
            em = float(text.get_fontsize()) * fig.dpi / 72
            right = extent.x0 - legend.handletextpad * em
            left = right - legend.handlelength * em
            yield Bbox([[left, extent.y0], [right, extent.y1]]), extent


def _row_names(ax: Axes) -> list[Bbox]:
    """Return where the labels of the rows of axes lie; nothing if others of their row have them."""
    shown = [t for t in ax.get_yticklabels() if t.get_visible() and t.get_text()]
    texts = [*shown, ax.yaxis.label] if shown and ax.get_ylabel() else shown
    found = [text.get_window_extent() for text in texts]
    low, high = ax.get_window_extent().intervaly
    # Ticks outside the axes have labels too, which are not drawn.
    return [each for each in found if low - 1 <= (each.y0 + each.y1) / 2 <= high + 1]


def _stands_alone(ax: Axes) -> bool:
    """Say whether axes can be read without those around them."""
    labelled = not ax.axison or ax.xaxis.get_tick_params().get("labelbottom", True)
    return ax.get_subplotspec() is not None and bool(ax.get_title()) and labelled


def _overlap(pair: tuple[Box, Box]) -> bool:
    one, other = pair
    across = one[0] < other[2] and other[0] < one[2]
    return across and one[1] < other[3] and other[1] < one[3]


def _columns(fig: Figure) -> list[list[Axes]]:
    """Return the axes by column. Colour bars and insets belong to the axes they are nearest to."""
    columns: dict[int, list[Axes]] = {}
    for ax in fig.axes:
        place = ax.get_subplotspec()
        if place is not None:
            columns.setdefault(place.colspan.start, []).append(ax)
    found = [columns[key] for key in sorted(columns)]
    edges = [column[0].get_window_extent().x1 for column in found]
    for ax in fig.axes:
        if ax.get_subplotspec() is None and found:
            found[np.abs(np.subtract(edges, ax.get_window_extent().x0)).argmin()].append(ax)
    return found


# --------------------------------------------------------------------------------- for a phone


def stacked(picture: Image.Image, parts: Parts) -> Image.Image | None:
    """Return a picture with its panels below each other, or None where that gains nothing.

    Narrow panels share a line. Entries of the legend and words of the footer go onto as many lines
    as they need.
    """
    if len(parts.panels) < 2:
        return None
    pixels = np.asarray(picture.convert("RGB"))
    width = pixels.shape[1]
    wide = max(width // 2, *map(_width, [*([entry] for entry in parts.legend), *parts.panels]))
    if wide > NARROW * width:
        return None
    rows = [
        _row(pixels, line, wide, gap, middle)
        for pieces, gap, middle in (
            ([[[entry] for entry in parts.legend]], 3 * _MARGIN, False),
            ([parts.panels], 2 * _MARGIN, True),
            (_words(pixels, parts.footer), 2 * _WORD_GAP, False),
        )
        for piece in pieces
        for line in _lines(piece, wide, gap)
    ]
    return Image.fromarray(np.concatenate(rows))


def _width(piece: Sequence[Box]) -> int:
    """Return the width of boxes that stand side by side."""
    return sum(right - left for left, _, right, _ in piece)


def _top(piece: Sequence[Box]) -> int:
    return min(top for _, top, _, _ in piece)


def _lines(pieces: Sequence[Sequence[Box]], wide: int, gap: int) -> Iterator[list[Sequence[Box]]]:
    """Yield pieces in lines that are at most so wide."""
    line: list[Sequence[Box]] = []
    for piece in pieces:
        if line and sum(_width(each) + gap for each in line) + _width(piece) > wide:
            yield line
            line = []
        line.append(piece)
    if line:
        yield line


def _row(
    pixels: NDArray[np.uint8], line: Sequence[Sequence[Box]], wide: int, gap: int, middle: bool
) -> NDArray[np.uint8]:
    """Return a line of pieces on the ground of the picture, with a margin on all sides."""
    height = max(max(box[3] for box in piece) - _top(piece) for piece in line)
    row = np.tile(pixels[0, 0], (height + _MARGIN, wide + 2 * _MARGIN, 1))
    at = _MARGIN
    if middle:
        at += (wide + gap - sum(_width(piece) + gap for piece in line)) // 2
    for piece in line:
        for left, top, right, bottom in piece:
            cut = pixels[top:bottom, left:right]
            down = _MARGIN // 2 + top - _top(piece)
            row[down : down + cut.shape[0], at : at + cut.shape[1]] = cut
            at += right - left
        at += gap
    return row


def _words(pixels: NDArray[np.uint8], boxes: Sequence[Box]) -> Iterator[list[list[Box]]]:
    """Yield the words of each line of text in the boxes."""
    for left, top, right, bottom in boxes:
        ink = (pixels[top:bottom, left:right] != pixels[0, 0]).any(axis=2)
        for first, last in _runs(ink.any(axis=1), 1):
            words = _runs(ink[first:last].any(axis=0), _WORD_GAP)
            yield [[(left + start, top + first, left + end, top + last)] for start, end in words]


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
    for box in parts.data:
        left, top, right, bottom = box
        own, there = pixels[top:bottom, left:right], found[top:bottom, left:right]
        paper = box in parts.holed and (own == 255).all(axis=2, keepdims=True)
        there[:] = np.where(paper, there, own)
    return Image.fromarray(found)
