"""Plants and things of the demo world. Each stands on v = 0 and is about two units high and two wide."""

from __future__ import annotations

from clipcap.world.animals import draw_eye
from clipcap.world.drawing import CREAM, GOLD, GREY, INK, STEEL, WOOD, Pen, Tones, rgb


def robot(pen: Pen, tone: Tones) -> None:
    """A robot with an antenna that faces the viewer."""
    for side in (-1, 1):
        pen.box(side * 0.25 - 0.12, -0.35, side * 0.25 + 0.12, -0.05, STEEL)
        pen.box(side * 0.27 - 0.2, -0.13, side * 0.27 + 0.2, 0, INK, 0.06)
        pen.stroke([(side * 0.5, -0.95), (side * 0.78, -0.8), (side * 0.8, -0.52)], STEEL, 0.13)
        pen.oval(side * 0.8, -0.48, 0.13, 0.13, tone.dark)
    pen.box(-0.52, -1.1, 0.52, -0.28, tone.base, 0.14)
    pen.box(-0.3, -0.9, 0.3, -0.5, CREAM, 0.06)
    pen.oval(-0.14, -0.7, 0.07, 0.07, rgb("#ef6a5b"))
    pen.oval(0.14, -0.7, 0.07, 0.07, rgb("#52c39a"))
    pen.box(-0.14, -1.2, 0.14, -1.08, STEEL)
    pen.stroke("0,-1.85 0,-2.02", STEEL, 0.06)
    pen.oval(0, -2.06, 0.09, 0.09, GOLD)
    for side in (-1, 1):
        pen.box(side * 0.6 - 0.08, -1.62, side * 0.6 + 0.08, -1.36, tone.dark, 0.04)
    pen.box(-0.58, -1.86, 0.58, -1.16, tone.base, 0.2)
    pen.box(-0.44, -1.72, 0.44, -1.32, INK, 0.14)
    for side in (-1, 1):
        pen.oval(side * 0.2, -1.53, 0.1, 0.1, rgb("#8ff0ff"))
    pen.stroke("-0.12,-1.39 0,-1.36 0.12,-1.39", rgb("#8ff0ff"), 0.03)


def umbrella(pen: Pen, tone: Tones) -> None:
    """An open umbrella that stands on its handle."""
    pen.stroke("0,-1.5 0,-0.2", WOOD, 0.075)
    pen.stroke("0,-0.25 0.02,-0.06 0.14,-0.02 0.25,-0.08 0.26,-0.22", WOOD, 0.085)
    pen.stroke("0,-2.1 0,-1.9", WOOD, 0.06)
    pen.wedge(0, -1.02, 1.02, 1.0, 180, 360, tone.base)
    pen.wedge(0, -1.02, 0.62, 1.0, 180, 360, tone.light)
    pen.wedge(0, -1.02, 0.26, 1.0, 180, 360, tone.base)
    for u in (-0.82, -0.44, 0.0, 0.44, 0.82):
        pen.wedge(u, -1.01, 0.2, 0.13, 180, 360, tone.deep)
    pen.wedge(0.25, -1.02, 0.77, 1.0, 300, 360, tone.dark)


def tent(pen: Pen, tone: Tones) -> None:
    """An open tent with a flag."""
    pen.shape("0.05,-1.5 1.2,0 0.35,0", tone.dark)
    pen.shape("0,-1.55 -1.15,0 0.62,0", tone.base)
    pen.shape("0,-1.55 -0.42,-0.98 0.2,-0.98", tone.light)
    pen.shape("-0.12,-1 -0.52,0 0.22,0", rgb("#4a3a55"))
    pen.shape("-0.12,-1 -0.52,0 -0.34,0", tone.light)
    pen.shape("-0.12,-1 0.22,0 0.1,0", tone.light)
    pen.stroke("-0.02,-1.5 0.02,-1.72", WOOD, 0.05)
    pen.shape("0.03,-1.95 0.03,-1.68 0.4,-1.82", GOLD)
    pen.stroke("0.02,-1.95 0.02,-1.5", WOOD, 0.045)
    pen.oval(-0.14, -0.14, 0.1, 0.13, rgb("#ffd98a"))


