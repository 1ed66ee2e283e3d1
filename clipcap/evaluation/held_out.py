"""What models are compared on: pictures that they have not seen, their true captions, and a judge of the captions.

Shapes: N images (each counted once, with all of its captions), C CLIP width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from clipcap.cli.processes import ALONE, Processes
from clipcap.cli.progress import ProgressBar
from clipcap.clip.images import UnreadableImage
from clipcap.data.changes import files_as_embedded
from clipcap.data.contacts import contacts
from clipcap.data.store import clip_of, same_clip
from clipcap.errors import UserError, first_line
from clipcap.evaluation import metrics, treebank

if TYPE_CHECKING:
    from clipcap.clip.encoder import ClipEncoder
    from clipcap.data.store import EmbeddingStore
    from clipcap.model.clipcap import ClipCap

# How captions become words where they are compared with true ones: with emoji and hashtags, or as in COCO's tables.
PROTOCOLS = {"instagram": metrics.tokenize, "coco": treebank.tokenize}


class HeldOut:
    """The first `limit` images of a split, with their true captions and their embeddings by any CLIP.

    Attributes:
        ids: the N image identities.
        captions: for each image its true captions.
        protocol: a key of PROTOCOLS, by which `overlap` compares captions.
        first_rows: for each image its first row in the split.
        fast: whether models and CLIP compute by way of `clipcap.fast`.
        processes: those that share the images out among them.

    Raises:
        UserError: there is no such split, or it is empty.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        split: str,
        limit: int | None,
        device: torch.device,
        fast: bool = True,
        protocol: str = "instagram",
        processes: Processes = ALONE,
    ) -> None:
        self.store, self.split, self.device, self.fast, self.protocol = store, split, device, fast, protocol
        self.processes = processes
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
        self._embeddings: dict[tuple[str, str | None], np.ndarray] = {}
        self._encoders: dict[tuple[str, str | None], ClipEncoder] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def own(self) -> HeldOut:
        """Those of the images that this process captions. Joined by rank, those of all processes are all images."""
        count = -(-len(self) // self.processes.world)
        part = slice(self.processes.rank * count, (self.processes.rank + 1) * count)
        own = copy(self)
        own.ids, own.first_rows, own.captions = self.ids[part], self.first_rows[part], self.captions[part]
        own._embeddings = {}
        return own

    def encoder(self, model: str, pretrained: str | None) -> ClipEncoder:
        """A CLIP by name, loaded when it is first asked for."""
        from clipcap.clip.encoder import ClipEncoder

        if (model, pretrained) not in self._encoders:
            self._encoders[model, pretrained] = ClipEncoder.load(model, pretrained, self.device, fast=self.fast)
        return self._encoders[model, pretrained]

    def stored_embeddings(self) -> np.ndarray:
        """Float32 (N, C), by the CLIP that made the data."""
        return self.store.embeddings(self.split)[self.first_rows]

    def embeddings(self, model: ClipCap) -> np.ndarray:
        """Float32 (N, C) by the model's own CLIP: as stored, or computed from the stored pictures, once per CLIP.

        Raises:
            UserError: the data was made with another CLIP, and pictures are missing or the model names no CLIP.
        """
        if same_clip(self.store, model.config):
            return self.stored_embeddings()
        wanted = clip_of(model.config)
        known = self._embeddings.get((wanted.model or "", wanted.pretrained))
        if known is not None:
            return known
        pictures = [picture for picture in self.pictures(len(self)) if picture is not None]
        if wanted.model is None or len(pictures) < len(self):
            raise UserError(f"it wants embeddings of {wanted}, and {self.store.path} holds neither them nor pictures")
        encoder = self.encoder(wanted.model, wanted.pretrained)
        starts = ProgressBar(range(0, len(pictures), 64), f"CLIP {wanted.model}", unit="batch", leave=False)
        try:
            parts = [encoder.encode_images(pictures[i : i + 64]) for i in starts]
            embeddings = torch.cat([torch.empty(0, encoder.dim), *parts]).numpy()
        except UnreadableImage as error:
            raise UserError(f"a picture of {self.store.path} cannot be read ({first_line(error)})") from None
        self._embeddings[wanted.model, wanted.pretrained] = embeddings
        return embeddings

    def pictures(self, count: int) -> list[bytes | str | None]:
        """The first images, each as a small JPEG, or its file where the data keeps no JPEG, or None.

        It is None where the file is gone or is not the picture that was embedded, see `files_as_embedded`.
        """
        ids, rows = self.ids[:count], self.first_rows[:count]
        thumbnails, paths = (self.store.column(self.split, name, rows) for name in ("thumbnail", "image_path"))
        pictures = zip(ids, thumbnails, paths, strict=True)
        files = files_as_embedded(self.store.path, {image: path for image, small, path in pictures if small is None})
        return [small or files.get(image) for image, small in zip(ids, thumbnails, strict=True)]

    @cached_property
    def references(self) -> list[list[list[str]]]:
        """For each image its true captions in the words of the protocol."""
        return [[PROTOCOLS[self.protocol](caption) for caption in texts] for texts in self.captions]

    def overlap(
        self,
        captions: Sequence[str],
        more: Mapping[str, Callable[[Sequence[metrics.Tokens], metrics.References], float]],
    ) -> dict[str, float]:
        """BLEU, ROUGE-L, CIDEr-D and `more` of N captions, in the words of the protocol; those of COCO as coco_*.

        One of `more` that fails is left out, with a message: the captions have taken long by then.
        """
        candidates = [PROTOCOLS[self.protocol](caption) for caption in captions]
        scores = metrics.overlap(candidates, self.references)
        for name, score in more.items():
            try:
                scores[name] = score(candidates, self.references)
            except UserError as error:
                print(f"{name} is not among the scores: {error}", file=sys.stderr)
        return {f"coco_{name}" if self.protocol == "coco" else name: score for name, score in scores.items()}

    @cached_property
    def training_tokens(self) -> dict[tuple[str, ...], str]:
        """The training captions by their tokens, to recognise what captions repeat; empty without a training split."""
        known = self.store.captions("train") if "train" in self.store.splits else []
        return {tuple(metrics.tokenize(caption)): caption for caption in known}

    @cached_property
    def training_contacts(self) -> set[str]:
        """The handles, e-mail addresses and phone numbers in the training captions."""
        return set().union(*map(contacts, self.training_tokens.values()))


class Judge:
    """Scores captions by the CLIP that made the data, which is the same for every model.

    Args:
        held_out: the pictures and their true captions.
        prompt: the text that CLIPScore puts in front of a caption.
    """

    def __init__(self, held_out: HeldOut, prompt: str) -> None:
        clip = held_out.store.clip
        self.encoder, self.prompt = held_out.encoder(clip["model"], clip["pretrained"]), prompt
        self.images = held_out.stored_embeddings()
        texts = self._encode([caption for captions in held_out.captions for caption in captions])
        # One array (captions of the image, C) per image.
        self.references = np.split(texts, np.cumsum([len(captions) for captions in held_out.captions])[:-1])

    def scores(self, captions: Sequence[str]) -> dict[str, float]:
        """CLIPScore and RefCLIPScore of N captions, one per picture; see `metrics.clip_scores`."""
        return metrics.clip_scores(self.images, self._encode(captions), self.references)

    def _encode(self, captions: Sequence[str]) -> np.ndarray:
        return self.encoder.encode_texts([f"{self.prompt} {caption}".strip() for caption in captions]).numpy()


def make_judge(held_out: HeldOut, prompt: str) -> Judge | None:
    """The judge, or None with a message where the data's CLIP cannot be loaded: the other scores do not need it."""
    try:
        return Judge(held_out, prompt)
    except UserError as error:
        print(f"CLIPScore is left out: {error}", file=sys.stderr)
        return None
