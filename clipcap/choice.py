"""Which captions a picture gets: searched for until enough distinct ones keep the rules, ranked, required words put in.

Shapes: B pictures, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from clipcap.captions import Rules
from clipcap.data import collate
from clipcap.decoding import Decoding
from clipcap.model import ClipCap
from clipcap.tokenizer import end_of_text

ROWS = 512  # continuations decoded at once, whatever is asked for
MOST_BEAMS = 64
PLACES = 12  # where in a caption a required word is tried


@dataclass
class Candidates:
    """What was found for one picture: text -> its token ids, in the order found, best first within one search."""

    good: dict[str, list[int]] = field(default_factory=dict)
    spoiled: dict[str, list[int]] = field(default_factory=dict)  # held a banned word, which was cut out
    searches: int = 0


class Chooser:
    """Chooses captions for one batch of pictures."""

    def __init__(
        self,
        model: ClipCap,
        tokenizer: Tokenizer,
        encode_texts: Callable[[list[str]], Tensor],
        clip_embedding: Tensor,
        prompts: Sequence[Sequence[int]] | None,
        decoding: Decoding,
        rules: Rules,
    ) -> None:
        """
        Args:
            encode_texts: texts -> (texts, C), by the CLIP that made `clip_embedding`.
            clip_embedding: (B, C).
            prompts: B lists of token ids between picture and caption, or None.
        """
        self.model, self.tokenizer, self.encode_texts = model, tokenizer, encode_texts
        self.clip_embedding, self.prompts = clip_embedding, prompts
        self.decoding, self.rules = decoding, rules
        self.end = end_of_text(tokenizer)

    def choose(self) -> list[list[str]]:
        """B lists of at most `rules.num_captions` captions, best first; fewer only where no more could be found."""
        found = self._search()
        ranked = self._rank(found)
        chosen = [captions[: self.rules.num_captions] for captions in ranked]
        if self.rules.require:
            self._require(chosen, ranked)
        return [[text for text, _ in captions] for captions in chosen]

    def _search(self) -> list[Candidates]:
        found = [Candidates() for _ in self.clip_embedding]
        for decoding in self._attempts():
            lacking = [row for row, has in enumerate(found) if len(has.good) < self.rules.num_captions]
            if not lacking:
                break
            for row, captions in zip(lacking, self._generate(lacking, decoding), strict=True):
                found[row].searches += 1
                for ids in captions:
                    self._add(found[row], ids)
        return found

    def _attempts(self) -> Iterator[Decoding]:
        """The search asked for, then wider ones for what it leaves lacking."""
        count, tokenizer = self.rules.num_captions, self.tokenizer
        banned = (*self.decoding.banned, *self.rules.banned_tokens(tokenizer))
        first = replace(self.decoding, num_captions=count, return_all=True, banned=banned)
        yield first
        strict = replace(first, banned=(*banned, *self.rules.banned_words(tokenizer))) if self.rules.ban else first
        if count == 1:
            if self.rules.ban:
                yield strict
            return
        for factor in (2, 4):
            seed = None if strict.seed is None else strict.seed + factor
            width = min(MOST_BEAMS, factor * strict.width)
            yield replace(strict, num_captions=width, seed=seed)
        yield replace(strict, method="beam", num_captions=min(MOST_BEAMS, 8 * count))  # never twice the same tokens

    def _add(self, found: Candidates, ids: list[int]) -> None:
        raw = self._text(ids)
        text = self.rules.clean(raw)
        known = {caption.casefold() for caption in found.good}
        if text and text.casefold() not in known:
            (found.good if self.rules.allows(raw) else found.spoiled).setdefault(text, ids)

    def _text(self, ids: Sequence[int]) -> str:
        ids = ids[:-1] if ids and ids[-1] == self.end else ids
        return self.tokenizer.decode(ids, skip_special_tokens=False).strip()

    def _generate(
        self, rows: Sequence[int], decoding: Decoding, extra: Sequence[Sequence[int]] | None = None
    ) -> list[list[list[int]]]:
        """Captions of these rows; `extra` tokens stand behind each row's prompt and are not repeated in the result."""
        prompts = [
            [*(self.prompts[row] if self.prompts else ()), *more]
            for row, more in zip(rows, extra or [()] * len(rows), strict=True)
        ]
        size, captions = max(1, ROWS // decoding.width), []
        for start in range(0, len(rows), size):
            batch = self.clip_embedding[list(rows[start : start + size])]
            given = prompts[start : start + size]
            captions += self.model.generate(batch, decoding, given if any(given) else None)
        return captions

    def _rank(self, found: list[Candidates]) -> list[list[tuple[str, list[int]]]]:
        """The captions of each picture, best first."""
        ranked = []
        for row, has in enumerate(found):
            captions = list((has.good if len(has.good) >= self.rules.num_captions else has.spoiled | has.good).items())
            captions = captions or [("", [])]
            if self.rules.rank == "clip" or has.searches > 1:  # one search comes ranked by likelihood
                captions = self._sorted(row, captions)
            ranked.append(captions)
        return ranked

    def _sorted(self, row: int, captions: list[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
        if len(captions) < 2:
            return captions
        scores = self._scores([row] * len(captions), captions)
        return [captions[index] for index in sorted(range(len(captions)), key=lambda index: -scores[index])]

    def _scores(self, rows: Sequence[int], captions: Sequence[tuple[str, list[int]]]) -> list[float]:
        if self.rules.rank == "clip":
            texts = self.encode_texts([text for text, _ in captions])
            return torch.cosine_similarity(texts, self.clip_embedding[list(rows)].to(texts)).tolist()
        prompts = [self.prompts[row] if self.prompts else () for row in rows]
        return likelihoods(self.model, self.clip_embedding[list(rows)], prompts, [ids for _, ids in captions])

    def _require(self, chosen: list[list[tuple[str, list[int]]]], ranked: list[list[tuple[str, list[int]]]]) -> None:
        """Give the last of a picture's captions the required words that none holds: another candidate, or put in."""
        for word in self.rules.require:
            lacking = [row for row, captions in enumerate(chosen) if word in self._missing(captions)]
            jobs = [(row, tokens) for row in lacking for tokens in self._openings(chosen[row][-1][1], word)]
            greedy = replace(next(self._attempts()), method="greedy", num_captions=1)
            rests = self._generate([row for row, _ in jobs], greedy, [tokens for _, tokens in jobs]) if jobs else []
            made: dict[int, list[tuple[str, list[int]]]] = {row: ranked[row][len(chosen[row]) :] for row in lacking}
            for (row, tokens), [rest] in zip(jobs, rests, strict=True):
                ids = [*tokens, *rest][: self.decoding.max_tokens]
                text = self._text(ids)
                if self.rules.clean(text) == text and not _repeats(ids, self.decoding.no_repeat_ngram):
                    made[row].append((text, ids))
            for row, captions in made.items():
                self._replace_last(row, chosen, captions)

    def _replace_last(self, row: int, chosen: list, captions: list[tuple[str, list[int]]]) -> None:
        *kept, last = chosen[row]
        texts = {text.casefold() for text, _ in kept}
        usable = [last, *(caption for caption in captions if caption[0].casefold() not in texts)]
        lacks = [len(self._missing([*kept, caption])) for caption in usable]
        best = [caption for caption, lack in zip(usable, lacks, strict=True) if lack == min(lacks)]
        if last not in best:
            chosen[row] = self._sorted(row, [*kept, self._sorted(row, best)[0]])

    def _missing(self, captions: Sequence[tuple[str, list[int]]]) -> list[str]:
        return self.rules.missing([text for text, _ in captions])

    def _openings(self, ids: list[int], word: str) -> Iterator[list[int]]:
        """Beginnings of a caption, each followed by the word: the model then goes on from there."""
        ids = [token for token in ids if token != self.end]
        stop = self.model.config.stop_token if self.decoding.stop_token is None else self.decoding.stop_token
        ids = ids[:-1] if ids and ids[-1] == stop else ids
        room = self.decoding.max_tokens
        for place in sorted({round(len(ids) * step / PLACES) for step in range(PLACES + 1)}):
            tokens = ids[:place] + self.tokenizer.encode(f" {word}" if place else word).ids
            if len(tokens) < room:
                yield tokens


def _repeats(ids: Sequence[int], size: int) -> bool:
    grams = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)] if size else []
    return len(set(grams)) < len(grams)


@torch.inference_mode()
def likelihoods(
    model: ClipCap,
    clip_embedding: Tensor,
    prompts: Sequence[Sequence[int]],
    captions: Sequence[Sequence[int]],
    batch_size: int = 32,
) -> list[float]:
    """Mean log-probability per token, in nats, of each caption (token ids, its stop token included) of (B, C)."""
    embeddings, scores = clip_embedding.float().cpu().numpy(), []
    for start in range(0, len(captions), batch_size):
        rows = range(start, min(start + batch_size, len(captions)))
        batch = collate([(embeddings[row], prompts[row], captions[row]) for row in rows]).to(model.device)
        losses = model.token_losses(batch).split([len(captions[row]) for row in rows])
        scores += [-float(loss.mean()) if len(loss) else float("-inf") for loss in losses]
    return scores
