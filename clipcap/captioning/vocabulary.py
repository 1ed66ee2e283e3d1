"""Which tokens of a vocabulary hold what: looked up once for each tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONE_BYTES = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}  # as SentencePiece spells them

# One emoji of each block. A token with the first two UTF-8 bytes of one begins an emoji, or a sign that few captions
# would need.
EMOJI_LEADS = "😀☀♥⚡⛺✨❤⭐⌚⏰⬅➡\ufe0f\u20e3"


@lru_cache(maxsize=8)
def tokens_with(tokenizer: Tokenizer, parts: tuple[str, ...]) -> tuple[int, ...]:
    """Tokens that hold one of these ASCII characters, or the first two UTF-8 bytes of one of the others.

    Where a tokenizer has a token for each byte of a character that it does not know, also the first of these bytes.
    """
    leads = {part.encode()[: 1 if part.isascii() else 2] for part in parts}
    alone = {lead[:1] for lead in leads} if tokenizer.token_to_id("<0x00>") is not None else set()
    found = (
        token for token, piece in _pieces(tokenizer).items() if piece in alone or any(map(piece.__contains__, leads))
    )
    return tuple(sorted(found))


@lru_cache(maxsize=8)
def word_parts(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that begin with a letter, a digit or "_", or with a byte that is no character of ASCII."""
    signs = {chr(code).encode() for code in range(128) if not regex.match(r"\w", chr(code))}
    return tuple(sorted(token for token, piece in _pieces(tokenizer).items() if piece[:1] not in signs))


def unfinished(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """How many tokens at the end are the first bytes of a character, in a vocabulary that has a token for each byte.

    For one such character its tokenizer gives up all characters that stand in bytes before it.
    """
    known = _lone_bytes(tokenizer)
    run = b"".join(reversed([known[token] for token in takewhile(known.__contains__, reversed(ids))]))
    try:
        run.decode()
    except UnicodeDecodeError as error:
        return len(run) - error.start if error.reason == "unexpected end of data" else 0
    return 0


@lru_cache(maxsize=8)
def _lone_bytes(tokenizer: Tokenizer) -> dict[int, bytes]:
    found = ((tokenizer.token_to_id(name), byte) for name, byte in LONE_BYTES.items())
    return {token: byte for token, byte in found if token is not None}


def is_word_piece(tokenizer: Tokenizer) -> bool:
    """Whether this is a vocabulary like BERT's, which Chinese GPT-2s have."""
    return type(tokenizer.model).__name__ == "WordPiece"


def _pieces(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Token id -> the bytes that it stands for, as spelled in the tokenizer's vocabulary.

    A byte-level one has a letter for each byte. SentencePiece writes "▁" for a blank and "<0xF0>" for a lone byte.
    WordPiece marks what goes on with a word by "##", so that there is a blank in front of all else.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True).items()
    if type(tokenizer.decoder).__name__ == "ByteLevel":
        letters = _letters()
        return {i: bytes(letters[letter] for letter in token if letter in letters) for token, i in vocabulary}
    if is_word_piece(tokenizer):
        prefix = tokenizer.model.continuing_subword_prefix
        glued = {i: token.removeprefix(prefix) for token, i in vocabulary if token.startswith(prefix)}
        return {i: glued.get(i, f" {token}").encode() for token, i in vocabulary}
    return {i: LONE_BYTES.get(token, token.replace("\u2581", " ").encode()) for token, i in vocabulary}


@cache
def _letters() -> dict[str, int]:
    """The letters of GPT-2's vocabulary, each of which stands for a byte: itself where it can be seen, or from 256 on.

    `bytes_to_unicode` in https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
