"""Sweeps: a grid of recipes. Names of points are file names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from micronet_lib.errors import check_choice, unknown
from micronet_lib.lab.recipes.profile import PROFILES
from micronet_lib.lab.recipes.recipe import Recipe

TRAINED = ("top1", "top5", "loss", "validation_top1", "srip_penalty")
"""Metrics in the tables of a sweep that trains."""
ACCURACY = ("correct", "top1", "top5", "loss")
"""Metrics in the tables of a sweep that rates."""
DRAWN = frozenset(("corruptions", "perturbations"))
"""Measures whose images the seed draws."""


@dataclass(frozen=True)
class Point:
    """One recipe of a sweep under its name on disk."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Printed:
    """Numbers in print that points of a sweep reproduce.

    Attributes:
        stem: of their file, `data/paper/<stem>.csv`.
        metric: their name there.
        measured: the metric of the records.
        points: the printed point of each of the sweep's points; None if they have the same names.
        factor: turns a recorded number into the printed unit.
        against: for printed gains, the point that is subtracted; empty otherwise.
        tolerance: relative, of sums that their authors add up in 32 bits and print to more digits.
    """

    stem: str
    metric: str
    measured: str
    points: Mapping[str, str] | None = None
    factor: float = 1.0
    against: str = ""
    tolerance: float = 0.0


@dataclass(frozen=True)
class Sweep:
    """A grid of recipes.

    Attributes:
        name: on the command line, and the folder of its records.
        title: the question it answers, for headings.
        chapter: the notebook that shows it, for example `06_scoring`.
        axes: the values of each axis. A point's name joins its values with `-`.
        make: function from one value of each axis to a recipe.
        metrics: metrics in its tables, in order.
        measures: names of `running.measures.MEASURES`, measured besides the score.
        profiles: the budgets for which the question makes sense.
        printed: the published numbers that it reproduces.
    """

    name: str
    title: str
    chapter: str
    axes: Mapping[str, tuple[Any, ...]]
    make: Callable[..., Recipe]
    metrics: tuple[str, ...]
    profiles: tuple[str, ...] = tuple(PROFILES)
    measures: tuple[str, ...] = ("accuracy",)
    printed: tuple[Printed, ...] = ()

    @property
    def is_drawn(self) -> bool:
        """Whether the seed draws the images that the sweep rates with."""
        return bool(DRAWN & set(self.measures))

    def points(self) -> tuple[Point, ...]:
        """Every point, in the order of the axes."""
        grid = product(*self.axes.values())
        return tuple(
            Point(
                "-".join(str(v) for v in values),
                self.make(**dict(zip(self.axes, values, strict=True))),
            )
            for values in grid
        )

    def point(self, name: str) -> Point:
        """Return the point of that name.

        Raises:
            InputError: the sweep has no such point.
        """
        points = {point.name: point for point in self.points()}
        check_choice(f"point of {self.name}", name, points)
        return points[name]

    def matching(self, pattern: str | None) -> tuple[Point, ...]:
        """Return the points whose names match a pattern such as `3.0-*`; None matches all.

        Raises:
            InputError: no point matches.
        """
        points = self.points()
        pattern = None if pattern is None else str(pattern)  # a notebook may give 3.0
        chosen = tuple(p for p in points if pattern is None or fnmatchcase(p.name, pattern))
        if not chosen:
            raise unknown(f"point of {self.name}", pattern, [point.name for point in points])
        return chosen
