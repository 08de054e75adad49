"""Contents of the embedded set: shapes, textures and 20 superclasses, from `superclasses.csv`.

A shape is a signed distance to an outline, negative inside, from (u, v, amount): u (right) and v
(down) [N,32,32] are pixel positions in units of the superclass's `size`, amount is [N,1,1]. A
texture is a share of the accent colour in the ink, in [0, 1], from (u, v, distance, grain). So a
whole class is drawn at once. `lab.data.embedded` draws the images.
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, TypeAlias, cast

import numpy as np

Array: TypeAlias = np.ndarray
Colour: TypeAlias = tuple[float, float, float]
Varied: TypeAlias = Literal["size", "turn", "amount", "hue"]
Shape: TypeAlias = Callable[[Array, Array, Array], Array]
Texture: TypeAlias = Callable[[Array, Array, Array, Array], Array]


@dataclass(frozen=True)
class Superclass:
    """Five classes of similar look.

    Attributes:
        name: the plural, such as `rings`.
        member: the singular with which class names begin, such as `ring`.
        paper: background colour as (hue in turns, saturation, value), like the next two.
        ink: colour of the shape.
        accent: second colour of the shape.
        size: pixels per unit of the shape's coordinates.
        varies: the number that differs between the classes: the size, the turn of the shape in
            turns, the amount that its function takes, or the hue added to ink and accent.
        classes: label -> that number, for each of the five classes.
    """

    name: str
    member: str
    shape: Shape
    texture: Texture
    paper: Colour
    ink: Colour
    accent: Colour
    size: float
    varies: Varied
    classes: Mapping[str, float]

    def values(self, varied: Varied) -> Array:
        """Return each class's size, turn, amount or hue, [5] float32."""
        if varied == self.varies:
            return np.array(list(self.classes.values()), np.float32)
        return np.full(5, self.size if varied == "size" else 0, np.float32)


def direction(turns: Array | float) -> tuple[Array, Array]:
    """Return cosine and sine of an angle given in turns, from the tangent of half the angle."""
    quarters = np.asarray(turns, np.float32) * 4
    quadrant = np.floor(quarters + 0.5)
    x = (quarters - quadrant) * 0.7853982
    t = x * (1 + x * x * (0.33333333 + x * x * (0.13333333 + x * x * 0.053968254)))
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    odd = quadrant - 2 * np.floor(quadrant / 2) == 1
    sign = np.where(quadrant - 4 * np.floor(quadrant / 4) >= 2, np.float32(-1), np.float32(1))
    return sign * np.where(odd, -sin, cos), sign * np.where(odd, cos, sin)


def _radius(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v)


def _fold(x: Array) -> Array:
    """Return the distance to the nearest integer, which repeats a motif with period 1."""
    return np.abs(x - np.floor(x + 0.5))


def _target(u: Array, v: Array, rings: Array) -> Array:
    r, period = _radius(u, v), 1 / (rings - 0.75)
    return np.maximum((_fold(r / period) - 0.25) * period, r - 1)


def _pie(u: Array, v: Array, missing: Array) -> Array:
    cos, sin = direction(missing / 2)
    return np.maximum(_radius(u, v) - 1, u * sin - np.abs(v) * cos)


def _leaf(u: Array, v: Array, width: Array) -> Array:
    radius = (1 + width * width) / (2 * width)
    return _radius(np.abs(u) + radius - width, v) - radius


def _heart(u: Array, v: Array, amount: Array) -> Array:
    u, v = np.abs(u), v - 0.15
    return np.minimum((u + v * np.sign(v) - 1) * 0.7071068, _radius(u - 0.5, v + 0.5) - 0.7071068)


def _die(u: Array, v: Array, pips: Array) -> Array:
    never = np.float32(9)
    first = np.minimum(_radius(u - 0.45, v - 0.45), _radius(u + 0.45, v + 0.45))
    second = np.minimum(_radius(u - 0.45, v + 0.45), _radius(u + 0.45, v - 0.45))
    nearest = np.where(pips == 2 * np.floor(pips / 2), never, _radius(u, v))
    nearest = np.minimum(nearest, np.where(pips >= 2, first, never))
    nearest = np.minimum(nearest, np.where(pips >= 4, second, never))
    return np.maximum(SHAPES["square"](u, v, pips), 0.2 - nearest)


def _triangle(u: Array, v: Array, height: Array) -> Array:
    slant = np.sqrt(4 * height * height + 1)
    return np.maximum(v - height, (2 * height * np.abs(u) - (v + height)) / slant)


