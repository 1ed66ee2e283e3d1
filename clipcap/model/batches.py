"""Captions and prompts -> token ids -> batches: embeddings, tokens and labels.

Shapes: B batch, C CLIP width, T tokens of the longest row, N caption tokens in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from clipcap.errors import UserError
from clipcap.model.gpt2 import end_of_text

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

IGNORED = -100  # label of what the loss must not see: prompt and padding


PADDING = 0  # any token will do, its label is IGNORED


@dataclass
class Batch:
    """Rows of prompt and caption, padded on the right.

    Attributes:
        clip_embedding: (B, C) float32.
        tokens: (B, T).
        labels: (B, T): the token where it is to be learned, IGNORED on prompt and padding.
        positions: (N,) indices of the labels to be learned in the flattened (B, T).
        targets: (N,) those labels.
    """

    clip_embedding: Tensor
    tokens: Tensor
    labels: Tensor
    positions: Tensor
    targets: Tensor

    @classmethod
    def of(cls, clip_embedding: Tensor, tokens: Tensor, labels: Tensor) -> Batch:
        flat = labels.flatten()
        positions = (flat != IGNORED).nonzero()[:, 0]
        return cls(clip_embedding, tokens, labels, positions, flat[positions])

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def pin_memory(self) -> Batch:
        return Batch(*(getattr(self, field.name).pin_memory() for field in fields(self)))


def encode_captions(tokenizer: Tokenizer, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Captions -> token ids that end with end-of-text, at most `max_tokens` of them.

    A longer caption is cut between characters (an emoji is several tokens) and gets no end-of-text, since it does not
    end there.
    """
    end = end_of_text(tokenizer)
    return [
        [*encoding.ids, end] if len(encoding.ids) < max_tokens else _cut(encoding, max_tokens)
        for encoding in tokenizer.encode_batch(list(captions))
    ]


def _cut(encoding: Encoding, max_tokens: int) -> list[int]:
    length = max_tokens
    if length < len(encoding.ids):
        while length > 1 and encoding.offsets[length][0] < encoding.offsets[length - 1][1]:
            length -= 1
    return encoding.ids[:length]


def fit_captions(captions: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]], room: int) -> list[Sequence[int]]:
    """Captions cut so that each prompt and caption take at most `room` tokens together.

    Raises:
        UserError: a prompt leaves no room for a caption.
    """
    longest = max(map(len, prompts), default=0)
    if longest >= room:
        raise UserError(
            f"a prompt of {longest} tokens leaves no room for a caption within {room}: shorten the template"
        )
    return [caption[: room - len(prompt)] for caption, prompt in zip(captions, prompts, strict=True)]


def collate(rows: Sequence[tuple[np.ndarray, Sequence[int], Sequence[int]]]) -> Batch:
    """Rows of a CaptionDataset -> one batch."""
    longest = max(len(prompt) + len(caption) for _, prompt, caption in rows)
    tokens = torch.full((len(rows), longest), PADDING)
    labels = torch.full((len(rows), longest), IGNORED)
    for row, (_, prompt, caption) in enumerate(rows):
        end = len(prompt) + len(caption)
        tokens[row, :end] = torch.tensor([*prompt, *caption])
        labels[row, len(prompt) : end] = torch.tensor(caption)
    embeddings = torch.from_numpy(np.stack([embedding for embedding, _, _ in rows])).float()
    return Batch.of(embeddings, tokens, labels)
