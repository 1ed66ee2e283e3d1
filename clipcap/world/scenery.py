"""Hills, clouds, trees and houses for the places of the demo world, on a canvas of side 1."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sin
from random import Random

from clipcap.world.drawing import RGB, Pen, Point, blend, rgb


def hills(pen: Pen, chance: Random, base: float, height: float, fill: RGB, waves: float = 1.5) -> None:
    """A ridge of soft hills from the left edge to the right; everything below it is filled."""
    phase, second = chance.uniform(0, 2 * pi), chance.uniform(0, 2 * pi)
    ridge = []
    for i in range(41):
        u = i / 40
        swell = 0.65 * sin(2 * pi * waves * u + phase) + 0.35 * sin(4.3 * pi * waves * u + second)
        ridge.append((u, base - height * (0.5 + 0.5 * swell)))
    pen.shape([(0, 1), *ridge, (1, 1)], fill)


def cloud(pen: Pen, u: float, v: float, size: float, fill: RGB) -> None:
    """A cloud about 2.6 times `size` wide, centred on u; its flat part begins at v."""
    for du, dv, r in ((-0.9, 0.05, 0.45), (-0.3, -0.2, 0.6), (0.4, -0.1, 0.52), (0.95, 0.1, 0.38)):
        pen.oval(u + du * size, v + dv * size, r * size, r * size * 0.8, fill)
    pen.box(u - 1.3 * size, v, u + 1.3 * size, v + 0.42 * size, fill, 0.2 * size)


def pine(pen: Pen, u: float, base: float, height: float, fill: RGB, snow: RGB | None = None) -> None:
    """A pine `height` tall that stands on (u, base), with snow of this colour on its branches if there is one."""
    pen.box(u - 0.03 * height, base - 0.14 * height, u + 0.03 * height, base, rgb("#6b4b3a"))
    for level, width in ((0.1, 0.32), (0.36, 0.26), (0.62, 0.18)):
        low, high = base - level * height, base - (level + 0.42) * height
        pen.shape([(u - width * height, low), (u, high), (u + width * height, low)], fill)
        if snow:
            mid = high + (low - high) * 0.42
            pen.shape([(u - width * height * 0.42, mid), (u, high), (u + width * height * 0.42, mid)], snow)


def palm(pen: Pen, u: float, base: float, crown: Point, trunk: RGB, leaves: RGB, nut: RGB) -> None:
    """A palm tree that grows from (u, base) and leans towards its crown."""
    pen.stroke([(u, base), (u + (crown[0] - u) * 0.35, 0.48), crown], trunk, 0.03)
    for du, dv in ((-0.17, 0.02), (-0.13, -0.08), (0.0, -0.1), (0.13, -0.08), (0.17, 0.02)):
        bend = (crown[0] + du * 0.55, crown[1] + dv * 1.1 - 0.01)
        pen.stroke([crown, bend, (crown[0] + du, crown[1] + dv + 0.06)], leaves, 0.034)
    pen.oval(*crown, 0.022, 0.022, nut)


def house(pen: Pen, chance: Random, left: float, width: float, top: float, wall: RGB, panes: Sequence[RGB]) -> None:
    """A tall house on v = 0.74 with rows of windows, each in one of the colours `panes`; without them it has none."""
    pen.box(left, top, left + width, 0.74, wall)
    pen.box(left, top, left + width, top + 0.018, blend(wall, (40, 40, 70), 0.25))
    for column in range(int(width / 0.042)) if panes else ():
        for row in range(int((0.68 - top) / 0.06)):
            u, v = left + 0.015 + column * 0.042, top + 0.038 + row * 0.06
            pen.box(u, v, u + 0.023, v + 0.032, chance.choice(panes))


def cactus(pen: Pen, u: float, base: float, height: float, fill: RGB) -> None:
    """A cactus with two arms, `height` tall, that stands on (u, base)."""
    arm = base - height * 0.45
    pen.stroke([(u, base), (u, base - height)], fill, 0.045)
    pen.stroke([(u, arm), (u - 0.055, arm), (u - 0.06, arm - 0.08)], fill, 0.03)
    pen.stroke([(u, arm - 0.05), (u + 0.055, arm - 0.05), (u + 0.06, arm - 0.12)], fill, 0.03)


def mesa(pen: Pen, u: float, width: float, top: float, rock: RGB, stripe: RGB) -> None:
    """A table mountain on v = 0.66."""
    at = pen.moved(u, 0)
    at.shape([(-width, 0.66), (-width * 0.7, top), (width * 0.7, top), (width, 0.66)], rock)
    low, high = top + 0.06, top + 0.03
    at.shape([(-width * 0.77, low), (-width * 0.72, high), (width * 0.72, high), (width * 0.77, low)], stripe)


def peak(pen: Pen, u: float, base: float, height: float, rock: RGB, snow: RGB) -> None:
    """A mountain with a snowy top."""
    at = pen.moved(u, base, height)
    at.shape("-0.9,0 0,-1 0.9,0", rock)
    at.shape("-0.3,-0.667 0,-1 0.3,-0.667", snow)


def flower(pen: Pen, u: float, v: float, radius: float, petal: RGB, heart: RGB) -> None:
    """A flower with four petals, centred on (u, v)."""
    at = pen.moved(u, v, radius)
    for du, dv in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        at.oval(du, dv, 0.85, 0.85, petal)
    at.oval(0, 0, 0.7, 0.7, heart)
