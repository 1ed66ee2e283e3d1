"""Prefix -> caption tokens, by one of the searches, in batches of images that the memory has room for.

Shapes: B images, P prefix length, D GPT-2 width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import cycle, islice

import torch
from torch import Tensor

from clipcap.decoding.beam_search import beam_search
from clipcap.decoding.cached_gpt2 import CachedGPT2
from clipcap.decoding.cached_transformer import CachedTransformer
from clipcap.decoding.captions import Captions
from clipcap.decoding.forbidden import Forbidden
from clipcap.decoding.options import Decoding
from clipcap.decoding.sampling import sample
from clipcap.errors import UserError
from clipcap.fast.cuda_graph import ONE_THREAD

ROWS = 512  # continuations decoded side by side, at most: it bounds the memory of logits and attention
CACHE = 2 << 30  # bytes of keys and values, at most, unless a single image needs more; half of what captures keep


class NoCaption(UserError):
    """An image has no caption: a number is not finite, or every token is forbidden."""


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
    forbidden = Forbidden(decoding, stop_token, vocabulary, prefix.device)
    captions: dict[int, list[list[int]]] = {}
    for steps, rows in _batches(gpt, [prefix.shape[1] + len(prompt) for prompt in given], begun, decoding):
        constrain = forbidden.behind([beginnings[row] for row in rows])
        with ONE_THREAD if gpt.captures else nullcontext():
            session = gpt.begin(prefix[rows], prompts and [given[row] for row in rows], width, steps)
            found = SEARCHES[decoding.method](session, decoding, steps, stop_token, constrain, streams[rows])
            lists = found.as_lists(count)
        captions |= zip(rows, lists, strict=True)
    if not all(captions.values()):
        raise NoCaption(f"every token of its caption is forbidden, or the logits of the weights are not finite{hint}")
    return [captions[row] for row in range(len(prefix))]


def _batches(
    gpt: CachedGPT2 | CachedTransformer, before: Sequence[int], begun: Sequence[int], decoding: Decoding
) -> Iterator[tuple[int, list[int]]]:
    """How many tokens to search for, and for which images at once. Raises UserError.

    An image's captions must not depend on the prompts of others, so each gets the room that its own prompt leaves.

    Args:
        gpt: the language model.
        before: for each image, the positions that prefix and prompt take.
        begun: for each image, how many tokens of its caption are there.
        decoding: the search.
    """
    alike: dict[int, list[int]] = {}
    for row, (positions, known) in enumerate(zip(before, begun, strict=True)):
        alike.setdefault(_steps(gpt, positions, decoding, known), []).append(row)
    for steps, rows in alike.items():
        longest = max(before[row] for row in rows)
        most = max(1, min(ROWS // decoding.width, CACHE // gpt.cache_bytes(longest, decoding.width, steps)))
        while rows:
            size = gpt.rows(len(rows), most)
            yield steps, [*islice(cycle(rows), size)]  # the first ones again fill a batch up
            rows = rows[size:]


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


SEARCHES: dict[str, Callable[..., Captions]] = {"greedy": sample, "nucleus": sample, "beam": beam_search}
