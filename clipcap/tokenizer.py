"""GPT-2's byte-level BPE, as a plain `tokenizers.Tokenizer`: fast, and serialisable into a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clipcap.errors import UserError
from clipcap.published import language_model_source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from clipcap.model import ClipCapConfig

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(name: str = "gpt2") -> Tokenizer:
    """The tokenizer of a GPT-2 family model by hub name (`gpt2`, `distilgpt2`, ...), folder, or "demo".

    A folder holds `tokenizer.json`, or `vocab.json` and `merges.txt`.
    """
    from transformers import GPT2TokenizerFast

    source = language_model_source(name)
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise UserError(f"no tokenizer in {source}: it needs tokenizer.json, or vocab.json and merges.txt")
    try:
        return GPT2TokenizerFast.from_pretrained(source).backend_tokenizer
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tokenizer of {name!r} could not be loaded ({str(error).splitlines()[0]}); "
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
    """The id that ends every caption."""
    token = tokenizer.token_to_id(END_OF_TEXT)
    if token is None:
        raise UserError(f"this tokenizer has no {END_OF_TEXT} token, and captions must end: use a GPT-2 tokenizer")
    return token
