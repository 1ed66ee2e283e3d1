"""Prefix -> caption tokens: greedy, nucleus and beam search, batched over images.

Beam search ranks as ClipCap's does: by mean log-probability per token, live and finished beams together
(https://github.com/rmokady/CLIP_prefix_caption, `generate_beam` in predict.py).

Shapes: B images, K continuations of each (beams or samples), T tokens, P prefix length, D GPT-2 width, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from clipcap import cuda_graph
from clipcap.cached_gpt2 import CachedGPT2, Session
from clipcap.errors import UserError
from clipcap.nucleus import UNIFORMS, sample_nucleus

CPU_ROWS = 32  # rows of logits that a token is chosen for at a time


@dataclass(frozen=True)
class Decoding:
    """How captions are searched for.

    Attributes:
        method: "greedy", "nucleus" (samples) or "beam".
        beams: beams per image.
        max_tokens: a caption's most tokens, the stop token included. ClipCap's limit is 67.
        min_tokens: a caption's fewest tokens, the stop token not included.
        temperature, top_p, top_k: of nucleus sampling; top_k 0 is no limit.
        seed: of nucleus sampling; None draws anew at every call. An image's samples depend on the seed and its own
            embedding, neither on its batch nor on its place there.
        num_captions: samples per image, or best beams.
        stop_token: ends a caption; None for the checkpoint's own, -1 for none.
        return_all: every sample or beam, best first, instead of the best.
        no_repeat_ngram: no n tokens in a row come twice; 0 is no limit.
        banned: token sequences that never come.
    """

    method: str = "greedy"
    beams: int = 5
    max_tokens: int = 67
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    seed: int | None = 0
    num_captions: int = 1
    stop_token: int | None = None
    return_all: bool = False
    no_repeat_ngram: int = 0
    banned: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.method not in SEARCHES:
            raise UserError(f"unknown decoding method {self.method!r}; choose one of {', '.join(SEARCHES)}")
        for name in ("beams", "max_tokens", "num_captions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("min_tokens", "top_k", "no_repeat_ngram"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.min_tokens >= self.max_tokens:
            raise UserError(f"min_tokens ({self.min_tokens}) must be below max_tokens ({self.max_tokens})")
        if self.seed is not None and self.seed < 0:
            raise UserError(f"seed must be 0 or more, not {self.seed}")
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0, not {self.temperature}; for no randomness use greedy")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    @property
    def width(self) -> int:
        """K: continuations of each image that are decoded side by side."""
        if self.method == "beam":
            return max(self.beams, self.num_captions)
        return self.num_captions if self.method == "nucleus" else 1


@dataclass
class Captions:
    """What a search found: tokens (B, K, T), how many of them count (B, K), and their order, best first (B, K)."""

    tokens: Tensor
    lengths: Tensor
    order: Tensor

    def as_lists(self, decoding: Decoding) -> list:
        kept = decoding.num_captions if decoding.num_captions > 1 else self.order.shape[1]
        rows = [
            [row[k][: lengths[k]] for k in order[:kept]]
            for row, lengths, order in zip(
                self.tokens.tolist(), self.lengths.tolist(), self.order.tolist(), strict=True
            )
        ]
        return rows if decoding.return_all else [row[0] for row in rows]


def decode(
    gpt: CachedGPT2,
    prefix: Tensor,
    decoding: Decoding,
    stop_token: int,
    prompts: Sequence[Sequence[int]] | None,
    streams: Tensor,
) -> list[list[int]] | list[list[list[int]]]:
    """Captions of a batch.

    Args:
        gpt: the language model.
        prefix: (B, P, D).
        decoding: how to search.
        stop_token: the id that ends a caption, -1 for none.
        prompts: B lists of token ids between prefix and caption, or None.
        streams: (B, anything): what tells one image's random numbers from another's.

    Returns:
        B lists of ids, stop token kept; with `return_all` B lists of lists, best first.
    """
    before = prefix.shape[1] + max(map(len, prompts or [()]))
    room = len(gpt.position) + 1 - before
    if room < 1:
        raise UserError(
            f"prefix and prompt take {before} positions, and GPT-2 has {len(gpt.position)}: shorten the prompt"
        )
    steps = min(decoding.max_tokens, room)
    session = gpt.begin(prefix, prompts, decoding.width, steps)
    constrain = _constraints(decoding, stop_token)
    search = SEARCHES[decoding.method]
    return search(session, decoding, steps, stop_token, constrain, streams).as_lists(decoding)


class Finished:
    """Which images are still being decoded, so that the others leave the batch.

    Leaving copies the cache, so a few finished images stay until they are a quarter of the batch. A CUDA device is
    asked only every 16 tokens, since the question waits for it, and halves the batch: few shapes, few captured steps.
    """

    def __init__(self, session: Session, batch: int, device: torch.device) -> None:
        self.session = session
        self.rows = torch.arange(batch, device=device)  # of the whole batch, those still in the session
        self.halves = cuda_graph.captures(device)

    def leave(self, step: int, done: Tensor) -> Tensor | None:
        """After a step, done (B',) for the rows in the session: the indices to go on with, or None for all of them."""
        if self.halves and step % 16:
            return None
        going = (~done).nonzero()[:, 0]
        if len(going) and self.halves:
            size = len(done)
            while size >= 2 * len(going):
                size = -(-size // 2)
            going = torch.cat((going, done.nonzero()[: size - len(going), 0]))
        if len(going) > 0.75 * len(done):
            return None
        self.rows = self.rows[going]
        if len(going):
            self.session.keep(going)
        return going


def _sample(session, decoding, steps, stop_token, constrain, streams) -> Captions:
    """Greedy search and nucleus sampling: continuations that never meet."""
    width, device = decoding.width, session.logits.device
    batch = len(session.logits)
    greedy = decoding.method == "greedy"
    uniforms = None if greedy else _uniforms(streams, decoding.seed, width, steps).to(device)
    tokens = torch.zeros(batch, width, steps, dtype=torch.long, device=device)
    lengths = torch.full((batch, width), steps, device=device)
    scores = torch.zeros(batch, width, device=device)
    finished = torch.zeros(batch, width, dtype=torch.bool, device=device)
    live = Finished(session, batch, device)
    logits = session.logits[:, None].expand(-1, width, -1)
    for step in range(steps):
        rows = live.rows
        logits = constrain(logits, tokens[rows, :, :step])
        token = _argmax(logits) if greedy else _draw(logits, uniforms[rows, :, step], decoding)
        if width > 1:
            gained = logits.float().log_softmax(-1).gather(-1, token[..., None])[..., 0]
            scores[rows] += gained.masked_fill(finished, 0)
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
    return Captions(tokens, lengths, (scores / lengths).argsort(dim=-1, descending=True, stable=True))


def _beam(session, decoding, steps, stop_token, constrain, streams) -> Captions:
    """ClipCap's beam search. A finished beam goes on at no cost and keeps its place while its mean is good enough."""
    width, device = decoding.width, session.logits.device
    batch = len(session.logits)
    tokens = torch.zeros(batch, width, steps, dtype=torch.long, device=device)
    lengths = torch.ones(batch, width, dtype=torch.long, device=device)
    live = Finished(session, batch, device)
    logits = constrain(session.logits[:, None], tokens[:, :1, :0])[:, 0]
    scores, token = _best(logits, width)  # summed log-probabilities (B, K)
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
        logits = constrain(session.step(token), tokens[rows, :, :step])
        # A beam's children rank by their own log-probability, so its best K are all that can survive.
        gained, token = _best(logits, width)  # (B, K, K)
        gained[finished] = float("-inf")
        gained[..., 0].masked_fill_(finished, 0)
        token[..., 0].masked_fill_(finished, 0)
        grown = lengths[rows] + ~finished
        mean = (scores[rows][..., None] + gained) / grown[..., None]
        best, flat = mean.flatten(1).topk(width)
        parent = flat // width
        token = token.flatten(1).gather(1, flat)
        lengths[rows] = grown.gather(1, parent)
        scores[rows] = best * lengths[rows]
        kept = tokens[rows].gather(1, parent[..., None].expand(-1, -1, steps))
        kept[:, :, step] = token
        tokens[rows] = kept
        finished = finished.gather(1, parent) | (token == stop_token)
        session.reorder(parent)
    return Captions(tokens, lengths, (scores / lengths).argsort(dim=-1, descending=True, stable=True))


SEARCHES: dict[str, Callable[..., Captions]] = {"greedy": _sample, "nucleus": _sample, "beam": _beam}


def _some_rows(x: Tensor) -> Sequence[Tensor]:
    """(..., V) -> matrices (R, V) of the rows in order: on a CPU few at a time, which stay in its cache."""
    rows = x.flatten(0, -2)
    return rows.split(CPU_ROWS) if rows.device.type == "cpu" else (rows,)


def _argmax(logits: Tensor) -> Tensor:
    """(B, K, V) -> (B, K). NumPy's is vectorised; PyTorch's on a CPU is not, and is slowest in bf16."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    found = [torch.from_numpy(rows.float().numpy().argmax(-1)) for rows in _some_rows(logits)]
    return torch.cat(found).view(logits.shape[:-1])


def _best(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(..., V) -> log-probabilities and ids of the `count` most probable tokens, (..., count) each."""
    found = [rows.float().log_softmax(-1).topk(count) for rows in _some_rows(logits)]
    shape = (*logits.shape[:-1], count)
    return torch.cat([best for best, _ in found]).view(shape), torch.cat([ids for _, ids in found]).view(shape)


def _draw(logits: Tensor, uniforms: Tensor, decoding: Decoding) -> Tensor:
    """(B, K, V) and random numbers (B, K, UNIFORMS) -> tokens (B, K) from the nuclei."""
    limits = decoding.temperature, decoding.top_p, decoding.top_k
    parts = zip(_some_rows(logits), _some_rows(uniforms), strict=True)
    found = [sample_nucleus(rows, numbers, *limits) for rows, numbers in parts]
    return torch.cat(found).view(logits.shape[:-1])


def _uniforms(streams: Tensor, seed: int | None, width: int, steps: int) -> Tensor:
    """Random numbers (B, K, T, UNIFORMS): a stream for each image, from the seed and the signs of its embedding.

    Signs, because the last bits of an embedding change with the batch in which CLIP computed it.
    """
    shape = (width, steps, UNIFORMS)
    rows = []
    for signs in (streams > 0).cpu().numpy():
        random = np.random.default_rng(None if seed is None else (seed, zlib.crc32(signs.tobytes())))
        rows.append(torch.from_numpy(random.random(shape, dtype=np.float32)))
    return torch.stack(rows)


def _constraints(decoding: Decoding, stop_token: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (logits (B, K, V), tokens so far (B, K, t)) -> logits with what must not come at -inf."""
    always = [sequence[0] for sequence in decoding.banned if len(sequence) == 1]
    after = {}
    for *context, last in (sequence for sequence in decoding.banned if len(sequence) > 1):
        after.setdefault(tuple(context), []).append(last)
    size = decoding.no_repeat_ngram
    if not (always or after or size or decoding.min_tokens):
        return lambda logits, tokens: logits

    def forbidden(history: list[int]) -> list[int]:
        """Tokens that would complete a banned sequence or repeat an n-gram."""
        found = [
            last for context, lasts in after.items() if tuple(history[-len(context) :]) == context for last in lasts
        ]
        if size and len(history) >= size - 1:
            context = history[len(history) - size + 1 :]
            starts = range(len(history) - size + 1)
            found += [history[i + size - 1] for i in starts if history[i : i + size - 1] == context]
        return found

    def constrain(logits: Tensor, tokens: Tensor) -> Tensor:
        logits = logits.clone()
        logits[..., always] = float("-inf")
        if tokens.shape[-1] < decoding.min_tokens and stop_token >= 0:
            logits[..., stop_token] = float("-inf")
        if after or size:
            for image, histories in enumerate(tokens.tolist()):
                for k, history in enumerate(histories):
                    logits[image, k, forbidden(history)] = float("-inf")
        return logits

    return constrain
