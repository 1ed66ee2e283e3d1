"""The six places of the demo world: sky, background and ground, drawn on a square canvas of side 1."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from PIL import Image, ImageDraw

from clipcap.world.drawing import RGB, Pen, blend, gradient, rgb
from clipcap.world.scenery import cactus, cloud, flower, hills, house, mesa, palm, peak, pine

# The colour of the sky at its top and at the horizon, the light that tints everything, and how strongly (0 to 1).
SKIES = {
    "morning": ("#9fd3f2", "#fdeecb", "#fff6dc", 0.08),
    "noon": ("#6fb9ec", "#d8f1fb", "#ffffff", 0.0),
    "evening": ("#7f7cc4", "#ffc19a", "#ffb27a", 0.16),
}
# The walls of near and of far houses.
WALLS, FAR_WALLS = ("#d8b7a6", "#a9b4cf", "#e3cdb4", "#98a9bf"), ("#b3bdd6",)

Tint = Callable[[str], RGB]  # HTML code -> the colour in the light of the time of day


def beach(pen: Pen, chance: Random, tint: Tint) -> None:
    """Sea, waves, sand and a palm."""
    horizon, shore = chance.uniform(0.42, 0.5), chance.uniform(0.58, 0.64)
    pen.box(0, horizon, 1, 1, tint("#2f9ec4"))
    pen.box(0, horizon + (shore - horizon) * 0.5, 1, 1, tint("#4fbfd6"))
    for _ in range(5):
        u, v = chance.random(), chance.uniform(horizon + 0.02, shore - 0.03)
        pen.stroke([(u, v), (u + 0.08, v)], tint("#a9e3ec"), 0.008)
    hills(pen, chance, shore + 0.035, 0.03, tint("#f4fbfb"))
    hills(pen, chance, shore + 0.055, 0.03, tint("#f3d9a4"))
    pen.box(0, shore + 0.2, 1, 1, tint("#eecf94"))
    for _ in range(14):
        pen.oval(chance.random(), chance.uniform(shore + 0.1, 0.98), 0.006, 0.004, tint("#d9b677"))
    side = chance.choice((0.1, 0.9))
    crown = (side + (0.07 if side < 0.5 else -0.07), chance.uniform(0.2, 0.28))
    palm(pen, side, shore + 0.13, crown, tint("#a0714a"), tint("#3f9a62"), tint("#7d5233"))


def snow(pen: Pen, chance: Random, tint: Tint) -> None:
    """Mountains, pines and falling snow."""
    for _ in range(3):
        u, height = chance.random(), chance.uniform(0.24, 0.36)
        peak(pen, u, 0.62, height, tint("#8ea9cc"), tint("#f6faff"))
    hills(pen, chance, 0.63, 0.08, tint("#d9e6f5"))
    for u in (chance.uniform(0.02, 0.2), chance.uniform(0.8, 0.98), chance.uniform(0.25, 0.75)):
        pine(pen, u, chance.uniform(0.6, 0.68), chance.uniform(0.2, 0.32), tint("#3e7a78"), tint("#f3f9ff"))
    hills(pen, chance, 0.72, 0.05, tint("#eef5fc"))
    pen.box(0, 0.86, 1, 1, tint("#e2edf8"))
    for _ in range(26):
        r = chance.uniform(0.005, 0.011)
        pen.oval(chance.random(), chance.random() * 0.9, r, r, (255, 255, 255))


def meadow(pen: Pen, chance: Random, tint: Tint) -> None:
    """Hills, a tree, grass and flowers."""
    hills(pen, chance, 0.6, 0.13, tint("#a9cf8f"))
    hills(pen, chance, 0.66, 0.1, tint("#b9d97f"))
    u, v = chance.choice((0.14, 0.86)), chance.uniform(0.5, 0.56)
    pen.box(u - 0.018, v - 0.05, u + 0.018, v + 0.1, tint("#8a6544"))
    for du, dv, r in ((-0.07, -0.08, 0.08), (0.07, -0.08, 0.08), (0, -0.15, 0.09)):
        pen.oval(u + du, v + dv, r, r, tint("#7fb765"))
    hills(pen, chance, 0.76, 0.07, tint("#c9e287"))
    pen.box(0, 0.88, 1, 1, tint("#bcd977"))
    for _ in range(26):
        u, v = chance.random(), chance.uniform(0.72, 0.99)
        pen.stroke([(u, v), (u + 0.006, v - 0.025)], tint("#93bd58"), 0.007)
    for _ in range(16):
        u, v, r = chance.random(), chance.uniform(0.72, 0.98), chance.uniform(0.009, 0.014)
        petal = tint(chance.choice(("#ffffff", "#fff3c2", "#ffe1ec")))
        flower(pen, u, v, r, petal, tint("#f5b94a"))


def city(pen: Pen, chance: Random, tint: Tint) -> None:
    """Two rows of houses, a street and a lamp."""
    panes = [tint(code) for code in ("#fff2c4", "#7f8fb0", "#f7fbff")]
    for low, high, walls, windows, gap in ((0.3, 0.52, FAR_WALLS, [], 0.02), (0.18, 0.4, WALLS, panes, 0.0)):
        u = -chance.uniform(0, 0.1)
        while u < 1:
            width, top = chance.uniform(0.11, 0.19), 0.7 - chance.uniform(low, high)
            house(pen, chance, u, width, top, tint(chance.choice(walls)), windows)
            u += width + gap
    pen.box(0, 0.7, 1, 1, tint("#d9d5d3"))
    pen.box(0, 0.7, 1, 0.715, tint("#b6b1b4"))
    for i in range(6):
        u = 0.1 + i * 0.18
        pen.stroke([(0.5 + (u - 0.5) * 0.8, 0.715), (0.5 + (u - 0.5) * 1.5, 0.86)], tint("#c4bfc0"), 0.006)
    pen.box(0, 0.86, 1, 1, tint("#8f8f9d"))
    pen.box(0, 0.86, 1, 0.877, tint("#b6b1b4"))
    for i in range(4):
        pen.box(i * 0.3 - 0.04, 0.94, i * 0.3 + 0.1, 0.955, tint("#f1e9d2"))
    u = chance.choice((0.07, 0.93))
    pen.stroke([(u, 0.8), (u, 0.44)], tint("#4a4f66"), 0.016)
    pen.oval(u, 0.42, 0.032, 0.036, tint("#fff0b8"))


def desert(pen: Pen, chance: Random, tint: Tint) -> None:
    """Table mountains, dunes, cacti and stones."""
    for _ in range(2):
        u, width, top = chance.random(), chance.uniform(0.16, 0.26), chance.uniform(0.32, 0.44)
        mesa(pen, u, width, top, tint("#cf8a63"), tint("#b87452"))
    hills(pen, chance, 0.64, 0.08, tint("#e9b987"))
    for u in (chance.uniform(0.04, 0.2), chance.uniform(0.8, 0.96)):
        cactus(pen, u, chance.uniform(0.7, 0.76), chance.uniform(0.2, 0.3), tint("#5d8f63"))
    hills(pen, chance, 0.75, 0.06, tint("#f2cc98"))
    hills(pen, chance, 0.92, 0.07, tint("#eabf86"))
    for _ in range(5):
        u, v, r = chance.random(), chance.uniform(0.76, 0.96), chance.uniform(0.01, 0.02)
        pen.oval(u, v, r * 1.3, r * 0.8, tint("#c99a6a"))


def forest(pen: Pen, chance: Random, tint: Tint) -> None:
    """Rows of pines, two trunks at the edges and grass."""
    pen.box(0, 0.3, 1, 1, tint("#a8d0c0"))
    for fill, base, low, high, count in (("#86b8a6", 0.66, 0.36, 0.5, 7), ("#5f9a86", 0.72, 0.34, 0.5, 6)):
        for i in range(count):
            u = (i + chance.uniform(0.1, 0.9)) / count
            pine(pen, u, base, chance.uniform(low, high), tint(fill))
        pen.box(0, base - 0.04, 1, 1, tint(fill))
    for u in (chance.uniform(0.0, 0.12), chance.uniform(0.88, 1.0)):
        pen.box(u - 0.045, 0, u + 0.045, 0.78, tint("#7b5a45"))
        pen.box(u + 0.012, 0, u + 0.045, 0.78, tint("#69493a"))
        for du, r in ((-0.1, 0.12), (0.1, 0.12), (0, 0.15)):
            pen.oval(u + du, 0.03, r, r * 0.8, tint("#3f7d66"))
    hills(pen, chance, 0.76, 0.04, tint("#6f8f5e"))
    hills(pen, chance, 0.86, 0.04, tint("#7f9c66"))
    for _ in range(12):
        u, v = chance.random(), chance.uniform(0.74, 0.98)
        for lean in (-0.02, 0, 0.02):
            pen.stroke([(u, v), (u + lean, v - 0.035)], tint("#4f7a55"), 0.008)


SETTINGS: dict[str, Callable[[Pen, Random, Tint], None]] = {
    "beach": beach,
    "snow": snow,
    "meadow": meadow,
    "city": city,
    "desert": desert,
    "forest": forest,
}


def paint_setting(name: str, chance: Random, side: int) -> Image.Image:
    """The place without a subject, as an RGB image of (side, side) pixels; `chance` decides time of day and details."""
    top, bottom, light, strength = SKIES[chance.choice(list(SKIES))]
    image = gradient(rgb(top), rgb(bottom), side, side)
    draw = ImageDraw.Draw(image)
    pen = Pen(draw, 0, 0, side)
    sun, height = chance.uniform(0.15, 0.85), chance.uniform(0.12, 0.24)
    pen.oval(sun, height, 0.085, 0.085, blend(rgb(bottom), rgb("#fff7d6"), 0.5))
    pen.oval(sun, height, 0.06, 0.06, rgb("#fff3c4"))
    for _ in range(chance.randint(1, 2)):
        u, v, size = chance.random(), chance.uniform(0.08, 0.26), chance.uniform(0.06, 0.09)
        cloud(pen, u, v, size, blend(rgb(bottom), (255, 255, 255), 0.7))
    SETTINGS[name](pen, chance, lambda code: blend(rgb(code), rgb(light), strength))
    return image
