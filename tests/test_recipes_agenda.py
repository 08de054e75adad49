"""The agenda names what exists."""

from micronet_lib.lab.recipes.agenda import AGENDA
from micronet_lib.lab.recipes.grids import SWEEPS


def test_every_item_names_points_that_are_measured_at_day():
    assert AGENDA
    for item in AGENDA:
        sweep = SWEEPS[item.sweep]
        assert sweep.matching(item.points), item
        assert "day" in sweep.profiles, item
        assert item.question
