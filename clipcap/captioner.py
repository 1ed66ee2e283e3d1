"""Pictures -> captions, end to end: what notebooks and `predict.py` call.

Shapes: B pictures, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from clipcap.captions import Rules
from clipcap.checkpoint import load_checkpoint
from clipcap.choice import Chooser
from clipcap.decoding import Decoding
from clipcap.devices import pick_device, pick_dtype
from clipcap.encoder import ClipEncoder
from clipcap.errors import UserError
from clipcap.images import UnreadableImage
from clipcap.literal import LITERAL
from clipcap.model import ClipCap, ClipCapConfig
from clipcap.network import offline_if_unreachable
from clipcap.options import settings
from clipcap.prompts import encode_prompts, needs_literal
from clipcap.rows import Row
from clipcap.tokenizer import tokenizer_of
from clipcap.workers import pixel_batches

SEQUENCES = 256  # captions decoded side by side: what a CPU and a GPU are busy with, within a gigabyte of cache
FIRST = 32  # pictures in the first batch, so that its captions come soon
CLIP_BATCH = 64

Source = str | Path | Image.Image


@dataclass
class Captioner:
    """A trained model with the CLIP that it was trained on and its tokenizer."""

    model: ClipCap
    encoder: ClipEncoder
    tokenizer: Tokenizer

    @classmethod
    def load(
        cls,
        weights: str | Path,
        clip: str | Path | ClipEncoder | None = None,
        device: str = "auto",
        precision: str = "auto",
        **overrides: Any,
    ) -> Captioner:
        """
        Args:
            weights: a file, or the name of published weights.
            clip: another CLIP than the weights name: see `ClipEncoder.load`; or one that is loaded already.
            device: "auto", "cpu", "cuda", ...
            precision: "auto" (bf16 where the device is fast at it), "fp32" or "bf16".
            overrides: of the weights' config, as in `load_checkpoint`.

        Raises:
            UserError: the weights, their CLIP or their tokenizer cannot be loaded, or do not go together.
        """
        offline_if_unreachable()
        device = pick_device(device)
        dtype = pick_dtype(precision, device)
        model = load_checkpoint(weights, **overrides).to(device=device, dtype=dtype).requires_grad_(False)
        config = model.config
        tokenizer = tokenizer_of(config)
        if not isinstance(clip, ClipEncoder):
            clip = ClipEncoder.load(*_clip_name(weights, config, clip), device, dtype)
        if clip.dim != config.clip_dim:
            raise UserError(
                f"{weights} takes embeddings of {config.clip_dim} numbers (CLIP {config.clip_model}), and CLIP "
                f"{clip.model_name} makes {clip.dim}: use the CLIP that the weights were trained on"
            )
        return cls(model, clip, tokenizer)

    def __call__(
        self, images: Sequence[Source], decoding: Decoding | None = None, **options: Any
    ) -> list[str] | list[list[str]]:
        """Caption pictures.

        Args:
            images: paths or PIL pictures.
            decoding: how to search; greedy when None.
            options: fields of Decoding and Rules (`num_captions=3`, `ban=["dog"]`, `emoji="none"`, ...).

        Returns:
            A caption for each picture; lists of captions, best first, with num_captions above 1 or return_all.

        Raises:
            UnreadableImage: a picture cannot be read; the message names it.
        """
        images = [images] if isinstance(images, Source) else list(images)
        decoding, rules = settings(decoding, **options)
        several = rules.num_captions > 1 or decoding.return_all
        captions = []
        for row in self.rows(images, decoding, rules, workers=0):
            if row.error is not None:
                raise UnreadableImage(f"{row.image}: {row.error}")
            captions.append(row.captions if several else row.captions[0])
        return captions

    def rows(
        self,
        sources: Iterable[Source],
        decoding: Decoding,
        rules: Rules,
        batch_size: int | None = None,
        workers: int | None = None,
    ) -> Iterator[Row]:
        """Caption a stream of pictures, in order; memory does not grow with their number.

        Args:
            batch_size: pictures per batch; None: as many as decode well together, fewer in the first batch.
            workers: processes that decode pictures, see `clipcap.workers`.
        """
        size = batch_size or max(8, SEQUENCES // replace(decoding, num_captions=rules.num_captions).width)
        first = batch_size or min(FIRST, size)
        for batch in pixel_batches(sources, self.encoder.preprocessing, size, workers, first):
            pixels = [decoded for _, decoded in batch if not isinstance(decoded, UnreadableImage)]
            captioned = self._caption(pixels, decoding, rules) if pixels else iter(())
            for source, decoded in batch:
                image = str(source) if isinstance(source, str | Path) else "picture"
                if isinstance(decoded, UnreadableImage):
                    yield Row(image, error=decoded.reason)
                else:
                    captions, literal = next(captioned)
                    yield Row(image, captions, None, literal, rules.missing(captions), rules.num_captions)

    def caption_embeddings(
        self, clip_embedding: Tensor, decoding: Decoding | None = None, **options: Any
    ) -> list[list[str]]:
        """CLIP embeddings (B, C), as the encoder makes them -> B lists of captions, best first."""
        return [captions for captions, _ in self._choose(clip_embedding, *settings(decoding, **options))]

    def literal_captions(self, clip_embedding: Tensor) -> list[str] | None:
        """What prompted weights put into their prompt: the captions of the literal captioner inside them."""
        if not needs_literal(self.model.config.prompt):
            return None
        if self.model.literal_captioner is None:
            raise UserError("these weights want a literal caption in their prompt, and hold no literal captioner")
        captioner = self.model.literal_captioner
        tokenizer = tokenizer_of(captioner.config)
        literal = Chooser(captioner, tokenizer, None, clip_embedding, None, LITERAL, Rules())
        return [captions[0] for captions in literal.choose()]

    def _caption(
        self, pixels: list[np.ndarray], decoding: Decoding, rules: Rules
    ) -> Iterator[tuple[list[str], str | None]]:
        starts = range(0, len(pixels), CLIP_BATCH)
        try:
            embeddings = [self.encoder.encode_pixels(np.stack(pixels[start : start + CLIP_BATCH])) for start in starts]
            return iter(self._choose(torch.cat(embeddings), decoding, rules))
        except torch.OutOfMemoryError:
            raise UserError(
                f"a batch of {len(pixels)} pictures does not fit into the memory of {self.model.device}; "
                "take a smaller one (--batch-size), or fewer beams or captions"
            ) from None

    def _choose(self, clip_embedding: Tensor, decoding: Decoding, rules: Rules) -> list[tuple[list[str], str | None]]:
        """(B, C) -> for each picture its captions, and the literal caption that they started from."""
        literals = self.literal_captions(clip_embedding)
        prompts, template = None, self.model.config.prompt
        if template:
            prompts = encode_prompts(self.tokenizer, template, literals or [""] * len(clip_embedding))
        chooser = Chooser(
            self.model, self.tokenizer, self.encoder.encode_texts, clip_embedding, prompts, decoding, rules
        )
        return list(zip(chooser.choose(), literals or [None] * len(clip_embedding), strict=True))


def _clip_name(weights: str | Path, config: ClipCapConfig, clip: str | Path | None) -> tuple[str, str | None]:
    """Name and pretrained weights of the CLIP to load: the one asked for, or else the one that the weights name."""
    if not clip:
        if not config.clip_model:
            raise UserError(f"{weights} does not say which CLIP it was trained on; name it (clip=, --clip)")
        return config.clip_model, config.clip_pretrained
    if config.clip_model and Path(clip).is_file():  # a file of the CLIP that the weights name
        return config.clip_model, str(clip)
    return str(clip), config.clip_pretrained or "openai"
