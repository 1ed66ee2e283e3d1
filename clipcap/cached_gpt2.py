"""GPT-2 for decoding: a preallocated key-value cache that several continuations of one image share.

The K continuations of an image (beams, samples) write their keys and values side by side into one cache, and a mask
says which of them each continuation descends from. Reordering beams then moves rows of the mask, never the cache.
Attention runs over the whole cache, filled or not: shapes stay the same from step to step, and the cache contiguous.

Shapes: B images, K continuations of each, L cache positions, S prefix and prompt, H heads, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from clipcap.linear import prepare_linear

GROWTH = 32  # steps for which a cache has room at first, and by which it grows


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention of a few new positions to a cache: query (B, H, K, D / H), mask (1 or B, K, L) -> (B, H, K, D / H).

    PyTorch's fused attention is made for long queries: on a CPU two batched products are 2 to 4 times faster here.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values, mask[:, None], scale=scaling)
    if len(mask) > 1:
        mask = mask[:, None].expand(-1, query.shape[1], -1, -1).flatten(0, 1)
    scores = torch.baddbmm(mask, query.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2), alpha=scaling)
    return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view_as(query)


class Block:
    """One transformer block with its weights prepared for inference."""

    def __init__(self, block: nn.Module, heads: int) -> None:
        self.heads, self.scaling = heads, block.attn.scaling
        self.norm_1, self.norm_2 = block.ln_1, block.ln_2
        self.qkv = prepare_linear(block.attn.c_attn)
        self.attention_output = prepare_linear(block.attn.c_proj)
        self.up = prepare_linear(block.mlp.c_fc, activation=block.mlp.act)
        self.down = prepare_linear(block.mlp.c_proj)

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, start: int, mask: Tensor | None) -> Tensor:
        """x (B, K, D) -> (B, K, D); writes positions start .. start + K of keys and values (B, H, L, D / H).

        Without a mask x is the whole text so far, and attention is causal.
        """
        query, key, value = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        end = start + x.shape[1]
        keys[:, :, start:end], values[:, :, start:end] = key, value
        if mask is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scaling)
        else:
            mixed = attend(query, keys, values, mask, self.scaling)
        x = x + self.attention_output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm_2(x)))


class CachedGPT2:
    """The weights of a Hugging Face GPT-2, prepared once for many decoding sessions, in the dtype they have."""

    def __init__(self, gpt: GPT2LMHeadModel) -> None:
        self.embedding, self.position = gpt.transformer.wte.weight, gpt.transformer.wpe.weight
        self.blocks = [Block(block, gpt.config.n_head) for block in gpt.transformer.h]
        self.norm = gpt.transformer.ln_f
        self.head: Callable[[Tensor], Tensor] = prepare_linear(gpt.lm_head)
        self.heads = gpt.config.n_head

    def begin(self, prefix: Tensor, prompts: Sequence[Sequence[int]] | None, width: int, steps: int) -> Session:
        """Read prefix (B, P, D) and prompts; the session's `logits` then predict the first caption token."""
        return Session(self, prefix, prompts, width, steps)


class Session:
    """One batch being decoded.

    Attributes:
        logits: (B, V), those of the first caption token.
    """

    def __init__(
        self, gpt: CachedGPT2, prefix: Tensor, prompts: Sequence[Sequence[int]] | None, width: int, steps: int
    ) -> None:
        self.gpt, self.width = gpt, width
        batch, _, dim = prefix.shape
        device = prefix.device
        prompts = prompts or [()] * batch
        lengths = torch.tensor([prefix.shape[1] + len(prompt) for prompt in prompts], device=device)
        longest = max(len(prompt) for prompt in prompts)
        padded = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device).long()
        x = torch.cat((prefix, gpt.embedding[padded]), dim=1)  # (B, S, D), prompts padded on the right
        self.end = x.shape[1]
        self.positions = lengths[:, None].expand(batch, width)  # of the next token
        room = steps - 1 if device.type == "cuda" else min(steps - 1, GROWTH)
        self.cache = prefix.new_zeros(len(gpt.blocks), 2, batch, gpt.heads, self.end + width * room, dim // gpt.heads)
        alike = width == 1 and min(map(len, prompts)) == longest
        seen = torch.arange(self.end, device=device) < lengths[: 1 if alike else batch, None]  # not the padding
        self.mask = prefix.new_full((len(seen), width, self.cache.shape[-2]), float("-inf"))
        self.mask[:, :, : self.end].masked_fill_(seen[:, None], 0)
        self.own = prefix.new_full((width, width), float("-inf")).fill_diagonal_(0)
        states = self._run(x + gpt.position[: self.end], start=0, mask=None)
        last = states[torch.arange(batch, device=device), lengths - 1]
        self.logits = gpt.head(gpt.norm(last))

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of every continuation (B, K) -> logits (B, K, V) of the one after it."""
        start, self.end = self.end, self.end + self.width
        if self.end > self.cache.shape[-2]:
            self._grow()
        self.mask[:, :, start : self.end] = self.own
        x = self.gpt.embedding[tokens] + self.gpt.position[self.positions]
        self.positions = self.positions + 1
        return self.gpt.head(self.gpt.norm(self._run(x, start, self.mask)))

    def _run(self, x: Tensor, start: int, mask: Tensor | None) -> Tensor:
        for block, (keys, values) in zip(self.gpt.blocks, self.cache, strict=True):
            x = block(x, keys, values, start, mask)
        return x

    def _grow(self) -> None:
        more = self.width * GROWTH
        self.cache = F.pad(self.cache, (0, 0, 0, more))
        self.mask = F.pad(self.mask, (0, more), value=float("-inf"))

    def reorder(self, parents: Tensor) -> None:
        """Continuation k of an image goes on from its continuation parents[:, k]; parents is (B, K)."""
        self.mask = self.mask.gather(1, parents[:, :, None].expand_as(self.mask))

    def keep(self, rows: Tensor) -> None:
        """Go on with these images alone; `rows` holds their indices in the present batch."""
        self.cache = self.cache.index_select(2, rows)
        self.positions = self.positions[rows]
        if len(self.mask) > 1:
            self.mask = self.mask[rows]
