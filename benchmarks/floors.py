"""The least arithmetic and memory traffic of each stage: the floor that no code gets under in the same precision.

Counted are products with weights, two operations each, which is nearly all there is; attention and element-wise work
come on top. Memory traffic is that of the weights, shared by a batch.

Shapes: P prefix length, D GPT-2 width, V vocabulary, C CLIP width.
"""

from __future__ import annotations

import torch

from benchmarks.machine import Work
from benchmarks.setting import Sizes
from clipcap.model.clipcap import ClipCap

OPTIMIZER_BYTES = 28  # AdamW reads a float32, its gradient and two moments, and writes all but the gradient


def clip_image(sizes: Sizes, batch: int, dtype: torch.dtype) -> Work:
    """One image through CLIP. In the last block the class token alone needs a query, an output and an MLP."""
    vision = sizes.clip["vision_cfg"]
    width, patch, layers = vision["width"], vision["patch_size"], vision["layers"]
    patches = (vision["image_size"] // patch) ** 2
    block = 12 * width**2
    products = layers * (patches + 1) * block - patches * 10 * width**2
    products += patches * 3 * patch**2 * width + width * sizes.clip["embed_dim"]
    return Work(2 * products, dtype.itemsize * layers * block / batch, dtype)


def caption(model: ClipCap, tokens: int, batch: int, dtype: torch.dtype, beams: int = 1) -> Work:
    """One caption with a key-value cache: prefix, then a step per token and beam; the head on new tokens only."""
    blocks, head, mapping = _parameters(model)
    later = beams * (tokens - 1)
    products = mapping + blocks * (model.config.prefix_length + later) + head * (1 + later)
    read = dtype.itemsize * ((blocks + head) * tokens + mapping)
    return Work(2 * products, read / batch, dtype)


def training_caption(model: ClipCap, tokens: float, batch: int, dtype: torch.dtype) -> Work:
    """One caption's share of a training step, with `requires_grad` set on what trains.

    Every product runs forwards once; backwards once towards its input where something below it trains, and once towards
    its weights where they train themselves.

    Args:
        tokens: of a caption, on average and without padding.
    """
    blocks, head, mapping = _parameters(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    in_head = model.gpt.lm_head.weight.requires_grad
    below_head = any(not name.startswith(("gpt.lm_head.", "gpt.transformer.ln_f.")) for name in trained)
    in_blocks = sum(p.numel() for p in model.gpt.transformer.h.parameters() if p.requires_grad and p.ndim > 1) / blocks
    in_mapping = all(weight.requires_grad for weight in model.clip_project.parameters())
    read = model.config.prefix_length + tokens - 1  # the last token is only predicted
    products = blocks * read * (1 + below_head + in_blocks)
    products += head * tokens * (1 + below_head + in_head) + mapping * (1 + 2 * in_mapping)
    moved = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Work(2 * products, OPTIMIZER_BYTES * moved / batch, dtype)


def _parameters(model: ClipCap) -> tuple[int, int, int]:
    """Of the matrices of GPT-2's blocks, its head, and the mapping network, in any precision."""
    gpt2 = model.gpt.config
    mapping = sum(weight.numel() for weight in model.clip_project.parameters())
    return 12 * gpt2.n_layer * gpt2.n_embd**2, gpt2.vocab_size * gpt2.n_embd, mapping
