"""GPT-2 and its byte-level BPE tokenizer: by hub name, from a folder, or the small one of the demo world.

The tokenizer is a plain `tokenizers.Tokenizer`, which is fast and which a checkpoint can hold as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.errors import UserError, first_line
from clipcap.world import shipped

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    from clipcap.model.config import ClipCapConfig

GPT2_FIELDS = (
    *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
)
END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(name: str = "gpt2") -> Tokenizer:
    """The tokenizer of a GPT-2 family model by hub name (`gpt2`, `distilgpt2`, ...), folder, or "demo".

    A folder holds `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises:
        UserError: the folder holds no tokenizer, or it cannot be loaded.
    """
    from transformers import GPT2Tokenizer

    source = language_model_source(name)
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise UserError(f"no tokenizer in {source}: it needs tokenizer.json, or vocab.json and merges.txt")
    try:
        return GPT2Tokenizer.from_pretrained(source).backend_tokenizer
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tokenizer of {name!r} could not be loaded ({first_line(error)}); "
            "give a GPT-2 family model by hub name, or a folder with its tokenizer"
        ) from None


def tokenizer_from_json(text: str) -> Tokenizer:
    """A tokenizer from the JSON that `Tokenizer.to_str()` wrote."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def tokenizer_of(config: ClipCapConfig) -> Tokenizer:
    """The tokenizer that a model was trained with: the one in its file, or that of its language model."""
    return tokenizer_from_json(config.tokenizer) if config.tokenizer else load_tokenizer(config.language_model)


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the end-of-text token, which ends every caption. Raises UserError for a tokenizer without one."""
    token = tokenizer.token_to_id(END_OF_TEXT)
    if token is None:
        raise UserError(f"this tokenizer has no {END_OF_TEXT} token, and captions must end: use a GPT-2 tokenizer")
    return token


def language_model_source(name: str) -> str:
    """The hub name or folder of a GPT-2; "demo" becomes the folder of the one that ships with the project."""
    return str(shipped.GPT2) if name == "demo" else name


def plain_gpt2_config(config: GPT2Config) -> dict[str, Any]:
    """The fields of a GPT2Config that determine the network, as plain values."""
    return json.loads(json.dumps({name: getattr(config, name) for name in GPT2_FIELDS}))


def load_language_model(name: str) -> GPT2LMHeadModel:
    """A GPT-2 family model by hub name (`gpt2`, `distilgpt2`, `gpt2-medium`, ...), folder, or "demo", in float32.

    Raises:
        UserError: another kind of model, incomplete weights, or nothing that can be loaded.
    """
    import torch
    from transformers import AutoConfig, GPT2LMHeadModel

    source = language_model_source(name)
    try:
        kind = AutoConfig.from_pretrained(source).model_type
        if kind != "gpt2":
            raise UserError(f"{name!r} is a {kind} model; the decoder is for the GPT-2 family (gpt2, distilgpt2, ...)")
        # With `output_loading_info` a pair comes back, which the declared type does not say.
        loaded: Any = GPT2LMHeadModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        model, info = loaded
        if info["missing_keys"]:
            raise UserError(f"the language model {name!r} lacks {sorted(info['missing_keys'])[0]}: save it again")
        return model
    except UserError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader likes
        raise UserError(
            f"the language model {name!r} could not be loaded ({first_line(error)}); "
            "give a GPT-2 family model by hub name, or a folder that save_pretrained wrote"
        ) from None
