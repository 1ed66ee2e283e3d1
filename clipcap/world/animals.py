"""The five animals of the demo world. Each stands on v = 0 and is about two units high and two wide."""

from __future__ import annotations

from clipcap.world.drawing import CREAM, GOLD, INK, Pen, Tones, rgb

BLUSH, BEAK = rgb("#f7a8a0"), rgb("#f6a12c")


def draw_eye(pen: Pen, u: float, v: float, radius: float = 0.075) -> None:
    """A round eye with a highlight, centred on (u, v)."""
    pen.oval(u, v, radius, radius * 1.15, INK)
    pen.oval(u - radius * 0.3, v - radius * 0.4, radius * 0.38, radius * 0.38, (255, 255, 255))


def cat(pen: Pen, tone: Tones) -> None:
    """A sitting cat that faces the viewer."""
    head = pen.moved(-0.08, 0)
    pen.stroke("0.35,-0.15 0.8,-0.1 0.95,-0.5 0.78,-0.85", tone.dark, 0.17)
    pen.blob("-0.48,0 -0.5,-0.5 -0.3,-0.95 0.15,-0.95 0.5,-0.45 0.52,0", tone.base)
    pen.blob("-0.22,0 -0.28,-0.4 -0.05,-0.7 0.18,-0.4 0.14,0", tone.light)
    pen.oval(-0.27, -0.05, 0.17, 0.09, tone.light)
    pen.oval(0.2, -0.05, 0.17, 0.09, tone.light)
    for ear in (head, head.turned()):
        ear.shape("0.5,-1.3 0.5,-1.95 0.06,-1.6", tone.base)
        ear.shape("0.43,-1.45 0.44,-1.79 0.2,-1.6", BLUSH)
    pen.oval(-0.08, -1.28, 0.57, 0.45, tone.base)
    for u in (-0.2, -0.08, 0.04):
        pen.stroke([(u, -1.69), (u, -1.54)], tone.deep, 0.06)
    draw_eye(pen, -0.29, -1.3, 0.085)
    draw_eye(pen, 0.13, -1.3, 0.085)
    pen.oval(-0.08, -1.08, 0.21, 0.13, tone.light)
    pen.shape("-0.14,-1.17 -0.02,-1.17 -0.08,-1.09", rgb("#e8667a"))
    for cheek in (head, head.turned()):
        cheek.stroke("0.3,-1.12 0.72,-1.17", CREAM, 0.025)
        cheek.stroke("0.3,-1.02 0.72,-0.95", CREAM, 0.025)


def dog(pen: Pen, tone: Tones) -> None:
    """A standing dog with a collar, seen from the side."""
    pen.stroke("0.6,-0.75 0.9,-0.95 0.98,-1.2", tone.base, 0.15)
    for u in (0.55, -0.18):
        pen.box(u - 0.1, -0.5, u + 0.12, 0, tone.dark, 0.1)
    pen.blob("-0.5,-0.75 -0.3,-1.05 0.35,-0.98 0.72,-0.8 0.68,-0.4 0.1,-0.32 -0.4,-0.4", tone.base)
    for u in (0.36, -0.38):
        pen.box(u - 0.12, -0.5, u + 0.12, 0, tone.base, 0.1)
        pen.oval(u - 0.03, -0.06, 0.16, 0.07, tone.light)
    pen.box(-0.62, -1.0, -0.12, -0.86, CREAM, 0.05)
    pen.oval(-0.4, -1.35, 0.46, 0.44, tone.base)
    pen.oval(-0.7, -1.18, 0.3, 0.21, tone.light)
    pen.oval(-0.92, -1.25, 0.1, 0.085, INK)
    pen.stroke("-0.86,-1.08 -0.72,-1.04 -0.6,-1.1", INK, 0.035)
    draw_eye(pen, -0.52, -1.45, 0.085)
    pen.blob("-0.22,-1.72 0.02,-1.66 0.12,-1.3 0,-0.98 -0.16,-1.1 -0.2,-1.4", tone.deep)
    pen.oval(-0.36, -0.82, 0.08, 0.08, GOLD)


