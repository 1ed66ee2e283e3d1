"""Which tokens may not come next: their logits become -inf.

Shapes: B images, B' of them that are still decoded, K continuations of each, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from clipcap.decoding.options import Decoding

# Logits (B', K, V), tokens so far (B', K, T), and which of the B images these are (B',) -> logits.
Constraint = Callable[[Tensor, Tensor, Tensor], Tensor]

NEVER = float("-inf")


class Forbidden:
    """The rules of a search about single tokens: what is banned, what would repeat, and where captions and words end.

    A tokenizer may know more tokens than the model, which has `vocabulary` of them: the others never come.

    Args:
        decoding: the search.
        stop_token: the id that ends a caption, -1 for none.
        vocabulary: V.
        device: where the logits will be.
    """

    def __init__(self, decoding: Decoding, stop_token: int, vocabulary: int, device: torch.device) -> None:
        self.decoding, self.device = decoding, device
        self.stops = [stop_token] if 0 <= stop_token < vocabulary else []
        banned = [sequence for sequence in decoding.banned if all(0 <= token < vocabulary for token in sequence)]
        always = [sequence[0] for sequence in banned if len(sequence) == 1]
        self.always = torch.tensor(always, dtype=torch.long, device=device)
        self.after: dict[
            tuple[int, ...], list[int]
        ] = {}  # the beginning of a banned sequence -> what would complete it
        for *context, last in (sequence for sequence in banned if len(sequence) > 1):
            self.after.setdefault(tuple(context), []).append(last)
        self.lengths = sorted({len(context) for context in self.after})
        self.signs = frozenset(token for token in decoding.hashtag_signs if token < vocabulary)
        self.parts = frozenset(token for token in decoding.word_parts if token < vocabulary)
        self.is_sign, self.is_part = (self._among(tokens, vocabulary) for tokens in (self.signs, self.parts))
        self.looks_back = bool(self.after or decoding.no_repeat_ngram or self.signs)

    def __call__(self, logits: Tensor, tokens: Tensor, rows: Tensor, beginnings: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B', K, V) -> the same, or a copy in which the logits of forbidden tokens are -inf.

        Args:
            logits: of the next token.
            tokens: (B', K, T).
            rows: (B',), which of the B images these are.
            beginnings: what the captions of each of the B images start with, in front of their tokens: what is
                forbidden holds over both.
        """
        first = tokens.shape[-1] == 0
        rules = len(self.always) or self.parts or self.looks_back or self.decoding.min_tokens
        if not (rules or (first and any(beginnings))):
            return logits
        beginnings = [beginnings[row] for row in rows.tolist()]
        wished = logits.float().softmax(-1) if self.parts else None
        logits = logits.clone().index_fill_(-1, self.always, NEVER)
        self._go_on(logits, tokens.shape[-1], beginnings)
        if self.looks_back:
            self._look_back(logits, tokens, beginnings)
        if first:
            self._end_beginnings(logits, beginnings)
        if wished is not None:
            self._end_words(logits, wished, tokens, beginnings)
        return logits

    def _go_on(self, logits: Tensor, step: int, beginnings: Sequence[Sequence[int]]) -> None:
        """Forbid the end of captions that are too short, and of those that would be their beginning alone."""
        must = self.decoding.go_on and step == 0
        short = [len(begun) + step < self.decoding.min_tokens or (must and len(begun) > 0) for begun in beginnings]
        if self.stops and any(short):
            logits[..., self.stops[0]].masked_fill_(torch.tensor(short, device=self.device)[:, None], NEVER)

    def _look_back(self, logits: Tensor, tokens: Tensor, beginnings: Sequence[Sequence[int]]) -> None:
        """Forbid what the tokens so far rule out, and anything but a word behind the sign of a hashtag."""
        most, width = self.decoding.most_hashtags, logits.shape[1]
        pairs = zip(beginnings, tokens.tolist(), strict=True)
        texts = [[*beginning, *history] for beginning, histories in pairs for history in histories]
        found = [(row, token) for row, text in enumerate(texts) for token in self._ruled_out(text)]
        if found:
            rows, ids = torch.tensor(found, device=self.device).unbind(1)
            logits.index_put_((rows // width, rows % width, ids), logits.new_tensor(NEVER))
        if self.signs:
            open_tags = [bool(text) and text[-1] in self.signs for text in texts]
            enough = [most is not None and sum(token in self.signs for token in text) >= most for text in texts]
            for which, forbidden in ((open_tags, ~self.is_part), (enough, self.is_sign)):
                if any(which):
                    chosen = torch.tensor(which, device=self.device).view(-1, width, 1)
                    logits.masked_fill_(chosen & forbidden, NEVER)

    def _ruled_out(self, history: list[int]) -> list[int]:
        """Tokens that would complete a banned sequence or repeat an n-gram or a hashtag."""
        size = self.decoding.no_repeat_ngram
        found = [last for length in self.lengths for last in self.after.get(tuple(history[-length:]), ())]
        if size and len(history) >= size - 1:
            context = history[len(history) - size + 1 :]
            starts = range(len(history) - size + 1)
            found += [history[i + size - 1] for i in starts if history[i : i + size - 1] == context]
        tags = [place for place, token in enumerate(history[1:], 1) if history[place - 1] in self.signs]
        if tags and self.parts.issuperset(
            history[tags[-1] :]
        ):  # its word is being written, and may hold the token again
            tags.pop()
        return found + [history[place] for place in tags]

    def _end_beginnings(self, logits: Tensor, beginnings: Sequence[Sequence[int]]) -> None:
        """Forbid to go on with the last word of a beginning, unless it ends with the sign of a hashtag."""
        whole = [bool(begun) and begun[-1] not in self.signs for begun in beginnings]
        if self.parts and any(whole):
            logits.masked_fill_(torch.tensor(whole, device=self.device)[:, None, None] & self.is_part, NEVER)

    def _end_words(self, logits: Tensor, wished: Tensor, tokens: Tensor, beginnings: Sequence[Sequence[int]]) -> None:
        """Forbid to go on with a word where what may do so is less likely than not, but for the word of a hashtag."""
        ended = (wished * logits.isfinite()) @ self.is_part.float() < 0.5
        if tokens.shape[-1]:
            ended &= ~self.is_sign[tokens[..., -1]]
        else:
            tagged = [not self.signs.isdisjoint(begun[-1:]) for begun in beginnings]
            ended &= ~torch.tensor(tagged, device=self.device)[:, None]
        logits.masked_fill_(ended[..., None] & self.is_part, NEVER)

    def _among(self, tokens: Iterable[int], vocabulary: int) -> Tensor:
        """Which of the vocabulary's tokens are these: bool (V)."""
        among = torch.zeros(vocabulary, dtype=torch.bool)
        among[list(tokens)] = True
        return among.to(self.device)
