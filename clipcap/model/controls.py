"""What captions can be asked for (prompted strategy): their length, how many emoji, how many hashtags.

In training a caption's prompt states what the caption has, so that afterwards a prompt can ask for it, as the control
codes of CTRL do (https://arxiv.org/abs/1909.05858). Each control is two or three tokens of GPT-2 behind the template:
" short,", " no emoji,", " #two,". Weights know it by these very words. No two controls share a token, except for the
comma: small models mistake one number for the other otherwise, and digits they have never seen.

What a control means to weights is a pair of bounds in their config, found in the captions that they learned from:

    length             [a, b]    short captions have up to a words, medium ones up to b, long ones more
    emoji, hashtags    [a, b]    counts from a to b; a says "a or fewer", b says "b or more"
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

import numpy as np

from clipcap.errors import UserError
from clipcap.text import EMOJI, HASHTAG

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LENGTHS = ("short", "medium", "long")
OPTIONS = {"length": "length", "emoji": "emoji_count", "hashtags": "hashtag_count"}  # control -> what asks for it
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MOST_COUNTED = len(NUMBERS) - 1  # a higher count is "10 or more"
OUTLIERS = 0.01  # the share of the captions, at either end, whose counts are too rare to be learned
LARGEST = 10**6  # words of a caption, or more than any has
Bounds = Mapping[str, Sequence[int]]  # control -> its two bounds


@dataclass(frozen=True, kw_only=True)
class Request:
    """What captions are asked for, of weights that have learned it; None where nothing is asked.

    Attributes:
        length: one of LENGTHS, in words; hashtags and emoji do not count.
        emoji_count, hashtag_count: how many of them.

    Raises:
        UserError: a value is impossible for any weights.
    """

    length: str | None = None
    emoji_count: int | None = None
    hashtag_count: int | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.length not in LENGTHS:
            raise UserError(f"length is {self.length!r}; choose one of {', '.join(LENGTHS)}")
        for name in ("emoji_count", "hashtag_count"):
            count = getattr(self, name)
            if count is not None and (type(count) is not int or count < 0):
                raise UserError(f"{name} must be a whole number of at least 0, not {count!r}")


def count_words(caption: str) -> int:
    """How many words a caption has; hashtags and emoji are none."""
    text = HASHTAG.sub(" ", EMOJI.sub(" ", caption))
    return sum(any(character.isalnum() for character in piece) for piece in text.split())


MEASURES: dict[str, Callable[[str], int]] = {
    "length": count_words,
    "emoji": lambda caption: len(EMOJI.findall(caption)),
    "hashtags": lambda caption: len(HASHTAG.findall(caption)),
}


def find_bounds(names: Iterable[str], captions: Sequence[str]) -> dict[str, list[int]]:
    """The bounds of these controls in training captions: thirds of the lengths, and the counts that are not too rare.

    Raises:
        UserError: the captions differ too little to learn a control from them.
    """
    bounds = {}
    for name in (name for name in OPTIONS if name in names):
        sizes = sorted(map(MEASURES[name], captions))
        rare = int(OUTLIERS * len(sizes))
        sizes = sizes[rare : len(sizes) - rare]
        if name == "length":
            bounds[name] = _thirds(sizes)
        else:
            bounds[name] = [min(size, MOST_COUNTED) for size in (sizes[0], sizes[-1])]
        if len(set(bounds[name])) < 2:
            raise UserError(
                f"nearly all training captions are alike in {name}, so that it cannot be learned: "
                f"leave {name} out of --controls"
            )
    return bounds


def _thirds(sizes: Sequence[int]) -> list[int]:
    """Two bounds that cut sorted sizes into three classes as equal as possible; one or none if they cannot."""
    bounds: list[int] = []
    for part in (1, 2):
        possible = [size for size in sorted(set(sizes))[: part - 3] if not bounds or size > bounds[-1]]
        bounds += sorted(possible, key=lambda size: abs(bisect_right(sizes, size) - len(sizes) * part / 3))[:1]
    return bounds


def check_bounds(bounds: Any) -> None:
    """Raise a UserError unless these are bounds as `find_bounds` gives them; they may come from a stranger's file."""
    if type(bounds) is not dict or not bounds.keys() <= OPTIONS.keys():
        raise UserError(f"controls must be a dictionary with no other names than {', '.join(OPTIONS)}")
    for name, pair in bounds.items():
        whole = type(pair) is list and len(pair) == 2 and all(type(bound) is int for bound in pair)
        if not whole or not 0 <= pair[0] < pair[1] <= (LARGEST if name == "length" else MOST_COUNTED):
            raise UserError(f"the control {name} must have two bounds: whole numbers from 0 on, the smaller first")


def controls_of(tokenizer: Tokenizer, bounds: Bounds, captions: Sequence[str]) -> list[list[list[int]]]:
    """For each caption, the token ids of each control's words: those that say what the caption has."""
    words = [[_words(name, _value(name, bounds[name], caption)) for name in bounds] for caption in captions]
    ids = {text: tokenizer.encode(text).ids for text in set(chain.from_iterable(words))}
    return [[ids[text] for text in texts] for texts in words]


def some_controls(controls: Sequence[Sequence[int]], seed: Sequence[int]) -> Iterable[int]:
    """The token ids of a random part of a caption's controls: all, none, or any others, each equally often.

    The model learns to do without what is not stated. The part depends on nothing but `seed`.
    """
    if not controls:
        return ()
    stated = np.random.default_rng(seed).random(len(controls)) < 0.5
    return chain.from_iterable(compress(controls, stated))


def ask(tokenizer: Tokenizer, bounds: Bounds, request: Request) -> list[int]:
    """The token ids of the words that ask for something; none if nothing is asked.

    Args:
        tokenizer: of the weights.
        bounds: of the controls that the weights have learned.
        request: what to ask for.

    Raises:
        UserError: the weights have not learned the control, or never saw such a count.
    """
    asked = {name: getattr(request, option) for name, option in OPTIONS.items()}
    asked = {name: value for name, value in asked.items() if value is not None}
    for name, value in asked.items():
        if name not in bounds:
            raise UserError(
                f"these weights have not learned what {OPTIONS[name]} asks for: leave it out, or use weights that "
                f"prompt_finetuning.py has trained with --controls {name}"
            )
        low, high = bounds[name]
        if name != "length" and not low <= value <= high:
            raise UserError(
                f"{OPTIONS[name]} must be from {low} to {high} with these weights, as in what they learned from, "
                f"not {value}"
            )
    return list(chain.from_iterable(tokenizer.encode(_words(name, value)).ids for name, value in asked.items()))


def _value(name: str, pair: Sequence[int], caption: str) -> str | int:
    """What a caption has of a control: one of LENGTHS, or a count within the bounds."""
    size, (low, high) = MEASURES[name](caption), pair
    return LENGTHS[(size > low) + (size > high)] if name == "length" else min(max(size, low), high)


def _words(name: str, value: str | int) -> str:
    if isinstance(value, str):
        return f" {value},"
    return f" {NUMBERS[value]} emoji," if name == "emoji" else f" #{NUMBERS[value]},"
