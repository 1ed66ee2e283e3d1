"""Which captions a picture gets.

The search is repeated, each time wider, until there are enough distinct captions that keep the rules. They are ranked,
and a required word that no caption holds is put into one of them. A row is a picture's number in its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from tokenizers import Tokenizer

from clipcap.captioning.candidates import Candidates, Caption
from clipcap.captioning.posts import Frame
from clipcap.captioning.rules import Rules
from clipcap.captioning.vocabulary import tokens_with, word_parts
from clipcap.captioning.words import WHOLE
from clipcap.decoding.options import Decoding
from clipcap.decoding.search import NoCaption
from clipcap.model.language_model import up_to_end

MOST_BEAMS = 64
PLACES = 12  # steps along a caption at which a required word is tried


@dataclass
class Found:
    """The captions found for one picture: text -> token ids, in the order found, best first within one search.

    Attributes:
        good: captions that keep the rules.
        spoiled: captions from which a banned word was cut out: used only where there are too few good ones.
        written: what the model wrote for them, without what is ruled out, in lower case.
        searches: how many searches were made.
        alike: whether the last one wrote other captions, and limits made them equal to those there are.
    """

    good: dict[str, list[int]] = field(default_factory=dict)
    spoiled: dict[str, list[int]] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    searches: int = 0
    alike: bool = False

    @property
    def known(self) -> set[str]:
        """The captions, in lower case."""
        return {caption.casefold() for caption in self.good | self.spoiled}


class Choice:
    """Chooses captions for one batch of pictures.

    Args:
        candidates: where captions come from.
        decoding: the search that was asked for.
        rules: the rules that every caption must keep.
        frames: B texts that stand around the captions.

    Raises:
        NoCaption: the start of a picture leaves no room for a caption.
    """

    def __init__(self, candidates: Candidates, decoding: Decoding, rules: Rules, frames: Sequence[Frame]) -> None:
        self.candidates, self.decoding, self.rules, self.frames = candidates, decoding, rules, frames
        candidates.check_room(decoding.max_tokens)
        self.first = replace(decoding, num_captions=rules.num_captions, go_on=True, ends=(candidates.end,))
        if decoding.min_tokens:  # what is cut out afterwards would be missing
            self.first = self.strict
        elif rules.start_with:
            signs = tokens_with(candidates.tokenizer, ("#",))
            self.first = replace(self.first, word_parts=word_parts(candidates.tokenizer), hashtag_signs=signs)

    @cached_property
    def strict(self) -> Decoding:
        """The search that does not write what is ruled out, but for banned words."""
        return self.rules.kept_to(self.first, self.candidates.tokenizer)

    def choose(self) -> list[list[str]]:
        """B lists of `rules.num_captions` captions, best first; shorter only where no more could be found."""
        ranked = self._rank(self._search())
        chosen = {row: captions[: self.rules.num_captions] for row, captions in ranked.items()}
        for row, [(text, _), *_] in chosen.items():
            if not text and (self.rules.max_chars is not None or self.frames[row].size):
                raise NoCaption("nothing is left of its caption by the limits and the texts that were given")
        for word in self.rules.require:
            self._put_in(word, chosen, ranked)
        return [[text for text, _ in chosen[row]] for row in range(len(chosen))]

    def _search(self) -> list[Found]:
        """Search again, and wider, for those pictures that still have too few captions."""
        found = [Found() for _ in range(len(self.candidates))]
        attempts, rows = self._attempts(), range(len(found))
        while short := [row for row in rows if len(found[row].good) < self.rules.num_captions and not found[row].alike]:
            if (decoding := next(attempts, None)) is None:
                break
            for row, captions in zip(short, self.candidates.generate(short, decoding), strict=True):
                has = found[row]
                has.searches += 1
                known, written = has.known, len(has.written)
                for ids in captions:
                    self._add(row, has, ids)
                has.alike = bool(known) and has.known == known and len(has.written) > written
        return found

    def _attempts(self) -> Iterator[Decoding]:
        """The search asked for, then wider ones for the pictures that have too few captions after it.

        What is ruled out is cut out of the captions of the first search. Then banned words are not written, and at last
        nothing that is ruled out is: that costs harmless captions too, and makes others worse.
        """
        yield self.first
        tokenizer, count = self.candidates.tokenizer, self.rules.num_captions
        words = self.rules.banned_words(tokenizer)
        wider = replace(self.first, banned=(*self.first.banned, *words), word_parts=word_parts(tokenizer))
        strict = replace(self.strict, banned=(*self.strict.banned, *words))
        if count == 1:
            yield strict
            return
        most = min(MOST_BEAMS, strict.widest)
        for factor in (2, 4):  # with another seed, since the same one would draw the same samples
            width = min(most, factor * strict.width)
            yield replace(wider, num_captions=width, seed=None if wider.seed is None else wider.seed + factor)
        beams = min(most, 8 * count)
        yield replace(strict, method="beam", beams=beams, num_captions=beams)  # beams always differ

    def _add(self, row: int, found: Found, ids: list[int]) -> None:
        """Keep a caption unless it is empty or differs from a known one only in case."""
        raw = self.candidates.text(row, ids)
        text = self.rules.post(raw, self.frames[row])
        found.written.add(self.rules.clean(raw).casefold())
        known = {caption.casefold() for caption in found.good}
        if text and text.casefold() not in known:
            (found.good if self.rules.allows(raw) else found.spoiled).setdefault(text, ids)

    def _rank(self, found: list[Found]) -> dict[int, list[Caption]]:
        """Row -> its captions, best first. At least one each, which may be empty."""
        ranked: dict[int, list[Caption]] = {}
        unsorted: dict[int, list[Caption]] = {}
        for row, has in enumerate(found):
            enough = len(has.good) >= self.rules.num_captions
            captions = list((has.good if enough else has.good | has.spoiled).items()) or [("", [])]
            # One search gives its captions in this order already; those of several searches must be compared anew.
            by_likelihood = self.rules.rank == "likelihood" and has.searches == 1
            (ranked if by_likelihood else unsorted)[row] = captions
        return ranked | self.candidates.sort(unsorted)

    def _put_in(self, word: str, chosen: dict[int, list[Caption]], found: dict[int, list[Caption]]) -> None:
        """Exchange captions in `chosen` until, in each row, one of them holds the word, or no way was found.

        The last caption is the first to go. It is exchanged for another caption that was found, or for a new one: its
        own beginning, then the word, then what the model continues with.
        """
        for place in reversed(range(self.rules.num_captions)):
            without = [row for row, captions in chosen.items() if place < len(captions)]
            without = [row for row in without if word in self._missing(chosen[row])]
            if not without:
                continue
            made = self._with_word(word, {row: chosen[row][place][1] for row in without})
            kept = {row: chosen[row][:place] + chosen[row][place + 1 :] for row in without}
            better = {row: self._better(kept[row], chosen[row], found[row] + made[row]) for row in without}
            best = self.candidates.sort({row: captions for row, captions in better.items() if captions})
            chosen |= self.candidates.sort({row: [*kept[row], captions[0]] for row, captions in best.items()})

    def _better(self, kept: list[Caption], chosen: list[Caption], others: list[Caption]) -> list[Caption]:
        """Those of the other captions that, together with the ones kept, leave the fewest required words missing.

        None of them, unless that is fewer than the chosen captions leave missing now.
        """
        known = {text.casefold() for text, _ in chosen}
        others = [caption for caption in others if caption[0].casefold() not in known]
        counts = [len(self._missing([*kept, caption])) for caption in others]
        least = min([len(self._missing(chosen)) - 1, *counts])
        return [caption for caption, count in zip(others, counts, strict=True) if count == least]

    def _with_word(self, word: str, bases: dict[int, list[int]]) -> dict[int, list[Caption]]:
        """For each row, captions that begin like the one in `bases` (token ids) and then hold the word."""
        jobs = [(row, opening) for row, ids in bases.items() for opening in self._openings(row, ids, word)]
        greedy = replace(self.strict, method="greedy", num_captions=1, go_on=False)
        rests = self.candidates.generate([row for row, _ in jobs], greedy, [opening for _, opening in jobs])
        made: dict[int, list[Caption]] = {row: [] for row in bases}
        for (row, opening), [rest] in zip(jobs, rests, strict=True):
            ids = [*opening, *rest]
            raw = self.candidates.text(row, ids)
            if self.rules.clean(raw) == raw and not _repeats(ids, self.decoding.no_repeat_ngram):
                made[row].append((self.rules.post(raw, self.frames[row]), ids))
        return made

    def _openings(self, row: int, ids: Sequence[int], word: str) -> Iterator[list[int]]:
        """Beginnings of a caption, from none to all of it, each followed by the word, that leave room for the rest."""
        room = self.candidates.room(row, self.decoding.max_tokens)
        stop = self.decoding.stop_token
        stop = self.candidates.model.config.stop_token if stop is None else stop
        ids = up_to_end(ids[:-1] if ids and ids[-1] == stop else ids, self.candidates.end)
        behind = self.frames[row].start or self.candidates.model.config.blank
        places = _places(self.candidates.tokenizer, ids)
        for place in sorted({places[round((len(places) - 1) * step / PLACES)] for step in range(PLACES + 1)}):
            opening = ids[:place] + self.candidates.tokenizer.encode(f" {word}" if place or behind else word).ids
            if len(opening) < room:
                yield opening

    def _missing(self, captions: Sequence[Caption]) -> list[str]:
        return self.rules.missing([text for text, _ in captions])


def _places(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """How many tokens of a caption are none of it, or end with a whole word, emoji or hashtag, or a sign."""
    ends = {0, *(found.end() for found in WHOLE.finditer(tokenizer.decode(ids)))}
    texts = [tokenizer.decode(ids[:place]) for place in range(len(ids) + 1)]
    return [place for place, text in enumerate(texts) if len(text) in ends and "\ufffd" not in text]


def _repeats(ids: Sequence[int], size: int) -> bool:
    """Whether some sequence of `size` tokens occurs twice; never where `size` is 0."""
    grams = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)] if size else []
    return len(set(grams)) < len(grams)
