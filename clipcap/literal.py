"""Literal captions: what a frozen captioner says about each image of a dataset, computed once and kept with it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from clipcap.decoding import Decoding
from clipcap.tokenizer import load_tokenizer, tokenizer_from_json

if TYPE_CHECKING:
    from clipcap.embeddings import EmbeddingStore
    from clipcap.model import ClipCap

LITERAL = Decoding(max_tokens=40)
BATCH = 64


def literal_captions(store: EmbeddingStore, split: str, model: ClipCap, weights_sha256: str) -> list[str]:
    """One literal caption for every row of a split: read where they were computed before, else computed and stored.

    Args:
        store: the dataset.
        split: its name.
        model: the literal captioner.
        weights_sha256: identity of its weights, under which the captions are stored.
    """
    stored = store.literal_captions(split, weights_sha256)
    if stored is not None:
        return stored
    written = model.config.tokenizer
    tokenizer = tokenizer_from_json(written) if written else load_tokenizer(model.config.language_model)
    embeddings = store.embeddings(split)
    captions: list[str] = []
    with tqdm(total=len(embeddings), desc=f"literal captions, {split}", unit="captions", file=sys.stderr) as bar:
        for start in range(0, len(embeddings), BATCH):
            clip_embedding = torch.tensor(embeddings[start : start + BATCH]).to(model.device)
            found = model.generate(clip_embedding, LITERAL)
            captions += [tokenizer.decode(ids).strip() for ids in found]
            bar.update(len(found))
    store.save_literal_captions(split, weights_sha256, captions)
    return captions
