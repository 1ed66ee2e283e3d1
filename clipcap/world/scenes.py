"""The demo world: drawn pictures of a coloured thing in some place, each with a literal caption and with posts.

Sixteen subjects, eight colours and six settings make 768 combinations. For every subject and colour one setting is kept
for validation and one for testing. No model ever trains on those combinations, but it does see every subject in every
colour, every subject in every setting and every colour in every setting. Split and index determine a scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from clipcap.world.captions import instagram_caption, literal_caption, varied_caption
from clipcap.world.drawing import OVERSAMPLING, SIZE, Pen, Tones, blend, rgb
from clipcap.world.settings import SETTINGS, paint_setting
from clipcap.world.subjects import SUBJECTS

COLOURS = {
    "red": "#e23b36",
    "orange": "#f7861b",
    "yellow": "#ffd02b",
    "green": "#35a04f",
    "blue": "#2f6fdb",
    "purple": "#8347c4",
    "pink": "#ff8fc0",
    "black": "#35343f",
}
SPLITS = {"train": 2048, "validation": 128, "test": 256}  # pictures that the `demo` source yields
FLOATING = {"balloon": 0.14, "rocket": 0.1}  # mean height above the ground, as a share of the picture


@dataclass(frozen=True)
class Scene:
    """One picture of the world: what it shows, and its number within its split."""

    split: str
    index: int
    subject: str
    colour: str
    setting: str

    @property
    def image_id(self) -> str:
        """The name of the picture, such as "test-00042"."""
        return f"{self.split}-{self.index:05d}"

    def chance(self, purpose: str) -> Random:
        """A random generator for one purpose, which gives the same in every process and version of Python."""
        return Random(f"{self.image_id} {purpose}")

    @property
    def literal(self) -> str:
        """The plain description of the picture."""
        return literal_caption(self.subject, self.colour, self.setting)

    def post(self, version: int = 0) -> str:
        """What somebody might write under the picture on Instagram; every version is a post of its own."""
        return instagram_caption(self.subject, self.colour, self.setting, self.chance(f"post {version}"))

    def varied_post(self) -> str:
        """The same, of any length and with any number of emoji and hashtags."""
        return varied_caption(self.subject, self.colour, self.setting, self.chance("varied post"))

    def draw(self) -> Image.Image:
        """The picture, an RGB image of SIZE x SIZE pixels."""
        return draw_scene(self)


def combinations(split: str) -> list[tuple[str, str, str]]:
    """Every (subject, colour, setting) of a split; no two splits have one in common."""
    places = list(SETTINGS)
    found = []
    for s, subject in enumerate(SUBJECTS):
        for c, colour in enumerate(COLOURS):
            kept = {"test": (s + c) % len(places), "validation": (s + c + 2) % len(places)}
            for p, place in enumerate(places):
                if split == next((name for name, held in kept.items() if held == p), "train"):
                    found.append((subject, colour, place))
    return found


def scenes(split: str, count: int | None = None, start: int = 0) -> Iterator[Scene]:
    """`count` scenes of a split, the first with the index `start`.

    Each run of as many scenes as the split has combinations shows every combination once.
    """
    table = combinations(split)
    count = SPLITS[split] if count is None else count
    for index in range(start, start + count):
        lap, position = divmod(index, len(table))
        order = list(range(len(table)))
        Random(f"{split} lap {lap}").shuffle(order)
        yield Scene(split, index, *table[order[position]])


def draw_scene(scene: Scene) -> Image.Image:
    """Draw setting, shadow and subject; position, size, direction and the exact shade vary with the scene."""
    chance = scene.chance("picture")
    side = SIZE * OVERSAMPLING
    canvas = paint_setting(scene.setting, chance, side)
    scale = chance.uniform(0.2, 0.28)
    x, ground = chance.uniform(0.32, 0.68), chance.uniform(0.84, 0.93)
    lift = FLOATING.get(scene.subject, 0.0) * chance.uniform(0.7, 1.3)
    shade = blend(
        rgb(COLOURS[scene.colour]), (255, 255, 255) if chance.random() < 0.5 else (0, 0, 0), chance.uniform(0, 0.07)
    )

    shadow = Image.new("L", canvas.size, 0)
    width = scale * (0.95 - 2 * lift)
    box = [side * v for v in (x - width, ground - 0.028, x + width, ground + 0.032)]
    ImageDraw.Draw(shadow).ellipse(box, fill=80)
    canvas.paste((45, 35, 80), mask=shadow)

    draw = ImageDraw.Draw(canvas)
    pen = Pen(draw, x * side, (ground - lift) * side, scale * side, mirrored=chance.random() < 0.5)
    SUBJECTS[scene.subject](pen, Tones.of(shade))
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS, reducing_gap=None)
