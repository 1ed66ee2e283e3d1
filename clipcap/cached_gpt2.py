"""GPT-2 for decoding: a preallocated key-value cache that several continuations of one image share.

The K continuations of an image (beams, samples) write their keys and values side by side into one cache, and a mask
says which of them each continuation descends from. Reordering beams then moves rows of the mask, never the cache.

Shapes: B images, K continuations of each, L cached positions, S prefix and prompt, H heads, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from clipcap.linear import prepare_linear


class Block:
    """One transformer block with its weights prepared for inference."""

    def __init__(self, block: nn.Module) -> None:
        self.norm_1, self.norm_2 = block.ln_1, block.ln_2
        self.scaling = block.attn.scaling
        self.qkv = prepare_linear(block.attn.c_attn)
        self.attention_output = prepare_linear(block.attn.c_proj)
        self.up = prepare_linear(block.mlp.c_fc, activation=block.mlp.act)
        self.down = prepare_linear(block.mlp.c_proj)

    def __call__(
        self, x: Tensor, keys: Tensor, values: Tensor, start: int, mask: Tensor | None, causal: bool
    ) -> Tensor:
        """x (B, K, D) -> (B, K, D); writes positions start .. start + K of keys and values (B, H, L, D / H)."""
        end = start + x.shape[1]
        query, key, value = self.qkv(self.norm_1(x)).unflatten(-1, (3, keys.shape[1], -1)).permute(2, 0, 3, 1, 4)
        keys[:, :, start:end], values[:, :, start:end] = key, value
        mixed = F.scaled_dot_product_attention(
            query, keys[:, :, :end], values[:, :, :end], mask, is_causal=causal, scale=self.scaling
        )
        x = x + self.attention_output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm_2(x)))


class CachedGPT2:
    """The weights of a Hugging Face GPT-2, prepared once for many decoding sessions, in the dtype they have."""

    def __init__(self, gpt: GPT2LMHeadModel) -> None:
        self.embedding, self.position = gpt.transformer.wte.weight, gpt.transformer.wpe.weight
        self.blocks = [Block(block) for block in gpt.transformer.h]
        self.norm = gpt.transformer.ln_f
        self.head: Callable[[Tensor], Tensor] = prepare_linear(gpt.lm_head)
        self.heads = gpt.config.n_head

    def begin(self, prefix: Tensor, prompts: Sequence[Sequence[int]] | None, width: int, steps: int) -> Session:
        """Read prefix (B, P, D) and prompts; the session's `logits` then predict the first caption token."""
        return Session(self, prefix, prompts, width, steps)


class Session:
    """One batch being decoded.

    Attributes:
        logits: (B, V) after `begin`: those of the first caption token.
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
        self.start = self.end = x.shape[1]
        capacity = self.start + width * (steps - 1)
        self.cache = prefix.new_empty(len(gpt.blocks), 2, batch, gpt.heads, capacity, dim // gpt.heads)
        self.lengths = lengths[:, None].expand(batch, width)  # position of the next token
        self.visible = None
        if width > 1 or min(map(len, prompts)) < longest:
            seen = torch.arange(self.start, device=device) < lengths[:, None]
            self.visible = prefix.new_zeros(batch, width, capacity, dtype=torch.bool)
            self.visible[:, :, : self.start] = seen[:, None]
        states = self._run(x + gpt.position[: self.start], mask=None, causal=True)
        last = states[torch.arange(batch, device=device), lengths - 1]
        self.logits = gpt.head(gpt.norm(last))

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of every continuation (B, K) -> logits (B, K, V) of the one after it."""
        mask = None
        if self.visible is not None:
            new = self.visible[:, :, self.end : self.end + self.width]
            new[:] = torch.eye(self.width, dtype=torch.bool, device=new.device)
            mask = self.visible[:, None, :, : self.end + self.width]
        x = self.gpt.embedding[tokens] + self.gpt.position[self.lengths]
        start, self.end = self.end, self.end + self.width
        states = self._run(x, mask, causal=False, start=start)
        self.lengths = self.lengths + 1
        return self.gpt.head(self.gpt.norm(states))

    def _run(self, x: Tensor, mask: Tensor | None, causal: bool, start: int = 0) -> Tensor:
        for block, (keys, values) in zip(self.gpt.blocks, self.cache, strict=True):
            x = block(x, keys, values, start, mask, causal)
        return x

    def reorder(self, parents: Tensor) -> None:
        """Continuation k of an image goes on from its continuation parents[:, k]; parents is (B, K)."""
        self.visible = self.visible.gather(1, parents[:, :, None].expand_as(self.visible))

    def keep(self, rows: Tensor) -> None:
        """Go on with these images alone; `rows` holds their indices in the present batch."""
        self.cache = self.cache.index_select(2, rows)
        self.lengths = self.lengths[rows]
        if self.visible is not None:
            self.visible = self.visible[rows]
