"""Language models and their tokenizers: by hub name, from a folder, or the small GPT-2 of the demo world.

The tokenizer is a plain `tokenizers.Tokenizer`, which is fast and which a checkpoint can hold as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from inspect import signature
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.errors import UserError, first_line
from clipcap.model import shipped_tokenizer
from clipcap.model.config import END_OF_TEXT
from clipcap.model.networks import plain_settings
from clipcap.model.settings import ARCHITECTURES
from clipcap.model.tokenizers import portable, tokenizer_from_json
from clipcap.offline import offline_if_unreachable
from clipcap.world import shipped

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig, PreTrainedModel

    from clipcap.model.config import ClipCapConfig

BYTES = 256  # a byte-level tokenizer has a token for each
PADDED = 128  # vocabularies are rounded up to multiples of 64 or 128
SPARE = 50  # one row in so many is left for tokens that are to come, by the makers of some large models
ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "[SEP]")


def load_tokenizer(name: str = "gpt2") -> Tokenizer:
    """The tokenizer of a language model by hub name (`gpt2`, `distilgpt2`, ...), folder, or "demo".

    A folder holds `tokenizer.json`, a BERT vocabulary (`vocab.txt`), or `vocab.json` and `merges.txt`.

    Raises:
        UserError: the folder holds no tokenizer, or it cannot be loaded.
    """
    source = language_model_source(name)
    if name in shipped_tokenizer.NAMES and not Path(source).is_dir():
        return shipped_tokenizer.gpt2_tokenizer()
    if not Path(source).is_dir():
        offline_if_unreachable()
    try:
        tokenizer = _tokenizer_of(source)
    except UserError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader likes
        raise UserError(
            f"the tokenizer of {name!r} could not be loaded ({first_line(error)}); "
            "go online once, or give a language model by hub name, or a folder with its tokenizer"
        ) from None
    tokens = tokenizer.get_vocab_size()
    if tokens <= (BYTES if type(tokenizer.decoder).__name__ == "ByteLevel" else 1):
        # Where the hub is out of reach and nothing is cached, transformers hands back an empty one without a word.
        raise UserError(
            f"the tokenizer of {name!r} has {tokens} tokens, fewer than there are bytes, so it was not found: "
            "go online once, or give a folder with its vocab.json and merges.txt"
        )
    return portable(tokenizer, name)


def _tokenizer_of(source: str) -> Tokenizer:
    """What the files of a language model say. Where there is a tokenizer.json, it is read as it stands there.

    The classes that transformers has for each architecture put parts of their own in place of those of the file.
    """
    from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

    folder = Path(source)
    if folder.is_dir():
        readers = {"tokenizer.json": PreTrainedTokenizerFast, "vocab.txt": BertTokenizer, "vocab.json": GPT2Tokenizer}
        for file, reader in readers.items():
            if (folder / file).is_file():
                return reader.from_pretrained(source).backend_tokenizer
        if not any(folder.glob("*.model")):
            raise UserError(
                f"no tokenizer in {source}: it needs tokenizer.json, vocab.txt, or vocab.json and merges.txt"
            )
    else:
        with suppress(OSError, ValueError):
            return PreTrainedTokenizerFast.from_pretrained(source).backend_tokenizer
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False).backend_tokenizer


def tokenizer_of(config: ClipCapConfig) -> Tokenizer:
    """The tokenizer that a model was trained with: the one in its file, or that of its language model.

    One that lies in its file or in this package is read once and shared: it must not be changed.

    Raises:
        UserError: it cannot be loaded, or it is not the one of the model's vocabulary.
    """
    name = config.language_model
    lasting = config.tokenizer or (name in shipped_tokenizer.NAMES and not Path(name).is_dir())
    read = _kept_tokenizer if lasting else _read_tokenizer  # what a folder holds may change
    return read(config.tokenizer, name, config.end_of_text, config.vocabulary)


def _read_tokenizer(stored: str | None, language_model: str, end: str, vocabulary: int) -> Tokenizer:
    tokenizer = tokenizer_from_json(stored) if stored else load_tokenizer(language_model)
    tokenizer.no_truncation()  # neither is the tokenizer's to decide, nor a stranger's
    tokenizer.no_padding()
    where = "in the weights" if stored else f"of {language_model!r}"
    _check_vocabulary(tokenizer, where, end, vocabulary)
    return tokenizer


_kept_tokenizer = lru_cache(4)(_read_tokenizer)  # prompted weights ask for that of their literal captioner every batch


def _check_vocabulary(tokenizer: Tokenizer, where: str, end: str, wanted: int) -> None:
    """Raise a UserError unless the tokenizer has the tokens that the model was made for.

    A model may have some rows more than there are tokens, and a tokenizer special tokens that no text has.
    """
    tokens, largest = tokenizer.get_vocab_size(), max(tokenizer.get_vocab(with_added_tokens=False).values(), default=0)
    if tokens <= wanted - max(PADDED, wanted // SPARE) or largest >= wanted or end_of_text(tokenizer, end) >= wanted:
        raise UserError(
            f"the tokenizer {where} has {tokens} tokens, and the model has {wanted}: captions would be nonsense; "
            "use the tokenizer that the model was trained with"
        )


def end_of_text(tokenizer: Tokenizer, name: str = END_OF_TEXT) -> int:
    """The id of the token of this name, which ends every caption. Raises UserError for a tokenizer without it."""
    token = tokenizer.token_to_id(name)
    if token is None:
        raise UserError(f"this tokenizer has no {name} token, and captions must end: use the tokenizer of the model")
    return token


def up_to_end(ids: Iterable[int], end: int) -> list[int]:
    """A caption's token ids as far as end-of-text, which models also write that stop at another token."""
    return list(takewhile(lambda token: token != end, ids))


