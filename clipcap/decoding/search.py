"""Prefix -> caption tokens: greedy, nucleus and beam search, batched over images.

Beam search ranks as ClipCap's does: by mean log-probability per token, live and finished beams together
(https://github.com/rmokady/CLIP_prefix_caption, `generate_beam` in predict.py).

Shapes: B images, K continuations of each (beams or samples), T tokens, P prefix length, D GPT-2 width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipcap.decoding.cached_gpt2 import CachedGPT2, Session
from clipcap.decoding.next_token import Constraint, argmax, draw, make_constraint, most_probable, random_numbers
from clipcap.decoding.options import Decoding
from clipcap.errors import UserError


@dataclass
class Captions:
    """The result of a search.

    Attributes:
        tokens: (B, K, T), filled up to each caption's length.
        lengths: (B, K), how many of the T tokens belong to the caption, including the stop token.
        order: (B, K), the captions of each image, best first.
    """

    tokens: Tensor
    lengths: Tensor
    order: Tensor

    def as_lists(self, count: int) -> list[list[list[int]]]:
        """Token ids of the best `count` captions of each image, best first; of all captions when `count` is 1."""
        kept = count if count > 1 else self.order.shape[1]
        return [
            [row[k][: lengths[k]] for k in order[:kept]]
            for row, lengths, order in zip(
                self.tokens.tolist(), self.lengths.tolist(), self.order.tolist(), strict=True
            )
        ]


def decode(
    gpt: CachedGPT2,
    prefix: Tensor,
    decoding: Decoding,
    stop_token: int,
    prompts: Sequence[Sequence[int]] | None,
    streams: Tensor,
) -> list[list[list[int]]]:
    """Captions of a batch of images.

    Args:
        gpt: the language model.
        prefix: (B, P, D).
        decoding: how to search.
        stop_token: the id that ends a caption, -1 for none.
        prompts: B lists of token ids between prefix and caption, or None.
        streams: (B, anything), from which each image's random numbers derive.

    Returns:
        B lists of captions, best first; a caption is a list of ids and keeps its stop token.

    Raises:
        UserError: prefix and prompt leave no room for a caption.
    """
    before = prefix.shape[1] + max(map(len, prompts or [()]))
    room = len(gpt.position) + 1 - before
    if room < 1:
        raise UserError(
            f"prefix and prompt take {before} positions, and GPT-2 has {len(gpt.position)}: shorten the prompt"
        )
    steps = min(decoding.max_tokens, room)
    session = gpt.begin(prefix, prompts, decoding.width, steps)
    constrain = make_constraint(decoding, stop_token)
    search = SEARCHES[decoding.method]
    return search(session, decoding, steps, stop_token, constrain, streams).as_lists(decoding.num_captions)


class Finished:
    """Removes finished images from the batch and knows which rows of the whole batch remain.

    Removing them copies the cache, so finished images stay until they are a quarter of the batch. Asking a CUDA device
    which images are finished means waiting for it, so it is asked only every 16 tokens, and its batch is only ever
    halved: the fewer shapes there are, the fewer steps have to be captured.

    Attributes:
        rows: (B',), indices into the whole batch of the rows that the session still decodes.
    """

    def __init__(self, session: Session, batch: int, device: torch.device) -> None:
        self.session = session
        self.rows = torch.arange(batch, device=device)
        self.halves = session.gpt.captures

    def leave(self, step: int, done: Tensor) -> Tensor | None:
        """Decide after a step which rows of the session to go on with; the others are removed from it.

        Args:
            step: the number of that step, counted from 0.
            done: (B',), whether all continuations of a row are finished.

        Returns:
            Indices of the rows to go on with, empty when all are done; None when every row stays.
        """
        if self.halves and step % 16:
            return None
        going = (~done).nonzero()[:, 0]
        if len(going) and self.halves:
            # Every new number of rows would capture another step, so a batch of 256 only becomes 128, 64 and so on.
            # Finished images fill it up to that size, which costs less than a capture.
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


def _sample(
    session: Session,
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
    live = Finished(session, batch, device)
    logits = session.logits[:, None].expand(-1, width, -1)
    for step in range(steps):
        rows = live.rows
        logits = constrain(logits, tokens[rows, :, :step])
        token = argmax(logits) if numbers is None else draw(logits, numbers[rows, :, step], decoding, session.gpt.fast)
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


def _beam(
    session: Session,
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
    logits = constrain(session.logits[:, None], tokens[:, :1, :0])[:, 0]
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
        logits = constrain(session.step(token), tokens[rows, :, :step])
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
    return Captions(tokens, lengths, (scores / lengths).argsort(dim=-1, descending=True, stable=True))


SEARCHES: dict[str, Callable[..., Captions]] = {"greedy": _sample, "nucleus": _sample, "beam": _beam}
