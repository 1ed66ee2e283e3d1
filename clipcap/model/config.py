"""The configuration of a model: plain values that a checkpoint holds and from which the model is rebuilt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clipcap.errors import at_least


@dataclass
class ClipCapConfig:
    """Everything needed to rebuild a model and to feed it.

    Attributes:
        clip_model, clip_pretrained: the CLIP whose embeddings the model takes; None where a file does not say.
        normalize: divide the CLIP embedding by its L2 norm first.
        clip_dim: C, the width of the CLIP embedding.
        mapping: the mapping network, a key of `clipcap.model.mapping.MAPPINGS`.
        prefix_length: P, how many prefix tokens stand in front of the text.
        clip_length, mapping_layers, mapping_heads: of the transformer mapping network only.
        language_model: hub name or folder of the GPT-2 that training started from.
        gpt2: keyword arguments of `transformers.GPT2Config`.
        tied_head: whether the head shares its weights with the token embedding.
        stop_token: the token id that ends a caption.
        prompt: the text between image and caption, which may hold "{literal}"; None for no text.
        tokenizer: the tokenizer as JSON; None for the tokenizer of `language_model`.

    Raises:
        UserError: a size is below 1.
    """

    clip_model: str | None = "ViT-B/32"
    clip_pretrained: str | None = "openai"
    normalize: bool = False
    clip_dim: int = 512
    mapping: str = "mlp"
    prefix_length: int = 10
    clip_length: int = 10
    mapping_layers: int = 8
    mapping_heads: int = 8
    language_model: str = "gpt2"
    gpt2: dict[str, Any] = field(default_factory=dict)
    tied_head: bool = True
    stop_token: int = 50256
    prompt: str | None = None
    tokenizer: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        at_least(
            1,
            clip_dim=self.clip_dim,
            prefix_length=self.prefix_length,
            clip_length=self.clip_length,
            mapping_layers=self.mapping_layers,
            mapping_heads=self.mapping_heads,
        )
