"""Words that captions must hold, or must not: how they are read, found and cut out."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import regex

from clipcap.errors import UserError, check_text
from clipcap.text import OF_EMOJI, OF_NAME, UNSPACED, cut_out

LONGEST = 1000  # characters of a word or phrase: each is searched for in each caption
MOST_BYTES = 1 << 20  # of a file of words
LETTER = rf"[\w--[{UNSPACED}\uFE0E\uFE0F\u20E3]]"  # what a whole word has none of in front and behind

_PART = rf"\p{{Extended_Pictographic}}[{OF_EMOJI}]*"  # of an emoji, which joiners may make of several
_BEFORE, _AFTER = rf"(?:{_PART}(?<=\u200D))*", rf"[{OF_EMOJI}]*(?:(?<=\u200D){_PART})*"  # the other parts of an emoji
_NEW_FLAG = r"(?<!(?<!\p{RI})\p{RI}(?:\p{RI}\p{RI})*)"  # not behind the first half of a flag

_LETTERS = rf"(?:(?={LETTER})\X)+"
# A word, hashtag or mention, or else a character as a reader sees it, with the blanks in front.
WHOLE = regex.compile(rf"\s*(?:[#\uFF03@]*+{_LETTERS}(?:['’]{_LETTERS})*|\X)", regex.VERSION1)


def words_of(words: str | Sequence[str]) -> tuple[str, ...]:
    """Words or phrases as they are looked for, each once. Raises UserError for what is no text, or too long."""
    words = [words] if isinstance(words, str) else words
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise UserError(f"words to ban or to require must be texts, not {words!r}")
    for word in words:
        check_text(word=word)
        if len(word) > LONGEST:
            raise UserError(f"a word to ban or to require may have {LONGEST} characters, and {word[:40]!r}... has more")
    return tuple(dict.fromkeys(unicodedata.normalize("NFC", word.strip()) for word in words if word.strip()))


def lines_of(path: str | Path) -> list[str]:
    """The lines of a file of words. Raises UserError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)  # a device may have no end
        if len(content) > MOST_BYTES:
            raise UserError(f"the file of banned words {str(path)!r} has more than {MOST_BYTES >> 20} MB: shorten it")
        return content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"the file of banned words {str(path)!r} cannot be read ({reason})") from None


def holds(text: str, word: str) -> bool:
    """Whether a text holds a word or phrase, see `pattern_of`."""
    return pattern_of(word).search(unicodedata.normalize("NFC", text)) is not None


def without(pattern: regex.Pattern, text: str) -> str:
    """A text without the matches of a pattern. The words on both sides of one do not join."""
    return cut_out(text, [found.span() for found in pattern.finditer(text)])


@lru_cache(maxsize=8192)
def pattern_of(word: str) -> regex.Pattern:
    """Matches the whole word in any case, together with a "#" or "@" in front of it and a "'s" behind it.

    In scripts that put no blanks between words, it matches wherever these characters stand. A mention ends where a name
    does: right behind it may stand a particle of Korean or Japanese. A part of an emoji stands for all of it, but no
    digit for a keycap.
    """
    letter = f"[{OF_NAME}]" if regex.search(f"@[{OF_NAME}.]+$", word, regex.IGNORECASE) else LETTER
    body = r"\s+".join(regex.escape(part) for part in word.split())
    start = "[#@]?" if regex.match(r"\w", word) else ""
    start += _BEFORE if regex.match(r"\p{Extended_Pictographic}", word) else ""
    start += _NEW_FLAG if regex.match(r"\p{RI}", word) else ""
    start += rf"(?<!{LETTER})" if regex.match(LETTER, word, regex.VERSION1) else ""
    end = rf"(?!{letter})" if regex.search(rf"{letter}$", word, regex.VERSION1 | regex.IGNORECASE) else ""
    end += _AFTER if regex.search(rf"\p{{Extended_Pictographic}}[{OF_EMOJI}]*$", word) else ""
    end += r"(?!\uFE0F?\u20E3)" if regex.search(r"[0-9#*]$", word) else ""
    end += r"(?:['’]s\b)?" if regex.search(r"\w$", word) else ""
    return regex.compile(start + body + end, regex.IGNORECASE | regex.FULLCASE | regex.VERSION1)
