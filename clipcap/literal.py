"""Captions of stored embeddings, and the literal ones among them, which are computed once and kept with the dataset.

Shapes: N rows, C CLIP width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from clipcap.decoding import Decoding
from clipcap.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from clipcap.embeddings import EmbeddingStore
    from clipcap.model import ClipCap

LITERAL = Decoding()  # how a literal captioner is asked, in training and afterwards
BATCH = 64


def caption_embeddings(
    model: ClipCap,
    embeddings: np.ndarray,
    decoding: Decoding,
    prompts: Sequence[Sequence[int]] | None = None,
    batch_size: int = BATCH,
    description: str = "captions",
) -> list[str]:
    """Embeddings (N, C) -> N captions, with a progress bar."""
    tokenizer = tokenizer_of(model.config)
    captions: list[str] = []
    with tqdm(total=len(embeddings), desc=description, unit="captions", leave=False, file=sys.stderr) as bar:
        for start in range(0, len(embeddings), batch_size):
            part = slice(start, start + batch_size)
            batch = torch.tensor(embeddings[part], device=model.device)
            found = model.generate(batch, decoding, prompts and prompts[part])
            captions += [tokenizer.decode(ids).strip() for ids in found]
            bar.update(len(found))
    return captions


def literal_captions(store: EmbeddingStore, split: str, model: ClipCap, weights_sha256: str) -> list[str]:
    """One literal caption for every row of a split: read where they were computed before, else computed and stored.

    Args:
        store: the dataset.
        split: its name.
        model: the literal captioner.
        weights_sha256: identity of its weights, under which the captions are stored.
    """
    captions = store.literal_captions(split, weights_sha256)
    if captions is None:
        captions = caption_embeddings(model, store.embeddings(split), LITERAL, description=f"literal captions, {split}")
        store.save_literal_captions(split, weights_sha256, captions)
    return captions