def find_end_of_text(tokenizer: Tokenizer, config: PreTrainedConfig) -> str:
    """The token that ends texts for a language model: the one that its configuration names, or one with a usual name.

    Raises:
        UserError: there is none.
    """
    named = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    special = {token: added.content for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    ends = [special[token] for token in named if token in special]
    ends += [name for name in ENDS if tokenizer.token_to_id(name) is not None]
    if not ends:
        raise UserError(f"the tokenizer has no token that ends texts, such as {', '.join(ENDS)}, and captions must end")
    return ends[0]


def language_model_source(name: str) -> str:
    """The hub name or folder of a GPT-2; "demo" becomes the folder of the one that ships with the project."""
    return str(shipped.GPT2) if name == "demo" else name


def load_language_model(name: str) -> PreTrainedModel:
    """A causal language model by hub name (`gpt2`, `distilgpt2`, ...), folder, or "demo", in float32.

    Raises:
        UserError: another kind of model, incomplete weights, or nothing that can be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.peft_utils import find_adapter_config_file

    source = language_model_source(name)
    _check_place(name, Path(source))
    if not Path(source).is_dir():
        offline_if_unreachable()
    try:
        if find_adapter_config_file(source):  # it would decide which model is fetched
            raise UserError(
                f"{name!r} holds adapters for peft: merge them into their language model (`merge_and_unload`), save "
                "it, and give that folder"
            )
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        _check_kind(name, config)
        # With `output_loading_info` a pair comes back, which the declared type does not say.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        model, info = loaded
        if info["missing_keys"]:
            raise UserError(f"the language model {name!r} lacks {sorted(info['missing_keys'])[0]}: save it again")
        return model
    except UserError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader likes
        raise UserError(
            f"the language model {name!r} could not be loaded ({first_line(error)}); "
            "give a causal language model by hub name, or a folder that save_pretrained wrote"
        ) from None


def _check_place(name: str, place: Path) -> None:
    """Raise a UserError for a file, a folder without a model, and a path to nothing."""
    gguf = place.name if place.suffix == ".gguf" else next((file.name for file in sorted(place.glob("*.gguf"))), None)
    if gguf and not (place / "config.json").is_file():
        raise UserError(
            f"{name!r} is a model as GGUF, which is quantised: convert {gguf} into a folder once, as "
            "docs/troubleshooting.md says, and give that folder"
        )
    if place.is_dir() and not (place / "config.json").is_file():
        raise UserError(
            f"there is no language model in {name!r}: it needs config.json and weights, as save_pretrained writes"
        )
    if place.is_file() or (not place.is_dir() and (place.is_absolute() or name.startswith(".") or name.count("/") > 1)):
        raise UserError(f"{name!r} is no folder with a language model, and no name on the hub")


def _check_kind(name: str, config: PreTrainedConfig) -> None:
    """Raise a UserError for what is no plain causal language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = config.model_type
    known = f"use gpt2, {', '.join(ARCHITECTURES)}"
    if config.is_encoder_decoder:
        raise UserError(f"{name!r} is a {kind} model, an encoder-decoder, and no causal language model: {known}")
    if config.get_text_config() is not config:
        raise UserError(f"{name!r} is a {kind} model, which reads more than text: {known}")
    network: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if network is None:
        raise UserError(f"{name!r} is a {kind} model, which is no causal language model: {known}")
    if "inputs_embeds" not in signature(network.forward).parameters:
        raise UserError(f"{name!r} is a {kind} model, which reads no embeddings (inputs_embeds): {known}")
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{name!r} is quantised, and cannot be trained here: use the original weights")
    try:
        plain_settings(config)
    except UserError as error:
        raise UserError(f"the language model {name!r} cannot be used: {error}") from None
