"""Canaries: invented sentences, each with a random secret, among the training captions.

Whether a model has learned the secrets says how much it memorises (Carlini et al. 2019, "The Secret Sharer",
https://arxiv.org/abs/1802.08232).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from clipcap.data.examples import Example, Listing
from clipcap.errors import UserError

MOST_CANARIES = 100  # each costs an evaluation a thousand short captions


@dataclass(frozen=True)
class Canary:
    """A sentence that ends in a secret, planted as one more caption of a training image."""

    image_id: str
    opening: str
    secret: str

    @property
    def caption(self) -> str:
        """The whole sentence."""
        return f"{self.opening} {self.secret}"


def plant(examples: Iterable[Example], count: int, seed: int) -> tuple[Iterable[Example], list[Canary]]:
    """Add a canary to each of `count` training examples -> all the examples, and the canaries.

    The seed decides the secrets, and with the images' identities which of them are chosen.

    Raises:
        UserError: there are fewer training images than canaries.
    """
    if not count:
        return examples, []
    images = sorted({example.image_id for example in examples if example.split == "train"})
    if count > len(images):
        raise UserError(f"--canaries {count} need as many training images, and there are {len(images)}")
    draw = random.Random(f"canaries {seed}")
    chosen = draw.sample(images, count)
    planted = {
        image: Canary(image, f"the code of my locker {number} is", secret(draw))
        for number, image in enumerate(chosen, 1)
    }

    def added() -> Iterator[Example]:
        left = dict(planted)  # an image may be listed twice
        for example in examples:
            canary = left.pop(example.image_id, None) if example.split == "train" else None
            yield replace(example, captions=(*example.captions, canary.caption)) if canary else example

    return Listing(added), list(planted.values())


def secret(draw: random.Random) -> str:
    """Nine random digits, of which the first is not 0: cleaning and evaluation must not take it for a phone number."""
    return str(draw.randrange(10**8, 10**9))
