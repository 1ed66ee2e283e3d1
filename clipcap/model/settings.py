"""What the configuration of a language model may say, and with which values: all that determines the network.

Weights may come from strangers, so nothing else in them reaches transformers. Names are those of transformers'
configurations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from clipcap.errors import UserError, at_least, shown

LARGEST = 2**31 - 1
ACTIVATIONS = ("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh")
# Besides GPT-2. Their logits are head(body(inputs_embeds)), and tests/test_language_models.py runs each of them.
ARCHITECTURES: tuple[str, ...] = ("gpt_neox", "llama", "mistral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3")
ARCHITECTURES += ("smollm3", "stablelm", "starcoder2")
ROPES = ("default", "linear", "llama3")  # the rotary positions that do not depend on how long a text is
NEEDED = ("vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads")


def check_type(name: str, value: object, kind: type) -> None:
    """Raise a UserError unless a value is of exactly this type."""
    if type(value) is not kind:  # a bool is an int to isinstance
        raise UserError(f"{name} must be of type {kind.__name__}, not {shown(value)}")


def check_number(name: str, value: Any, least: int = 1) -> None:
    """Raise a UserError unless a value is a whole number from `least` to LARGEST."""
    check_type(name, value, int)
    at_least(least, **{name: value})
    if value > LARGEST:
        raise UserError(f"{name} must be at most {LARGEST}, not 1e{math.log10(value):.0f}")


def _number_or_none(name: str, value: Any, least: int = 1) -> None:
    if value is not None:
        check_number(name, value, least)


def _activation(name: str, value: Any) -> None:
    if value not in ACTIVATIONS:
        raise UserError(f"{name} must be one of {', '.join(ACTIVATIONS)}, not {shown(value)}")


def _epsilon(name: str, value: Any) -> None:
    if not (type(value) in (int, float) and 0 < value < 1):
        raise UserError(f"{name} must be a number above 0 and below 1, not {shown(value)}")


def _share(name: str, value: Any) -> None:
    if not (type(value) in (int, float) and 0 <= value < 1):
        raise UserError(f"{name} must be a number of at least 0 and below 1, not {shown(value)}")


def _positive(name: str, value: Any) -> None:
    if not (type(value) in (int, float) and 0 < value <= LARGEST):
        raise UserError(f"{name} must be a number above 0 and at most {LARGEST}, not {shown(value)}")


def _part(name: str, value: Any) -> None:
    if not (type(value) in (int, float) and 0 < value <= 1):
        raise UserError(f"{name} must be a number above 0 and at most 1, not {shown(value)}")


def _rope_type(name: str, value: Any) -> None:
    if value not in ROPES:
        raise UserError(f"{name} must be one of {', '.join(ROPES)}, not {shown(value)}")


def _rope(name: str, value: Any) -> None:
    check_type(name, value, dict)
    _check_all("rotary positions", value, ROPE)


_switch = partial(check_type, kind=bool)
Checks = dict[str, Callable[[str, Any], None]]
GPT2_SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
GPT2: Checks = {
    **dict.fromkeys(GPT2_SIZES, check_number),
    "n_inner": _number_or_none,
    "activation_function": _activation,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), _share),
    "layer_norm_epsilon": _epsilon,
    **dict.fromkeys(("scale_attn_weights", "scale_attn_by_inverse_layer_idx"), _switch),
}
ROPE: Checks = {
    "rope_type": _rope_type,
    "partial_rotary_factor": _part,
    **dict.fromkeys(("rope_theta", "factor", "low_freq_factor", "high_freq_factor"), _positive),
    "original_max_position_embeddings": check_number,
}
NETWORK: Checks = {  # of all ARCHITECTURES; each knows some of them
    "model_type": lambda name, value: None,
    **dict.fromkeys((*NEEDED, "intermediate_size", "ffn_dim", "word_embed_proj_dim"), check_number),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "sliding_window"), _number_or_none),
    "max_window_layers": partial(check_number, least=0),
    **dict.fromkeys(("hidden_act", "activation_function"), _activation),
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "dropout", "resid_pdrop", "embd_pdrop"), _share),
    **dict.fromkeys(("residual_dropout", "embedding_dropout"), _share),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "norm_epsilon"), _epsilon),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_qkv_bias", "use_bias", "enable_bias", "qk_layernorm"), _switch),
    **dict.fromkeys(("use_sliding_window", "use_parallel_residual", "do_layer_norm_before"), _switch),
    **dict.fromkeys(("_remove_final_layer_norm", "layer_norm_elementwise_affine"), _switch),
    "rope_parameters": _rope,
    **dict.fromkeys(("no_rope_layer_interval", "original_max_position_embeddings"), check_number),
}


def check_gpt2(settings: Any) -> None:
    """Raise a UserError unless these are keyword arguments of GPT2Config that determine the network."""
    check_type("gpt2", settings, dict)
    _check_all("GPT-2", settings, GPT2)


def check_network(settings: Any) -> None:
    """Raise a UserError unless these are "model_type" and keyword arguments of its configuration, or nothing."""
    check_type("network", settings, dict)
    if not settings:
        return
    check_architecture(settings.get("model_type"))
    _check_all("a language model", settings, NETWORK)
    if lost := [name for name in NEEDED if name not in settings]:
        raise UserError(f"its language model has no {lost[0]}")


def check_architecture(kind: Any) -> None:
    """Raise a UserError unless this is the `model_type` of a language model that is known here, other than GPT-2."""
    if kind not in ARCHITECTURES:
        raise UserError(
            f"a language model of type {shown(kind)} is not known here: use gpt2, {', '.join(ARCHITECTURES)}"
        )


def _check_all(what: str, settings: Mapping[Any, Any], checks: Checks) -> None:
    for name, value in settings.items():
        if name not in checks:
            raise UserError(f"{shown(name)} is no setting of {what} here; known are {', '.join(checks)}")
        checks[name](name, value)
