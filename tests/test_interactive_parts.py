"""The interactive parts do what their controls say, each on an empty page without requests."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browsers import PHONE, TOO_WIDE, alone

from micronet_lib import plots

ROOT = Path(__file__).resolve().parent.parent

# ------------------------------------------------------------------------------- the two sliders


@pytest.fixture
def sliders(browser: Any) -> Iterator[Any]:
    """The two sliders of chapter 11 on an empty page, over made-up points; one is missing."""
    rows, bills = [], {}
    for row, zeros in enumerate(("0.60", "0.70")):
        for column, bits in enumerate((8, 6, 4)):
            point = f"{zeros}-{bits}"
            n = 0 if point == "0.70-4" else 1
            top1, score = 0.81 - 0.1 * row - 0.05 * column, 0.004 - 0.0003 * (row + column)
            rows.append({"point": point, "n": n, "top1": top1, "official.score": score})
            bills[point] = {"expand.param": score / 2, "project.add": score / 2}
    part = plots.zeros_and_bits(pd.DataFrame(rows), bills, ("the line", 0.0044), "two", "made up")
    yield from alone(browser, part)


def readout(page: Any) -> str:
    return str(page.locator(".zeros-and-bits .readout").text_content())


def test_the_sliders_obey_the_keyboard(sliders: Any) -> None:
    assert readout(sliders).startswith("81.00 %")
    assert "below the line" in readout(sliders)
    sliders.locator(".zeros").focus()
    sliders.keyboard.press("ArrowRight")
    assert readout(sliders).startswith("71.00 % of the test images right: not enough")
    sliders.locator(".bits").focus()
    sliders.keyboard.press("ArrowLeft")
    assert readout(sliders).startswith("66.00 %")
    assert sliders.locator(".bits").get_attribute("aria-valuetext") == "6 bits"
    assert sliders.locator(".bill tr").count() == 2
    sliders.keyboard.press("ArrowLeft")
    assert readout(sliders) == "not run"


def test_a_click_on_the_map_moves_the_sliders(sliders: Any) -> None:
    sliders.locator("[data-name='0.60-4']").click()
    assert readout(sliders).startswith("71.00 %")
    assert (sliders.input_value(".zeros"), sliders.input_value(".bits")) == ("0", "0")
    assert sliders.locator("[data-chosen]").count() == 1


def test_no_label_of_the_map_covers_another(browser: Any) -> None:
    """Four widths within a thousandth of score, as the measured ones of 5 to 8 bits are."""
    widths = (8, 7, 6, 5)
    rows = [
        {"point": f"0.60-{bits}", "n": 1, "top1": 0.8, "official.score": 0.004 - 0.00006 * column}
        for column, bits in enumerate(widths)
    ]
    bills = {row["point"]: {"project.add": row["official.score"]} for row in rows}
    part = plots.zeros_and_bits(pd.DataFrame(rows), bills, ("the line", 0.0044), "four", "made up")
    for page in alone(browser, part):
        found = page.locator("svg text").filter(has_text=re.compile(r"^\d bits$"))
        labels = [text.bounding_box() for text in found.all()]
        assert len(labels) == len(widths)
        assert overlaps(labels) == []


def overlaps(boxes: list[dict[str, float]]) -> list[tuple[int, int]]:
    """Which boxes cover a part of each other; letters need two pixels less than a box has."""
    return [
        (i, j)
        for i, one in enumerate(boxes)
        for j, other in enumerate(boxes[:i])
        if abs(one["x"] + one["width"] / 2 - other["x"] - other["width"] / 2)
        < (one["width"] + other["width"]) / 2
        and abs(one["y"] - other["y"]) < one["height"] - 2
    ]


# What is written left of a matrix: its place from above, and the words.
WRITTEN = """() => {
  const names = [], write = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...more) {
    if (this.textAlign === 'right') names.push([y, text]);
    return write.call(this, text, x, y, ...more);
  };
  document.documentElement.dataset.theme = 'dark';
  return new Promise(done => setTimeout(() => done(names), 300));
}"""


def test_the_chosen_class_covers_no_name_of_a_group(browser: Any) -> None:
    """Beside a small matrix stand the superclasses, and the class that is chosen."""
    classes = pd.read_csv(ROOT / "data" / "cifar100_classes.csv")
    matrix = np.eye(len(classes))
    network = plots.Similarity("one", matrix, classes, "made up")
    for start in ("whale", "beaver", "maple_tree"):
        part = plots.similarity_explorer([network], start, "card-test", form="card")
        for page in alone(browser, part):
            page.set_viewport_size({"width": 800, "height": 900})
            # A page that is drawn twice writes the same names at the same places again.
            written = sorted({tuple(each) for each in page.evaluate(WRITTEN)})
            assert start.replace("_", " ") in [text for _, text in written]
            assert len(written) > 15
            gaps = [(b[0] - a[0], a[1], b[1]) for a, b in itertools.pairwise(written)]
            assert [each for each in gaps if each[0] < 10] == []


def test_the_sliders_fit_a_phone(sliders: Any) -> None:
    sliders.set_viewport_size(PHONE)
    assert sliders.evaluate(TOO_WIDE.replace("main *", "body *")) == []


# --------------------------------------------------------------------- the threshold of an exit


@pytest.fixture
def threshold(browser: Any) -> Iterator[Any]:
    """The slider of chapter 07 on an empty page, over made-up curves of two exits."""
    rows = [
        (point, calibrated, at, rate, top1, 0.006 - 0.003 * rate)
        for point in ("block_3", "block_6")
        for calibrated in (False, True)
        for at, rate, top1 in ((0.0, 1.0, 0.4), (0.5, 0.5 - 0.1 * calibrated, 0.7), (1.0, 0.0, 0.8))
    ]
    columns = ["point", "calibrated", "threshold", "exit_rate", "top1", "score"]
    trunks = {"block_3": 0.0055, "block_6": 0.0055}
    part = plots.exit_explorer(pd.DataFrame(rows, columns=columns), trunks, "exits", "made up")
    yield from alone(browser, part)


def test_the_threshold_obeys_keyboard_choice_and_temperature(threshold: Any) -> None:
    def readout() -> str:
        return str(threshold.locator(".exit-threshold .readout").text_content())

    assert readout().startswith("50.00 % of the test images leave early")
    assert "not enough" in readout()
    threshold.locator(".calibrated").check()
    assert readout().startswith("40.00 %")
    threshold.locator(".threshold").focus()
    threshold.keyboard.press("ArrowRight")
    assert readout().startswith("0.00 %")
    assert "9.1 % above that without the exit" in readout()
    assert threshold.locator(".threshold").get_attribute("aria-valuetext") == "threshold 1.00"
    threshold.locator("select.exit").select_option("block_6")
    assert threshold.locator("[data-chosen]").get_attribute("data-name") == "block_6"


def test_the_threshold_fits_a_phone(threshold: Any) -> None:
    threshold.set_viewport_size(PHONE)
    assert threshold.evaluate(TOO_WIDE.replace("main *", "body *")) == []


# -------------------------------------------------------------------------- the bill as an area


@pytest.fixture
def bill(browser: Any) -> Iterator[Any]:
    """The area of a made-up bill on an empty page: two parts, one of two layers."""
    rows = [
        ("stem.conv", "param", 36.5e6, 0.0),  # score 1
        ("blocks.0.conv_expand", "mult", 0.0, 2 * 10.49e9),
        ("blocks.0.conv_expand", "add", 0.0, 0.5 * 10.49e9),
        ("blocks.0.conv_project", "mask", 0.5 * 36.5e6, 0.0),
    ]
    items = pd.DataFrame(rows, columns=["layer", "quantity", "param_storage", "math_ops"])
    part = plots.bill_area({"one": (items, "made up"), "two": (items.head(1), "too")}, "area")
    yield from alone(browser, part)


def areas(page: Any) -> dict[str, float]:
    """The share of each part that can be chosen in the whole area."""
    found = page.locator(".bill-area .area button").all()
    whole = page.locator(".bill-area .area").bounding_box()
    boxes = {
        str(each.get_attribute("title")).partition(":")[0]: each.bounding_box() for each in found
    }
    return {
        name: box["width"] * box["height"] / (whole["width"] * whole["height"])
        for name, box in boxes.items()
    }


def test_areas_are_as_large_as_scores_and_lead_on(bill: Any) -> None:
    assert areas(bill) == pytest.approx({"stem": 0.25, "block 0": 0.75}, abs=0.01)
    assert bill.locator("caption").text_content() == "one: score 4.000000"
    bill.locator("[title^='block 0']").click()
    assert areas(bill) == pytest.approx({"conv_expand": 5 / 6, "conv_project": 1 / 6}, abs=0.01)
    bill.locator("[title^='conv_expand']").focus()
    bill.keyboard.press("Enter")
    rows = bill.locator(".bill-area .rows tr").all_text_contents()
    assert rows == ["multiplications2.00000050.0 %", "additions0.50000012.5 %"]
    bill.locator(".path button").first.click()
    assert set(areas(bill)) == {"stem", "block 0"}
    bill.select_option(".bill-area .network", label="two")
    assert set(areas(bill)) == {"stem"}
    assert bill.locator(".bill-area .source").text_content() == "too"


def test_the_area_fits_a_phone(bill: Any) -> None:
    bill.set_viewport_size(PHONE)
    assert bill.evaluate(TOO_WIDE.replace("main *", "body *")) == []
    assert areas(bill) == pytest.approx({"stem": 0.25, "block 0": 0.75}, abs=0.02)
