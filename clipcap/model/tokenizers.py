"""Which tokenizers a checkpoint may hold, and how those of other libraries become such a one.

A tokenizer in a file may come from a stranger. Parts that could panic in Rust, or make a short text endlessly long or
slow, are not read: no patterns but those published with language models, and no replacement longer than what was there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from clipcap.errors import UserError, first_line, shown
from clipcap.text import CJK

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Part = Mapping[str, Any]
SHORT = 8  # characters of a sign that stands for a blank, or before the rest of a word
LONGEST_WORD = 1000  # characters of a word that WordPiece divides, in a time that grows with their square
MOST_IN_SEQUENCE = 16
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
PATTERNS = {  # where texts are split before they are encoded, in the tokenizer.json of the models named
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",  # GPT-2
    f"{_CONTRACTIONS}\\p{{N}}{{1,3}}{_REST}",  # Llama 3, OLMo 2, StableLM 2
    f"{_CONTRACTIONS}\\p{{N}}{_REST}",  # Qwen
    *("\\p{N}{1,3}", "\\p{N}", " {2,}"),
}
# WordPiece's decoder puts a blank in front of every word. In a BERT vocabulary each Chinese character is a word, and so
# is what follows the sign of a hashtag or a mention.
_UNSPACED = f"[{CJK}\\u3000-\\u303F\\uFF00-\\uFFEF]"  # and their punctuation
BETWEEN_CHARACTERS = f"(?<={_UNSPACED}) (?={_UNSPACED})|(?<=[#@]) "
GLUED: dict[str, Any] = {"type": "Replace", "pattern": {"Regex": BETWEEN_CHARACTERS}, "content": ""}
# SentencePiece's BPE as Llama 2 has it puts a blank in front of every text, also of one that begins with a blank. The
# other form is that of transformers' `legacy=False`: it puts none there, so that a text goes on from another one.
EVERY_TEXT = [
    {"type": "Prepend", "prepend": "\u2581"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
]
UNLESS_THERE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": False}
# The post-processor that transformers gives a GPT-2 tokenizer: texts stay as they are.
NOTHING_ADDED = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}


def tokenizer_from_json(text: str) -> Tokenizer:
    """A tokenizer from the JSON that `Tokenizer.to_str()` wrote. Raises UserError for one with unknown parts."""
    return _read(text, "the tokenizer in the weights")


def portable(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """The same tokenizer as a checkpoint may hold it: no special tokens around texts, no blanks in Chinese or doubled.

    Args:
        tokenizer: of the language model.
        name: of the language model, for messages.

    Raises:
        UserError: it has parts that are not known here.
    """
    parts = json.loads(tokenizer.to_str())
    if not _adds_nothing(parts["post_processor"]):
        parts["post_processor"] = None
    if (decoder := parts["decoder"]) is not None and decoder["type"] == "WordPiece":
        parts["decoder"] = {"type": "Sequence", "decoders": [decoder, {"type": "Fuse"}, GLUED]}
    if (parts["normalizer"] or {}).get("normalizers") == EVERY_TEXT and parts["pre_tokenizer"] is None:
        parts["normalizer"], parts["pre_tokenizer"] = None, UNLESS_THERE
    return _read(json.dumps(parts), f"the tokenizer of {name!r}")


def _read(text: str, what: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        parts = json.loads(text)
        _check_model(parts["model"], what)
        _check(parts["normalizer"], "normalizers", NORMALIZERS, what)
        _check(parts["pre_tokenizer"], "pretokenizers", PRE_TOKENIZERS, what)
        _check(parts["decoder"], "decoders", DECODERS, what)
        if not _adds_nothing(parts["post_processor"]):
            raise UserError(f"{what} puts special tokens around texts, which captions do not have")
        return Tokenizer.from_str(json.dumps(parts))  # written again, so that no part of it stands there twice
    except UserError:
        raise
    except Exception as error:  # the library raises the bare class
        raise UserError(f"{what} cannot be read ({first_line(error)[:200]})") from None


def _adds_nothing(part: Part | None) -> bool:
    return part is None or part == NOTHING_ADDED or part["type"] == "ByteLevel"


def _check(part: Part | None, inner: str, allowed: Mapping[str, Callable[[Part], bool]], what: str) -> None:
    """Raise a UserError unless a part, or each one of a sequence, is of a kind that is allowed."""
    if part is None:
        return
    parts = part[inner] if part["type"] == "Sequence" else [part]
    if not 0 < len(parts) <= MOST_IN_SEQUENCE:
        raise UserError(f"{what} has {len(parts)} {inner}, and may have 1 to {MOST_IN_SEQUENCE}")
    for one in parts:
        if not (one["type"] in allowed and allowed[one["type"]](one)):
            raise UserError(f"{what} has a part that is not known here, the {shown(one['type'])} of its {inner}")


def _check_model(model: Part, what: str) -> None:
    kind, vocabulary = model["type"], model["vocab"]
    prefix, unknown = model.get("continuing_subword_prefix") or "", model.get("unk_token")
    known = unknown in vocabulary if kind != "Unigram" else False
    if kind == "BPE":
        fits = (unknown is None or known) and not any((model.get("dropout"), prefix, model.get("end_of_word_suffix")))
    elif kind == "WordPiece":
        fits = known and len(prefix) <= SHORT and 0 < model["max_input_chars_per_word"] <= LONGEST_WORD
    elif kind == "Unigram":
        fits = type(model["unk_id"]) is int and 0 <= model["unk_id"] < len(vocabulary)
        fits = fits and all(math.isfinite(score) for _, score in vocabulary)
    else:
        fits = False
    if not fits:
        raise UserError(f"{what} has a part that is not known here, its model of type {shown(kind)}")


def _always(part: Part) -> bool:
    return True


def _split(part: Part) -> bool:
    pattern = part["pattern"]
    return pattern.get("Regex") in PATTERNS or 0 < len(pattern.get("String", "")) <= SHORT


def _replace(part: Part) -> bool:
    pattern, content = part["pattern"], part["content"]
    return (
        part == GLUED
        or (pattern.get("Regex") in PATTERNS and len(content) <= 1)
        or 0 < len(pattern.get("String", "")) >= len(content)
    )


def _strip(part: Part) -> bool:
    return len(part["content"]) == 1 and part["start"] in (0, 1) and part["stop"] in (0, 1)


NORMALIZERS: Mapping[str, Callable[[Part], bool]] = {
    **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt"), _always),
    "BertNormalizer": _always,
    "Prepend": lambda part: len(part["prepend"]) <= SHORT,
    "Replace": _replace,
}
PRE_TOKENIZERS: Mapping[str, Callable[[Part], bool]] = {
    **dict.fromkeys(("ByteLevel", "Metaspace", "BertPreTokenizer", "Whitespace", "WhitespaceSplit"), _always),
    **dict.fromkeys(("Digits", "Punctuation", "UnicodeScripts"), _always),
    "Split": _split,
}
DECODERS: Mapping[str, Callable[[Part], bool]] = {
    **dict.fromkeys(("ByteLevel", "Metaspace", "ByteFallback", "Fuse"), _always),
    "WordPiece": lambda part: len(part["prefix"]) <= SHORT,
    "Replace": _replace,
    "Strip": _strip,
}
