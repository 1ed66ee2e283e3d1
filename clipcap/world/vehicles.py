"""The vehicles of the demo world. Each stands on v = 0 and is about two units high and two wide."""

from __future__ import annotations

from clipcap.world.drawing import CREAM, GREY, INK, STEEL, WOOD, Pen, Tones, rgb

GLASS = rgb("#cdeefa")


def _wheel(pen: Pen, u: float, radius: float) -> None:
    pen.oval(u, -radius, radius, radius, INK)
    pen.oval(u, -radius, radius * 0.52, radius * 0.52, GREY)
    pen.oval(u, -radius, radius * 0.18, radius * 0.18, STEEL)


def car(pen: Pen, tone: Tones) -> None:
    """A car seen from the side."""
    pen.blob("-0.6,-0.75 -0.38,-1.2 0.1,-1.28 0.5,-1.15 0.72,-0.75 0.4,-0.6 -0.4,-0.6", tone.base)
    pen.blob("-0.46,-0.76 -0.3,-1.08 0,-1.13 0.02,-0.76", GLASS)
    pen.blob("0.12,-0.76 0.12,-1.12 0.38,-1.05 0.54,-0.76", GLASS)
    pen.box(-1.08, -0.78, 1.05, -0.22, tone.base, 0.24)
    pen.box(-1.08, -0.42, 1.05, -0.22, tone.dark, 0.1)
    pen.oval(-0.98, -0.56, 0.1, 0.12, rgb("#fff0a8"))
    pen.oval(0.97, -0.55, 0.07, 0.11, rgb("#ff7a6b"))
    pen.box(0.08, -0.64, 0.28, -0.59, tone.deep, 0.02)
    pen.box(-1.0, -0.3, -0.6, -0.24, CREAM, 0.03)
    for u in (-0.58, 0.58):
        pen.oval(u, -0.3, 0.33, 0.33, tone.deep)
        _wheel(pen, u, 0.27)


def bicycle(pen: Pen, tone: Tones) -> None:
    """A bicycle with a basket of flowers."""
    for u in (-0.68, 0.68):
        for turn in ((0.0, 0.4), (0.35, 0.2), (0.35, -0.2)):
            pen.stroke([(u - turn[0], -0.48 - turn[1]), (u + turn[0], -0.48 + turn[1])], GREY, 0.02)
        pen.ring(u, -0.48, 0.48, INK, 0.085)
        pen.oval(u, -0.48, 0.07, 0.07, STEEL)
    back, crank, seat, head, front = (0.68, -0.48), (0.08, -0.42), (0.28, -1.18), (-0.44, -1.2), (-0.68, -0.48)
    for path in ((back, crank), (crank, seat), (seat, back), (crank, head), (seat, head)):
        pen.stroke(path, tone.base, 0.125)
    pen.stroke([front, head, (-0.52, -1.5)], tone.base, 0.125)
    pen.stroke("-0.2,-1.5 -0.5,-1.52 -0.72,-1.62", STEEL, 0.08)
    pen.stroke("-0.28,-1.5 -0.18,-1.5", INK, 0.12)
    pen.stroke([seat, (0.33, -1.34)], STEEL, 0.08)
    pen.blob("0.1,-1.4 0.34,-1.46 0.6,-1.44 0.58,-1.34 0.3,-1.32", INK)
    pen.oval(*crank, 0.15, 0.15, tone.dark)
    pen.oval(*crank, 0.07, 0.07, CREAM)
    pen.box(-1.05, -1.36, -0.62, -1.04, WOOD, 0.07)
    pen.box(-1.08, -1.4, -0.6, -1.3, rgb("#b98457"), 0.04)
    for u, fill in ((-0.98, rgb("#ff9fb2")), (-0.84, rgb("#ffe08a")), (-0.7, rgb("#ff9fb2"))):
        pen.oval(u, -1.44, 0.085, 0.085, fill)


def boat(pen: Pen, tone: Tones) -> None:
    """A boat with two sails."""
    pen.box(-0.02, -1.95, 0.06, -0.45, WOOD, 0.02)
    pen.shape("-0.1,-1.9 -0.1,-0.62 -0.95,-0.62", tone.base)
    pen.shape("-0.1,-1.05 -0.1,-0.62 -0.95,-0.62 -0.82,-0.82", tone.dark)
    pen.shape("0.14,-1.7 0.14,-0.62 0.78,-0.62", tone.light)
    pen.shape("0.02,-2.1 0.02,-1.92 0.34,-2", tone.base)
    pen.blob("-1.05,-0.5 -0.78,-0.12 -0.5,-0.02 0.5,-0.02 0.8,-0.12 1.08,-0.5 0.5,-0.45 -0.5,-0.45", tone.base)
    pen.shape("-1,-0.5 -0.95,-0.38 0.96,-0.38 1.02,-0.5", CREAM)
    for u in (-0.4, 0.0, 0.4):
        pen.oval(u, -0.22, 0.09, 0.09, GLASS)


def rocket(pen: Pen, tone: Tones) -> None:
    """A flying rocket with its flame."""
    pen.blob("-0.2,-0.42 -0.24,-0.2 0,0.04 0.24,-0.2 0.2,-0.42", rgb("#ff8a3d"))
    pen.blob("-0.11,-0.42 -0.12,-0.25 0,-0.1 0.12,-0.25 0.11,-0.42", rgb("#ffe07a"))
    for half in (pen, pen.turned()):
        half.blob("0.3,-0.95 0.68,-0.6 0.7,-0.22 0.34,-0.42", tone.dark)
    pen.blob("-0.3,-0.4 -0.44,-1 -0.32,-1.6 0,-2.15 0.32,-1.6 0.44,-1 0.3,-0.4", tone.base)
    pen.blob("-0.3,-1.64 -0.16,-1.95 0,-2.15 0.16,-1.95 0.3,-1.64 0,-1.56", CREAM)
    pen.oval(0, -1.22, 0.23, 0.23, CREAM)
    pen.oval(0, -1.22, 0.165, 0.165, rgb("#7cc7ef"))
    pen.wedge(0, -1.22, 0.14, 0.14, 180, 300, (255, 255, 255))
    pen.box(-0.34, -0.66, 0.34, -0.56, tone.light)
    pen.box(-0.06, -0.78, 0.06, -0.2, tone.deep, 0.05)


def balloon(pen: Pen, tone: Tones) -> None:
    """A hot-air balloon with its basket."""
    for u in (-0.17, 0.17):
        pen.stroke([(u * 1.6, -0.75), (u, -0.35)], WOOD, 0.035)
    pen.blob("-0.28,-0.72 -0.72,-1.25 -0.62,-1.85 0,-2.15 0.62,-1.85 0.72,-1.25 0.28,-0.72 0,-0.66", tone.base)
    for half, fill in ((pen.turned(), tone.light), (pen, tone.dark)):
        half.blob("0.26,-0.72 0.68,-1.25 0.6,-1.8 0,-2.15 0.36,-1.75 0.4,-1.3 0.14,-0.7", fill)
    pen.blob("-0.07,-0.68 -0.14,-1.3 -0.12,-1.8 0,-2.14 0.12,-1.8 0.14,-1.3 0.07,-0.68", CREAM)
    pen.box(-0.24, -0.36, 0.24, 0, WOOD, 0.07)
    pen.box(-0.27, -0.4, 0.27, -0.28, rgb("#b98457"), 0.05)
    for v in (-0.2, -0.1):
        pen.stroke([(-0.2, v), (0.2, v)], rgb("#7d5233"), 0.025)
