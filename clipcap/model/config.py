"""The configuration of a model: plain values that a checkpoint holds and from which the model is rebuilt."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from clipcap.errors import UserError, at_least, shown
from clipcap.model.controls import check_bounds

# What GPT2Config may be told, and with which values: everything that determines the network, and nothing else.
GPT2_SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
GPT2_SHARES = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon")
GPT2_SWITCHES = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx")
GPT2_FIELDS = (*GPT2_SIZES, "n_inner", "activation_function", *GPT2_SHARES, *GPT2_SWITCHES)
ACTIVATIONS = ("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh")
SIZES = ("clip_dim", "prefix_length", "clip_length", "mapping_layers", "mapping_heads")
TEXTS = ("clip_model", "clip_pretrained", "prompt", "tokenizer")  # these may be None
LARGEST = 2**31 - 1


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
        running_text: with a prompt, whether literal caption, prompt and caption are one text as people write it: the
            literal caption keeps its full stop, and the caption begins with a blank. Older files: no.
        controls: the bounds of what captions can be asked for, see `clipcap.model.controls`; empty for nothing.
        tokenizer: the tokenizer as JSON; None for the tokenizer of `language_model`.

    Raises:
        UserError: a value of another type or out of its range, or a field of GPT2Config that is not in GPT2_FIELDS.
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
    running_text: bool = False
    controls: dict[str, list[int]] = field(default_factory=dict)
    tokenizer: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in (*SIZES, "stop_token"):
            _check_number(name, getattr(self, name), least=0 if name == "stop_token" else 1)
        for name in ("normalize", "tied_head", "running_text"):
            _check_type(name, getattr(self, name), bool)
        for name in ("mapping", "language_model", *(name for name in TEXTS if getattr(self, name) is not None)):
            _check_type(name, getattr(self, name), str)
        for name in ("clip_model", "clip_pretrained", "language_model", "mapping"):
            if not (getattr(self, name) or "").isprintable():
                raise UserError(f"{name} holds characters that cannot be printed: {getattr(self, name)!r}")
        check_bounds(self.controls)
        _check_type("gpt2", self.gpt2, dict)
        for name, value in self.gpt2.items():
            _check_gpt2(name, value)

    @property
    def blank(self) -> str:
        """What stands between prompt and caption."""
        return " " if self.prompt and self.running_text else ""


def _check_type(name: str, value: object, kind: type) -> None:
    if type(value) is not kind:  # a bool is an int to isinstance
        raise UserError(f"{name} must be of type {kind.__name__}, not {shown(value)}")


def _check_number(name: str, value: Any, least: int = 1) -> None:
    _check_type(name, value, int)
    at_least(least, **{name: value})
    if value > LARGEST:
        raise UserError(f"{name} must be at most {LARGEST}, not 1e{math.log10(value):.0f}")


def _check_gpt2(name: Any, value: Any) -> None:
    if name not in GPT2_FIELDS:
        raise UserError(f"{shown(name)} is no setting of GPT-2 here; known are {', '.join(GPT2_FIELDS)}")
    if name in GPT2_SIZES or (name == "n_inner" and value is not None):
        _check_number(name, value)
    elif name in GPT2_SWITCHES:
        _check_type(name, value, bool)
    elif name == "activation_function" and value not in ACTIVATIONS:
        raise UserError(f"{name} must be one of {', '.join(ACTIVATIONS)}, not {shown(value)}")
    elif name == "layer_norm_epsilon" and not (type(value) in (int, float) and 0 < value < 1):
        raise UserError(f"{name} must be a number above 0 and below 1, not {shown(value)}")
    elif name in GPT2_SHARES and not (type(value) in (int, float) and 0 <= value < 1):
        raise UserError(f"{name} must be a number of at least 0 and below 1, not {shown(value)}")