def mushroom(pen: Pen, tone: Tones) -> None:
    """A mushroom with a spotted cap and a face."""
    pen.blob("-0.34,-0.06 -0.26,-0.5 -0.3,-1 0.3,-1 0.26,-0.5 0.34,-0.06 0,0", CREAM)
    pen.blob("0.1,-0.02 0.08,-0.5 0.1,-1 0.3,-1 0.26,-0.5 0.34,-0.06", rgb("#ecd9bd"))
    pen.wedge(0, -0.9, 0.9, 0.16, 0, 180, rgb("#e7cfae"))
    pen.wedge(0, -0.92, 0.98, 1.05, 180, 360, tone.base)
    pen.wedge(0, -0.93, 0.98, 0.2, 0, 180, tone.dark)
    pen.wedge(0, -0.95, 0.8, 0.09, 0, 180, rgb("#f3e2c6"))
    for u, v, r in (
        (-0.55, -1.25, 0.14),
        (-0.05, -1.58, 0.18),
        (0.46, -1.3, 0.16),
        (0.02, -1.14, 0.1),
        (-0.32, -1.68, 0.07),
    ):
        pen.oval(u, v, r, r * 0.85, rgb("#fffaf0"))
    draw_eye(pen, -0.12, -0.55, 0.055)
    draw_eye(pen, 0.12, -0.55, 0.055)
    pen.stroke("-0.06,-0.43 0,-0.4 0.06,-0.43", INK, 0.03)


def tulip(pen: Pen, tone: Tones) -> None:
    """A tulip with two leaves."""
    stem, leaf = rgb("#4f9a4f"), rgb("#69b45f")
    pen.stroke("0,0 0.03,-0.6 0,-1.15", stem, 0.12)
    pen.blob("0,0 0.3,-0.3 0.52,-0.85 0.62,-1.05 0.7,-0.6 0.5,-0.2", leaf)
    pen.blob("0,0 -0.26,-0.25 -0.55,-0.6 -0.68,-0.85 -0.72,-0.4 -0.45,-0.1", leaf)
    pen.blob("-0.4,-1.3 -0.48,-1.75 -0.32,-2.1 0,-1.75 0.32,-2.1 0.48,-1.75 0.4,-1.3 0,-1.02", tone.dark)
    pen.blob("0,-1.03 -0.42,-1.25 -0.58,-1.6 -0.54,-2 -0.24,-1.72 -0.02,-1.4", tone.base)
    pen.blob("0,-1.03 0.42,-1.25 0.58,-1.6 0.54,-2 0.24,-1.72 0.02,-1.4", tone.base)
    pen.blob("0,-1.02 -0.28,-1.3 -0.22,-1.75 0,-2.02 0.22,-1.75 0.28,-1.3", tone.base)
    pen.blob("0,-1.08 -0.17,-1.35 -0.12,-1.65 0,-1.82 0.02,-1.5", tone.light)


def guitar(pen: Pen, tone: Tones) -> None:
    """An upright guitar."""
    neck = rgb("#6e4a33")
    pen.shape("-0.08,-1.9 0.08,-1.9 0.09,-0.85 -0.09,-0.85", neck)
    pen.blob("-0.13,-1.88 -0.17,-2.2 0,-2.26 0.17,-2.2 0.13,-1.88", INK)
    for side in (-1, 1):
        for v in (-2.13, -2.0):
            pen.oval(side * 0.2, v, 0.05, 0.04, GREY)
    body = [(0, -1.22), (-0.4, -1.16), (-0.5, -0.92), (-0.38, -0.72), (-0.66, -0.42), (-0.52, -0.08), (0, 0)]
    pen.blob(body + [(-u, v) for u, v in body[-2:0:-1]], tone.deep)
    inner = [(u * 0.88, -0.61 + (v + 0.61) * 0.88) for u, v in body]
    pen.blob(inner + [(-u, v) for u, v in inner[-2:0:-1]], tone.base)
    pen.shape("-0.08,-1.2 0.08,-1.2 0.085,-0.9 -0.085,-0.9", neck)
    pen.oval(0, -0.72, 0.22, 0.22, CREAM)
    pen.oval(0, -0.72, 0.165, 0.165, rgb("#3b2a2a"))
    pen.box(-0.22, -0.31, 0.22, -0.22, INK, 0.03)
    for u in (-0.05, 0.0, 0.05):
        pen.stroke([(u, -2.0), (u, -0.27)], rgb("#f2e8d5"), 0.014)
