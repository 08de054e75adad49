"""Durations as people say them."""

import math

import pytest

from micronet_lib.lab.host.progress import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"), (0.2, "under 1 s"), (12.3, "12 s"), (59.4, "59 s"), (59.6, "1 min"),
        (244, "4 min"), (3590, "1 h"), (3600 * 3.009393, "3 h 1 min"), (86_370, "1 d"),
        (3335.457406 * 60, "2 d 8 h"), (25 * 3600, "1 d 1 h"), (math.nan, "unknown"),
    ],
)  # fmt: skip
def test_a_duration_has_two_units_at_most(seconds, said):
    assert duration(seconds) == said