def rabbit(pen: Pen, tone: Tones) -> None:
    """A sitting rabbit with upright ears that faces the viewer."""
    for ear in (pen.moved(-0.11, 0), pen.moved(-0.11, 0).turned()):
        ear.blob("0.06,-1.3 0.12,-1.75 0.29,-2.15 0.46,-1.75 0.32,-1.3", tone.base)
        ear.blob("0.14,-1.35 0.22,-1.75 0.29,-1.98 0.36,-1.75 0.24,-1.35", BLUSH)
    pen.oval(0.62, -0.25, 0.2, 0.2, CREAM)
    pen.blob("-0.5,0 -0.52,-0.5 -0.25,-0.85 0.2,-0.85 0.58,-0.45 0.6,0", tone.base)
    pen.oval(-0.08, -0.32, 0.27, 0.3, tone.light)
    pen.oval(-0.36, -0.06, 0.24, 0.1, tone.light)
    pen.oval(0.22, -0.06, 0.24, 0.1, tone.light)
    pen.oval(-0.11, -1.08, 0.47, 0.41, tone.base)
    for side in (-1, 1):
        pen.oval(-0.11 + side * 0.32, -0.95, 0.1, 0.07, BLUSH)
        draw_eye(pen, -0.11 + side * 0.2, -1.13, 0.08)
    pen.oval(-0.11, -0.92, 0.16, 0.12, tone.light)
    pen.oval(-0.11, -0.99, 0.055, 0.04, rgb("#e8667a"))
    pen.box(-0.16, -0.9, -0.06, -0.79, (255, 255, 255), 0.02)


def duck(pen: Pen, tone: Tones) -> None:
    """A standing duck, seen from the side."""
    for u in (-0.12, 0.22):
        pen.stroke([(u, -0.3), (u, -0.06)], BEAK, 0.09)
        pen.oval(u - 0.08, -0.05, 0.18, 0.06, BEAK)
    pen.blob("-0.62,-0.72 -0.45,-0.3 0.15,-0.2 0.62,-0.45 1,-1.05 0.55,-0.95 -0.1,-1", tone.base)
    pen.blob("-0.2,-0.72 0.1,-0.88 0.6,-0.82 0.42,-0.48 0.05,-0.42", tone.dark)
    pen.blob("-0.62,-0.6 -0.68,-1 -0.62,-1.4 -0.1,-1.4 -0.05,-0.9 -0.1,-0.5", tone.base)
    pen.oval(-0.36, -1.45, 0.4, 0.38, tone.base)
    pen.blob("-0.66,-1.5 -1,-1.44 -1.08,-1.36 -0.98,-1.29 -0.64,-1.27", BEAK)
    pen.stroke("-0.3,-1.8 -0.22,-1.95 -0.08,-1.98", tone.dark, 0.07)
    pen.oval(-0.22, -1.32, 0.1, 0.07, BLUSH)
    draw_eye(pen, -0.47, -1.52, 0.085)
    pen.wedge(-0.37, -1.02, 0.3, 0.1, 0, 180, CREAM)


def turtle(pen: Pen, tone: Tones) -> None:
    """A turtle seen from the side; its shell has the colour."""
    skin, skin_dark = rgb("#86a45c"), rgb("#6d8a4a")
    for u in (0.6, -0.3):
        pen.oval(u, -0.16, 0.2, 0.18, skin_dark)
    pen.shape("0.8,-0.36 1.1,-0.2 0.8,-0.2", skin_dark)
    pen.blob("-0.55,-0.3 -0.8,-0.55 -0.86,-0.85 -1.1,-1 -1.22,-0.78 -1.05,-0.55 -0.85,-0.25", skin)
    pen.oval(-1.0, -0.85, 0.26, 0.23, skin)
    draw_eye(pen, -1.06, -0.9, 0.07)
    pen.stroke("-1.18,-0.76 -1.08,-0.72 -0.98,-0.74", INK, 0.03)
    for u in (0.4, -0.5):
        pen.oval(u, -0.14, 0.2, 0.16, skin)
    pen.wedge(0.08, -0.3, 0.88, 1.02, 180, 360, tone.base)
    pen.wedge(0.08, -0.3, 0.88, 0.16, 0, 180, tone.dark)
    pen.box(-0.84, -0.4, 1.0, -0.26, tone.light, 0.07)
    pen.shape("-0.14,-0.5 -0.24,-0.82 0.08,-1.08 0.4,-0.82 0.3,-0.5", tone.dark)
    pen.blob("-0.38,-0.5 -0.44,-0.74 -0.6,-0.6 -0.6,-0.5", tone.dark)
    pen.blob("0.54,-0.5 0.6,-0.74 0.76,-0.6 0.76,-0.5", tone.dark)
    pen.wedge(-0.2, -1.0, 0.14, 0.06, 150, 330, tone.light)
