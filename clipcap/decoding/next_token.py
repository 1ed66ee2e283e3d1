"""Logits -> the next token: the most probable one or a draw from the nucleus, without the tokens that are forbidden.

Shapes: B images, K continuations of each, T tokens, V vocabulary, R rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from clipcap.decoding.options import Decoding
from clipcap.fast.nucleus import UNIFORMS, sample_nucleus

# Logits (B', K, V), tokens so far (B', K, t), and which of the B images these are (B',) -> logits.
Constraint = Callable[[Tensor, Tensor, Tensor], Tensor]

CPU_ROWS = 32  # rows of logits for which a CPU chooses a token at a time


def _some_rows(x: Tensor) -> Sequence[Tensor]:
    """(..., V) -> the rows in order, as matrices (R, V); on a CPU of few rows, so that they stay in its cache."""
    rows = x.flatten(0, -2)
    return rows.split(CPU_ROWS) if rows.device.type == "cpu" else (rows,)


def argmax(logits: Tensor) -> Tensor:
    """(B, K, V) -> (B, K). On a CPU NumPy's is used: it is vectorised, PyTorch's is not and is slowest in bf16."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    found = [torch.from_numpy(rows.float().numpy().argmax(-1)) for rows in _some_rows(logits)]
    return torch.cat(found).view(logits.shape[:-1])


def most_probable(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Logits (..., V) -> log-probabilities and ids of the `count` most probable tokens, (..., count) each."""
    found = [rows.float().log_softmax(-1).topk(count) for rows in _some_rows(logits)]
    shape = (*logits.shape[:-1], count)
    return torch.cat([best for best, _ in found]).view(shape), torch.cat([ids for _, ids in found]).view(shape)


def draw(logits: Tensor, numbers: Tensor, decoding: Decoding, fast: bool = True) -> Tensor:
    """Logits (B, K, V) and random numbers (B, K, UNIFORMS) -> tokens (B, K) drawn from the nuclei."""
    parts = zip(_some_rows(logits), _some_rows(numbers), strict=True)
    found = [
        sample_nucleus(rows, uniforms, decoding.temperature, decoding.top_p, decoding.top_k, fast)
        for rows, uniforms in parts
    ]
    return torch.cat(found).view(logits.shape[:-1])


def random_numbers(streams: Tensor, seed: int | None, width: int, steps: int) -> Tensor:
    """Random numbers (B, K, T, UNIFORMS), a stream for each image, from the seed and the signs of its embedding.

    Only the signs are used, because the last bits of an embedding depend on the batch in which CLIP computed it.

    Args:
        streams: (B, anything), the embeddings.
        seed: None draws numbers that cannot be repeated.
        width: K.
        steps: T.
    """
    shape = (width, steps, UNIFORMS)
    rows = []
    for signs in (streams > 0).cpu().numpy():
        random = np.random.default_rng(None if seed is None else (seed, zlib.crc32(signs.tobytes())))
        rows.append(torch.from_numpy(random.random(shape, dtype=np.float32)))
    return torch.stack(rows)


def make_constraint(decoding: Decoding, stop_token: int, vocabulary: int) -> Callable[..., Tensor]:
    """A `Constraint` that makes forbidden tokens -inf, once it is given `beginnings`.

    A beginning is what an image's captions start with, in front of the tokens so far: what is forbidden holds over
    both. A tokenizer may know more tokens than the model, which has `vocabulary` of them: the others never come.
    """
    banned = [sequence for sequence in decoding.banned if all(0 <= token < vocabulary for token in sequence)]
    always = [sequence[0] for sequence in banned if len(sequence) == 1]
    after: dict[tuple[int, ...], list[int]] = {}
    for *context, last in (sequence for sequence in banned if len(sequence) > 1):
        after.setdefault(tuple(context), []).append(last)
    lengths = sorted({len(context) for context in after})
    size = decoding.no_repeat_ngram
    signs = frozenset(token for token in decoding.hashtag_signs if token < vocabulary)
    most = decoding.most_hashtags
    is_part, is_sign = (_among(tokens, vocabulary) for tokens in (decoding.word_parts, signs))
    parts = frozenset(decoding.word_parts)

    def end_words(logits: Tensor, wished: Tensor, tokens: Tensor, begun: Sequence[Sequence[int]]) -> None:
        """Forbid to go on with a word where what may do so is less likely than not, but for the word of a hashtag."""
        device = logits.device
        ended = (wished * logits.isfinite()) @ is_part.to(device, torch.float32) < 0.5
        if tokens.shape[-1]:
            ended &= ~is_sign.to(device)[tokens[..., -1]]
        else:
            ended[[image for image, beginning in enumerate(begun) if signs.intersection(beginning[-1:])]] = False
        logits.masked_fill_(ended[..., None] & is_part.to(device), float("-inf"))

    def forbidden(history: list[int]) -> list[int]:
        """Tokens that would complete a banned sequence or repeat an n-gram or a hashtag."""
        found = [last for length in lengths for last in after.get(tuple(history[-length:]), ())]
        if size and len(history) >= size - 1:
            context = history[len(history) - size + 1 :]
            starts = range(len(history) - size + 1)
            found += [history[i + size - 1] for i in starts if history[i : i + size - 1] == context]
        tags = [place for place, token in enumerate(history[1:], 1) if history[place - 1] in signs]
        if tags and parts.issuperset(history[tags[-1] :]):  # its word is being written, and may hold the token again
            tags.pop()
        return found + [history[place] for place in tags]

    def constrain(logits: Tensor, tokens: Tensor, rows: Tensor, beginnings: Sequence[Sequence[int]]) -> Tensor:
        step = tokens.shape[-1]
        looks_back = after or size or signs
        if not (always or parts or looks_back or decoding.min_tokens or (step == 0 and any(beginnings))):
            return logits
        wished = logits.float().softmax(-1) if parts else None
        logits = logits.clone()
        logits[..., always] = float("-inf")
        begun = [beginnings[row] for row in rows.tolist()]
        short = [image for image, beginning in enumerate(begun) if len(beginning) + step < decoding.min_tokens]
        if decoding.go_on and step == 0:
            short += [image for image, beginning in enumerate(begun) if beginning]
        if short and 0 <= stop_token < vocabulary:
            logits[short, :, stop_token] = float("-inf")
        if looks_back:
            for image, (beginning, histories) in enumerate(zip(begun, tokens.tolist(), strict=True)):
                for k, history in enumerate([*beginning, *history] for history in histories):
                    logits[image, k, forbidden(history)] = float("-inf")
                    if history and history[-1] in signs:
                        logits[image, k, ~is_part] = float("-inf")
                    if most is not None and sum(token in signs for token in history) >= most:
                        logits[image, k, is_sign] = float("-inf")
        if step == 0:  # a beginning ends with a whole word
            for image in (image for image, beginning in enumerate(begun) if beginning and beginning[-1] not in signs):
                logits[image, :, is_part] = float("-inf")
        if wished is not None:
            end_words(logits, wished, tokens, begun)
        return logits

    return constrain


def _among(tokens: Iterable[int], vocabulary: int) -> Tensor:
    """Which of the vocabulary's tokens are these: bool (V)."""
    among = torch.zeros(vocabulary, dtype=torch.bool)
    among[[token for token in tokens if token < vocabulary]] = True
    return among
