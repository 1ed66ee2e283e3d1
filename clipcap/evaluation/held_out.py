"""What models are compared on: pictures that they have not seen, their true captions, and a judge of the captions.

Shapes: N images, each once with all its captions, C CLIP width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from clipcap.data.store import clip_of, same_clip
from clipcap.errors import UserError
from clipcap.evaluation import metrics

if TYPE_CHECKING:
    from clipcap.clip.encoder import ClipEncoder
    from clipcap.data.store import EmbeddingStore
    from clipcap.model.clipcap import ClipCap


class HeldOut:
    """The first `limit` images of a split, with their true captions and their embeddings for any CLIP.

    Raises:
        UserError: no such split, or it is empty.
    """

    def __init__(self, store: EmbeddingStore, split: str, limit: int | None, device: torch.device) -> None:
        self.store, self.split, self.device = store, split, device
        rows: dict[str, list[int]] = {}
        for row, image in enumerate(store.column(split, "image_id")):
            rows.setdefault(image, []).append(row)
        rows = dict(islice(rows.items(), limit))
        if not rows:
            raise UserError(f"split {split!r} of {store.path} is empty: nothing to caption; use another --split")
        captions = store.captions(split)
        self.ids = list(rows)
        self.first_rows = [image_rows[0] for image_rows in rows.values()]
        self.captions = [[captions[row] for row in image_rows] for image_rows in rows.values()]
        self.tokens = [[metrics.tokenize(caption) for caption in texts] for texts in self.captions]
        self._embeddings: dict[tuple, np.ndarray] = {}
        self._encoders: dict[tuple, ClipEncoder] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def encoder(self, model: str, pretrained: str | None) -> ClipEncoder:
        """A CLIP, loaded once."""
        from clipcap.clip.encoder import ClipEncoder

        if (model, pretrained) not in self._encoders:
            self._encoders[model, pretrained] = ClipEncoder.load(model, pretrained, self.device)
        return self._encoders[model, pretrained]

    def stored_embeddings(self) -> np.ndarray:
        return self.store.embeddings(self.split)[self.first_rows]

    def embeddings(self, model: ClipCap) -> np.ndarray:
        """(N, C) for the model's own CLIP: the stored ones, or computed from the stored pictures, once per CLIP."""
        if same_clip(self.store, model.config):
            return self.stored_embeddings()
        config = model.config
        clip = (config.clip_model, config.clip_pretrained)
        if clip not in self._embeddings:
            pictures = self.pictures(len(self))
            if config.clip_model is None or None in pictures:
                raise UserError(
                    f"it wants embeddings of {clip_of(config)}, and {self.store.path} holds neither them nor pictures"
                )
            encoder = self.encoder(*clip)
            starts = tqdm(range(0, len(pictures), 64), f"CLIP {clip[0]}", unit="batch", leave=False, file=sys.stderr)
            self._embeddings[clip] = torch.cat([encoder.encode_images(pictures[i : i + 64]) for i in starts]).numpy()
        return self._embeddings[clip]

    def pictures(self, count: int) -> list[bytes | str | None]:
        """The first images as small JPEGs, or files where the data keeps none, or None for what is no longer there."""
        rows = self.store.split(self.split).select(self.first_rows[:count]).select_columns(["thumbnail", "image_path"])
        return [row["thumbnail"] or _existing(row["image_path"]) for row in rows]

    @cached_property
    def training_tokens(self) -> set[tuple[str, ...]]:
        """The training captions, to find those that are only repeated."""
        known = self.store.captions("train") if "train" in self.store.splits else []
        return {tuple(metrics.tokenize(caption)) for caption in known}


def _existing(path: str | None) -> str | None:
    return path if path and Path(path).is_file() else None


class Judge:
    """CLIPScore by the CLIP that made the data, the same for every model."""

    def __init__(self, held_out: HeldOut, prompt: str) -> None:
        clip = held_out.store.clip
        self.encoder, self.prompt = held_out.encoder(clip["model"], clip["pretrained"]), prompt
        self.images = held_out.stored_embeddings()
        texts = self._encode([caption for captions in held_out.captions for caption in captions])
        self.references = np.split(texts, np.cumsum([len(captions) for captions in held_out.captions])[:-1])

    def scores(self, captions: Sequence[str]) -> dict[str, float]:
        return metrics.clip_scores(self.images, self._encode(captions), self.references)

    def _encode(self, captions: Sequence[str]) -> np.ndarray:
        return self.encoder.encode_texts([f"{self.prompt} {caption}".strip() for caption in captions]).numpy()


def make_judge(held_out: HeldOut, prompt: str) -> Judge | None:
    """None, with a message, where the data's CLIP is not to be had: the other scores do not need it."""
    try:
        return Judge(held_out, prompt)
    except UserError as error:
        print(f"CLIPScore is left out: {error}", file=sys.stderr)
        return None
