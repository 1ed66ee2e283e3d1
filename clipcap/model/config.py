"""What rebuilds a model: plain values, as a checkpoint holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clipcap.errors import at_least


@dataclass
class ClipCapConfig:
    """All that is needed to rebuild a model and to feed it."""

    clip_model: str | None = "ViT-B/32"
    clip_pretrained: str | None = "openai"
    normalize: bool = False  # divide the CLIP embedding by its L2 norm first
    clip_dim: int = 512
    mapping: str = "mlp"
    prefix_length: int = 10
    clip_length: int = 10
    mapping_layers: int = 8
    mapping_heads: int = 8
    language_model: str = "gpt2"
    gpt2: dict[str, Any] = field(default_factory=dict)  # keyword arguments of transformers.GPT2Config
    tied_head: bool = True
    stop_token: int = 50256
    prompt: str | None = None  # text between image and caption, may hold "{literal}"
    tokenizer: str | None = field(default=None, repr=False)  # its JSON; None: that of `language_model`

    def __post_init__(self) -> None:
        at_least(
            1,
            clip_dim=self.clip_dim,
            prefix_length=self.prefix_length,
            clip_length=self.clip_length,
            mapping_layers=self.mapping_layers,
            mapping_heads=self.mapping_heads,
        )