def _star(u: Array, v: Array, points: Array) -> Array:
    # A star is where at most one side of its inner polygon is crossed: the second largest of
    # the distances to the sides decides.
    largest = second = np.full_like(u, -9)
    for j in range(int(points.max())):
        cos, sin = direction(j / points + 0.25)
        side = np.where(j < points, u * cos + v * sin, np.float32(-9))
        second = np.maximum(second, np.minimum(largest, side))
        largest = np.maximum(largest, side)
    inner, _ = direction(1 / points)
    return second - inner


def _flower(u: Array, v: Array, petals: Array) -> Array:
    _, petal = direction(0.5 / petals)
    centre = 1 / (1 + 0.85 * petal)
    nearest = np.full_like(u, 9)
    for j in range(int(petals.max())):
        cos, sin = direction(j / petals + 0.25)
        distance = _radius(u - centre * cos, v - centre * sin)
        nearest = np.where(j < petals, np.minimum(nearest, distance), nearest)
    return np.minimum(nearest - 0.85 * petal * centre, _radius(u, v) - 0.5 * centre)


def _cross(u: Array, v: Array, width: Array) -> Array:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 1, np.minimum(u, v) - width / 2)


def _chevrons(u: Array, v: Array, count: Array) -> Array:
    v, pitch = v + 0.75 * np.abs(u) - 0.35, 0.5
    bands = (_fold(v / pitch - (count - 1) / 2) - 0.3) * pitch
    return np.maximum(np.maximum(bands, np.abs(v) - count * pitch / 2), np.abs(u) - 0.9)


def _checker(u: Array, v: Array, cell: Array) -> Array:
    a, b = _fold(u / (2 * cell)) - 0.25, _fold(v / (2 * cell)) - 0.25
    return np.maximum(np.minimum(a, b), -np.maximum(a, b)) * 2 * cell


SHAPES: Mapping[str, Shape] = {
    "bar": lambda u, v, _: np.maximum(np.abs(u) - 1.2, np.abs(v) - 0.3),
    "checker": _checker,
    "chevrons": _chevrons,
    "crescent": lambda u, v, phase: np.maximum(_radius(u, v) - 1, 0.95 - _radius(u - phase, v)),
    "cross": _cross,
    "die": _die,
    "disc": lambda u, v, _: _radius(u, v) - 1,
    "dots": lambda u, v, radius: _radius(_fold(u), _fold(v)) - radius,
    "flower": _flower,
    "heart": _heart,
    "leaf": _leaf,
    "pie": _pie,
    "ring": lambda u, v, thick: np.abs(_radius(u, v) - (1 - thick / 2)) - thick / 2,
    "square": lambda u, v, _: np.maximum(np.abs(u), np.abs(v)) - 0.85,
    "star": _star,
    "stripes": lambda u, v, period: (_fold(v / period) - 0.25) * period,
    "target": _target,
    "triangle": _triangle,
    "zigzag": lambda u, v, d: (_fold(v + d * _fold(u)) - 0.25) / np.sqrt(1 + d * d),
}

TEXTURES: Mapping[str, Texture] = {
    "plain": lambda u, v, distance, grain: np.zeros_like(u),
    "grainy": lambda u, v, distance, grain: grain,
    "striped": lambda u, v, *_: np.clip((0.25 - _fold(v * 2.2 + 0.25)) * 6 + 0.5, 0, 1),
    "dotted": lambda u, v, *_: np.clip((0.3 - _radius(_fold(u * 2), _fold(v * 2))) * 5 + 0.5, 0, 1),
    "rimmed": lambda u, v, distance, grain: np.clip((distance + 0.2) * 10, 0, 1),
    "shaded": lambda u, v, *_: np.clip(_radius(u, v + 0.55) / 1.5, 0, 1),
    "graded": lambda u, v, *_: np.clip(v * 0.6 + 0.5, 0, 1),
    "cored": lambda u, v, *_: np.clip((0.32 - _radius(u, v)) * 8, 0, 1),
}


def _read(row: Mapping[str, str]) -> Superclass:
    def colour(name: str) -> Colour:
        hue, saturation, value = map(float, row[name].split())
        return hue, saturation, value

    labelled = (text.rsplit(" ", 1) for text in row["classes"].split("; "))
    return Superclass(
        name=row["name"],
        member=row["member"],
        shape=SHAPES[row["shape"]],
        texture=TEXTURES[row["texture"]],
        paper=colour("paper"),
        ink=colour("ink"),
        accent=colour("accent"),
        size=float(row["size"]),
        varies=cast(Varied, row["varies"]),
        classes={label: float(value) for label, value in labelled},
    )


with (files("micronet_lib.lab.data") / "superclasses.csv").open(encoding="utf-8") as _table:
    SUPERCLASSES = tuple(map(_read, csv.DictReader(_table)))
