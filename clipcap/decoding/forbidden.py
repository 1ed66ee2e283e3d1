"""Which tokens may not come next: their logits become -inf.

Every step looks at the texts so far by operators on the device alone: a GPU is never waited for.

Shapes: B images, B' of them that are still decoded, K continuations of each, T tokens so far, X tokens of a padded text
(beginning and tokens so far), V vocabulary, N token ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
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
        none: V, an id that stands for no token: in front of shorter texts, and where a rule forbids nothing.
        ends: the tokens that end a caption.
        always, signs: the tokens that are banned, and those that hold "#".
        is_sign, is_part: whether a token holds "#", or goes on with a word; bool (V + 1), False for `none`.
        ceilings: (3, V), the most that logits may be, inf or -inf: anywhere, behind a "#", and where a word ends.
        sequences: the banned sequences of several tokens, right-aligned and ordered by their last token but one.
        starts: (V + 1,), where in `sequences` those begin whose last token but one is each token.
        offsets: as many numbers, from 0, as the most frequent of these tokens has sequences.
    """

    def __init__(self, decoding: Decoding, stop_token: int, vocabulary: int, device: torch.device) -> None:
        self.decoding, self.none, self.device = decoding, vocabulary, device
        ends = {stop_token, *decoding.ends}
        self.ends = torch.tensor([end if 0 <= end < vocabulary else self.none for end in ends], device=device)
        banned = [ids for ids in decoding.banned if len(ids) and min(ids) >= 0 and max(ids) < vocabulary]
        signs = [token for token in decoding.hashtag_signs if token < vocabulary]
        singles = [ids[0] for ids in banned if len(ids) == 1]
        self.always = torch.tensor(singles, dtype=torch.long, device=device)
        self.signs = torch.tensor(signs, dtype=torch.long, device=device)
        self.is_sign, self.is_part = self._among(signs), self._among(decoding.word_parts)
        is_part = self.is_part[:-1]
        self.ceilings = torch.where(torch.stack((torch.zeros_like(is_part), ~is_part, is_part)), NEVER, -NEVER)
        # A longer sequence than a caption never comes.
        longer = sorted((ids for ids in banned if 1 < len(ids) <= decoding.max_tokens), key=lambda ids: ids[-2])
        self.sequences = self._aligned(longer)
        befores = [ids[-2] for ids in longer]
        self.starts = torch.searchsorted(torch.tensor(befores).long(), torch.arange(vocabulary + 1)).to(device)
        self.offsets = torch.arange(max(Counter(befores).values(), default=0), device=device)
        self.rules: list[Callable[[Tensor], Tensor]] = []
        if longer:
            self.rules.append(self._completing)
        if decoding.no_repeat_ngram:
            self.rules.append(self._repeating)
        if signs:
            self.rules += [self._repeated_tags, self._further_tags]
        self.anything = bool(banned or self.rules or decoding.word_parts or decoding.min_tokens)

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
        ids = torch.where(ids == self.none, ids.amin(-1, keepdim=True), ids)  # `none` only where a row has no other
        found = self._overwrite(logits.clone(memory_format=torch.contiguous_format), ids, NEVER)
        if self.decoding.word_parts or self.decoding.hashtag_signs:
            # A word ends where what may go on with it is less likely than not, and so does that of a beginning.
            wished = self._overwrite(logits.float().softmax(-1), ids, 0)
            ended = wished @ self.is_part[:-1].float() < 0.5
            last = texts[..., -1]
            if first:
                ended |= last != self.none
            most = F.embedding(torch.where(self.is_sign[last], 1, 2 * ended), self.ceilings.to(logits.dtype))
            torch.minimum(found, most, out=found)
        return found

    def _overwrite(self, x: Tensor, ids: Tensor, value: float) -> Tensor:
        """Write a value into contiguous x (B', K, V), at the banned tokens and at ids (B', K, N)."""
        values = torch.where(ids == self.none, x[..., -1:], value)  # for `none`, the last place keeps what it holds
        rows = torch.arange(0, x.numel(), self.none, device=x.device).view(*ids.shape[:-1], 1)
        x.view(-1).index_put_((rows + ids.clamp(max=self.none - 1),), values)
        return x.index_fill_(-1, self.always, value)

    def _end(self, texts: Tensor, first: bool) -> Tensor:
        """The ends of captions that are too short, and of those that would be their beginning alone: (B', K, N)."""
        length = (texts != self.none).sum(-1, keepdim=True)
        short = length < self.decoding.min_tokens
        if first and self.decoding.go_on:
            short |= length > 0
        return torch.where(short, self.ends, self.none)

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

    def _further_tags(self, texts: Tensor) -> Tensor:
        """The signs of hashtags, where there are enough of them: (B', K, N)."""
        most = self.decoding.most_hashtags
        if most is None:
            return texts[..., :0]
        enough = self.is_sign[texts].sum(-1, keepdim=True) >= most
        return torch.where(enough, self.signs, self.none)

    def _aligned(self, texts: Sequence[Sequence[int]], least: int = 2) -> Tensor:
        """Token ids with `none` in front of the shorter ones: (texts, tokens of the longest and at least `least`)."""
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        longest = max(least, lengths.max(initial=0))
        padded = np.full((len(texts), longest), self.none)
        padded[np.arange(longest) >= longest - lengths[:, None]] = [token for text in texts for token in text]
        return torch.from_numpy(padded).to(self.device)

    def _among(self, tokens: Iterable[int]) -> Tensor:
        """Which of the vocabulary's tokens are these: bool (V + 1), False for `none`."""
        among = torch.zeros(self.none + 1, dtype=torch.bool)
        among[[token for token in tokens if token < self.none]] = True
        return among.to(self.device)
