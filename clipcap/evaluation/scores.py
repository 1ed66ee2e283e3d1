"""One model on held-out pictures: its captions, how good they are, and how fast it makes them.

Shapes: N images, C CLIP width.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clipcap.captioning.options import METHOD_OF
from clipcap.clip.tensors import convert
from clipcap.data.store import clip_of, same_clip
from clipcap.decoding.options import Decoding
from clipcap.devices import pick_dtype
from clipcap.errors import UserError
from clipcap.evaluation import metrics
from clipcap.evaluation.privacy import given_away, privacy_scores
from clipcap.evaluation.report import FORMAT
from clipcap.fast.exchange import speed_up
from clipcap.model.batches import encode_captions, fit_captions
from clipcap.model.clipcap import ClipCap
from clipcap.model.language_model import end_of_text, tokenizer_of
from clipcap.model.prompts import caption_embeddings, literal_captions, prompts_for
from clipcap.training.loader import CaptionDataset, in_order
from clipcap.training.losses import summed_loss
from clipcap.weights.checkpoint import load_checkpoint
from clipcap.weights.format import sha256
from clipcap.weights.places import base_among, check_clip_place
from clipcap.weights.published import resolve_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from clipcap.evaluation.held_out import HeldOut, Judge

MAX_TOKENS = 67  # of a true caption in the test loss, as in training
LONGEST_STRATEGY = 100  # characters: what is longer, or would move a terminal's cursor, is no strategy's name
LOSS_BATCH = 64  # captions, at most: their logits take 0.9 GB with GPT-2's vocabulary


def evaluate_model(
    weights: str,
    held_out: HeldOut,
    decoding: Decoding,
    judge: Judge | None,
    precision: str,
    batch_size: int | None,
    more: Mapping[str, Callable[[Sequence[metrics.Tokens], metrics.References], float]] = MappingProxyType({}),
    base: str | None = None,
    normalize: bool | None = None,
) -> dict[str, Any]:
    """One model's entry of the report, without its name; nothing in processes other than the main one.

    Where several processes share the pictures out, all of them must call this, and it fails in all if it fails in one
    that captions. The main one alone computes the scores of the captions.

    Args:
        weights: a file, or the name of published weights.
        held_out: what to caption.
        decoding: how to search.
        judge: computes CLIPScore; None leaves it out.
        precision: of captioning, as `pick_dtype` takes it; the loss is computed in float32.
        batch_size: images per batch; None: `decoding.batch`.
        more: further scorers by name, as `java_metrics.java_scorer` makes them.
        base: the weights that LoRA weights were trained on, if they have moved.
        normalize: whether published weights take normalised embeddings; None: as far as it is known.

    Raises:
        UserError: the weights cannot be used on this data.
        Ended: another process has ended.
    """
    processes, own = held_out.processes, held_out.own
    dtype, int8 = pick_dtype(precision, held_out.device, held_out.fast), precision == "int8"

    def load() -> tuple[Path, str, ClipCap, Tokenizer, np.ndarray]:
        file = resolve_weights(weights)
        model = convert(_load(file, held_out, base, normalize, int8), dtype)
        if not same_clip(held_out.store, model.config):
            # Its own CLIP is loaded then.
            check_clip_place(model.config, file, "put it into that folder, or evaluate on data made with it")
        return file, sha256(file), model, tokenizer_of(model.config), own.embeddings(model)

    file, identity, model, tokenizer, embeddings = processes.load(load)
    processes.agree(identity[:8], "weights")

    def caption() -> tuple[list[str], float, float, int]:
        nonlocal model
        started = time.perf_counter()
        literals = literal_captions(model, embeddings, batch_size)
        prompts = prompts_for(model, tokenizer, len(embeddings), literals)
        captions = caption_embeddings(model, embeddings, decoding, prompts, batch_size, progress="captions")
        seconds = time.perf_counter() - started
        if int8 or dtype != torch.float32:  # the loss of rounded weights would not be comparable
            del model  # two would not fit where one just does
            model = _load(file, held_out, base, normalize)
        return captions, seconds, *_loss(model, tokenizer, own, embeddings, prompts, batch_size)

    shares = processes.attempt(caption)
    if not processes.main:
        return {}
    captions = [caption for share, *_ in shares for caption in share]
    seconds = max(seconds for _, seconds, *_ in shares)
    loss = sum(total for *_, total, _ in shares) / sum(count for *_, count in shares)
    tokens = [metrics.tokenize(caption) for caption in captions]
    scores, history = _trained(model.record)
    scores |= {"file_bytes": file.stat().st_size, "captions_per_second": len(held_out) / seconds}
    scores |= {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    scores |= held_out.overlap(captions, more) | metrics.style(tokens, held_out.training_tokens)
    scores |= judge.scores(captions) if judge else {}
    source = held_out.store.info["source"]["name"]
    privacy = given_away(model, tokenizer, held_out, captions, tokens)
    scores |= privacy_scores(privacy) | demo_scores(source, held_out.split, held_out.ids, captions)
    for name, score in scores.items():
        if isinstance(score, float) and not math.isfinite(score):
            raise UserError(f"its {name} is {score}: its weights, or the judge's, are damaged")
    return {
        "weights": str(weights),
        "sha256": identity,
        "clip": str(clip_of(model.config)),
        "scores": scores,
        "losses": history,
        "captions": captions,
        "privacy": privacy,
    }


def _load(file: Path, held_out: HeldOut, base: str | None, normalize: bool | None, int8: bool = False) -> ClipCap:
    model = load_checkpoint(file, held_out.device, base=base_among(file, base), normalize=normalize)
    model.requires_grad_(False)
    model.use_fast(held_out.fast)
    if held_out.fast:
        speed_up(model, int8=int8)
    return model


def _loss(
    model: ClipCap,
    tokenizer: Tokenizer,
    held_out: HeldOut,
    embeddings: np.ndarray,
    prompts: Sequence[Sequence[int]] | None,
    batch_size: int | None,
) -> tuple[float, int]:
    """The cross-entropy of the true captions, in nats, and how many tokens they have.

    End-of-text is one of these tokens where the weights learned it.
    """
    image_of = [image for image, captions in enumerate(held_out.captions) for _ in captions]
    texts = [caption for captions in held_out.captions for caption in captions]
    name = model.config.end_of_text
    captions = encode_captions(tokenizer, texts, MAX_TOKENS, name, model.config.blank)
    end = end_of_text(tokenizer, name)
    if model.config.stop_token != end:
        captions = [ids[:-1] if ids[-1] == end and len(ids) > 1 else ids for ids in captions]
    if prompts:
        prompts = [prompts[image] for image in image_of]
    fitted = fit_captions(captions, prompts or [[]] * len(captions), model.room)
    dataset = CaptionDataset(embeddings[image_of], fitted, prompts)
    return summed_loss(model, dataset, in_order(dataset, min(batch_size or LOSS_BATCH, LOSS_BATCH)), progress=True)


def _trained(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How the model was trained, and its losses step by step, as its file says; without what cannot be true.

    The file may come from a stranger, and what it says goes into tables and plots.
    """
    strategy, losses = record.get("strategy"), record.get("losses")
    sensible = isinstance(strategy, str) and strategy.isprintable() and len(strategy) <= LONGEST_STRATEGY
    scores: dict[str, Any] = {"strategy": strategy if sensible else None}
    for name in ("trained_parameters", "seconds", "peak_memory_bytes"):
        scores[name] = record.get(name) if _is_amount(record.get(name)) else None
    history = losses.get("history") if isinstance(losses, Mapping) else None
    rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    return scores, [row for row in rows if "step" in row and all(_is_amount(value) for value in row.values())]


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e300


