"""The figures of chapter zero show what was counted and printed."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figures import texts
from matplotlib.patches import Rectangle
from PIL import Image

from micronet_lib import plots
from micronet_lib.lab import records
from micronet_lib.plots import style
from micronet_lib.plots.layouts import FOOTER, Parts, stacked

STEMS = ("architecture", "srip", "label_smoothing", "augmentation", "pruning")
QUOTED = pd.concat(records.paper(stem) for stem in STEMS)


def test_the_areas_are_to_scale():
    fig = plots.area_squares({"bytes": ("all of it", 400.0, "a part", 4.0)}, "somewhere")
    large, small = (patch for patch in fig.axes[0].patches if isinstance(patch, Rectangle))
    area = [patch.get_width() * patch.get_height() for patch in (large, small)]
    assert area[0] / area[1] == pytest.approx(100)
    assert all(word in texts(fig) for word in ("bytes", "all of it", "a part", "somewhere"))


def test_the_tricks_lead_from_the_first_printed_accuracy_to_the_last():
    gains = plots.trick_gains(QUOTED)
    assert gains["top1"].iloc[[0, -1]].tolist() == [72.87, 80.07]
    assert gains["gain"].sum() == pytest.approx(80.07 - 72.87)
    assert gains.set_index("trick").loc["SRIP", "gain"] == pytest.approx(78.90 - 73.02)
    assert gains["locator"].str.startswith("Table").all()


def test_another_source_of_the_same_number_is_not_mixed_in():
    other = QUOTED.query("point == '3.0' and metric == 'top1_vanilla_percent'")
    other = other.assign(value=1.0, source="micronet_code")
    assert plots.trick_gains(pd.concat([other, QUOTED]))["top1"].iloc[0] == 72.87


def test_a_step_up_and_a_step_down_are_drawn_where_they_are():
    gains = pd.DataFrame({"trick": ["bare", "up", "down"], "top1": [70.0, 75.0, 74.0]})
    fig = plots.trick_steps(gains.assign(gain=gains["top1"].diff()), 72.0, "somewhere")
    up, down = fig.axes[0].patches
    assert (up.get_x(), up.get_width()) == (70, 5)
    assert (down.get_x(), down.get_width()) == (75, -1)
    assert up.get_facecolor() != down.get_facecolor()
    assert all(word in texts(fig) for word in ("+ up", "+5.00", "-1.00", "needed: 72 %"))


def test_the_likeliest_guess_stands_first():
    image = np.zeros((3, 32, 32), np.uint8)
    fig = plots.five_guesses(image, list("abcde"), [0.5, 0.2, 0.1, 0.05, 0.01], "somewhere")
    left, right = fig.axes
    assert left.images[0].get_array().shape == (32, 32, 3)
    bars = sorted(right.patches, key=lambda bar: -bar.get_y())
    assert [bar.get_width() for bar in bars] == [0.5, 0.2, 0.1, 0.05, 0.01]
    assert [label.get_text() for label in right.get_yticklabels()] == list("edcba")
    assert "50.0%" in texts(fig)


def test_the_five_guesses_can_be_read_on_a_phone():
    names = ["sweet pepper", "pickup truck", "poppy", "lawn mower", "tulip"]
    fig = plots.five_guesses(np.zeros((3, 32, 32)), names, [0.9, 0.05, 0.02, 0.02, 0.01], "here")
    data, _ = style.sharp_png(fig)
    with Image.open(io.BytesIO(data)) as picture:
        parts = Parts.read(picture)
        assert parts
        narrow = stacked(picture, parts)
    assert narrow
    shown = 358 / (narrow.width / 2)  # the text of a page is 358 px wide on a phone of 390
    texts = [t for t in fig.findobj(plt.Text) if t.get_text() and t.get_gid() != FOOTER]
    assert len(texts) >= 12
    assert min(text.get_fontsize() for text in texts) * fig.dpi / 72 * shown >= 11
