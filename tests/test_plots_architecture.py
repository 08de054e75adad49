"""The feature maps of a picture are all drawn, each on its own scale."""

import numpy as np
import pytest
from figures import texts

from micronet_lib import plots

IMAGE = np.zeros((3, 4, 4), np.uint8)


def test_every_map_is_drawn_once_from_its_darkest_to_its_brightest():
    maps = np.stack([np.full((4, 4), 7), np.arange(16).reshape(4, 4) - 300])
    fig = plots.feature_maps(IMAGE, {"early": maps}, {"rose": 0.7, "tulip": 0.1}, "somewhere")
    canvas = fig.axes[1].images[0].get_array().filled(np.nan)
    assert canvas.shape == (4, 9)  # two maps and a gap of one
    assert np.isnan(canvas[:, 4]).all()
    assert (canvas[:, :4] == 0).all()
    np.testing.assert_allclose(canvas[:, 5:], np.arange(16).reshape(4, 4) / 15)


def test_titles_and_shares_are_those_of_the_network():
    maps = {"early": np.zeros((5, 4, 4)), "late": np.zeros((9, 2, 2))}
    fig = plots.feature_maps(IMAGE, maps, {"rose": 0.7, "tulip": 0.1}, "somewhere")
    shown = texts(fig)
    for text in ("early: 5 of 4 x 4", "late: 9 of 2 x 2", "rose 70%", "tulip 10%", "somewhere"):
        assert text in shown
    assert [bar.get_width() for bar in fig.axes[3].patches] == pytest.approx([0.7, 0.1])
