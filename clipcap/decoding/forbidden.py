"""Which tokens may not come next: their logits become -inf.

Every step looks at the texts so far by operators on the device alone: a GPU is never waited for.

Shapes: B images, B' of them that are still decoded, K continuations of each, T tokens so far, X tokens of a padded text
(beginning and tokens so far), V vocabulary, N token ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
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

    Attributes:
        none: V, an id that stands for no token: in front of shorter texts, and among ids where a rule forbids nothing.
        always, is_sign, is_part: whether each token is banned, holds "#" or goes on with a word; bool (V + 1).
        sequences: the longer banned sequences, right-aligned and in the order of their last token but one.
        starts: (V + 1,), where in `sequences` those begin whose last token but one is each token.
        offsets: as many numbers, from 0, as the largest of these groups has sequences.
    """

    def __init__(self, decoding: Decoding, stop_token: int, vocabulary: int, device: torch.device) -> None:
        self.decoding, self.none, self.device = decoding, vocabulary, device
        self.stop = stop_token if 0 <= stop_token < vocabulary else self.none
        banned = [sequence for sequence in decoding.banned if all(0 <= token < vocabulary for token in sequence)]
        singles = [sequence[0] for sequence in banned if len(sequence) == 1]
        longer = sorted((s for s in banned if 1 < len(s) <= decoding.max_tokens), key=lambda sequence: sequence[-2])
        self.always, self.is_sign, self.is_part = map(
            self._among, (singles, decoding.hashtag_signs, decoding.word_parts)
        )
        self.sequences = self._aligned(longer)
        befores = [sequence[-2] for sequence in longer]
        self.starts = torch.searchsorted(torch.tensor(befores).long(), torch.arange(vocabulary + 1)).to(device)
        self.offsets = torch.arange(max(Counter(befores).values(), default=0), device=device)
        self.rules: list[Callable[[Tensor], Tensor]] = []
        if longer:
            self.rules.append(self._completing)
        if decoding.no_repeat_ngram:
            self.rules.append(self._repeating)
        if decoding.hashtag_signs:
            self.rules.append(self._repeated_tags)
        self.anything = bool(singles or self.rules or decoding.word_parts or decoding.min_tokens)

    def behind(self, beginnings: Sequence[Sequence[int]]) -> Constraint:
        """The rules for B images whose captions start with these tokens: what is forbidden holds over both."""
        return partial(self, beginnings=self._aligned(beginnings, least=self.sequences.shape[1]))

    def __call__(self, logits: Tensor, tokens: Tensor, rows: Tensor, beginnings: Tensor) -> Tensor:
        """Logits (B', K, V) -> the same, or a copy in which the logits of forbidden tokens are -inf.

        Args:
            logits: of the next token.
            tokens: (B', K, T).
            rows: (B',), which of the B images these are.
            beginnings: (B, anything above 1), right-aligned.
        """
        first = tokens.shape[-1] == 0
        if not (self.anything or (first and self.decoding.go_on)):
            return logits
        begun = beginnings[rows][:, None].expand(-1, tokens.shape[1], -1)
        texts = torch.cat((begun, tokens), -1)  # (B', K, X)
        ids = torch.cat([self._end(texts, first), *(rule(texts) for rule in self.rules)], -1)  # (B', K, N)
        forbidden = self.always.repeat(*texts.shape[:-1], 1).scatter_(-1, ids, True)  # (B', K, V + 1)
        last = texts[..., -1:]
        if self.decoding.hashtag_signs:
            forbidden |= self.is_sign[last] & ~self.is_part  # the sign of a hashtag has a word behind it
            if self.decoding.most_hashtags is not None:
                enough = self.is_sign[texts].sum(-1, keepdim=True) >= self.decoding.most_hashtags
                forbidden |= enough & self.is_sign
        if self.decoding.word_parts:
            # A word ends where what may go on with it is less likely than not, and so does that of a beginning.
            wished = logits.float().softmax(-1).masked_fill_(forbidden[..., :-1], 0)
            ended = (wished @ self.is_part[:-1].float() < 0.5)[..., None]
            if first:
                ended |= last != self.none
            forbidden |= ended & ~self.is_sign[last] & self.is_part
        return logits.masked_fill(forbidden[..., :-1], NEVER)

    def _end(self, texts: Tensor, first: bool) -> Tensor:
        """The end of captions that are too short, and of those that would be their beginning alone: (B', K, 1)."""
        length = (texts != self.none).sum(-1, keepdim=True)
        short = length < self.decoding.min_tokens
        if first and self.decoding.go_on:
            short |= length > 0
        return torch.where(short, self.stop, self.none)

    def _completing(self, texts: Tensor) -> Tensor:
        """What would complete a banned sequence: (B', K, N)."""
        # Of thousands of sequences, only those are compared whose last token but one is a text's last.
        places = (self.starts[texts[..., -1:]] + self.offsets).clamp(max=len(self.sequences) - 1)
        sequences = self.sequences[places]  # (B', K, N, tokens)
        context = sequences[..., :-1]
        same = (context == texts[..., None, -context.shape[-1] :]) | (context == self.none)
        return torch.where(same.all(-1), sequences[..., -1], self.none)

    def _repeating(self, texts: Tensor) -> Tensor:
        """What would repeat an n-gram: (B', K, N)."""
        size = self.decoding.no_repeat_ngram
        if texts.shape[-1] < size:
            return texts[..., :0]
        windows = texts.unfold(-1, size, 1)  # (B', K, N, size)
        same = windows[..., :-1] == windows[..., -1:, 1:]
        return torch.where(same.all(-1), windows[..., -1], self.none)

    def _repeated_tags(self, texts: Tensor) -> Tensor:
        """What stands behind the signs of whole hashtags: (B', K, X - 1). A word being written may hold it again."""
        words, tagged = texts[..., 1:], self.is_sign[texts[..., :-1]]
        ends = ~self.is_part[words] | F.pad(tagged[..., 1:], (0, 1))
        places = torch.arange(words.shape[-1], device=words.device)
        whole = places <= torch.where(ends, places, -1).amax(-1, keepdim=True)
        return torch.where(tagged & whole, words, self.none)

    def _aligned(self, texts: Sequence[Sequence[int]], least: int = 2) -> Tensor:
        """Token ids with `none` in front of the shorter ones: (texts, tokens of the longest and at least `least`)."""
        longest = max([least, *map(len, texts)])
        padded = [[self.none] * (longest - len(text)) + list(text) for text in texts]
        return torch.tensor(padded, dtype=torch.long, device=self.device).view(len(texts), longest)

    def _among(self, tokens: Iterable[int]) -> Tensor:
        """Which of the vocabulary's tokens are these: bool (V + 1), False for `none`."""
        among = torch.zeros(self.none + 1, dtype=torch.bool)
        among[[token for token in tokens if token < self.none]] = True
        return among.to(self.device)
