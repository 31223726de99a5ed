"""The embedded data set: scenes of coloured shapes, rendered when they are read.

A class is two words ("red circle"), so that a rare class shares words and looks with frequent ones: what a text
embedding knows of it is worth something. Everything follows from integer seeds; nothing is stored. The single-object
pictures at the end are what the embedded encoder learns from; their seeds never meet those of the scenes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cprfl.data.long_tail import ParetoConfig
from cprfl.data.readers.annotations import Annotations, Row
from cprfl.data.readers.base import DatasetConfig

SCHEME = "synthetic"
RENDERER_VERSION = 1  # raise it when a change here changes any pixel or label: cached features depend on it

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {"red": (205, 60, 55), "green": (70, 165, 75), "blue": (60, 95, 200), "yellow": (215, 190, 60)}
CLASS_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

_SCENES, _PICTURES = 1, 2  # first word of every random seed: scenes and training pictures never share one


@dataclass(frozen=True)
class _Thing:
    """An object of a scene: class index, centre and radius in pixels, rotation in radians."""

    label: int
    x: float
    y: float
    radius: float
    angle: float


class SyntheticDataset(DatasetConfig):
    """Scenes with ``min_objects`` to ``max_objects`` shapes of 24 classes.

    The training scenes are drawn from ``pool`` scenes by the Pareto construction, about 600 with the defaults; the
    test scenes are the next ``num_test`` and keep the pool's nearly even distribution.
    """

    name: Literal["synthetic"] = "synthetic"
    seed: NonNegativeInt = 0
    size: PositiveInt = 96
    pool: PositiveInt = 8000
    num_test: PositiveInt = 400
    min_objects: PositiveInt = 2
    max_objects: PositiveInt = 4
    long_tail: ParetoConfig | None = Field(default=ParetoConfig(max_count=1800, min_count=4))

    @model_validator(mode="after")
    def _a_scene_has_room_for_its_objects(self) -> Self:
        if not self.min_objects <= self.max_objects <= len(CLASS_NAMES):
            raise ValueError(f"min_objects may be at most max_objects, and that at most {len(CLASS_NAMES)}")
        return self

    def read_annotations(self) -> Annotations:
        """The 24 class names, and the scenes of the pool and of the test split."""
        scenes = [self._row(number) for number in range(self.pool + self.num_test)]
        return Annotations(CLASS_NAMES, {"train": scenes[: self.pool], "test": scenes[self.pool :]})

    def _row(self, number: int) -> Row:
        things = _scene(self.seed, number, self.size, self.min_objects, self.max_objects)
        query = f"seed={self.seed}&size={self.size}&objects={self.min_objects}-{self.max_objects}"
        return Row(
            f"scene-{number:05d}",
            f"{SCHEME}://v{RENDERER_VERSION}/{number}?{query}",
            [CLASS_NAMES[thing.label] for thing in things],
            f"scene {number}",
        )


def render_uri(uri: str) -> Image.Image:
    """Render the scene that a manifest's ``synthetic:`` URI stands for, RGB."""
    parts = urlsplit(uri)
    query = parse_qs(parts.query)
    low, _, high = query["objects"][0].partition("-")
    seed, number, size = int(query["seed"][0]), int(parts.path.strip("/")), int(query["size"][0])
    things = _scene(seed, number, size, int(low), int(high))
    return _render(things, size, np.random.default_rng([_SCENES, seed, number, 1]))


def render_picture(label: int, seed: int, number: int, size: int) -> Image.Image:
    """A picture of one object of class ``label``, with background and clutter as in the scenes, RGB."""
    rng = np.random.default_rng([_PICTURES, seed, number])
    radius = size * rng.uniform(0.2, 0.42)
    x, y = rng.uniform(radius * 0.8, size - radius * 0.8, size=2)
    return _render([_Thing(label, x, y, radius, rng.uniform(0, 2 * math.pi))], size, rng)


def _scene(seed: int, number: int, size: int, low: int, high: int) -> list[_Thing]:
    """The objects of a scene, back to front; they may overlap, but none hides another's centre."""
    rng = np.random.default_rng([_SCENES, seed, number, 0])
    things: list[_Thing] = []
    for label in rng.choice(len(CLASS_NAMES), size=rng.integers(low, high + 1), replace=False):
        radius = size * rng.uniform(0.10, 0.19)
        for _ in range(50):
            x, y = rng.uniform(radius, size - radius, size=2)
            if all(math.hypot(x - other.x, y - other.y) > 0.75 * (radius + other.radius) for other in things):
                things.append(_Thing(int(label), x, y, radius, rng.uniform(0, 2 * math.pi)))
                break
    return things


def _render(things: list[_Thing], size: int, rng: np.random.Generator) -> Image.Image:
    corners = rng.integers(60, 200, size=(2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((size, size), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(4, 10)):  # clutter: strokes of any colour
        ends = [tuple(point) for point in rng.uniform(0, size, size=(2, 2))]
        draw.line(ends, fill=tuple(rng.integers(30, 230, size=3).tolist()), width=int(rng.integers(1, 3)))
    for thing in things:
        colour, shape = CLASS_NAMES[thing.label].split()
        fill = tuple(np.clip(np.array(COLOURS[colour]) + rng.normal(0, 16, size=3), 0, 255).astype(int).tolist())
        _DRAW[shape](draw, thing, fill)
    pixels = np.asarray(image, dtype=np.float32) + rng.normal(0, 9, size=(size, size, 1)).astype(np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


_Fill = tuple[int, ...]


def _polygon(draw: ImageDraw.ImageDraw, thing: _Thing, fill: _Fill, spokes: list[tuple[float, float]]) -> None:
    """A polygon given by (angle in turns, radius in radii) around the object's centre."""
    points = []
    for turn, reach in spokes:
        angle = thing.angle + 2 * math.pi * turn
        points.append(
            (thing.x + thing.radius * reach * math.cos(angle), thing.y + thing.radius * reach * math.sin(angle))
        )
    draw.polygon(points, fill=fill)


def _box(thing: _Thing, reach: float) -> tuple[float, float, float, float]:
    r = thing.radius * reach
    return (thing.x - r, thing.y - r, thing.x + r, thing.y + r)


def _circle(draw: ImageDraw.ImageDraw, thing: _Thing, fill: _Fill) -> None:
    draw.ellipse(_box(thing, 0.9), fill=fill)


def _ring(draw: ImageDraw.ImageDraw, thing: _Thing, fill: _Fill) -> None:
    draw.ellipse(_box(thing, 0.95), outline=fill, width=max(2, round(thing.radius * 0.32)))


def _square(draw: ImageDraw.ImageDraw, thing: _Thing, fill: _Fill) -> None:
    _polygon(draw, thing, fill, [(i / 4, 1.1) for i in range(4)])


def _triangle(draw: ImageDraw.ImageDraw, thing: _Thing, fill: _Fill) -> None:
    _polygon(draw, thing, fill, [(i / 3, 1.15) for i in range(3)])


def _star(draw: ImageDraw.ImageDraw, thing: _Thing, fill: _Fill) -> None:
    _polygon(draw, thing, fill, [(i / 10, 1.2 if i % 2 == 0 else 0.48) for i in range(10)])


def _cross(draw: ImageDraw.ImageDraw, thing: _Thing, fill: _Fill) -> None:
    for turn in (0.0, 0.25):
        _polygon(draw, thing, fill, [(turn + side, 1.15) for side in (-0.045, 0.045, 0.455, 0.545)])


_DRAW: dict[str, Callable[[ImageDraw.ImageDraw, _Thing, _Fill], None]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross, "ring": _ring,
}  # fmt: skip
