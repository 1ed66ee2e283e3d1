"""What every source of data yields, and how its examples are divided into splits."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from clipcap.errors import UserError, at_least

if TYPE_CHECKING:
    import numpy as np

    from clipcap.clip.images import ImageSource

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class Deferred:
    """An image to be read in this process when its turn comes: sending a whole data set to the workers costs more."""

    read: Callable[[], Path | bytes]


@dataclass(frozen=True, slots=True)
class Example:
    """One image with its captions. A source lists them all at first; images are opened when their turn comes.

    `image` is None where the embedding comes along.
    """

    image_id: str
    captions: tuple[str, ...]
    image: ImageSource | Deferred | None = None
    split: str = "train"
    clip_embedding: np.ndarray | None = None  # float32 (C)

    def open(self) -> ImageSource:
        return self.image.read() if isinstance(self.image, Deferred) else self.image


@dataclass(frozen=True)
class Source:
    """Examples, with what the dataset records about where they come from and the CLIP that goes with them, if any."""

    info: dict[str, str]
    examples: list[Example]
    clip: str | None = None


def split_name(text: str, otherwise: str = "train") -> str:
    """The split that a name of a folder or file begins with: "val2014" -> "validation"."""
    word = re.match(r"[a-z]*", text.lower()).group()
    return _SPLIT_NAMES.get(word, otherwise)


def limit_examples(examples: list[Example], limit: int | None) -> list[Example]:
    """The first `limit` examples of every split."""
    if limit is None:
        return examples
    at_least(1, option=True, limit=limit)
    room: dict[str, int] = {}
    kept = []
    for example in examples:
        room[example.split] = room.get(example.split, limit) - 1
        if room[example.split] >= 0:
            kept.append(example)
    return kept


def carve_splits(examples: list[Example], fractions: dict[str, float], seed: int) -> list[Example]:
    """Take each split of `fractions` that the source lacks out of its train split: at least one image of each.

    Images are ordered by a hash of seed and identity, so the choice depends on nothing else, and all captions of an
    image stay together.
    """
    if any(fraction < 0 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        given = ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items())
        raise UserError(f"the fractions of images set aside ({given}) must be 0 or more and leave some to train on")
    present = {example.split for example in examples}
    ids = {example.image_id for example in examples if example.split == "train"}
    order = sorted(ids, key=lambda image_id: sha256(f"{seed} {image_id}".encode()).digest())
    assigned: dict[str, str] = {}
    for name, fraction in fractions.items():
        if fraction and name not in present:
            first = len(assigned)
            assigned |= dict.fromkeys(order[first : first + max(1, round(fraction * len(order)))], name)
    if ids and len(assigned) >= len(ids):
        raise UserError(
            f"{len(ids)} image(s) are too few to set some aside for {' and '.join(fractions)}; "
            "give more, or --val-fraction 0 --test-fraction 0"
        )
    return [
        replace(example, split=assigned[example.image_id])
        if example.split == "train" and example.image_id in assigned
        else example
        for example in examples
    ]
