"""The sixteen things that the demo world shows, and the function that draws each of them."""

from __future__ import annotations

from collections.abc import Callable

from clipcap.world.animals import cat, dog, duck, rabbit, turtle
from clipcap.world.drawing import Pen, Tones
from clipcap.world.things import guitar, mushroom, robot, tent, tulip, umbrella
from clipcap.world.vehicles import balloon, bicycle, boat, car, rocket

SUBJECTS: dict[str, Callable[[Pen, Tones], None]] = {
    "cat": cat,
    "dog": dog,
    "rabbit": rabbit,
    "duck": duck,
    "turtle": turtle,
    "robot": robot,
    "car": car,
    "bicycle": bicycle,
    "boat": boat,
    "rocket": rocket,
    "balloon": balloon,
    "umbrella": umbrella,
    "tent": tent,
    "mushroom": mushroom,
    "tulip": tulip,
    "guitar": guitar,
}
