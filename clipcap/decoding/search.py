"""Prefix -> caption tokens: greedy, nucleus and beam search, batched over images.

Beam search ranks as ClipCap's does: by mean log-probability per token, live and finished beams together
(https://github.com/rmokady/CLIP_prefix_caption, `generate_beam` in predict.py).

Shapes: B images, K continuations of each (beams or samples), T tokens, P prefix length, D GPT-2 width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from clipcap.decoding.cached_gpt2 import CachedGPT2, Session
from clipcap.decoding.cached_transformer import CachedTransformer, TransformerSession
from clipcap.decoding.finished import Finished
from clipcap.decoding.forbidden import Constraint, Forbidden
from clipcap.decoding.next_token import argmax, draw, most_probable, random_numbers
from clipcap.decoding.options import Decoding
from clipcap.errors import UserError
from clipcap.fast.cuda_graph import ONE_THREAD

ROWS = 512  # continuations decoded side by side, at most: it bounds the memory of logits and attention
CACHE = 4 << 30  # bytes of keys and values, at most, unless a single image needs more


class NoCaption(UserError):
    """An image has no caption: a number is not finite, or every token is forbidden."""


@dataclass
class Captions:
    """The result of a search.

    Attributes:
        tokens: (B, K, T), filled up to each caption's length.
        lengths: (B, K), how many of the T tokens belong to the caption, including the stop token.
        order: (B, K), the captions of each image, best first.
        possible: (B, K), whether each token of the caption had a probability: a finite one above 0.
    """

    tokens: Tensor
    lengths: Tensor
    order: Tensor
    possible: Tensor

    def as_lists(self, count: int) -> list[list[list[int]]]:
        """Token ids of the best `count` captions of each image, best first.

        Impossible captions are left out, so an image may have fewer, or none.
        """
        columns = (self.tokens.tolist(), self.lengths.tolist(), self.order.tolist(), self.possible.tolist())
        return [
            [row[k][: lengths[k]] for k in order if possible[k]][:count]
            for row, lengths, order, possible in zip(*columns, strict=True)
        ]


def decode(
    gpt: CachedGPT2 | CachedTransformer,
    prefix: Tensor,
    decoding: Decoding,
    stop_token: int,
    prompts: Sequence[Sequence[int]] | None,
    streams: Tensor,
    begun: Sequence[int] | None = None,
) -> list[list[list[int]]]:
    """Captions of a batch of images.

    In float32 the captions of an image do not depend on the others in its batch, or on how many there are. Only two
    continuations whose logits differ by less than rounding, some 1e-6 of their size, may change places. In bfloat16
    that is 1 part in 256, in float16 1 in 2048, in int8 about 1 in 20. It matters on devices that multiply by other
    kernels for other numbers of rows, as GPUs and CPUs may: captions with near ties can then differ between batches,
    also in their length.

    Args:
        gpt: the language model.
        prefix: (B, P, D).
        decoding: how to search.
        stop_token: the id that ends a caption, -1 for none.
        prompts: B lists of token ids between prefix and caption, or None.
        streams: (B, anything), from which each image's random numbers derive.
        begun: how many tokens at the end of each image's prompt are the beginning of its caption. The result does not
            repeat them, but they count as the caption's, for its length and for what is forbidden in it.

    Returns:
        B lists of captions, best first; a caption is a list of ids and keeps its stop token. There are fewer than were
        asked for only where fewer are possible.

    Raises:
        NoCaption: an embedding or a logit is not finite, or an image's tokens are all forbidden.
        UserError: prefix and prompt leave no room for a caption, or for its `min_tokens`; or more beams than tokens.
    """
    hint = "; the range of fp16 is small: try --precision fp32" if prefix.dtype == torch.float16 else ""
    if not (streams.isfinite().all() and prefix.isfinite().all()):
        raise NoCaption(f"its embedding, or what the weights make of it, is not finite{hint}")
    vocabulary, width = gpt.vocabulary, decoding.width
    every = decoding.return_all or decoding.num_captions == 1  # the best one may break a rule of whoever asks
    count = width if every else decoding.num_captions
    if decoding.method == "beam" and width > vocabulary:
        raise UserError(f"beams must be at most {vocabulary}, the number of tokens of these weights, not {width}")
    given = prompts or [()] * len(prefix)
    begun = begun or [0] * len(prefix)
    beginnings = [prompt[len(prompt) - known :] for prompt, known in zip(given, begun, strict=True)]
    # An image's captions must not depend on the prompts of others, so each gets the room that its own prompt leaves.
    alike: dict[int, list[int]] = {}
    for row, prompt in enumerate(given):
        alike.setdefault(_steps(gpt, prefix.shape[1] + len(prompt), decoding, begun[row]), []).append(row)
    forbidden = Forbidden(decoding, stop_token, vocabulary, prefix.device)
    search = SEARCHES[decoding.method]
    captions: dict[int, list[list[int]]] = {}
    for steps, rows in alike.items():
        before = prefix.shape[1] + max(len(given[row]) for row in rows)
        most = max(1, min(ROWS // width, CACHE // gpt.cache_bytes(before, width, steps)))
        while rows:
            size = gpt.rows(len(rows), most)
            part, rows = [*islice(cycle(rows), size)], rows[size:]  # the first ones again fill a batch up
            constrain = forbidden.behind([beginnings[row] for row in part])
            with ONE_THREAD if gpt.captures else nullcontext():
                session = gpt.begin(prefix[part], prompts and [given[row] for row in part], width, steps)
                found = search(session, decoding, steps, stop_token, constrain, streams[part])
                lists = found.as_lists(count)
            captions |= zip(part, lists, strict=True)
    if not all(captions.values()):
        raise NoCaption(f"every token of its caption is forbidden, or the logits of the weights are not finite{hint}")
    return [captions[row] for row in range(len(prefix))]


def _steps(gpt: CachedGPT2 | CachedTransformer, before: int, decoding: Decoding, begun: int) -> int:
    """The most tokens for a caption of which `begun` are there, behind `before` positions. Raises UserError."""
    room = gpt.positions + 1 - before
    if room < 1:
        raise UserError(f"prefix and prompt take {before} positions, and there are {gpt.positions}: shorten the prompt")
    if decoding.min_tokens >= room + begun:
        raise UserError(
            f"min_tokens must be below {room + begun}, the tokens that {gpt.positions} positions have room for behind "
            f"prefix and prompt, not {decoding.min_tokens}"
        )
    return min(decoding.max_tokens - begun, room)


def _sample(
    session: Session | TransformerSession,
    decoding: Decoding,
    steps: int,
    stop_token: int,
    constrain: Constraint,
    streams: Tensor,
) -> Captions:
    """Greedy search and nucleus sampling, in which the continuations of an image do not depend on each other.

    A finished continuation keeps reading tokens until its image leaves the batch; `finished` keeps what it reads from
    changing its score and its length.
    """
    width, device = decoding.width, session.logits.device
    batch = len(session.logits)
    greedy = decoding.method == "greedy"
    numbers = None if greedy else random_numbers(streams, decoding.seed, width, steps).to(device)
    tokens = torch.zeros(batch, width, steps, dtype=torch.long, device=device)
    lengths = torch.full((batch, width), steps, device=device)
    scores = torch.zeros(batch, width, device=device)
    finished = torch.zeros(batch, width, dtype=torch.bool, device=device)
    possible = ~finished
    live = Finished(session, batch, device)
    logits = session.logits[:, None].expand(-1, width, -1)
    for step in range(steps):
        rows = live.rows
        logits = constrain(logits, tokens[rows, :, :step], rows)
        token = argmax(logits) if numbers is None else draw(logits, numbers[rows, :, step], decoding, session.gpt.fast)
        if width > 1:
            gained = logits.float().log_softmax(-1).gather(-1, token[..., None])[..., 0]
            scores[rows] += gained.masked_fill(finished, 0)
        possible[rows] &= finished | logits.gather(-1, token[..., None])[..., 0].isfinite()
        tokens[rows, :, step] = token
        stopped = ~finished & (token == stop_token)
        lengths[rows] = lengths[rows].masked_fill(stopped, step + 1)
        finished = finished | stopped
        if step + 1 == steps:
            break
        going = live.leave(step, finished.all(-1))
        if going is not None:
            token, finished = token[going], finished[going]
            if not len(going):
                break
        logits = session.step(token)
    order = (scores / lengths).argsort(dim=-1, descending=True, stable=True)
    return Captions(tokens, lengths, order, possible)


def _beam(
    session: Session | TransformerSession,
    decoding: Decoding,
    steps: int,
    stop_token: int,
    constrain: Constraint,
    streams: Tensor,
) -> Captions:
    """ClipCap's beam search: K beams, ranked by their mean log-probability per token.

    A finished beam stays among the K and competes with the beams that still grow. It has a single child, token 0, which
    changes neither its score nor its length, and it drops out only when K others have a better mean. The search ends
    when all K beams are finished.
    """
    width, device = decoding.width, session.logits.device
    batch = len(session.logits)
    tokens = torch.zeros(batch, width, steps, dtype=torch.long, device=device)
    lengths = torch.ones(batch, width, dtype=torch.long, device=device)
    live = Finished(session, batch, device)
    # All beams of an image begin as the same text, so their first K tokens come from a single row of logits: the best
    # K children of K equal rows would be K copies of one beam.
    logits = constrain(session.logits[:, None], tokens[:, :1, :0], live.rows)[:, 0]
    scores, token = most_probable(logits, width)  # summed log-probabilities (B, K)
    tokens[:, :, 0] = token
    finished = token == stop_token
    session.reorder(torch.arange(width, device=device).expand(batch, width))
    for step in range(1, steps):
        going = live.leave(step - 1, finished.all(-1))
        if going is not None:
            token, finished = token[going], finished[going]
            if not len(going):
                break
        rows = live.rows
        logits = constrain(session.step(token), tokens[rows, :, :step], rows)
        # Children of one beam rank by their own log-probability, so only its best K can be among the next K beams.
        gained, token = most_probable(logits, width)  # (B, K, K)
        gained[finished] = float("-inf")  # a finished beam has no children but the first
        gained[..., 0].masked_fill_(finished, 0)
        token[..., 0].masked_fill_(finished, 0)
        grown = lengths[rows] + ~finished
        mean = (scores[rows][..., None] + gained) / grown[..., None]  # (B, K, K)
        top, flat = mean.flatten(1).topk(width)  # the best K of K * K children, (B, K)
        parent = flat // width  # the beam that each of the new K continues
        token = token.flatten(1).gather(1, flat)
        lengths[rows] = grown.gather(1, parent)
        scores[rows] = top * lengths[rows]
        kept = tokens[rows].gather(1, parent[..., None].expand(-1, -1, steps))
        kept[:, :, step] = token
        tokens[rows] = kept
        finished = finished.gather(1, parent) | (token == stop_token)
        session.reorder(parent)
    order = (scores / lengths).argsort(dim=-1, descending=True, stable=True)
    return Captions(tokens, lengths, order, scores.isfinite())


SEARCHES: dict[str, Callable[..., Captions]] = {"greedy": _sample, "nucleus": _sample, "beam": _beam}
