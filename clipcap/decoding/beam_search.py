"""Beam search, which ranks as ClipCap's does: by mean log-probability per token, live and finished beams together.

It is `generate_beam` in predict.py of https://github.com/rmokady/CLIP_prefix_caption, batched over images.

Shapes: B images, K beams of each, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipcap.decoding.cached_gpt2 import Session
from clipcap.decoding.cached_transformer import TransformerSession
from clipcap.decoding.captions import Captions
from clipcap.decoding.finished import Finished
from clipcap.decoding.forbidden import Constraint
from clipcap.decoding.next_token import most_probable
from clipcap.decoding.options import Decoding


def beam_search(
    session: Session | TransformerSession,
    decoding: Decoding,
    steps: int,
    stop_token: int,
    constrain: Constraint,
    streams: Tensor,
) -> Captions:
    """K beams of each image, ranked by their mean log-probability per token.

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
