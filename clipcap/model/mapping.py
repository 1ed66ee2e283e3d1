"""Mapping networks: one CLIP embedding -> a prefix of GPT-2 input embeddings.

Both are ClipCap's (Mokady et al., 2021, https://arxiv.org/abs/2111.09734), with the same parameter names, so that the
published weights load without renaming.

Shapes: B batch, C CLIP width, P prefix length, K CLIP length, N = K + P, D GPT-2 width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Two linear layers with a tanh between them: (B, C) -> (B, P, D)."""

    def __init__(self, clip_dim: int, dim: int, prefix_length: int) -> None:
        super().__init__()
        width = dim * prefix_length
        self.model = nn.Sequential(nn.Linear(clip_dim, width // 2), nn.Tanh(), nn.Linear(width // 2, width))
        self.prefix_length = prefix_length

    def forward(self, clip_embedding: Tensor) -> Tensor:
        """(B, C) -> (B, P, D)."""
        return self.model(clip_embedding).unflatten(-1, (self.prefix_length, -1))


class Attention(nn.Module):
    """Self-attention without a bias on queries, keys and values: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(dim, dim, bias=False)
        self.to_keys_values = nn.Linear(dim, 2 * dim, bias=False)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        query = self.to_queries(x)
        key, value = self.to_keys_values(x).chunk(2, dim=-1)
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, H, N, D / H)
        return self.project(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, twice as wide inside: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(F.relu(self.fc1(x)))


class Layer(nn.Module):
    """One pre-norm transformer layer: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Several layers, one after the other: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        for layer in self.layers:
            x = layer(x)
        return x


class TransformerMapper(nn.Module):
    """K tokens made from the CLIP embedding and P learned constants attend to each other: (B, C) -> (B, P, D)."""

    def __init__(
        self, clip_dim: int, dim: int, prefix_length: int, clip_length: int, layers: int = 8, heads: int = 8
    ) -> None:
        super().__init__()
        self.clip_length = clip_length
        self.transformer = Transformer(dim, heads, layers)
        self.linear = nn.Linear(clip_dim, clip_length * dim)
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, dim))

    def forward(self, clip_embedding: Tensor) -> Tensor:
        """(B, C) -> (B, P, D)."""
        clip_tokens = self.linear(clip_embedding).unflatten(-1, (self.clip_length, -1))  # (B, K, D)
        constants = self.prefix_const.expand(len(clip_embedding), -1, -1)
        mixed = self.transformer(torch.cat((clip_tokens, constants), dim=1))  # (B, N, D)
        return mixed[:, self.clip_length :]


MAPPINGS = {"mlp": MLP, "transformer": TransformerMapper}
