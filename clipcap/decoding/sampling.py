"""Greedy search and nucleus sampling.

Shapes: B images, K samples of each, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipcap.decoding.cached_gpt2 import Session
from clipcap.decoding.cached_transformer import TransformerSession
from clipcap.decoding.captions import Captions
from clipcap.decoding.finished import Finished
from clipcap.decoding.forbidden import Constraint
from clipcap.decoding.next_token import argmax, draw, random_numbers
from clipcap.decoding.options import Decoding


def sample(
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
