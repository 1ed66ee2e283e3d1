"""The literal captions in the prompts of a dataset (prompted strategy): computed once, and stored with the dataset."""

from __future__ import annotations

from clipcap.cli.processes import Processes
from clipcap.data.store import EmbeddingStore
from clipcap.model.clipcap import ClipCap
from clipcap.model.prompts import LITERAL, caption_embeddings


def stored_literal_captions(
    store: EmbeddingStore, split: str, model: ClipCap, identity: str, processes: Processes
) -> list[str]:
    """One literal caption for every row of a split: those stored in the dataset, or else computed and stored there.

    Several processes share the rows out.

    Args:
        store: the dataset.
        split: the name of a split.
        model: the literal captioner.
        identity: SHA-256 of its weights, under which the captions are stored.
        processes: those that train.
    """
    stored = store.literal_captions(split, identity)
    everywhere = all(processes.gather(stored is not None))
    if stored is not None and everywhere:
        return stored
    own = store.embeddings(split).share(processes.rank, processes.world)
    progress = f"literal captions, {split}"
    captions = [""] * store.info["splits"][split]
    for rank, share in enumerate(processes.gather(caption_embeddings(model, own, LITERAL, progress=progress))):
        captions[rank :: processes.world] = share
    if processes.main:
        store.save_literal_captions(split, identity, captions)
    return captions
