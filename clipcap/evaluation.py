"""Several models on one split: what each says about the pictures, how well, and how fast.

Shapes: N images, each once with all its captions, C CLIP width.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from clipcap import checkpoint, metrics, published
from clipcap.data import CaptionDataset, encode_captions
from clipcap.decoding import Decoding
from clipcap.embeddings import describe_clip, same_clip
from clipcap.errors import UserError
from clipcap.model import ClipCap
from clipcap.prompts import encode_prompts, needs_literal
from clipcap.report import FORMAT
from clipcap.tokenizer import end_of_text, load_tokenizer, tokenizer_from_json
from clipcap.training import validation_loss

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from clipcap.embeddings import EmbeddingStore
    from clipcap.encoder import ClipEncoder

MAX_TOKENS = 67  # of a true caption in the test loss, as in training


class Pictures:
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
        from clipcap.encoder import ClipEncoder

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
                wanted = describe_clip(config.clip_model or "an unnamed CLIP", config.clip_pretrained, config.clip_dim)
                raise UserError(
                    f"it wants embeddings of {wanted}, and {self.store.path} holds neither them nor pictures"
                )
            encoder = self.encoder(*clip)
            starts = tqdm(range(0, len(pictures), 64), f"CLIP {clip[0]}", unit="batch", leave=False, file=sys.stderr)
            self._embeddings[clip] = torch.cat([encoder.encode_images(pictures[i : i + 64]) for i in starts]).numpy()
        return self._embeddings[clip]

    def pictures(self, count: int) -> list[bytes | str | None]:
        """The first images as small JPEGs, or files where the data keeps none, or None."""
        rows = self.store.split(self.split).select(self.first_rows[:count]).select_columns(["thumbnail", "image_path"])
        return [row["thumbnail"] or row["image_path"] for row in rows]

    @cached_property
    def training_tokens(self) -> set[tuple[str, ...]]:
        """The training captions, to find those that are only repeated."""
        known = self.store.captions("train") if "train" in self.store.splits else []
        return {tuple(metrics.tokenize(caption)) for caption in known}


class Judge:
    """CLIPScore by the CLIP that made the data, the same for every model."""

    def __init__(self, pictures: Pictures, prompt: str) -> None:
        clip = pictures.store.clip
        self.encoder, self.prompt = pictures.encoder(clip["model"], clip["pretrained"]), prompt
        self.images = pictures.stored_embeddings()
        texts = self._encode([caption for captions in pictures.captions for caption in captions])
        self.references = np.split(texts, np.cumsum([len(captions) for captions in pictures.captions])[:-1])

    def scores(self, captions: Sequence[str]) -> dict[str, float]:
        return metrics.clip_scores(self.images, self._encode(captions), self.references)

    def _encode(self, captions: Sequence[str]) -> np.ndarray:
        return self.encoder.encode_texts([f"{self.prompt} {caption}".strip() for caption in captions]).numpy()


def evaluate_model(
    weights: str,
    pictures: Pictures,
    decoding: Decoding,
    judge: Judge | None,
    dtype: torch.dtype,
    batch_size: int,
    more: Sequence[str] = (),
    base: str | None = None,
) -> dict[str, Any]:
    """One model's entry of the report, without its name.

    Args:
        weights: a file, or the name of published weights.
        dtype: of the weights while captioning; the loss is computed in float32.
        more: of "meteor" and "spice".
        base: what LoRA weights were trained on, where it is no longer where they remember it.

    Raises:
        UserError: the weights cannot be used on this data.
    """
    file = published.resolve_weights(weights)
    model = checkpoint.load_checkpoint(file, pictures.device, base=base).to(dtype)
    tokenizer = _tokenizer(model)
    embeddings = pictures.embeddings(model)
    started = time.perf_counter()
    prompts = _prompts(model, tokenizer, embeddings, batch_size)
    captions = _captions(model, tokenizer, embeddings, decoding, prompts, batch_size)
    seconds = time.perf_counter() - started
    if dtype != torch.float32:
        model = checkpoint.load_checkpoint(file, pictures.device, base=base)
    loss = _loss(model, tokenizer, pictures, embeddings, prompts, batch_size)
    record = model.record
    tokens = [metrics.tokenize(caption) for caption in captions]
    scores = {name: record.get(name) for name in ("strategy", "trained_parameters", "seconds", "peak_memory_bytes")}
    scores |= {"file_bytes": file.stat().st_size, "captions_per_second": len(pictures) / seconds}
    scores |= {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    scores |= metrics.overlap(tokens, pictures.tokens) | metrics.style(tokens, pictures.training_tokens)
    scores |= judge.scores(captions) if judge else {}
    source = pictures.store.info["source"]["name"]
    scores |= demo_scores(source, pictures.split, pictures.ids, captions)
    scores |= {name: metrics.java_score(name, tokens, pictures.tokens) for name in more}
    clip = describe_clip(model.config.clip_model or "unnamed", model.config.clip_pretrained, model.config.clip_dim)
    return {
        "weights": str(weights),
        "sha256": checkpoint.sha256(file),
        "clip": clip,
        "scores": scores,
        "losses": record.get("losses", {}).get("history", []),
        "captions": captions,
    }


def _tokenizer(model: ClipCap) -> Tokenizer:
    written = model.config.tokenizer
    return tokenizer_from_json(written) if written else load_tokenizer(model.config.language_model)


def _captions(
    model: ClipCap,
    tokenizer: Tokenizer,
    embeddings: np.ndarray,
    decoding: Decoding,
    prompts: Sequence[Sequence[int]] | None,
    batch_size: int,
) -> list[str]:
    captions = []
    with tqdm(total=len(embeddings), unit="captions", leave=False, file=sys.stderr) as bar:
        for start in range(0, len(embeddings), batch_size):
            part = slice(start, start + batch_size)
            batch = torch.from_numpy(embeddings[part]).to(model.device)
            found = model.generate(batch, decoding, prompts and prompts[part])
            captions += [tokenizer.decode(ids).strip() for ids in found]
            bar.update(len(found))
    return captions


def _prompts(model: ClipCap, tokenizer: Tokenizer, embeddings: np.ndarray, batch_size: int) -> list[list[int]] | None:
    """The prompt of each image, for prompted weights; their literal captioner speaks first."""
    if model.config.prompt is None:
        return None
    literals = [""] * len(embeddings)
    if needs_literal(model.config.prompt):
        if model.literal_captioner is None:
            raise UserError("its prompt wants a literal caption, and it holds no literal captioner")
        literals = _captions(model.literal_captioner, tokenizer, embeddings, Decoding(), None, batch_size)
    return encode_prompts(tokenizer, model.config.prompt, literals)


def _loss(
    model: ClipCap,
    tokenizer: Tokenizer,
    pictures: Pictures,
    embeddings: np.ndarray,
    prompts: Sequence[Sequence[int]] | None,
    batch_size: int,
) -> float:
    """Mean cross-entropy per token of the true captions, end-of-text included where the weights learned it."""
    image_of = [image for image, captions in enumerate(pictures.captions) for _ in captions]
    texts = [caption for captions in pictures.captions for caption in captions]
    captions = encode_captions(tokenizer, texts, MAX_TOKENS)
    end = end_of_text(tokenizer)
    if model.config.stop_token != end:
        captions = [ids[:-1] if ids[-1] == end and len(ids) > 1 else ids for ids in captions]
    if prompts:
        prompts = [prompts[image] for image in image_of]
        room = model.gpt.config.n_positions - model.config.prefix_length + 1
        captions = [ids[: room - len(prompt)] for ids, prompt in zip(captions, prompts, strict=True)]
    return validation_loss(model, CaptionDataset(embeddings[image_of], captions, prompts), batch_size, progress=True)


def demo_scores(source: str, split: str, images: Sequence[str], captions: Sequence[str]) -> dict[str, float]:
    """What a caption of the demo world gets right can be read off its words; of the real world, it cannot."""
    if source != "demo":
        return {}
    from clipcap.demo.judge import shares
    from clipcap.demo.scenes import scenes

    drawn = {scene.image_id: scene for scene in scenes(split)}
    verdict = shares(captions, [drawn[image] for image in images])
    return {"right_subject": verdict.subject, "right_colour": verdict.colour, "instagram_style": verdict.instagram}


def make_judge(pictures: Pictures, prompt: str) -> Judge | None:
    """None, with a message, where the data's CLIP is not to be had: the other scores do not need it."""
    try:
        return Judge(pictures, prompt)
    except UserError as error:
        print(f"CLIPScore is left out: {error}", file=sys.stderr)
        return None


def settings(pictures: Pictures, decoding: Decoding, judge: Judge | None) -> dict[str, Any]:
    """A report without models: on what, how and with what it was made."""
    store = pictures.store
    used = {"greedy": (), "nucleus": ("temperature", "top_p", "seed"), "beam": ("beams",)}[decoding.method]
    shared = ("method", "max_tokens", "min_tokens", "no_repeat_ngram")
    packages = ("torch", "transformers", "open_clip_torch", "numpy")
    return {
        "format": FORMAT,
        "data": {
            "folder": str(store.path),
            "split": pictures.split,
            "identity": store.identity,
            "images": len(pictures),
            "captions": sum(map(len, pictures.captions)),
            "clip": store.clip,
        },
        "decoding": {name: getattr(decoding, name) for name in (*shared, *used)},
        "clip_prompt": judge.prompt if judge else None,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "models": [],
        "failed": {},
        "images": [
            {"id": image, "captions": captions} for image, captions in zip(pictures.ids, pictures.captions, strict=True)
        ],
    }
