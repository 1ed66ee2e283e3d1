"""What a careful user would assemble instead of this project: open_clip, and Hugging Face's `generate` with its cache.

In batches as large as ours and in the same precision; photos are decoded at a reduced size (`draft`) by as many workers
of a `DataLoader` as ours has, in CLIP's batches. It is the well-known libraries used well, without a line of one's own
code in the inner loop.

Shapes: B batch, H x W pixels, C CLIP width, P prefix length, D GPT-2 width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2LMHeadModel

from clipcap.captioning.captioner import CLIP_BATCH
from clipcap.clip.formats import open_picture
from clipcap.clip.workers import MOST_WORKERS

WORKERS = min(MOST_WORKERS, os.cpu_count() or 1)
METHODS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "nucleus": {"do_sample": True, "top_p": 0.9, "top_k": 0},
    "beam": {"do_sample": False, "num_beams": 5},
}


@dataclass
class Photos(Dataset):
    """Files, read and transformed one by one: pixels (3, H, W).

    Attributes:
        side: of the square that the transform makes; a JPEG is decoded no smaller.
    """

    files: Sequence[Path]
    transform: Callable
    side: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        with open_picture(self.files[number]) as image:
            image.draft("RGB", (self.side, self.side))
            return self.transform(image.convert("RGB"))


class Alternative:
    """Photos -> captions.

    Args:
        clip: an open_clip model.
        transform: its picture transform: PIL picture -> (3, H, W).
        clip_project: (B, C) -> (B, P, D).
        gpt: GPT-2 with its head, whose attention is PyTorch's. All three are in the same dtype.
    """

    def __init__(self, clip: CLIP, transform: Callable, clip_project: nn.Module, gpt: GPT2LMHeadModel) -> None:
        self.clip, self.transform, self.clip_project, self.gpt = clip, transform, clip_project, gpt
        self.dtype, self.device = gpt.dtype, gpt.device

    @torch.inference_mode()
    def embed(self, photos: Sequence[Path], clip_batch: int = CLIP_BATCH) -> Tensor:
        """(B, C)."""
        read = Photos(photos, self.transform, max(self.clip.visual.image_size))
        batch = min(clip_batch, -(-len(photos) // WORKERS))  # a worker makes whole batches
        loader = DataLoader(read, batch, num_workers=WORKERS if len(photos) > 1 else 0)
        return torch.cat([self.clip.encode_image(pixels.to(self.device, self.dtype)) for pixels in loader])

    @torch.inference_mode()
    def generate(self, clip_embedding: Tensor, method: str, max_tokens: int, stop_token: int | None) -> Tensor:
        """(B, C) -> ids (B, at most max_tokens); after the stop token, padding of 0."""
        prefix = self.clip_project(clip_embedding.to(self.device, self.dtype))
        return self.gpt.generate(  # type: ignore[misc, return-value]  # its stub leaves out GPT-2, and one kind of result
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long, device=self.device),
            max_new_tokens=max_tokens,
            eos_token_id=stop_token,
            pad_token_id=0,
            **METHODS[method],
        )

    def caption(
        self, photos: Sequence[Path], method: str, max_tokens: int, stop_token: int | None, batch_size: int
    ) -> Iterator[list[int]]:
        """Ids for each photo; captions are decoded in these batches."""
        for embeddings in self.embed(photos, min(batch_size, CLIP_BATCH)).split(batch_size):
            yield from self.generate(embeddings, method, max_tokens, stop_token).tolist()
