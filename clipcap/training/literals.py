"""The literal captions in the prompts of a dataset (prompted strategy): computed once, and stored with the dataset."""

from __future__ import annotations

from clipcap.data.store import EmbeddingStore
from clipcap.model.clipcap import ClipCap
from clipcap.model.prompts import LITERAL, caption_embeddings


def stored_literal_captions(store: EmbeddingStore, split: str, model: ClipCap, identity: str) -> list[str]:
    """One literal caption for every row of a split: those stored in the dataset, or else computed and stored there.

    Args:
        store: the dataset.
        split: the name of a split.
        model: the literal captioner.
        identity: SHA-256 of its weights, under which the captions are stored.
    """
    captions = store.literal_captions(split, identity)
    if captions is None:
        progress = f"literal captions, {split}"
        captions = caption_embeddings(model, store.embeddings(split), LITERAL, progress=progress)
        store.save_literal_captions(split, identity, captions)
    return captions
