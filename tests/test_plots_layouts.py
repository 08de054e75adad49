"""Layouts of finished figures: what a phone and a dark page get, from the picture alone."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from micronet_lib.plots import style
from micronet_lib.plots.layouts import Parts, dark, stacked


def picture(fig: Figure) -> tuple[Image.Image, Parts]:
    found = Image.open(io.BytesIO(style.sharp_png(fig)[0]))
    parts = Parts.read(found)
    assert parts is not None
    return found, parts


def charts(columns: int, rows: int = 1) -> Figure:
    fig, axes = style.figure(height=2.5 * rows, columns=columns, rows=rows)
    for place, ax in enumerate(axes):
        ax.plot([0, 1], [place, 1], label="one line")
        ax.plot([0, 1], "s", label="another, whose name is longer")
        ax.set(title=f"panel {place}", xlabel="x", ylabel="y")
    return style.footer(fig, "where the numbers are from · n=1\nand a second line")


def ink(image: Image.Image, box: tuple[int, int, int, int] | None = None) -> int:
    """Number of pixels that are not paper."""
    pixels = np.asarray(image.convert("RGB").crop(box or (0, 0, *image.size)))
    return int((pixels != 255).any(axis=2).sum())


def test_the_parts_hold_all_ink_of_a_picture():
    fig = charts(3)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    found, parts = picture(fig)
    assert (len(parts.panels), len(parts.legend), len(parts.footer)) == (3, 2, 1)
    assert parts.data == []
    boxes = [*(box for (box,) in parts.panels), *parts.legend, *parts.footer]
    assert sum(ink(found, tuple(box)) for box in boxes) == pytest.approx(ink(found), rel=0.005)


def test_a_figure_can_be_written_again_and_looks_the_same():
    fig = charts(2)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper left")
    assert style.sharp_png(fig) == style.sharp_png(fig)
    assert fig.dpi == 110


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_panels_stand_below_each_other_and_nothing_is_lost(columns):
    fig = charts(columns)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    found, parts = picture(fig)
    narrow = stacked(found, parts)
    assert narrow is not None
    assert narrow.width < 0.6 * found.width
    assert narrow.height > found.height
    assert ink(narrow) == pytest.approx(ink(found), rel=0.005)


def test_narrow_panels_share_a_line():
    fig = charts(6)
    for ax in fig.axes:
        ax.set(xlabel="", ylabel="", yticks=[])
    found, parts = picture(fig)
    narrow = stacked(found, parts)
    assert narrow is not None
    assert narrow.height < 4 * found.height


def test_one_panel_or_one_that_is_wide_gains_nothing():
    assert stacked(*picture(charts(1))) is None
    assert stacked(*picture(charts(1, rows=2))) is None
    fig, _ = style.figure(columns=2, widths=(1, 9))
    assert stacked(*picture(fig)) is None


def test_panels_that_share_labels_stay_together():
    assert len(picture(charts(2, rows=2))[1].panels) == 4
    fig = charts(2, rows=2)
    for ax in fig.axes:
        ax.label_outer()
    _, parts = picture(fig)
    assert len(parts.panels) == 2
    ((_, top, _, bottom),), (names, other) = parts.panels
    assert (top, bottom) == (other[1], other[3])
    assert top <= names[1] < names[3] <= bottom
    assert names[2] <= parts.panels[0][0][2]  # of the left column, repeated beside the right one


def test_names_of_rows_are_repeated_where_only_the_first_panel_has_them():
    fig, (left, right, other) = style.figure(columns=3)
    left.set_yticks([0, 1], ["the first row", "the second row"])
    right.set_yticks([0, 1], [])
    other.set_yticks([])  # no rows
    found, parts = picture(fig)
    assert [len(panel) for panel in parts.panels] == [1, 2, 1]
    names = tuple(parts.panels[1][0])
    narrow = stacked(found, parts)
    assert narrow is not None
    assert ink(narrow) == pytest.approx(ink(found) + ink(found, names), rel=0.01)


def test_a_colour_bar_belongs_to_its_panel():
    fig, (left, right) = style.figure(columns=2)
    fig.colorbar(left.imshow(np.eye(3)), ax=left)
    right.plot([1, 2])
    _, parts = picture(fig)
    assert len(parts.panels) == 2
    assert len(parts.data) == 2
    assert all(box[2] <= parts.panels[0][0][2] for box in parts.data)


def test_in_the_dark_paper_turns_and_the_colours_of_data_stay():
    fig, (left, right) = style.figure(columns=2)
    values = np.arange(9.0).reshape(3, 3)
    values[1, 1] = np.nan
    left.imshow(values, cmap="viridis", interpolation="nearest", aspect="auto")
    left.grid(visible=False)
    right.plot([1, 2], color="black")
    found, parts = picture(fig)
    turned = dark(found, parts)
    assert turned.size == found.size
    assert max(turned.getpixel((2, 2))) < 30  # paper
    ((x0, y0, x1, y1),) = parts.data
    assert parts.holed == parts.data
    for row in range(3):
        for column in range(3):
            at = (x0 + (2 * column + 1) * (x1 - x0) // 6, y0 + (2 * row + 1) * (y1 - y0) // 6)
            if (row, column) == (1, 1):
                assert max(turned.getpixel(at)) < 30
            else:
                assert turned.getpixel(at) == found.convert("RGB").getpixel(at)
    line = np.asarray(turned.crop(tuple(parts.panels[1][-1]))).max()
    assert line > 230  # what was black


def test_the_colours_turn_as_the_style_sheet_turns_them():
    """`invert(0.93) hue-rotate(180deg)`: grey by hand, and hues stay hues."""
    sample = Image.new("RGB", (3, 1))
    for x, colour in enumerate([(0, 0, 0), (255, 255, 255), (0, 114, 178)]):
        sample.putpixel((x, 0), colour)
    black, white, blue = (dark(sample, Parts()).getpixel((x, 0)) for x in range(3))
    assert black == pytest.approx([0.93 * 255] * 3, abs=1)
    assert white == pytest.approx([0.07 * 255] * 3, abs=1)
    assert max(range(3), key=lambda k: blue[k]) == 2


def test_a_picture_from_elsewhere_has_no_parts(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    with Image.open(tmp_path / "other.png") as found:
        assert Parts.read(found) is None
    empty = Figure()
    assert picture(empty)[1] == Parts()
    plt.close("all")
