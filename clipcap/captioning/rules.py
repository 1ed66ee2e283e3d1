"""Rules for captions: how many there are, what they must not hold, and what one of them must hold."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from clipcap.captioning.posts import FIELDS, Frame, fill, hashtags_of
from clipcap.captioning.vocabulary import EMOJI_LEADS, is_word_piece, tokens_with, word_parts
from clipcap.captioning.words import holds, lines_of, pattern_of, without, words_of
from clipcap.clip.images import ImageSource, UnreadableImage
from clipcap.decoding.options import Decoding, at_most_captions
from clipcap.errors import UserError, at_least, check_text
from clipcap.model.controls import Request
from clipcap.text import EMOJI_TRACE, HASHTAG_TRACE, MENTION_TRACE, PLACEHOLDER, check_fields, has_field

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

RANKS = ("likelihood", "clip")
KEEP_OR_NONE = ("keep", "none")
MOST_BANNED = 4096  # words: each caption is searched for each of them
MOST_REQUIRED = 64  # words: each picture is captioned a dozen times more for each of them
AROUND = ("start_with", "prepend", "append")  # the texts that a caption is given
LONGEST = 4000  # characters of each of them


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
        max_hashtags: how many hashtags a caption may have; None sets no limit. Each comes at most once anyway.
        max_chars: how many characters (see `clipcap.captioning.posts.size_of`) a caption may have; None sets no limit.
        start_with: what captions go on from; blanks at its ends are left out.
        prepend, append: what stands in front of captions and behind them, with a blank between unless they bring one.
            These and `start_with` count for the limits. In all three, {folder} stands for the name of the picture's
            folder and {date} for the day in its EXIF, as 2025-12-31; a picture that lacks it gets no caption.

    Raises:
        UserError: a value is impossible, or a required word or a given text is ruled out.
    """

    num_captions: int = 1
    rank: str = "likelihood"
    ban: tuple[str, ...] = ()
    ban_file: str | Path | None = None
    require: tuple[str, ...] = ()
    hashtags: str = "keep"
    emoji: str = "keep"
    mentions: str = "keep"
    max_hashtags: int | None = None
    max_chars: int | None = None
    start_with: str = ""
    prepend: str = ""
    append: str = ""

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
        for name in ("max_hashtags", "max_chars"):
            if not isinstance(getattr(self, name), Integral | None):
                raise UserError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        at_least(0, max_hashtags=self.max_hashtags)
        at_least(1, max_chars=self.max_chars)
        if self.max_hashtags is not None and (self.hashtag_count or 0) > self.max_hashtags:
            raise UserError(
                f"{self.hashtag_count} hashtags are asked for, and max_hashtags is {self.max_hashtags}: "
                "raise it, or ask for fewer"
            )
        ban, require = words_of(self.ban), words_of(self.require)
        object.__setattr__(self, "ban", ban + words_of(lines_of(self.ban_file)) if self.ban_file else ban)
        object.__setattr__(self, "require", require)
        for name, most in (("ban", MOST_BANNED), ("require", MOST_REQUIRED)):
            if len(getattr(self, name)) > most:
                raise UserError(f"{name} holds {len(getattr(self, name))} words, and at most {most} can be looked for")
        for word in self.require:
            if self.clean(word) != word:
                raise UserError(f"{word!r} is required, and ruled out at the same time; drop one of the two")
            if self.max_hashtags is not None and len(hashtags_of(word)) > self.max_hashtags:
                raise UserError(f"{word!r} is required, and has more hashtags than max_hashtags ({self.max_hashtags})")
        for name in AROUND:
            text = getattr(self, name)
            if not isinstance(text, str) or len(text) > LONGEST:
                raise UserError(f"{name} must be a text of at most {LONGEST} characters, not {text!r:.60}")
            check_text(**{name: text})
            check_fields(name, text, FIELDS)
        self.frame()

    @property
    def has_fields(self) -> bool:
        """Whether a text is to be filled in for each picture."""
        return any(has_field(getattr(self, name), field) for name in AROUND for field in FIELDS)

    def frame(self, source: ImageSource | None = None) -> Frame:
        """The texts around the captions of a picture; for None, with nothing in place of the fields.

        Raises:
            UnreadableImage: the picture lacks what a field asks for, or what it has makes the texts break a rule.
            UserError: it is not from a file, and so has no folder.
        """
        error = UserError if source is None else UnreadableImage
        texts = {name: unicodedata.normalize("NFC", fill(getattr(self, name), source)) for name in AROUND}
        for name, text in texts.items():
            if self.clean(text) != text:
                raise error(f"{name} is {text!r}, and holds what is ruled out; drop one of the two")
        start, before, after = (texts[name] for name in AROUND)
        before += " " * bool(before and not before[-1].isspace())
        after = " " * bool(after and not after[0].isspace()) + after
        frame = Frame(start.strip(), before, after)
        tags, most = frame.hashtags, self.max_hashtags
        if twice := next((tag for tag in tags if tags.count(tag) > 1), None):
            raise error(f"the texts given for captions hold #{twice} twice, and a hashtag comes at most once")
        count = len(tags) + bool(frame.sign)
        if most is not None and count > most:
            raise error(f"the texts given for captions hold {count} hashtags, and max_hashtags is {most}")
        if self.max_chars is not None and frame.size >= self.max_chars:
            raise error(
                f"the texts given for captions have {frame.size} characters, and max_chars is {self.max_chars}: "
                "no room is left for a caption"
            )
        return frame

    def post(self, written: str, frame: Frame) -> str:
        """What the model has written, from the start text on -> the caption as it is posted; "" if nothing is left."""
        text = self.clean(written)
        if not text.startswith(frame.start):  # what had to be cut out reaches into it
            rest = self.clean(written.removeprefix(frame.start))
            gap = "" if rest.startswith(tuple(",.;:!?")) else " "
            text = f"{frame.start}{gap}{rest}"
            text = text if self.allows(text) else frame.start
        post = frame.around(text.removeprefix(frame.start), self.max_hashtags, self.max_chars)
        return post if self.allows(post) else ""  # with the texts around it, it may hold a banned phrase

    def allows(self, text: str) -> bool:
        """Whether a caption is free of banned words."""
        return not any(holds(text, word) for word in self.never)

    @property
    def never(self) -> tuple[str, ...]:
        """The banned words, and what stands for a mention in training captions, which nobody would post."""
        return (PLACEHOLDER, *self.ban)

    def clean(self, text: str) -> str:
        """A text without what is ruled out."""
        before = text
        if self.emoji == "none":
            text = without(EMOJI_TRACE, text)
        if self.hashtags == "none":
            text = without(HASHTAG_TRACE, text)
        if self.mentions == "none":
            text = without(MENTION_TRACE, text)
        for word in self.never:
            if holds(text, word):
                text = without(pattern_of(word), unicodedata.normalize("NFC", text))
        if text == before:
            return text
        return self.clean(text.strip())  # again, since the cut may have joined parts to another banned word

    def missing(self, captions: Sequence[str]) -> list[str]:
        """The required words that none of the captions holds."""
        return [word for word in self.require if not any(holds(caption, word) for caption in captions)]

    def banned_tokens(self, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
        """The tokens that begin ruled-out emoji, hashtags and mentions, for `Decoding.banned`."""
        parts = ["#"] * (self.hashtags == "none") + ["@"] * (self.mentions == "none")
        parts += EMOJI_LEADS if self.emoji == "none" else ()
        return tuple((token,) for token in tokens_with(tokenizer, tuple(parts))) if parts else ()

    def kept_to(self, decoding: Decoding, tokenizer: Tokenizer) -> Decoding:
        """A search whose captions have nothing that would have to be cut out of them, but for banned words."""
        given = hashtags_of(f"{self.prepend} {self.append}")
        return replace(
            decoding,
            banned=(*decoding.banned, *self.banned_tokens(tokenizer)),
            word_parts=word_parts(tokenizer),
            # WordPiece reads "#" as a word of its own, behind which another begins: there `Frame.around` alone counts.
            hashtag_signs=() if is_word_piece(tokenizer) else tokens_with(tokenizer, ("#",)),
            most_hashtags=None if self.max_hashtags is None else max(0, self.max_hashtags - len(given)),
        )

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


def framed(
    source: ImageSource, decoded: np.ndarray | UnreadableImage, rules: Rules
) -> tuple[np.ndarray | UnreadableImage, Frame]:
    """A picture's pixels, or why there are none or none can be captioned, and the texts around its captions."""
    if isinstance(decoded, UnreadableImage):
        return decoded, Frame()
    try:
        return decoded, rules.frame(source)
    except UnreadableImage as error:
        return error, Frame()
