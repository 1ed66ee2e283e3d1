"""Rules for captions: how many there are, what they must not hold, and what one of them must hold."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import regex

from clipcap.decoding.options import at_most_captions
from clipcap.errors import UserError, at_least, check_text
from clipcap.model.controls import Request
from clipcap.text import EMOJI_TRACE, HASHTAG_TRACE, MENTION_TRACE, PLACEHOLDER

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RANKS = ("likelihood", "clip")
KEEP_OR_NONE = ("keep", "none")
MOST_BANNED = 4096  # words: each caption is searched for each of them
MOST_REQUIRED = 64  # words: each picture is captioned a dozen times more for each of them
MOST_BYTES = 1 << 20  # of a file of words
# One emoji of each block. A token with the first two UTF-8 bytes of one begins an emoji, or a sign that few captions
# would need.
EMOJI_LEADS = "😀☀⚡✨❤⭐⌚⏰⬅➡\ufe0f\u20e3"


@dataclass(frozen=True)
class Rules(Request):
    """Rules for the captions of a picture.

    Attributes:
        num_captions: how many captions, at most 256, all distinct, best first.
        rank: what "best" means: "likelihood" (the model's, per token) or "clip" (similarity of picture and caption).
        ban: words (or phrases), at most 4096, that no caption may hold, as whole words, in upper or lower case.
        ban_file: a file with such words, one per line.
        require: words, at most 64, of which each must be in one of the captions, where that can be achieved at all.
        hashtags, emoji, mentions: "keep" or "none".
        length, emoji_count, hashtag_count: what the weights are asked for, see `Request`.

    Raises:
        UserError: a value is impossible, or a required word is ruled out.
    """

    num_captions: int = 1
    rank: str = "likelihood"
    ban: tuple[str, ...] = ()
    ban_file: str | Path | None = None
    require: tuple[str, ...] = ()
    hashtags: str = "keep"
    emoji: str = "keep"
    mentions: str = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, count in (("emoji", self.emoji_count), ("hashtags", self.hashtag_count)):
            if count and getattr(self, name) == "none":
                raise UserError(f"{count} {name} are asked for, and {name} are ruled out: drop one of the two")
        for name, allowed in [("rank", RANKS), *((name, KEEP_OR_NONE) for name in ("hashtags", "emoji", "mentions"))]:
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        at_least(1, num_captions=self.num_captions)
        at_most_captions(num_captions=self.num_captions)
        ban, require = _words(self.ban), _words(self.require)
        object.__setattr__(self, "ban", ban + _words(_lines(self.ban_file)) if self.ban_file else ban)
        object.__setattr__(self, "require", require)
        for name, most in (("ban", MOST_BANNED), ("require", MOST_REQUIRED)):
            if len(getattr(self, name)) > most:
                raise UserError(f"{name} holds {len(getattr(self, name))} words, and at most {most} can be looked for")
        for word in self.require:
            if self.clean(word) != word:
                raise UserError(f"{word!r} is required, and ruled out at the same time; drop one of the two")

    def allows(self, text: str) -> bool:
        """Whether a caption is free of banned words."""
        return not any(_holds(text, word) for word in self.never)

    @property
    def never(self) -> tuple[str, ...]:
        """The banned words, and what stands for a mention in training captions, which nobody would post."""
        return (PLACEHOLDER, *self.ban)

    def clean(self, text: str) -> str:
        """The caption without what is ruled out. Mostly this changes nothing, since decoding avoids it already."""
        before = text
        if self.emoji == "none":
            text = EMOJI_TRACE.sub("", text)
        if self.hashtags == "none":
            text = HASHTAG_TRACE.sub("", text)
        if self.mentions == "none":
            text = MENTION_TRACE.sub("", text)
        for word in self.never:
            if _holds(text, word):
                text = _pattern(word).sub("", unicodedata.normalize("NFC", text))
        if text == before:
            return text
        text = regex.sub(r"[^\S\n]+(?=[,.;:!?\s]|$)", "", regex.sub(r"[^\S\n]+", " ", text)).strip()
        return self.clean(text)  # again, since the cut may have joined parts to another banned word

    def missing(self, captions: Sequence[str]) -> list[str]:
        """The required words that none of the captions holds."""
        return [word for word in self.require if not any(_holds(caption, word) for caption in captions)]

    def banned_tokens(self, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
        """The tokens that begin ruled-out emoji, hashtags and mentions, for `Decoding.banned`."""
        parts = ["#"] * (self.hashtags == "none") + ["@"] * (self.mentions == "none")
        parts += EMOJI_LEADS if self.emoji == "none" else ()
        return tuple((token,) for token in _tokens_with(tokenizer, tuple(parts))) if parts else ()

    def banned_words(self, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
        """The usual spellings of the banned words as token sequences, for `Decoding.banned`.

        They also rule out longer words that begin with the same tokens, so they are used only where a search without
        them gave captions with a banned word.
        """
        forms = {
            form for word in self.never for form in (word, word.lower(), word.capitalize(), word.title(), word.upper())
        }
        spelled = [prefix + form for form in sorted(forms) for prefix in ("", " ")]
        return tuple(dict.fromkeys(tuple(encoding.ids) for encoding in tokenizer.encode_batch(spelled)))


def _words(words: str | Sequence[str]) -> tuple[str, ...]:
    words = [words] if isinstance(words, str) else words
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise UserError(f"words to ban or to require must be texts, not {words!r}")
    for word in words:
        check_text(word=word)
    return tuple(dict.fromkeys(unicodedata.normalize("NFC", word.strip()) for word in words if word.strip()))


def _lines(path: str | Path) -> list[str]:
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)  # a device may have no end
        if len(content) > MOST_BYTES:
            raise UserError(f"the file of banned words {str(path)!r} has more than {MOST_BYTES >> 20} MB: shorten it")
        return content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"the file of banned words {str(path)!r} cannot be read ({reason})") from None


def _holds(text: str, word: str) -> bool:
    return _pattern(word).search(unicodedata.normalize("NFC", text)) is not None


@lru_cache(maxsize=MOST_BANNED + MOST_REQUIRED)
def _pattern(word: str) -> regex.Pattern:
    """Matches the whole word in any case, together with a "#" or "@" in front of it and a "'s" behind it."""
    body = r"\s+".join(regex.escape(part) for part in word.split())
    start = r"[#@]?(?<!\w)" if regex.match(r"\w", word) else ""
    end = r"(?!\w)(?:['’]s\b)?" if regex.search(r"\w$", word) else ""
    return regex.compile(start + body + end, regex.IGNORECASE | regex.FULLCASE)


@lru_cache(maxsize=8)
def _tokens_with(tokenizer: Tokenizer, parts: tuple[str, ...]) -> tuple[int, ...]:
    """Tokens that hold one of these ASCII characters, or the first two UTF-8 bytes of one of the others."""
    from tokenizers.pre_tokenizers import ByteLevel

    spell = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str  # bytes as GPT-2's letters
    leads = {spell(part)[0][0][: 1 if part.isascii() else 2] for part in parts}
    vocabulary = tokenizer.get_vocab().items()
    return tuple(sorted(index for token, index in vocabulary if any(lead in token for lead in leads)))
