"""Which tokens of a vocabulary hold what: looked up once for each tokenizer."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# One emoji of each block. A token with the first two UTF-8 bytes of one begins an emoji, or a sign that few captions
# would need.
EMOJI_LEADS = "😀☀♥⚡⛺✨❤⭐⌚⏰⬅➡\ufe0f\u20e3"


@lru_cache(maxsize=8)
def tokens_with(tokenizer: Tokenizer, parts: tuple[str, ...]) -> tuple[int, ...]:
    """Tokens that hold one of these ASCII characters, or the first two UTF-8 bytes of one of the others."""
    leads = {_spell(part)[: 1 if part.isascii() else 2] for part in parts}
    vocabulary = tokenizer.get_vocab().items()
    return tuple(sorted(index for token, index in vocabulary if any(lead in token for lead in leads)))


@lru_cache(maxsize=8)
def word_parts(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that begin with a letter, a digit or "_", or with a byte that is no character of ASCII."""
    signs = {_spell(chr(code)) for code in range(128) if not regex.match(r"\w", chr(code))}
    return tuple(sorted(index for token, index in tokenizer.get_vocab().items() if token[:1] not in signs))


def _spell(text: str) -> str:
    """A text in GPT-2's letters, each of which stands for a byte."""
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]
