"""One transformer block of GPT-2 over a key-value cache.

Shapes: B images, K positions of each, L cache positions, H heads, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from clipcap.fast.attention import attend
from clipcap.fast.linear import prepare_linear


class Block(nn.Module):
    """One transformer block with its weights prepared for inference."""

    def __init__(self, block: nn.Module, heads: int, fast: bool) -> None:
        super().__init__()
        assert isinstance(block, GPT2Block)
        self.heads, self.scaling, self.fast = heads, float(block.attn.scaling), fast
        self.norm_1, self.norm_2 = block.ln_1, block.ln_2
        self.qkv = prepare_linear(block.attn.c_attn, fast=fast)
        self.attention_output = prepare_linear(block.attn.c_proj, fast=fast)
        self.up = prepare_linear(block.mlp.c_fc, activation=block.mlp.act, fast=fast)
        self.down = prepare_linear(block.mlp.c_proj, fast=fast)

    def forward(
        self, x: Tensor, cache: Tensor, slots: Tensor, mask: Tensor | None, wanted: Tensor | None = None
    ) -> Tensor:
        """The block's output (B, K, D) for its input x (B, K, D), or (B, 1, D) at its positions `wanted` (B,) alone.

        It writes the positions `slots` (K,) of its cache, keys and values (2, B, H, L, D / H). Without a mask, x is the
        whole text so far and attention is causal.
        """
        qkv = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        cache.index_copy_(3, slots, qkv[1:])
        query, keys, values = qkv.unbind()
        if wanted is not None:
            rows = torch.arange(len(x), device=x.device)
            x, query = x[rows, wanted][:, None], query[rows, :, wanted][:, :, None]
        if mask is None:
            mixed = F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=self.scaling)
        else:
            mixed = attend(query, cache[0], cache[1], mask, self.scaling, self.fast)
        x = x + self.attention_output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm_2(x)))
