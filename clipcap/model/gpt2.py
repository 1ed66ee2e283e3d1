"""GPT-2 and its byte-level BPE tokenizer: by hub name, from a folder, or the small one of the demo world.

The tokenizer is a plain `tokenizers.Tokenizer`, which is fast and which a checkpoint can hold as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.errors import UserError, first_line
from clipcap.model import shipped_tokenizer
from clipcap.model.config import GPT2_FIELDS, GPT2_SIZES
from clipcap.offline import offline_if_unreachable
from clipcap.world import shipped

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    from clipcap.model.config import ClipCapConfig

END_OF_TEXT = "<|endoftext|>"
BYTES = 256  # a byte-level tokenizer has a token for each
# The post-processor that transformers gives a GPT-2 tokenizer: texts stay as they are.
NOTHING_ADDED = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
PADDED = 128  # vocabularies are rounded up to multiples of 64 or 128


def load_tokenizer(name: str = "gpt2") -> Tokenizer:
    """The tokenizer of a GPT-2 family model by hub name (`gpt2`, `distilgpt2`, ...), folder, or "demo".

    A folder holds `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises:
        UserError: the folder holds no tokenizer, or it cannot be loaded.
    """
    from transformers import GPT2Tokenizer

    source = language_model_source(name)
    if name in shipped_tokenizer.NAMES and not Path(source).is_dir():
        return shipped_tokenizer.gpt2_tokenizer()
    if not Path(source).is_dir():
        offline_if_unreachable()
    elif not any((Path(source) / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise UserError(f"no tokenizer in {source}: it needs tokenizer.json, or vocab.json and merges.txt")
    try:
        tokenizer = GPT2Tokenizer.from_pretrained(source).backend_tokenizer
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tokenizer of {name!r} could not be loaded ({first_line(error)}); "
            "give a GPT-2 family model by hub name, or a folder with its tokenizer"
        ) from None
    tokens = tokenizer.get_vocab_size()
    if tokens <= BYTES:
        # Where the hub is out of reach and nothing is cached, transformers hands back an empty one without a word.
        raise UserError(
            f"the tokenizer of {name!r} has {tokens} tokens, fewer than there are bytes, so it was not found: "
            "go online once, or give a folder with its vocab.json and merges.txt"
        )
    return tokenizer


def tokenizer_from_json(text: str) -> Tokenizer:
    """A tokenizer from the JSON that `Tokenizer.to_str()` wrote. Raises UserError for any other text.

    Only byte-level BPE is read, as GPT-2 has it: other parts could panic in Rust, or run for ever.
    """
    from tokenizers import Tokenizer

    try:
        parts = json.loads(text)
        _check_parts(parts)
        return Tokenizer.from_str(json.dumps(parts))  # written again, so that no part of it stands there twice
    except UserError:
        raise
    except Exception as error:  # the library raises the bare class
        raise UserError(f"the tokenizer in the weights cannot be read ({first_line(error)[:200]})") from None


def _check_parts(parts: dict[str, Any]) -> None:
    """Raise a UserError unless these are the parts of a byte-level BPE tokenizer."""
    model, behind = parts["model"], parts["post_processor"]
    unknown = model.get("unk_token")
    fits = (
        model["type"] == "BPE"
        and parts["normalizer"] is None
        and parts["pre_tokenizer"]["type"] == parts["decoder"]["type"] == "ByteLevel"
        and (behind is None or behind == NOTHING_ADDED or behind["type"] == "ByteLevel")
        and (unknown is None or unknown in model["vocab"])
        and not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    )
    if not fits:
        raise UserError("the tokenizer in the weights is no byte-level BPE, as GPT-2 has it: use a GPT-2 tokenizer")


def tokenizer_of(config: ClipCapConfig) -> Tokenizer:
    """The tokenizer that a model was trained with: the one in its file, or that of its language model.

    Raises:
        UserError: it cannot be loaded, or it is not the one of the model's vocabulary.
    """
    tokenizer = tokenizer_from_json(config.tokenizer) if config.tokenizer else load_tokenizer(config.language_model)
    tokenizer.no_truncation()  # neither is the tokenizer's to decide, nor a stranger's
    tokenizer.no_padding()
    _check_vocabulary(tokenizer, config)
    return tokenizer


def _check_vocabulary(tokenizer: Tokenizer, config: ClipCapConfig) -> None:
    """Raise a UserError unless the tokenizer has the tokens that the model was made for.

    A model may have up to PADDED rows more than there are tokens, and a tokenizer special tokens that no text has.
    """
    wanted = config.gpt2.get("vocab_size", GPT2_SIZES["vocab_size"])
    tokens, plain = tokenizer.get_vocab_size(), tokenizer.get_vocab_size(with_added_tokens=False)
    if tokens <= wanted - PADDED or plain > wanted or end_of_text(tokenizer) >= wanted:
        where = "in the weights" if config.tokenizer else f"of {config.language_model!r}"
        raise UserError(
            f"the tokenizer {where} has {tokens} tokens, and the model has {wanted}: captions would be nonsense; "
            "use the tokenizer that the model was trained with"
        )


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
    if not Path(source).is_dir():
        offline_if_unreachable()
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
