"""What every source of data yields, and how its examples are divided into splits.

Shapes: C CLIP width.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from clipcap.clip.images import UnreadableImage
from clipcap.errors import UserError, at_least, first_line

if TYPE_CHECKING:
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
    """An image that this process reads when its turn comes.

    An image that a worker read would have to bring its whole data set along to the worker, which costs more.
    """

    read: Callable[[], Path | bytes]


@dataclass(frozen=True, slots=True)
class Example:
    """One image with its captions. Images are opened when their turn comes.

    Attributes:
        image_id: unique within the source; says which captions belong together.
        captions: as the source has them, not cleaned.
        image: where the picture is; None where the source brings its embedding.
        split: "train", "validation", "test" or another name that the source gives.
        clip_embedding: float32 (C,), where the source brings it.
        origin: the file that holds the image or its embedding, where `image` is not a path itself.
        group: the images that have the same one stay in one split, such as those of one post; None: this one alone.
    """

    image_id: str
    captions: tuple[str, ...]
    image: ImageSource | Deferred | None = None
    split: str = "train"
    clip_embedding: np.ndarray | None = None
    origin: Path | None = None
    group: str | None = None

    @property
    def kept_together(self) -> str:
        """The name of what no split may divide."""
        return self.group or self.image_id

    def open(self) -> ImageSource:
        """The image, ready to be decoded here or in a worker; one that cannot be read says why when it is decoded."""
        assert self.image is not None, "an example that brings its embedding has no image"
        if not isinstance(self.image, Deferred):
            return self.image
        try:
            return self.image.read()
        except (OSError, ValueError, UnreadableImage) as error:  # pyarrow's errors are ValueErrors
            return partial(_unreadable, (isinstance(error, OSError) and error.strerror) or first_line(error))


def _unreadable(reason: str) -> NoReturn:
    raise UnreadableImage(reason)


@dataclass(frozen=True)
class Listing(Iterable[Example]):
    """Examples that are listed anew each time they are asked for, so that no list of them is in memory.

    Attributes:
        list_anew: begins anew; it gives the same examples each time, as long as the files are the same.
    """

    list_anew: Callable[[], Iterator[Example]]

    def __iter__(self) -> Iterator[Example]:
        return self.list_anew()


@dataclass(frozen=True)
class Source:
    """All examples of one source.

    Attributes:
        info: what the dataset records about where the examples come from.
        examples: in the order of the source; a list, or a Listing where there may be millions.
        clip: the CLIP that made their embeddings, or that suits them best; None for any.
    """

    info: dict[str, str]
    examples: Iterable[Example]
    clip: str | None = None


def split_name(text: str, otherwise: str = "train") -> str:
    """The split that the name of a folder or file begins with: "val2014" -> "validation"."""
    word = re.match(r"[a-z]*", text.lower())
    assert word is not None  # it matches an empty text too
    return _SPLIT_NAMES.get(word[0], otherwise)


def split_of(name: str) -> str:
    """That of a file in a source, by its own name or else by its folder's: `val-00000.tar`, `test/0000.parquet`.

    A name that begins with none may hold one, and no other: `cc3m-validation-0000.tar`, `partial-test/0000.parquet`.
    """
    for part in reversed(PurePosixPath(name).parts):
        held = {split_name(word, "") for word in re.split(r"[^a-z]+", part.lower())} - {""}
        if split := split_name(part, "") or (held.pop() if len(held) == 1 else ""):
            return split
    return "train"


def limit_examples(examples: Iterable[Example], limit: int | None) -> Iterator[Example]:
    """The examples of the first `limit` images of every split; in a pickle one image may have several."""
    if limit is None:
        yield from examples
        return
    at_least(1, option=True, limit=limit)
    taken: dict[str, set[str]] = {}  # the images of each split
    for example in examples:
        images = taken.setdefault(example.split, set())
        if len(images) < limit:
            images.add(example.image_id)
        if example.image_id in images:
            yield example


def check_fractions(fractions: dict[str, float]) -> None:
    """Raise a UserError for shares of the training images that cannot be set aside."""
    if not (all(fraction >= 0 for fraction in fractions.values()) and sum(fractions.values()) < 1):  # nan neither
        given = ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items())
        raise UserError(f"the fractions of images set aside ({given}) must be 0 or more and leave some to train on")


def carve_splits(examples: Iterable[Example], fractions: dict[str, float], seed: int) -> Listing:
    """Take each split of `fractions` that the source lacks out of its train split, at least one image for each.

    Images are ordered by a hash of the seed and their identity, so that the choice depends on nothing else. All the
    captions of an image stay together, and so do the images of a group, which is counted like one image.

    Raises:
        UserError: the fractions are not possible, or leave no image to train on.
    """
    check_fractions(fractions)
    present: set[str] = set()
    places = array("Q")  # 8 bytes for each image, of which there may be millions
    for example in examples:
        present.add(example.split)
        if example.split == "train":
            places.append(_place(example, seed))
    order = np.unique(np.frombuffer(places, np.uint64))
    ends: dict[str, int] = {}  # the last place of each split that is set aside, in order
    taken = 0
    for name, fraction in fractions.items():
        if fraction and name not in present:
            taken += max(1, round(fraction * len(order)))
            ends[name] = int(order[min(taken, len(order)) - 1]) if len(order) else -1
    if len(order) and taken >= len(order):
        raise UserError(
            f"{len(order)} image(s) are too few to set some aside for {' and '.join(fractions)}; "
            "give more, or --val-fraction 0 --test-fraction 0"
        )

    def assigned(example: Example) -> Example:
        if example.split != "train":
            return example
        place = _place(example, seed)
        split = next((name for name, end in ends.items() if place <= end), "train")
        return example if split == "train" else replace(example, split=split)

    return Listing(lambda: map(assigned, examples))


def _place(example: Example, seed: int) -> int:
    """Where an image, or its group, stands in the order by which some are set aside."""
    return int.from_bytes(sha256(f"{seed} {example.kept_together}".encode()).digest()[:8])


def fingerprint(examples: Iterable[Example]) -> str:
    """A short hash of all image identities, captions and splits: two runs with the same one make the same dataset."""
    listed = sha256()
    for example in examples:
        listed.update(json.dumps([example.image_id, example.captions, example.split]).encode())
    return listed.hexdigest()[:16]
