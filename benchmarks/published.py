"""The published ClipCap algorithm, written plainly from its description: the baseline of the benchmark.

Mokady et al., "ClipCap: CLIP Prefix for Image Captioning", 2021, https://arxiv.org/abs/2111.09734, and what the code at
https://github.com/rmokady/CLIP_prefix_caption does: one image at a time, float32, every decoding step runs GPT-2 over
the whole sequence again and computes the logits of every position, and a training step pads captions to one length.

Two things are left out in the baseline's favour: the sort of the vocabulary before its greedy choice, which changes
nothing, and decoding a token's text at every step.

Shapes: C CLIP width, P prefix length, D GPT-2 width, T tokens, S sequence, K beams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from clipcap.clip.formats import open_picture

PADDING = 0  # the published loss ignores this token, wherever it stands


class PublishedClipCap(nn.Module):
    """The parts of the algorithm: CLIP, the MLP mapping network and Hugging Face's GPT-2.

    Args:
        clip: an open_clip model.
        transform: its picture transform: PIL picture -> (3, H, W).
        clip_project: (B, C) -> (B, P * D).
        gpt: GPT-2 with its head.
    """

    def __init__(self, clip: CLIP, transform: Callable, clip_project: nn.Module, gpt: GPT2LMHeadModel) -> None:
        super().__init__()
        self.clip, self.transform, self.clip_project, self.gpt = clip, transform, clip_project, gpt

    @classmethod
    def of(cls, weights: dict[str, Tensor], gpt: GPT2LMHeadModel, clip: CLIP, transform: Callable) -> Self:
        """With the mapping network of ClipCap weights, whose names are the published ones."""
        first, second = weights["clip_project.model.0.weight"], weights["clip_project.model.2.weight"]
        project = nn.Sequential(nn.Linear(first.shape[1], len(first)), nn.Tanh(), nn.Linear(len(first), len(second)))
        start = "clip_project.model."
        project.load_state_dict({name.removeprefix(start): t for name, t in weights.items() if name.startswith(start)})
        return cls(clip, transform, project.to(first.device), gpt)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.gpt.transformer.wte.weight.device

    def embed(self, photo: Path) -> Tensor:
        """One photo -> its CLIP embedding (1, C)."""
        with open_picture(photo) as image:
            pixels = self.transform(image.convert("RGB"))
        return self.clip.encode_image(pixels[None].to(self.device))

    def prefix(self, clip_embedding: Tensor) -> Tensor:
        """(B, C) -> (B, P, D)."""
        return self.clip_project(clip_embedding).view(len(clip_embedding), -1, self.gpt.config.n_embd)


@torch.no_grad()
def caption(model: PublishedClipCap, photo: Path, max_tokens: int, stop_token: int, beams: int = 1) -> list[int]:
    """One photo -> token ids: greedy, or the best of several beams."""
    prefix = model.prefix(model.embed(photo))
    if beams == 1:
        return greedy(model.gpt, prefix, max_tokens, stop_token)
    return beam_search(model.gpt, prefix, max_tokens, stop_token, beams)[0]


@torch.no_grad()
def greedy(gpt: GPT2LMHeadModel, prefix: Tensor, max_tokens: int, stop_token: int) -> list[int]:
    """(1, P, D) -> ids up to and with the stop token. Nothing is kept from one step to the next."""
    sequence = prefix
    ids: list[int] = []
    while len(ids) < max_tokens and stop_token not in ids:
        logits = gpt(inputs_embeds=sequence, use_cache=False).logits  # (1, S, V)
        token = logits[:, -1].argmax(-1)
        ids.append(token.item())
        sequence = torch.cat((sequence, gpt.transformer.wte(token)[:, None]), dim=1)
    return ids


@torch.no_grad()
def beam_search(
    gpt: GPT2LMHeadModel, prefix: Tensor, max_tokens: int, stop_token: int, beams: int = 5
) -> list[list[int]]:
    """(1, P, D) -> K lists of ids, best first.

    Beams rank by mean log-probability per token, live and finished ones together. A finished beam has one child,
    itself, which costs nothing and does not grow.
    """
    log_probs = gpt(inputs_embeds=prefix, use_cache=False).logits[:, -1].log_softmax(-1)
    scores, tokens = log_probs[0].topk(beams)  # (K,): summed log-probabilities
    lengths = torch.ones_like(scores)
    finished = tokens == stop_token
    captions = tokens[:, None]  # (K, T)
    sequences = torch.cat((prefix.expand(beams, -1, -1), gpt.transformer.wte(tokens)[:, None]), dim=1)  # (K, S, D)
    for _ in range(max_tokens - 1):
        if finished.all():
            break
        log_probs = gpt(inputs_embeds=sequences, use_cache=False).logits[:, -1].log_softmax(-1)  # (K, V)
        log_probs[finished] = -torch.inf
        log_probs[finished, 0] = 0
        lengths = lengths + ~finished
        means = (scores[:, None] + log_probs) / lengths[:, None]
        best, chosen = means.flatten().topk(beams)
        parents, tokens = chosen // means.shape[1], chosen % means.shape[1]
        lengths, finished = lengths[parents], finished[parents]
        scores = best * lengths
        captions = torch.cat((captions[parents], tokens[:, None]), dim=1)
        sequences = torch.cat((sequences[parents], gpt.transformer.wte(tokens)[:, None]), dim=1)
        finished = finished | (tokens == stop_token)
    order = (scores / lengths).argsort(descending=True)
    return [captions[k, : int(lengths[k])].tolist() for k in order]


def padded_length(captions: Sequence[Sequence[int]]) -> int:
    """The tokens that every caption of a dataset is padded or cut to: the mean plus ten deviations, or the longest."""
    lengths = torch.tensor([len(ids) for ids in captions], dtype=torch.float)
    return min(int(lengths.mean() + 10 * lengths.std()), int(lengths.max()))


def pad(captions: Sequence[Sequence[int]], length: int) -> Tensor:
    """Lists of ids -> (B, length), cut or padded on the right."""
    tokens = torch.full((len(captions), length), PADDING)
    for row, ids in enumerate(captions):
        tokens[row, : len(ids)] = torch.tensor(ids[:length])
    return tokens


def training_loss(model: PublishedClipCap, clip_embedding: Tensor, tokens: Tensor) -> Tensor:
    """(B, C), (B, T) -> mean cross-entropy, from the logits of every position."""
    prefix = model.prefix(clip_embedding)
    sequence = torch.cat((prefix, model.gpt.transformer.wte(tokens)), dim=1)
    attended = torch.cat((tokens.new_ones(prefix.shape[:2]), (tokens != PADDING).long()), dim=1)
    logits = model.gpt(inputs_embeds=sequence, attention_mask=attended, use_cache=False).logits  # (B, P + T, V)
    predictions = logits[:, prefix.shape[1] - 1 : -1]
    return F.cross_entropy(predictions.flatten(0, 1), tokens.flatten(), ignore_index=PADDING)


def step_from_photos(
    model: PublishedClipCap, optimizer: torch.optim.Optimizer, photos: Sequence[Path], tokens: Tensor
) -> None:
    """One training step with CLIP in it: image by image, and in the graph, since nothing takes it out."""
    clip_embedding = torch.cat([model.embed(photo) for photo in photos])
    step_from_embeddings(model, optimizer, clip_embedding, tokens)


def step_from_embeddings(
    model: PublishedClipCap, optimizer: torch.optim.Optimizer, clip_embedding: Tensor, tokens: Tensor
) -> None:
    """One training step, all parameters of the mapping network and GPT-2."""
    model.zero_grad()
    training_loss(model, clip_embedding, tokens).backward()
    optimizer.step()


def default_optimizer(model: PublishedClipCap) -> torch.optim.Optimizer:
    """AdamW as PyTorch gives it: neither fused nor with groups. CLIP is not among its parameters."""
    return torch.optim.AdamW([*model.clip_project.parameters(), *model.gpt.parameters()], lr=2e-5)
