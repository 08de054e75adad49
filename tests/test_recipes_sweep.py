"""Names of a grid's points, and how they are found."""

import pytest

from micronet_lib.errors import InputError
from micronet_lib.lab.recipes.recipe import Recipe
from micronet_lib.lab.recipes.sweep import Sweep

SWEEP = Sweep(
    name="toy",
    title="Two axes",
    chapter="01_architecture",
    axes={"model": ("micronet_v1", "micronet_v2"), "width_mult": (0.5, 1.0)},
    make=lambda model, width_mult: Recipe(model=model, width_mult=width_mult),
    metrics=("top1",),
)


def names(pattern: str | None) -> list[str]:
    return [point.name for point in SWEEP.matching(pattern)]


def test_points_join_the_values_in_the_order_of_the_axes():
    expected = ["micronet_v1-0.5", "micronet_v1-1.0", "micronet_v2-0.5", "micronet_v2-1.0"]
    assert names(None) == expected
    assert SWEEP.points()[1].recipe == Recipe(model="micronet_v1", width_mult=1.0)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("micronet_v1-0.5", ["micronet_v1-0.5"]),
        ("*-1.0", ["micronet_v1-1.0", "micronet_v2-1.0"]),
        ("micronet_v[12]-0.?", ["micronet_v1-0.5", "micronet_v2-0.5"]),
    ],
)
def test_a_pattern_finds_points_in_their_order(pattern, found):
    assert names(pattern) == found


@pytest.mark.parametrize("look", [SWEEP.point, SWEEP.matching])
def test_what_is_not_there_is_answered_with_what_is(look):
    with pytest.raises(
        InputError, match=r"unknown point of toy '3\*'; choose from micronet_v1-0.5"
    ):
        look("3*")
