"""Contents of the embedded set: shapes, textures and the table of its 20 superclasses.

A shape is a signed distance, a texture a share of the accent colour. Both are functions of pixel
positions, so a whole class is drawn at once. `lab.data.embedded` draws the images.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray
Colour: TypeAlias = tuple[float, float, float]
Varied: TypeAlias = Literal["size", "turn", "amount", "hue"]


@dataclass(frozen=True)
class Superclass:
    """Five classes of similar look.

    Attributes:
        name: the plural, such as `rings`.
        member: the singular with which class names begin, such as `ring`.
        shape: (u, v, amount) -> signed distance to the outline, negative inside; u (right) and v
            (down) [N,32,32] are pixel positions in units of `size`, amount is [N,1,1].
        texture: (u, v, distance, grain) -> share of the accent colour in the ink, in [0, 1].
        paper: background colour as (hue in turns, saturation, value), like the next two.
        ink: colour of the shape.
        accent: second colour of the shape.
        size: pixels per unit of the shape's coordinates.
        attribute: difference between the classes, in words.
        varies: the number that differs: the size, the turn of the shape in turns, the amount that
            its function takes, or the hue added to ink and accent.
        classes: label -> that number, for each of the five classes.
    """

    name: str
    member: str
    shape: Callable[[Array, Array, Array], Array]
    texture: Callable[[Array, Array, Array, Array], Array]
    paper: Colour
    ink: Colour
    accent: Colour
    size: float
    attribute: str
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


# Shapes.


def _disc(u: Array, v: Array, amount: Array) -> Array:
    return _radius(u, v) - 1


def _ring(u: Array, v: Array, thickness: Array) -> Array:
    return np.abs(_radius(u, v) - (1 - thickness / 2)) - thickness / 2


def _target(u: Array, v: Array, rings: Array) -> Array:
    r, period = _radius(u, v), 1 / (rings - 0.75)
    return np.maximum((_fold(r / period) - 0.25) * period, r - 1)


def _crescent(u: Array, v: Array, phase: Array) -> Array:
    return np.maximum(_radius(u, v) - 1, 0.95 - _radius(u - phase, v))


def _pie(u: Array, v: Array, missing: Array) -> Array:
    cos, sin = direction(missing / 2)
    return np.maximum(_radius(u, v) - 1, u * sin - np.abs(v) * cos)


def _leaf(u: Array, v: Array, width: Array) -> Array:
    radius = (1 + width * width) / (2 * width)
    return _radius(np.abs(u) + radius - width, v) - radius


def _heart(u: Array, v: Array, amount: Array) -> Array:
    u, v = np.abs(u), v - 0.15
    return np.minimum((u + v * np.sign(v) - 1) * 0.7071068, _radius(u - 0.5, v + 0.5) - 0.7071068)


def _square(u: Array, v: Array, amount: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _die(u: Array, v: Array, pips: Array) -> Array:
    never = np.float32(9)
    first = np.minimum(_radius(u - 0.45, v - 0.45), _radius(u + 0.45, v + 0.45))
    second = np.minimum(_radius(u - 0.45, v + 0.45), _radius(u + 0.45, v - 0.45))
    nearest = np.where(pips == 2 * np.floor(pips / 2), never, _radius(u, v))
    nearest = np.minimum(nearest, np.where(pips >= 2, first, never))
    nearest = np.minimum(nearest, np.where(pips >= 4, second, never))
    return np.maximum(_square(u, v, pips), 0.2 - nearest)


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


def _bar(u: Array, v: Array, amount: Array) -> Array:
    return np.maximum(np.abs(u) - 1.2, np.abs(v) - 0.3)


def _chevrons(u: Array, v: Array, count: Array) -> Array:
    v, pitch = v + 0.75 * np.abs(u) - 0.35, 0.5
    bands = (_fold(v / pitch - (count - 1) / 2) - 0.3) * pitch
    return np.maximum(np.maximum(bands, np.abs(v) - count * pitch / 2), np.abs(u) - 0.9)


def _stripes(u: Array, v: Array, period: Array) -> Array:
    return (_fold(v / period) - 0.25) * period


def _checker(u: Array, v: Array, cell: Array) -> Array:
    a, b = _fold(u / (2 * cell)) - 0.25, _fold(v / (2 * cell)) - 0.25
    return np.maximum(np.minimum(a, b), -np.maximum(a, b)) * 2 * cell


def _dots(u: Array, v: Array, radius: Array) -> Array:
    return _radius(_fold(u), _fold(v)) - radius


def _zigzag(u: Array, v: Array, depth: Array) -> Array:
    return (_fold(v + depth * _fold(u)) - 0.25) / np.sqrt(1 + depth * depth)


# Textures.


def _plain(u: Array, v: Array, distance: Array, grain: Array) -> Array:
    return np.zeros_like(u)


def _grainy(u: Array, v: Array, distance: Array, grain: Array) -> Array:
    return grain


def _striped(u: Array, v: Array, distance: Array, grain: Array) -> Array:
    return np.clip((0.25 - _fold(v * 2.2 + 0.25)) * 6 + 0.5, 0, 1)


def _dotted(u: Array, v: Array, distance: Array, grain: Array) -> Array:
    return np.clip((0.3 - _radius(_fold(u * 2), _fold(v * 2))) * 5 + 0.5, 0, 1)


def _rimmed(u: Array, v: Array, distance: Array, grain: Array) -> Array:
    return np.clip((distance + 0.2) * 10, 0, 1)


def _shaded(u: Array, v: Array, distance: Array, grain: Array) -> Array:
    return np.clip(_radius(u, v + 0.55) / 1.5, 0, 1)


def _graded(u: Array, v: Array, distance: Array, grain: Array) -> Array:
    return np.clip(v * 0.6 + 0.5, 0, 1)


def _cored(u: Array, v: Array, distance: Array, grain: Array) -> Array:
    return np.clip((0.32 - _radius(u, v)) * 8, 0, 1)


def _counts(first: int) -> Mapping[str, float]:
    words = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return {words[n - 1]: n for n in range(first, first + 5)}


# One superclass a block: its names, shape and texture; paper, ink, accent and size; its classes.
# fmt: off
SUPERCLASSES: tuple[Superclass, ...] = (
    Superclass(
        "discs", "disc", _disc, _plain,
        (0.12, 0.12, 0.93), (0.01, 0.75, 0.80), (0.01, 0.75, 0.80), 10,
        "diameter", "size",
        {"tiny": 4, "small": 5.4, "middling": 7.2, "large": 9.6, "huge": 12.5}),
    Superclass(
        "rings", "ring", _ring, _grainy,
        (0.58, 0.15, 0.90), (0.62, 0.75, 0.60), (0.54, 0.50, 0.85), 11.5,
        "thickness", "amount",
        {"hairline": 0.14, "thin": 0.24, "medium": 0.36, "thick": 0.52, "heavy": 0.76}),
    Superclass(
        "targets", "target", _target, _plain,
        (0.38, 0.45, 0.38), (0.14, 0.60, 0.92), (0.14, 0.60, 0.92), 13,
        "number of rings", "amount", _counts(1)),
    Superclass(
        "crescents", "crescent", _crescent, _shaded,
        (0.64, 0.60, 0.28), (0.14, 0.35, 0.96), (0.09, 0.70, 0.85), 11.5,
        "phase", "amount",
        {"sliver": 0.32, "slim": 0.52, "quarter": 0.76, "half": 1.04, "gibbous": 1.4}),
    Superclass(
        "balls", "ball", _disc, _shaded,
        (0.60, 0.08, 0.72), (0.09, 0.70, 1.00), (0.04, 0.90, 0.35), 11,
        "direction of light", "turn",
        {"lit from above": 0, "lit from upper side": 0.125, "lit from the side": 0.25,
         "lit from lower side": 0.375, "lit from below": 0.5}),
    Superclass(
        "leaves", "leaf", _leaf, _striped,
        (0.20, 0.20, 0.92), (0.33, 0.70, 0.50), (0.25, 0.60, 0.75), 12.5,
        "width", "amount",
        {"needle": 0.15, "narrow": 0.28, "oval": 0.44, "broad": 0.64, "round": 0.9}),
    Superclass(
        "squares", "square", _square, _striped,
        (0.09, 0.22, 0.82), (0.05, 0.65, 0.42), (0.08, 0.50, 0.72), 11,
        "tilt", "turn",
        {"level": 0, "tipped": 0.0625, "tilted": 0.125, "slanted": 0.1875, "upright": 0.25}),
    Superclass(
        "dice", "die", _die, _graded,
        (0.42, 0.60, 0.42), (0.12, 0.05, 0.97), (0.10, 0.15, 0.82), 12,
        "number of pips", "amount", _counts(1)),
    Superclass(
        "triangles", "triangle", _triangle, _graded,
        (0.53, 0.22, 0.92), (0.47, 0.45, 0.75), (0.50, 0.85, 0.45), 11,
        "height", "amount", {"flat": 0.22, "low": 0.4, "even": 0.62, "tall": 0.9, "spire": 1.25}),
    Superclass(
        "stars", "star", _star, _rimmed,
        (0.70, 0.50, 0.42), (0.14, 0.70, 0.98), (0.08, 0.85, 0.85), 13,
        "number of points", "amount", _counts(5)),
    Superclass(
        "flowers", "flower", _flower, _cored,
        (0.30, 0.30, 0.75), (0.92, 0.45, 0.95), (0.14, 0.80, 0.95), 12.5,
        "number of petals", "amount", _counts(3)),
    Superclass(
        "crosses", "cross", _cross, _dotted,
        (0.00, 0.00, 0.93), (0.97, 0.80, 0.75), (0.00, 0.35, 0.95), 11.5,
        "width of the arms", "amount",
        {"wiry": 0.14, "slight": 0.3, "sturdy": 0.5, "stout": 0.75, "bulky": 1.05}),
    Superclass(
        "hearts", "heart", _heart, _shaded,
        (0.92, 0.10, 0.96), (0.00, 0.60, 0.95), (0.00, 0.85, 0.60), 11.5,
        "hue", "hue", {"green": 0.36, "teal": 0.47, "blue": 0.58, "violet": 0.69, "magenta": 0.8}),
    Superclass(
        "bars", "bar", _bar, _dotted,
        (0.13, 0.45, 0.88), (0.00, 0.00, 0.18), (0.00, 0.00, 0.50), 11,
        "slope", "turn",
        {"level": 0, "gentle": 0.0625, "diagonal": 0.125, "steep": 0.1875, "upright": 0.25}),
    Superclass(
        "stripes", "stripes", _stripes, _plain,
        (0.00, 0.02, 0.95), (0.63, 0.65, 0.48), (0.63, 0.65, 0.48), 1,
        "spacing", "amount", {"fine": 3.2, "close": 4.2, "even": 5.6, "wide": 7.6, "broad": 10.5}),
    Superclass(
        "checkers", "checkers", _checker, _plain,
        (0.10, 0.30, 0.92), (0.03, 0.60, 0.32), (0.03, 0.60, 0.32), 1,
        "cell size", "amount", {"fine": 2.2, "close": 2.9, "even": 3.9, "wide": 5.2, "broad": 7.2}),
    Superclass(
        "dots", "dots", _dots, _plain,
        (0.95, 0.45, 0.80), (0.95, 0.05, 0.98), (0.95, 0.05, 0.98), 8,
        "radius", "amount", {"pin": 0.13, "bead": 0.19, "pea": 0.26, "coin": 0.34, "plate": 0.43}),
    Superclass(
        "zigzags", "zigzag", _zigzag, _plain,
        (0.50, 0.15, 0.95), (0.48, 0.75, 0.55), (0.48, 0.75, 0.55), 9,
        "depth", "amount",
        {"faint": 0.2, "rippled": 0.6, "wavy": 1.1, "jagged": 1.7, "spiky": 2.5}),
    Superclass(
        "chevrons", "chevrons", _chevrons, _rimmed,
        (0.25, 0.40, 0.36), (0.13, 0.60, 0.98), (0.08, 0.80, 0.85), 10,
        "number of bands", "amount", _counts(1)),
    Superclass(
        "pies", "pie", _pie, _grainy,
        (0.74, 0.14, 0.92), (0.78, 0.70, 0.42), (0.90, 0.60, 0.62), 11.5,
        "missing slice", "amount",
        {"slit": 0.03, "nick": 0.1, "wedge": 0.18, "quarter": 0.28, "wide": 0.42}),
)
# fmt: on
