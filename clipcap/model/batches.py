"""Captions and prompts -> token ids -> padded batches of embeddings, tokens and labels.

Shapes: B batch, C CLIP width, T tokens of the longest row, N caption tokens in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from clipcap.errors import UserError
from clipcap.model.config import END_OF_TEXT
from clipcap.model.language_model import end_of_text

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

IGNORED = -100  # the label of prompt and padding, which the loss must not see
AT_ONCE = 10_000  # captions: the tokenizer's own notes on each take kilobytes
PADDING = 0  # any token will do, since its label is IGNORED


@dataclass
class Batch:
    """Rows of prompt and caption, padded on the right.

    Attributes:
        clip_embedding: (B, C) float32.
        tokens: (B, T) token ids of prompt, caption and padding, in this order.
        labels: (B, T); the token id on caption tokens, IGNORED on prompt and padding.
        positions: (N,) where the caption tokens stand in the flattened (B, T).
        targets: (N,) the labels at these positions.
        weight: (), what the loss of these rows counts for among those of the processes that share a batch.
    """

    clip_embedding: Tensor
    tokens: Tensor
    labels: Tensor
    positions: Tensor
    targets: Tensor
    weight: Tensor = field(default_factory=lambda: torch.ones(()))

    @classmethod
    def of(cls, clip_embedding: Tensor, tokens: Tensor, labels: Tensor) -> Batch:
        """A batch from (B, C), (B, T) and (B, T); finds the positions and targets of the caption tokens."""
        flat = labels.flatten()
        positions = (flat != IGNORED).nonzero()[:, 0]
        return cls(clip_embedding, tokens, labels, positions, flat[positions])

    def to(self, device: torch.device) -> Batch:
        """The batch on another device; from pinned memory to CUDA the copy runs beside the computation.

        Other devices do not keep the memory that they still copy from: https://github.com/pytorch/pytorch/issues/139550
        """
        beside = device.type == "cuda"
        return Batch(*(getattr(self, part.name).to(device, non_blocking=beside) for part in fields(self)))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; `DataLoader` calls this when it is asked to pin memory."""
        return Batch(*(getattr(self, part.name).pin_memory() for part in fields(self)))


def encode_captions(
    tokenizer: Tokenizer, captions: Sequence[str], max_tokens: int, end_name: str = END_OF_TEXT, blank: str = ""
) -> list[list[int]]:
    """Captions, each behind a blank if there is one -> token ids that end with `end_name`, at most `max_tokens`.

    A longer caption is cut between characters (an emoji is several tokens) and gets no end-of-text, since it does not
    end there.
    """
    end = end_of_text(tokenizer, end_name)
    return [
        [*encoding.ids, end] if len(encoding.ids) < max_tokens else _cut(encoding, max_tokens)
        for start in range(0, len(captions), AT_ONCE)
        for encoding in tokenizer.encode_batch([blank + caption for caption in captions[start : start + AT_ONCE]])
    ]


def _cut(encoding: Encoding, max_tokens: int) -> list[int]:
    length = max_tokens
    # Two tokens whose offsets overlap belong to the same character: step back to where a character ends.
    if length < len(encoding.ids):
        while length > 1 and encoding.offsets[length][0] < encoding.offsets[length - 1][1]:
            length -= 1
    return encoding.ids[:length]


def fit_captions(captions: Sequence[list[int]], prompts: Sequence[Sequence[int]], room: int) -> list[list[int]]:
    """Captions, cut so that each prompt and its caption together take at most `room` tokens.

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
    """Rows of embedding (C,), prompt and caption, as a CaptionDataset gives them -> one batch."""
    longest = max(len(prompt) + len(caption) for _, prompt, caption in rows)
    tokens = torch.full((len(rows), longest), PADDING)
    labels = torch.full((len(rows), longest), IGNORED)
    for row, (_, prompt, caption) in enumerate(rows):
        end = len(prompt) + len(caption)
        tokens[row, :end] = torch.tensor([*prompt, *caption])
        labels[row, len(prompt) : end] = torch.tensor(caption)
    embeddings = torch.from_numpy(np.stack([embedding for embedding, _, _ in rows])).float()
    return Batch.of(embeddings, tokens, labels)
