"""The demo world: drawn pictures of a coloured thing somewhere, each with a literal and an Instagram-style caption.

Sixteen subjects, eight colours and six settings make 768 combinations. For every subject and colour one setting is kept
for validation and one for testing: no model ever trains on those combinations, though it sees every pair of
subject, colour and setting elsewhere. A scene is fixed by its split and its index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from clipcap.world.captions import instagram_caption, literal_caption
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
FLOATING = {"balloon": 0.14, "rocket": 0.1}  # how far above the ground, as a share of the picture


@dataclass(frozen=True)
class Scene:
    """One picture of the world; `index` counts within its split."""

    split: str
    index: int
    subject: str
    colour: str
    setting: str

    @property
    def image_id(self) -> str:
        return f"{self.split}-{self.index:05d}"

    def chance(self, purpose: str) -> Random:
        """A source of chance of its own for each purpose, the same in every process and version of Python."""
        return Random(f"{self.image_id} {purpose}")

    @property
    def literal(self) -> str:
        return literal_caption(self.subject, self.colour, self.setting)

    def post(self, version: int = 0) -> str:
        """What somebody might write under the picture on Instagram; each version is another post."""
        return instagram_caption(self.subject, self.colour, self.setting, self.chance(f"post {version}"))

    def draw(self) -> Image.Image:
        """The picture, RGB, SIZE x SIZE pixels."""
        return draw_scene(self)


def combinations(split: str) -> list[tuple[str, str, str]]:
    """All (subject, colour, setting) of a split; the splits share none."""
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
    """Scenes `start` to `start + count` of a split. Every len(combinations) scenes show each combination once."""
    table = combinations(split)
    count = SPLITS[split] if count is None else count
    for index in range(start, start + count):
        lap, position = divmod(index, len(table))
        order = list(range(len(table)))
        Random(f"{split} lap {lap}").shuffle(order)
        yield Scene(split, index, *table[order[position]])


def draw_scene(scene: Scene) -> Image.Image:
    """Setting, shadow and subject; place, size, direction and the exact shade vary."""
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
