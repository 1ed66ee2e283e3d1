"""Which captions a picture gets: searched for until enough distinct ones keep the rules, and ranked.

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

Caption = tuple[str, list[int]]  # text, and the token ids it was decoded from


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
        banned = (*decoding.banned, *rules.banned_tokens(tokenizer))
        self.first = replace(decoding, num_captions=rules.num_captions, return_all=True, banned=banned)

    def choose(self) -> list[list[str]]:
        """B lists of at most `rules.num_captions` captions, best first; fewer only where no more could be found."""
        ranked = self._rank(self._search())
        chosen = {row: captions[: self.rules.num_captions] for row, captions in ranked.items()}
        if self.rules.require:
            from clipcap.required import put_in

            put_in(self, chosen, ranked)
        return [[text for text, _ in chosen[row]] for row in range(len(chosen))]

    def _search(self) -> list[Candidates]:
        found = [Candidates() for _ in self.clip_embedding]
        for decoding in self._attempts():
            lacking = [row for row, has in enumerate(found) if len(has.good) < self.rules.num_captions]
            if not lacking:
                break
            for row, captions in zip(lacking, self.generate(lacking, decoding), strict=True):
                found[row].searches += 1
                for ids in captions:
                    self._add(found[row], ids)
        return found

    def _attempts(self) -> Iterator[Decoding]:
        """The search asked for, then wider ones for the pictures that it leaves lacking."""
        yield self.first
        banned = (*self.first.banned, *self.rules.banned_words(self.tokenizer))
        count, strict = self.rules.num_captions, replace(self.first, banned=banned)
        if count == 1:
            if self.rules.ban:
                yield strict
            return
        for factor in (2, 4):
            width = min(MOST_BEAMS, factor * strict.width)
            yield replace(strict, num_captions=width, seed=None if strict.seed is None else strict.seed + factor)
        yield replace(strict, method="beam", num_captions=min(MOST_BEAMS, 8 * count))  # never twice the same tokens

    def _add(self, found: Candidates, ids: list[int]) -> None:
        raw = self.text(ids)
        text = self.rules.clean(raw)
        known = {caption.casefold() for caption in found.good}
        if text and text.casefold() not in known:
            (found.good if self.rules.allows(raw) else found.spoiled).setdefault(text, ids)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids -> the caption, without end-of-text."""
        ids = ids[:-1] if ids and ids[-1] == self.end else ids
        return self.tokenizer.decode(ids, skip_special_tokens=False).strip()

    def generate(
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

    def _rank(self, found: list[Candidates]) -> dict[int, list[Caption]]:
        """Row -> its captions, best first."""
        ranked, unsorted = {}, {}
        for row, has in enumerate(found):
            enough = len(has.good) >= self.rules.num_captions
            captions = list((has.good if enough else has.good | has.spoiled).items()) or [("", [])]
            by_likelihood = self.rules.rank == "likelihood" and has.searches == 1  # as the search gives them
            (ranked if by_likelihood else unsorted)[row] = captions
        return ranked | self.sort(unsorted)

    def sort(self, captions: dict[int, list[Caption]]) -> dict[int, list[Caption]]:
        """Each row's captions, best first."""
        flat = [(row, caption) for row, several in captions.items() if len(several) > 1 for caption in several]
        scores = iter(self._scores([row for row, _ in flat], [caption for _, caption in flat]))
        scored = {
            row: [(-next(scores) if len(several) > 1 else 0.0, index) for index in range(len(several))]
            for row, several in captions.items()
        }
        return {row: [captions[row][index] for _, index in sorted(order)] for row, order in scored.items()}

    def _scores(self, rows: Sequence[int], captions: Sequence[Caption]) -> list[float]:
        embeddings = self.clip_embedding[list(rows)]
        if self.rules.rank == "clip":
            texts = self.encode_texts([text for text, _ in captions])
            return torch.cosine_similarity(texts, embeddings.to(texts)).tolist()
        prompts = [self.prompts[row] if self.prompts else () for row in rows]
        return likelihoods(self.model, embeddings, prompts, [ids for _, ids in captions])


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
