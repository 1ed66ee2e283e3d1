"""A pen for flat illustrations, which draws shapes in units of the thing drawn.

Everything is drawn at `OVERSAMPLING` times its final size and scaled down at the end, which smooths the edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

from PIL import Image, ImageDraw

SIZE = 128  # pixels, width and height of a finished picture
OVERSAMPLING = 3

RGB = tuple[int, int, int]
Point = tuple[float, float]
Path = Sequence[Point] | str  # a string lists points as an SVG polygon does: "0,0 1,-0.5"


def rgb(code: str) -> RGB:
    """The colour of an HTML code such as "#ff8800"."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


# The colours that several of the things drawn have in common.
INK, CREAM, GREY, STEEL = rgb("#2b2540"), rgb("#fff3df"), rgb("#c9ccd8"), rgb("#8d93a8")
WOOD, GOLD = rgb("#9a6a43"), rgb("#ffd166")


def points(path: Path) -> Sequence[Point]:
    """The points of a path, whichever way it is written."""
    if not isinstance(path, str):
        return path
    pairs = (pair.split(",") for pair in path.split())
    return [(float(u), float(v)) for u, v in pairs]


def blend(a: RGB, b: RGB, amount: float) -> RGB:
    """A mixture of two colours: `a` for an amount of 0, `b` for an amount of 1."""
    red, green, blue = (round(x + (y - x) * amount) for x, y in zip(a, b, strict=True))
    return red, green, blue


@dataclass(frozen=True)
class Tones:
    """One colour in the shades that a flat illustration needs."""

    base: RGB
    dark: RGB
    deep: RGB
    light: RGB

    @classmethod
    def of(cls, base: RGB) -> Tones:
        """The shades of a colour: darker towards a violet shadow, lighter towards white."""
        shadow, white = (28, 18, 60), (255, 255, 255)
        return cls(base, blend(base, shadow, 0.22), blend(base, shadow, 0.45), blend(base, white, 0.42))


@dataclass(frozen=True)
class Pen:
    """Draws in local units, each `scale` pixels long.

    (0, 0) is the pixel (`x`, `y`) of the canvas, u grows to the right (to the left if `mirrored`) and v downwards.
    """

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    scale: float
    mirrored: bool = False

    def at(self, u: float, v: float) -> Point:
        """The pixel of the canvas at (u, v)."""
        return self.x + (-u if self.mirrored else u) * self.scale, self.y + v * self.scale

    def moved(self, u: float, v: float, scale: float = 1.0) -> Pen:
        """A pen whose origin is (u, v) of this one, and whose unit is `scale` of this one's."""
        return Pen(self.draw, *self.at(u, v), self.scale * scale, self.mirrored)

    def turned(self) -> Pen:
        """A pen that draws the mirror image about u = 0."""
        return Pen(self.draw, self.x, self.y, self.scale, not self.mirrored)

    def oval(self, u: float, v: float, ru: float, rv: float, fill: RGB) -> None:
        """An ellipse with its centre at (u, v) and the radii `ru` and `rv`."""
        x, y = self.at(u, v)
        rx, ry = ru * self.scale, rv * self.scale
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill)

    def box(self, u0: float, v0: float, u1: float, v1: float, fill: RGB, corner: float = 0.0) -> None:
        """A rectangle from (u0, v0) to (u1, v1), v1 below v0, with corners of the radius `corner`."""
        (x0, y0), (x1, y1) = self.at(u0, v0), self.at(u1, v1)
        left, right = sorted((x0, x1))
        self.draw.rounded_rectangle((left, y0, right, y1), corner * self.scale, fill)

    def shape(self, path: Path, fill: RGB) -> None:
        """A polygon with straight sides."""
        self.draw.polygon([self.at(u, v) for u, v in points(path)], fill)

    def blob(self, path: Path, fill: RGB) -> None:
        """A smooth closed curve through the points."""
        self.shape(_smooth(points(path), closed=True), fill)

    def wedge(self, u: float, v: float, ru: float, rv: float, start: float, end: float, fill: RGB) -> None:
        """Part of an ellipse between two angles in degrees, clockwise from the right, closed by its chord."""
        steps = max(8, int(abs(end - start) / 6))
        angles = [(start + (end - start) * i / steps) * pi / 180 for i in range(steps + 1)]
        self.shape([(u + ru * cos(a), v + rv * sin(a)) for a in angles], fill)

    def stroke(self, path: Path, fill: RGB, width: float) -> None:
        """A smooth line through the points, with round ends."""
        line = [self.at(u, v) for u, v in _smooth(points(path), closed=False)]
        thick = max(1, round(width * self.scale))
        self.draw.line(line, fill, thick, joint="curve")
        for x, y in (line[0], line[-1]):
            r = thick / 2
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill)

    def ring(self, u: float, v: float, radius: float, fill: RGB, width: float) -> None:
        """A circle around (u, v), drawn as a line of this width inside it."""
        x, y = self.at(u, v)
        r = radius * self.scale
        self.draw.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(1, round(width * self.scale)))


def _smooth(points: Sequence[Point], closed: bool, steps: int = 8) -> list[Point]:
    """A Catmull-Rom spline through the points."""
    if len(points) < 3:
        return list(points)
    n = len(points)
    path = []
    for i in range(n if closed else n - 1):
        ends = (points[(i + k) % n] if closed else points[min(max(i + k, 0), n - 1)] for k in (-1, 0, 1, 2))
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = ends
        for t in (k / steps for k in range(steps)):
            path.append((_spline(ax, bx, cx, dx, t), _spline(ay, by, cy, dy, t)))
    return path if closed else [*path, points[-1]]


def _spline(a: float, b: float, c: float, d: float, t: float) -> float:
    """The cubic from b (t = 0) to c (t = 1) whose slopes there follow from the neighbours a and d."""
    return b + t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))) / 2


def gradient(top: RGB, bottom: RGB, width: int, height: int) -> Image.Image:
    """An image of (width, height) pixels in which the colour `top` fades into `bottom`."""
    column = Image.new("RGB", (1, 2))
    column.putdata([top, bottom])
    return column.resize((1, height), Image.Resampling.BILINEAR, box=(0, 0.5, 1, 1.5)).resize((width, height))
