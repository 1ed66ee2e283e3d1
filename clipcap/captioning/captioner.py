"""Pictures -> captions, from end to end: what notebooks and `predict.py` call.

Shapes: B pictures, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from clipcap.captioning.candidates import Candidates, check_start, tokens_of
from clipcap.captioning.choice import Choice
from clipcap.captioning.options import Picture, batch_sizes, check_sizes, decoding_and_rules, pictures_in
from clipcap.captioning.posts import Frame
from clipcap.captioning.rows import Row
from clipcap.captioning.rules import Rules, framed
from clipcap.clip.encoder import ClipEncoder
from clipcap.clip.images import UnreadableImage
from clipcap.clip.names import is_folder, names_weights
from clipcap.clip.tensors import convert
from clipcap.clip.workers import pixel_batches
from clipcap.decoding.options import Decoding
from clipcap.decoding.search import NoCaption
from clipcap.devices import pick_device, pick_dtype
from clipcap.errors import UserError, is_out_of_memory
from clipcap.fast.exchange import speed_up
from clipcap.model.clipcap import ClipCap
from clipcap.model.config import ClipCapConfig
from clipcap.model.language_model import tokenizer_of
from clipcap.model.prompts import literal_captions, prompts_for
from clipcap.weights.checkpoint import load_checkpoint
from clipcap.weights.places import check_clip_place, may_follow
from clipcap.weights.published import resolve_weights

CLIP_BATCH = 64
Captioned = tuple[list[str], str | None]  # a picture's captions, and the literal caption in its prompt, if any


@dataclass
class Captioner:
    """A trained model with its tokenizer and the CLIP that it was trained on."""

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
        fast: bool = True,
        decode_on_device: bool = False,
        **overrides: Any,
    ) -> Captioner:
        """Load weights and everything that captioning with them needs.

        Args:
            weights: a file, the name of published weights, or `hf:owner/name` of the hub.
            clip: a CLIP to use in place of the one that the weights name: a name as `ClipEncoder.load` takes it, or one
                that is loaded already.
            device: "auto", "cpu", "cuda", ...
            precision: "auto" (bf16 or fp16 where that is fast), "fp32", "bf16", "fp16", or, on a CPU, "int8".
            fast: use `clipcap.fast`, which gives the same captions sooner; samples are drawn from other numbers.
            decode_on_device: let the device decode JPEGs, see `clipcap.clip.jpegs`; of the CLIP that is loaded here.
            **overrides: fields of the weights' config to replace, as in `load_checkpoint`.

        Raises:
            UserError: the weights, their CLIP or their tokenizer cannot be loaded, or do not fit each other.
        """
        file = resolve_weights(weights)
        chosen = pick_device(device)
        dtype, int8 = pick_dtype(precision, chosen, fast), precision == "int8"
        model = load_checkpoint(file, **overrides).requires_grad_(False)
        model.use_fast(fast)
        if fast:  # decoding has its own fast form; this is for `likelihoods`, which rank several captions, and for int8
            speed_up(model, int8=int8)
        model = convert(model, dtype, chosen)
        config = model.config
        tokenizer = tokenizer_of(config)
        if not isinstance(clip, ClipEncoder):
            named = _clip_name(weights, file, config, clip)
            clip = ClipEncoder.load(*named, chosen, dtype, fast=fast, int8=int8, decode_on_device=decode_on_device)
        elif decode_on_device:
            raise UserError("decode_on_device came too late for a CLIP that is loaded: give it to ClipEncoder.load")
        if clip.dim != config.clip_dim:
            raise UserError(
                f"{weights} takes embeddings of {config.clip_dim} numbers (CLIP {config.clip_model}), and CLIP "
                f"{clip.model_name} makes {clip.dim}: use the CLIP that the weights were trained on"
            )
        return cls(model, clip, tokenizer)

    @overload
    def __call__(self, images: Sequence[Picture], decoding: None = None) -> list[str]: ...

    @overload
    def __call__(
        self, images: Sequence[Picture], decoding: Decoding | None = None, **options: Any
    ) -> list[str] | list[list[str]]: ...

    def __call__(
        self, images: Sequence[Picture], decoding: Decoding | None = None, **options: Any
    ) -> list[str] | list[list[str]]:
        """Caption pictures.

        Args:
            images: paths or PIL pictures.
            decoding: how to search; greedy when None.
            **options: fields of Decoding and Rules (`num_captions=3`, `ban=["dog"]`, `emoji="none"`, ...).

        Returns:
            A caption for each picture; with num_captions above 1 or return_all a list of captions for each, best first.

        Raises:
            UnreadableImage: a picture cannot be read or gets no caption; the message names it and says why.
            UserError: something is no picture, or an option is unknown or has a value that is impossible or does not
                fit these weights.
        """
        images = pictures_in(images)
        decoding, rules = decoding_and_rules(decoding, **options)
        captions = []
        for number, row in enumerate(self.rows(images, decoding, rules, workers=0), 1):
            if row.error is not None:
                raise UnreadableImage(f"{row.image}, {number} of {len(images)}: {row.error}")
            captions.append(row.captions)
        return captions if rules.num_captions > 1 or decoding.return_all else [best for best, *_ in captions]

    def rows(
        self,
        sources: Iterable[Picture],
        decoding: Decoding,
        rules: Rules,
        batch_size: int | None = None,
        workers: int | None = None,
    ) -> Iterator[Row]:
        """Caption a stream of pictures, in order. Memory does not grow with their number.

        In fp32, captions depend neither on the batches nor on the order of the pictures. In bf16 and int8 they may,
        where two words are as good up to rounding (see `decode`); and the samples of a picture may, since they are
        drawn by the signs of its embedding, of which a number near 0 may have another sign in another batch.

        Args:
            sources: paths or PIL pictures.
            decoding: how to search.
            rules: what the captions must keep to.
            batch_size: pictures per batch; None: as many as decode well together, and fewer in the first batch.
            workers: processes that decode pictures, see `clipcap.clip.workers`.

        Yields:
            One row per picture; one that cannot be read, or that gets no caption, gives a row with an error.

        Raises:
            UserError: a batch is too large, or the options do not fit these weights.
        """
        check_sizes(batch_size, workers)
        if start := rules.frame().start:
            tokens = tokens_of(self.tokenizer, start, self.model.config.blank)
            check_start(start, len(tokens), min(decoding.max_tokens, self.model.room))
        first, size = batch_sizes(decoding, rules, batch_size)
        for batch in pixel_batches(sources, self.encoder.preprocessing, size, workers, first):
            pictures = [(source, *framed(source, decoded, rules)) for source, decoded in batch]
            pixels = [decoded for _, decoded, _ in pictures if not isinstance(decoded, UnreadableImage)]
            frames = [frame for _, decoded, frame in pictures if not isinstance(decoded, UnreadableImage)]
            captioned = self._caption(pixels, frames, decoding, rules) if pixels else iter(())
            for source, decoded, _ in pictures:
                image = str(source) if isinstance(source, str | Path) else "picture"
                result = decoded if isinstance(decoded, UnreadableImage) else next(captioned)
                if isinstance(result, UnreadableImage | NoCaption):
                    yield Row(image, error=str(result))
                else:
                    captions, literal = result
                    yield Row(image, captions, None, literal, rules.missing(captions), rules.num_captions)

    def caption_embeddings(
        self, clip_embedding: Tensor, decoding: Decoding | None = None, **options: Any
    ) -> list[list[str]]:
        """CLIP embeddings (B, C), as the encoder makes them -> B lists of captions, best first."""
        decoding, rules = decoding_and_rules(decoding, **options)
        if rules.has_fields:
            raise UserError("an embedding has neither folder nor date: leave {folder} and {date} out")
        frames = [rules.frame()] * len(clip_embedding)
        return [captions for captions, _ in self._choose(clip_embedding, frames, decoding, rules)]

    def _caption(
        self, pixels: list[np.ndarray], frames: list[Frame], decoding: Decoding, rules: Rules
    ) -> Iterator[Captioned | NoCaption]:
        """Pixels (H, W, 3) of B pictures, and their frames -> what `_choose` gives for each, or why nothing."""
        starts = range(0, len(pixels), CLIP_BATCH)
        try:
            parts = (np.stack(pixels[start : start + CLIP_BATCH]) for start in starts)
            embeddings = torch.cat([self.encoder.encode_pixels(part) for part in parts])
            return iter(self._each(embeddings, frames, decoding, rules))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"a batch of {len(pixels)} pictures does not fit into the memory of {self.model.device}; "
                "take a smaller one (--batch-size), or fewer beams or captions"
            ) from None

    def _each(self, embeddings: Tensor, frames: list[Frame], *options: Any) -> list[Captioned | NoCaption]:
        """The same for embeddings (B, C): halving finds a picture that gets no caption, which takes no other's away."""
        try:
            return [*self._choose(embeddings, frames, *options)]
        except NoCaption as error:
            if len(frames) == 1:
                return [error]
        half = len(frames) // 2
        first = self._each(embeddings[:half], frames[:half], *options)
        return first + self._each(embeddings[half:], frames[half:], *options)

    def _choose(self, clip_embedding: Tensor, frames: list[Frame], decoding: Decoding, rules: Rules) -> list[Captioned]:
        """(B, C) and B frames -> for each picture its captions, and the literal caption in its prompt, if any."""
        literals = literal_captions(self.model, clip_embedding)
        prompts = prompts_for(self.model, self.tokenizer, len(clip_embedding), literals, rules)
        encode_texts = self.encoder.encode_texts
        starts = [frame.start for frame in frames]
        candidates = Candidates(self.model, self.tokenizer, encode_texts, clip_embedding, prompts, rules.rank, starts)
        captions = Choice(candidates, decoding, rules, frames).choose()
        prompted_by: Sequence[str | None] = literals or [None] * len(clip_embedding)
        return list(zip(captions, prompted_by, strict=True))


def _clip_name(
    weights: str | Path, file: Path, config: ClipCapConfig, clip: str | Path | None
) -> tuple[str, str | None]:
    """Name and pretrained weights of the CLIP to load: the one asked for, or else the one that the weights name."""
    if not clip:
        if not config.clip_model:
            raise UserError(f"{weights} does not say which CLIP it was trained on; name it (clip=, --clip)")
        check_clip_place(config, file)
        return config.clip_model, config.clip_pretrained
    named = config.clip_model or ""
    whole = named == "demo" or named.startswith("hf-hub:") or is_folder(named)  # it has weights of its own
    if named and not whole and Path(clip).is_file():  # a file of the CLIP that the weights name
        return named, str(clip)
    if names_weights(str(clip)):
        return str(clip), None
    followed = may_follow(config.clip_pretrained, file)
    return str(clip), (config.clip_pretrained or "openai") if followed else None
