"""Plain GPT-2s, to start from without weights of ClipCap."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from clipcap.errors import UserError
from clipcap.published import language_model_source

if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2LMHeadModel

GPT2_FIELDS = (
    *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
)


def plain_gpt2_config(config: GPT2Config) -> dict:
    """The fields of a GPT2Config that make the network, as plain values."""
    return json.loads(json.dumps({name: getattr(config, name) for name in GPT2_FIELDS}))


def load_language_model(name: str) -> GPT2LMHeadModel:
    """A GPT-2 family model by hub name (`gpt2`, `distilgpt2`, `gpt2-medium`, ...), folder, or "demo", in float32."""
    import torch
    from transformers import AutoConfig, GPT2LMHeadModel

    source = language_model_source(name)
    try:
        kind = AutoConfig.from_pretrained(source).model_type
        if kind != "gpt2":
            raise UserError(f"{name!r} is a {kind} model; the decoder is for the GPT-2 family (gpt2, distilgpt2, ...)")
        model, found = GPT2LMHeadModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        if found["missing_keys"]:
            raise UserError(f"the language model {name!r} lacks {sorted(found['missing_keys'])[0]}: save it again")
        return model
    except UserError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the language model {name!r} could not be loaded ({reason}); give a GPT-2 family model by hub name, or a "
            "folder that save_pretrained wrote"
        ) from None