def demo_scores(source: str, split: str, images: Sequence[str], captions: Sequence[str]) -> dict[str, float]:
    """The shares of captions that are right, where the words alone can tell it: in the demo world; else empty.

    It is also empty where a picture is not of that world, whatever the dataset calls its source.
    """
    if source != "demo":
        return {}
    from clipcap.world.judge import shares
    from clipcap.world.scenes import SPLITS, scenes

    drawn = {scene.image_id: scene for scene in scenes(split)} if split in SPLITS else {}
    if not drawn.keys() >= set(images):
        return {}
    verdict = shares(captions, [drawn[image] for image in images])
    return {"right_subject": verdict.subject, "right_colour": verdict.colour, "instagram_style": verdict.instagram}


def new_report(held_out: HeldOut, decoding: Decoding, judge: Judge | None) -> dict[str, Any]:
    """A report that has no models yet: the data, the decoding, and the versions of the packages."""
    store = held_out.store
    used = [name for name, method in METHOD_OF.items() if method == decoding.method]
    shared = ("method", "max_tokens", "min_tokens", "no_repeat_ngram")
    packages = ("torch", "transformers", "open_clip_torch", "numpy")
    return {
        "format": FORMAT,
        "data": {
            "folder": str(store.path),
            "split": held_out.split,
            "identity": store.identity,
            "images": len(held_out),
            "captions": sum(map(len, held_out.captions)),
            "clip": store.clip,
        },
        "decoding": {name: getattr(decoding, name) for name in (*shared, *used)},
        "clip_prompt": judge.prompt if judge else None,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "models": [],
        "failed": {},
        "images": [
            {"id": image, "captions": captions} for image, captions in zip(held_out.ids, held_out.captions, strict=True)
        ],
    }
