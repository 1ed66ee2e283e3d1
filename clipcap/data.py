"""Rows -> batches: embeddings, tokens and labels, bucketed by length.

Shapes: B batch, C CLIP width, T tokens of the longest row, N caption tokens in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipcap.errors import UserError
from clipcap.tokenizer import end_of_text

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


class CaptionDataset(Dataset):
    """Token ids and embeddings of one split; the embeddings stay where they are, on disk or in memory."""

    def __init__(
        self,
        embeddings: np.ndarray,
        captions: Sequence[Sequence[int]],
        prompts: Sequence[Sequence[int]] | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            embeddings: (rows, C).
            captions: token ids, a list for each row.
            prompts: token ids that stand before the caption and are not learned.
            rows: which rows to use, all of them when None.
        """
        self.embeddings, self.captions = embeddings, captions
        self.prompts = prompts or [()] * len(captions)
        self.rows = range(len(captions)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Sequence[int], Sequence[int]]:
        row = self.rows[index]
        return self.embeddings[row], self.prompts[row], self.captions[row]

    def lengths(self) -> list[int]:
        """Tokens of prompt and caption together, row by row."""
        return [len(self.prompts[row]) + len(self.captions[row]) for row in self.rows]


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


class BucketSampler:
    """Batches of rows of similar length, in an order that depends on the seed and the epoch alone.

    Rows are shuffled, sorted by length within pools of 64 batches, cut into batches, and the batches shuffled. Several
    processes (`rank` of `world`) take turns, all with the same number of batches.
    """

    POOL = 64

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.rank, self.world = rank, world
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        """Batches in a whole epoch, for each process."""
        return max(-(-len(self.lengths) // self.batch_size) // self.world, 1)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        pool = self.POOL * self.batch_size
        order = np.concatenate(
            [
                rows[np.argsort(self.lengths[rows], kind="stable")]
                for rows in np.split(order, range(pool, len(order), pool))
            ]
        )
        batches = np.split(order, range(self.batch_size, len(order), self.batch_size))
        turns = random.permutation(len(batches))[self.rank :: self.world][: len(self)]
        for turn in turns[self.skip :]:
            yield batches[turn].tolist()


def loader(dataset: CaptionDataset, sampler: BucketSampler | list[list[int]], device: torch.device) -> DataLoader:
    """Batches, prepared ahead of a CUDA device by worker processes and in pinned memory."""
    ahead = device.type == "cuda"
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=2 if ahead else 0,
        pin_memory=ahead,
        generator=torch.Generator(),  # iterating must draw nothing from the global one, which a resumed run restores
    )


def in_order(dataset: CaptionDataset, batch_size: int) -> list[list[int]]:
    """Every row once, the longest first, in batches of similar length."""
    order = np.argsort(dataset.lengths(), kind="stable")[::-1].tolist()
    starts = range(0, len(order), batch_size)
    return [order[start : start + batch_size] for start in starts]
