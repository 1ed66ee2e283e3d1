"""What a model gives away of the captions that it was trained on: contacts, copied words, and canaries.

Shapes: N captions, K canaries or continuations, C CLIP width.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipcap.data.canaries import secret
from clipcap.data.contacts import contacts
from clipcap.data.store import same_clip
from clipcap.decoding.options import Decoding
from clipcap.evaluation.metrics import Tokens
from clipcap.model.batches import PADDING
from clipcap.model.prompts import caption_embeddings, literal_captions, prompts_for

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    from clipcap.data.canaries import Canary
    from clipcap.evaluation.held_out import HeldOut
    from clipcap.model.clipcap import ClipCap

ALTERNATIVES = 999  # other secrets, to which that of a canary is compared
BATCH = 100  # continuations at a time


def given_away(
    model: ClipCap, tokenizer: Tokenizer, held_out: HeldOut, captions: Sequence[str], tokens: Sequence[Tokens]
) -> dict[str, Any] | None:
    """What N captions, and the model itself, give away of the training captions; None if the data has none.

    Returns:
        {"contacts": [{"contact", "caption"}], "copy": {"words", "text", "caption", "training_caption"},
         "canaries": [{"sentence", "in_caption", "completed", "rank", "of", "exposure"}]}
    """
    if not held_out.training_tokens:
        return None
    return {
        "contacts": [
            {"contact": contact, "caption": caption}
            for caption in dict.fromkeys(captions)
            for contact in sorted(contacts(caption) & held_out.training_contacts)
        ],
        "copy": longest_copy(captions, tokens, held_out.training_tokens),
        "canaries": canaries(model, tokenizer, held_out, captions),
    }


def privacy_scores(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """The rows of the table that `given_away` decides."""
    if found is None:
        return {}
    planted = found["canaries"]
    known = {
        "contacts": len({entry["contact"] for entry in found["contacts"]}),
        "longest_copy": found["copy"]["words"],
    }
    if planted:
        known["canaries"] = sum(canary["completed"] or canary["in_caption"] for canary in planted) / len(planted)
        known["exposure"] = sum(canary["exposure"] for canary in planted) / len(planted)
    return known


def longest_copy(
    captions: Sequence[str], tokens: Sequence[Tokens], training: Mapping[tuple[str, ...], str]
) -> dict[str, Any]:
    """The longest run of words that a caption shares with a training caption, and the two captions.

    Each place of the training captions is looked up among the sorted endings of the captions, where its longest match
    is one of its two neighbours.

    Args:
        captions: N captions.
        tokens: the same as `metrics.tokenize` divides them; these are the words.
        training: the training captions by their tokens.
    """
    found = {tuple(words[i:]): text for text, words in zip(captions, tokens, strict=True) for i in range(len(words))}
    endings = sorted(found)
    best: dict[str, Any] = {"words": 0, "text": "", "caption": "", "training_caption": ""}
    for words, text in training.items():
        for start in range(len(words) - best["words"]):
            place = bisect(endings, words[start:])
            for ending in endings[max(place - 1, 0) : place + 1]:
                run = commonprefix([ending, words[start:]])
                if len(run) > best["words"]:
                    best = {"words": len(run), "text": " ".join(run)}
                    best |= {"caption": found[ending], "training_caption": text}
    return best


def canaries(model: ClipCap, tokenizer: Tokenizer, held_out: HeldOut, captions: Sequence[str]) -> list[dict[str, Any]]:
    """How well the model knows the secret of each canary in the training split.

    "in_caption": the secret stands in one of the captions; "completed": given the picture and the sentence up to the
    secret, the model goes on with it. The exposure is log2("of") - log2("rank"), where the secret's loss has this rank
    among those of "of" secrets, the others drawn at random (Carlini et al. 2019): on average 1.44 bits for a secret
    that the model has not seen, and at most log2(1000), about 10. Empty for a model of another CLIP than the data's.
    """
    store = held_out.store
    if not same_clip(store, model.config):
        return []
    pairs = zip(store.column("train", "image_id"), store.captions("train"), strict=True)
    rows = {pair: row for row, pair in enumerate(pairs)}
    planted = [canary for canary in store.canaries if (canary.image_id, canary.caption) in rows]
    embeddings = store.embeddings("train")[[rows[canary.image_id, canary.caption] for canary in planted]]  # (K, C)
    literals = literal_captions(model, embeddings)
    prompts = prompts_for(model, tokenizer, len(embeddings), literals) or [[]] * len(embeddings)
    openings = [tokenizer.encode(model.config.blank + canary.opening).ids for canary in planted]
    prompts = [[*prompt, *opening] for prompt, opening in zip(prompts, openings, strict=True)]
    endings = caption_embeddings(model, embeddings, Decoding(max_tokens=16), prompts)
    found = []
    for canary, embedding, prompt, ending in zip(planted, embeddings, prompts, endings, strict=True):
        rank = _rank(model, tokenizer, canary, embedding, prompt)
        found.append(
            {
                "sentence": canary.caption,
                "in_caption": any(canary.secret in caption for caption in captions),
                "completed": ending.startswith(canary.secret),
                "rank": rank,
                "of": ALTERNATIVES + 1,
                "exposure": math.log2(ALTERNATIVES + 1) - math.log2(rank),
            }
        )
    return found


def _rank(model: ClipCap, tokenizer: Tokenizer, canary: Canary, embedding: np.ndarray, prompt: list[int]) -> int:
    """1 if no alternative has as small a loss as the canary's secret, given its picture (C) and the text before it."""
    draw = random.Random(canary.secret)
    secrets = [canary.secret, *(secret(draw) for _ in range(ALTERNATIVES))]
    texts = [encoding.ids for encoding in tokenizer.encode_batch([f" {text}" for text in secrets])]
    parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    losses = torch.cat([secret_losses(model, embedding, prompt, part) for part in parts])
    return 1 + int((losses[1:] <= losses[0]).sum())


@torch.inference_mode()
def secret_losses(model: ClipCap, embedding: np.ndarray, prompt: list[int], texts: list[list[int]]) -> Tensor:
    """The loss (K,), in nats, of K continuations of one picture (C) and prompt, which are read once for all of them."""
    longest = max(map(len, texts))
    tokens = torch.tensor([[*ids, *[PADDING] * (longest - len(ids))] for ids in texts], device=model.device)
    prefix = model.prefix(torch.tensor(embedding[None]))
    session = model.decoder().begin(prefix, [prompt], len(texts), longest)
    logits, losses = session.logits.expand(len(texts), -1), []
    for place in range(longest):
        losses.append(F.cross_entropy(logits.float(), tokens[:, place], reduction="none"))
        logits = session.step(tokens[None, :, place])[0] if place + 1 < longest else logits
    lengths = torch.tensor([len(ids) for ids in texts], device=model.device)
    said = torch.arange(longest, device=model.device)[:, None] < lengths  # (longest, K)
    return (torch.stack(losses) * said).sum(0)
