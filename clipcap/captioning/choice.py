"""Which captions a picture gets: searched for until enough distinct ones keep the rules, and ranked; required words
are put in where none of a picture's captions holds them by itself.

A row is a picture's number in its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from clipcap.captioning.candidates import Candidates, Caption
from clipcap.captioning.rules import Rules
from clipcap.decoding.options import Decoding

MOST_BEAMS = 64
PLACES = 12  # where in a caption a required word is tried


@dataclass
class Found:
    """What was found for one picture: text -> its token ids, in the order found, best first within one search."""

    good: dict[str, list[int]] = field(default_factory=dict)
    spoiled: dict[str, list[int]] = field(default_factory=dict)  # held a banned word, which was cut out
    searches: int = 0


class Choice:
    """Chooses captions for one batch of pictures.

    Args:
        candidates: where captions come from.
        decoding: the search that was asked for.
        rules: what every caption must keep.
    """

    def __init__(self, candidates: Candidates, decoding: Decoding, rules: Rules) -> None:
        self.candidates, self.decoding, self.rules = candidates, decoding, rules
        banned = (*decoding.banned, *rules.banned_tokens(candidates.tokenizer))
        self.first = replace(decoding, num_captions=rules.num_captions, return_all=True, banned=banned)

    def choose(self) -> list[list[str]]:
        """B lists of at most `rules.num_captions` captions, best first; fewer only where no more could be found."""
        ranked = self._rank(self._search())
        chosen = {row: captions[: self.rules.num_captions] for row, captions in ranked.items()}
        for word in self.rules.require:
            self._put_in(word, chosen, ranked)
        return [[text for text, _ in chosen[row]] for row in range(len(chosen))]

    def _search(self) -> list[Found]:
        found = [Found() for _ in range(len(self.candidates))]
        for decoding in self._attempts():
            lacking = [row for row, has in enumerate(found) if len(has.good) < self.rules.num_captions]
            if not lacking:
                break
            for row, captions in zip(lacking, self.candidates.generate(lacking, decoding), strict=True):
                found[row].searches += 1
                for ids in captions:
                    self._add(found[row], ids)
        return found

    def _attempts(self) -> Iterator[Decoding]:
        """The search asked for, then wider ones for the pictures that it leaves lacking."""
        yield self.first
        banned = (*self.first.banned, *self.rules.banned_words(self.candidates.tokenizer))
        count, strict = self.rules.num_captions, replace(self.first, banned=banned)
        if count == 1:
            if self.rules.ban:
                yield strict
            return
        for factor in (2, 4):
            width = min(MOST_BEAMS, factor * strict.width)
            yield replace(strict, num_captions=width, seed=None if strict.seed is None else strict.seed + factor)
        yield replace(strict, method="beam", num_captions=min(MOST_BEAMS, 8 * count))  # never twice the same tokens

    def _add(self, found: Found, ids: list[int]) -> None:
        raw = self.candidates.text(ids)
        text = self.rules.clean(raw)
        known = {caption.casefold() for caption in found.good}
        if text and text.casefold() not in known:
            (found.good if self.rules.allows(raw) else found.spoiled).setdefault(text, ids)

    def _rank(self, found: list[Found]) -> dict[int, list[Caption]]:
        """Row -> its captions, best first."""
        ranked: dict[int, list[Caption]] = {}
        unsorted: dict[int, list[Caption]] = {}
        for row, has in enumerate(found):
            enough = len(has.good) >= self.rules.num_captions
            captions = list((has.good if enough else has.good | has.spoiled).items()) or [("", [])]
            by_likelihood = self.rules.rank == "likelihood" and has.searches == 1  # as the search gives them
            (ranked if by_likelihood else unsorted)[row] = captions
        return ranked | self.candidates.sort(unsorted)

    def _put_in(self, word: str, chosen: dict[int, list[Caption]], found: dict[int, list[Caption]]) -> None:
        """Exchange captions in `chosen` until, row by row, the word is in one of them, or no way was found.

        The last caption goes first, for another that was found, or for its own beginning with the word behind it and
        what the model then goes on to say.
        """
        for place in reversed(range(self.rules.num_captions)):
            lacking = [row for row, captions in chosen.items() if place < len(captions)]
            lacking = [row for row in lacking if word in self._missing(chosen[row])]
            if not lacking:
                continue
            made = self._with_word(word, {row: chosen[row][place][1] for row in lacking})
            kept = {row: chosen[row][:place] + chosen[row][place + 1 :] for row in lacking}
            better = {row: self._better(kept[row], chosen[row], found[row] + made[row]) for row in lacking}
            best = self.candidates.sort({row: captions for row, captions in better.items() if captions})
            chosen |= self.candidates.sort({row: [*kept[row], captions[0]] for row, captions in best.items()})

    def _better(self, kept: list[Caption], chosen: list[Caption], others: list[Caption]) -> list[Caption]:
        """Those of the other captions that, beside the ones kept, leave the fewest words missing: fewer than now."""
        known = {text.casefold() for text, _ in chosen}
        others = [caption for caption in others if caption[0].casefold() not in known]
        lacks = [len(self._missing([*kept, caption])) for caption in others]
        least = min([len(self._missing(chosen)) - 1, *lacks])
        return [caption for caption, lack in zip(others, lacks, strict=True) if lack == least]

    def _with_word(self, word: str, bases: dict[int, list[int]]) -> dict[int, list[Caption]]:
        """Row -> the token ids of a caption, in; row -> captions that begin like it and then hold the word, out."""
        jobs = [(row, opening) for row, ids in bases.items() for opening in self._openings(ids, word)]
        greedy = replace(self.first, method="greedy", num_captions=1)
        rests = self.candidates.generate([row for row, _ in jobs], greedy, [opening for _, opening in jobs])
        made: dict[int, list[Caption]] = {row: [] for row in bases}
        for (row, opening), [rest] in zip(jobs, rests, strict=True):
            ids = [*opening, *rest][: self.decoding.max_tokens]
            text = self.candidates.text(ids)
            if self.rules.clean(text) == text and not _repeats(ids, self.decoding.no_repeat_ngram):
                made[row].append((text, ids))
        return made

    def _openings(self, ids: Sequence[int], word: str) -> Iterator[list[int]]:
        """Beginnings of a caption, each with the word behind it."""
        stop = self.decoding.stop_token
        stop = self.candidates.model.config.stop_token if stop is None else stop
        ids = list(ids[:-1] if ids and ids[-1] == stop else ids)
        for place in sorted({round(len(ids) * step / PLACES) for step in range(PLACES + 1)}):
            opening = ids[:place] + self.candidates.tokenizer.encode(f" {word}" if place else word).ids
            if len(opening) < self.decoding.max_tokens:
                yield opening

    def _missing(self, captions: Sequence[Caption]) -> list[str]:
        return self.rules.missing([text for text, _ in captions])


def _repeats(ids: Sequence[int], size: int) -> bool:
    """Whether some `size` tokens in a row come twice; 0 is no size."""
    grams = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)] if size else []
    return len(set(grams)) < len(grams)
