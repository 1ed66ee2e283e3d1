"""Required words: put into a caption where none of a picture's captions holds them by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipcap.choice import Caption, Chooser

PLACES = 12  # where in a caption a word is tried


def put_in(chooser: Chooser, chosen: dict[int, list[Caption]], found: dict[int, list[Caption]]) -> None:
    """Exchange captions in `chosen` until, row by row, each required word is in one of them, or no way was found.

    The last caption goes first, for another that was found, or for its own beginning with the word behind it and what
    the model then goes on to say.
    """
    for word in chooser.rules.require:
        for place in reversed(range(chooser.rules.num_captions)):
            lacking = [row for row, captions in chosen.items() if place < len(captions)]
            lacking = [row for row in lacking if word in _missing(chooser, chosen[row])]
            if not lacking:
                continue
            made = _with_word(chooser, word, {row: chosen[row][place][1] for row in lacking})
            kept = {row: chosen[row][:place] + chosen[row][place + 1 :] for row in lacking}
            better = {row: _better(chooser, kept[row], chosen[row], found[row] + made[row]) for row in lacking}
            best = chooser.sort({row: captions for row, captions in better.items() if captions})
            chosen |= chooser.sort({row: [*kept[row], captions[0]] for row, captions in best.items()})


def _better(chooser: Chooser, kept: list[Caption], chosen: list[Caption], others: list[Caption]) -> list[Caption]:
    """Those of the other captions that, beside the ones kept, leave the fewest words missing: fewer than now."""
    known = {text.casefold() for text, _ in chosen}
    others = [caption for caption in others if caption[0].casefold() not in known]
    lacks = [len(_missing(chooser, [*kept, caption])) for caption in others]
    least = min([len(_missing(chooser, chosen)) - 1, *lacks])
    return [caption for caption, lack in zip(others, lacks, strict=True) if lack == least]


def _with_word(chooser: Chooser, word: str, bases: dict[int, list[int]]) -> dict[int, list[Caption]]:
    """Row -> the token ids of a caption, in; row -> captions that begin like it and then hold the word, out."""
    jobs = [(row, opening) for row, ids in bases.items() for opening in _openings(chooser, ids, word)]
    greedy = replace(chooser.first, method="greedy", num_captions=1)
    rests = chooser.generate([row for row, _ in jobs], greedy, [opening for _, opening in jobs])
    made: dict[int, list[Caption]] = {row: [] for row in bases}
    for (row, opening), [rest] in zip(jobs, rests, strict=True):
        ids = [*opening, *rest][: chooser.decoding.max_tokens]
        text = chooser.text(ids)
        if chooser.rules.clean(text) == text and not _repeats(ids, chooser.decoding.no_repeat_ngram):
            made[row].append((text, ids))
    return made


def _openings(chooser: Chooser, ids: Sequence[int], word: str) -> Iterator[list[int]]:
    """Beginnings of a caption, each with the word behind it."""
    stop = chooser.decoding.stop_token
    ids = list(ids[:-1] if ids and ids[-1] == (chooser.model.config.stop_token if stop is None else stop) else ids)
    for place in sorted({round(len(ids) * step / PLACES) for step in range(PLACES + 1)}):
        opening = ids[:place] + chooser.tokenizer.encode(f" {word}" if place else word).ids
        if len(opening) < chooser.decoding.max_tokens:
            yield opening


def _missing(chooser: Chooser, captions: Sequence[Caption]) -> list[str]:
    return chooser.rules.missing([text for text, _ in captions])


def _repeats(ids: Sequence[int], size: int) -> bool:
    grams = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)] if size else []
    return len(set(grams)) < len(grams)
