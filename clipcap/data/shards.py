"""Examples cut into shards: what is embedded and written at once, so that a run which is stopped loses little."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from clipcap.data.examples import Example, fingerprint

IMAGES_PER_SHARD = 1024


@dataclass(frozen=True)
class Shard:
    """Consecutive examples of one split, embedded and written together."""

    split: str
    number: int
    examples: Sequence[Example]

    @property
    def name(self) -> str:
        """Its file in the dataset."""
        return shard_name(self.split, self.number)


def shard_name(split: str, number: int) -> str:
    """The file of a shard."""
    return f"{split}-{number:05d}.arrow"


@dataclass
class Shards(Iterable[Shard]):
    """The shards of a listing. They are cut anew, one after the other, each time they are asked for.

    Attributes:
        images: how many each split has: train, validation, test, then other splits in the order in which they appear.
        fingerprint: see `clipcap.data.examples.fingerprint`.
    """

    examples: Iterable[Example]
    images_per_shard: int = IMAGES_PER_SHARD
    images: dict[str, int] = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        counted = dict.fromkeys(("train", "validation", "test"), 0)

        def count() -> Iterator[Example]:
            for example in self.examples:
                counted[example.split] = counted.get(example.split, 0) + 1
                yield example

        self.fingerprint = fingerprint(count())
        self.images = {split: number for split, number in counted.items() if number}

    def __iter__(self) -> Iterator[Shard]:
        """Each as soon as it is full; at the end those that are not."""
        started: dict[str, list[Example]] = {split: [] for split in self.images}
        numbers = dict.fromkeys(self.images, 0)
        for example in self.examples:
            members = started.setdefault(example.split, [])
            members.append(example)
            if len(members) == self.images_per_shard:
                yield Shard(example.split, numbers.setdefault(example.split, 0), members)
                started[example.split] = []
                numbers[example.split] += 1
        yield from (Shard(split, numbers.get(split, 0), members) for split, members in started.items() if members)

    def names(self) -> dict[str, list[tuple[str, int]]]:
        """For each split the files of its shards, in order, and how many images each has."""
        size = self.images_per_shard
        return {
            split: [
                (shard_name(split, number), min(size, images - start))
                for number, start in enumerate(range(0, images, size))
            ]
            for split, images in self.images.items()
        }
