"""The configuration of a model: plain values that a checkpoint holds and from which the model is rebuilt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clipcap.decoding.options import POSITIONS
from clipcap.errors import UserError
from clipcap.model.controls import check_bounds
from clipcap.model.settings import GPT2_SIZES, check_gpt2, check_network, check_number, check_type

SIZES = ("clip_dim", "prefix_length", "clip_length", "mapping_layers", "mapping_heads")
TEXTS = ("clip_model", "clip_pretrained", "prompt", "tokenizer")  # these may be None
END_OF_TEXT = "<|endoftext|>"  # of GPT-2, and of many others


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
        language_model: hub name or folder of the language model that training started from.
        gpt2: keyword arguments of `transformers.GPT2Config`.
        network: of another language model its "model_type", one of ARCHITECTURES, and the keyword arguments of its
            configuration in transformers; empty for GPT-2.
        tied_head: whether the head shares its weights with the token embedding.
        stop_token: the token id that ends a caption.
        prompt: the text between image and caption, which may hold "{literal}"; None for no text.
        running_text: with a prompt, whether literal caption, prompt and caption are one text as people write it: the
            literal caption keeps its full stop, and the caption begins with a blank. Older files: no.
        controls: the bounds of what captions can be asked for, see `clipcap.model.controls`; empty for nothing.
        tokenizer: the tokenizer as JSON; None for the tokenizer of `language_model`.
        end_of_text: the token that captions learn to end with; the `stop_token` of published weights is another.

    Raises:
        UserError: a value of another type or out of its range, or a setting that is not in `clipcap.model.settings`.
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
    network: dict[str, Any] = field(default_factory=dict)
    tied_head: bool = True
    stop_token: int = 50256
    prompt: str | None = None
    running_text: bool = False
    controls: dict[str, list[int]] = field(default_factory=dict)
    tokenizer: str | None = field(default=None, repr=False)
    end_of_text: str = END_OF_TEXT

    def __post_init__(self) -> None:
        for name in (*SIZES, "stop_token"):
            check_number(name, getattr(self, name), least=0 if name == "stop_token" else 1)
        for name in ("normalize", "tied_head", "running_text"):
            check_type(name, getattr(self, name), bool)
        names = ("mapping", "language_model", "end_of_text")
        for name in (*names, *(name for name in TEXTS if getattr(self, name) is not None)):
            check_type(name, getattr(self, name), str)
        for name in ("clip_model", "clip_pretrained", *names):
            if not (getattr(self, name) or "").isprintable():
                raise UserError(f"{name} holds characters that cannot be printed: {getattr(self, name)!r}")
        check_bounds(self.controls)
        check_gpt2(self.gpt2)
        check_network(self.network)

    @property
    def blank(self) -> str:
        """What stands between prompt and caption."""
        return " " if self.prompt and self.running_text else ""

    @property
    def vocabulary(self) -> int:
        """V, how many tokens the language model has."""
        return self.network["vocab_size"] if self.network else (GPT2_SIZES | self.gpt2)["vocab_size"]

    @property
    def width(self) -> int:
        """D, the width of the language model's token embeddings."""
        if not self.network:
            return (GPT2_SIZES | self.gpt2)["n_embd"]
        return self.network.get("word_embed_proj_dim", self.network["hidden_size"])

    @property
    def positions(self) -> int:
        """How many positions prefix and text may take; no more than GPT-2's, and all within a sliding window."""
        if not self.network:
            return (GPT2_SIZES | self.gpt2)["n_positions"]
        window = self.network.get("sliding_window") or POSITIONS
        return min(self.network["max_position_embeddings"], window, POSITIONS)
