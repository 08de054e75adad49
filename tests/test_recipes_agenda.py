"""The agenda names what exists."""

from micronet_lib.lab.recipes.agenda import AGENDA
from micronet_lib.lab.recipes.grids import SWEEPS
from micronet_lib.lab.recipes.recipe import Recipe


def test_every_item_names_points_that_are_measured_at_day():
    assert AGENDA
    for item in AGENDA:
        sweep = SWEEPS[item.sweep]
        assert sweep.matching(item.points), item
        assert "day" in sweep.profiles, item
        assert item.question


def test_a_point_comes_after_the_trainings_that_it_needs():
    """Where the agenda has them: a network is not trained for its robustness before its turn."""
    measured = [
        [point.recipe for point in SWEEPS[item.sweep].matching(item.points)] for item in AGENDA
    ]

    def first(recipe: Recipe) -> int:
        return next((n for n, recipes in enumerate(measured) if recipe in recipes), 0)

    late = [
        (item.sweep, item.points)
        for number, item in enumerate(AGENDA)
        for recipe in measured[number]
        if any(first(needed) > number for needed in recipe.needs if needed.train.epochs)
    ]
    assert late == []
