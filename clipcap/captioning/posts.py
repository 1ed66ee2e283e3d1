"""A caption as it is posted: the texts around it, which are filled in for each picture, and the limits it keeps to."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import regex

from clipcap.clip.images import ImageSource, UnreadableImage, date_taken
from clipcap.errors import UserError
from clipcap.text import COUNTED_HASHTAG, EMOJI, EMOJI_PATTERN, LONE_SIGN, UNSPACED, cut_out, has_field

FIELDS = ("folder", "date")


@dataclass(frozen=True)
class Limits:
    """What a network allows in the caption of a post."""

    hashtags: int
    characters: int


# Five hashtags, announced on 18 December 2025:
# https://www.socialmediatoday.com/news/instagrams-implementing-new-limits-on-hashtag-use/808309/
# Five hashtags and 2,200 characters, for who posts through its interface for programs:
# https://www.ayrshare.com/docs/apis/post/social-networks/instagram
INSTAGRAM = Limits(hashtags=5, characters=2200)


@dataclass(frozen=True)
class Frame:
    """The texts around the caption of one picture, filled in.

    Attributes:
        start: what the caption goes on from.
        before, after: what stands in front of it and behind it, with the blank between.
    """

    start: str = ""
    before: str = ""
    after: str = ""

    @property
    def size(self) -> int:
        """How many characters the texts have, see `size_of`."""
        return size_of(self.before + self.start + self.after)

    @property
    def hashtags(self) -> list[str]:
        """The hashtags of the texts, in lower case."""
        return hashtags_of(f"{self.before} {self.start} {self.after}")

    @property
    def sign(self) -> str:
        """The "#" that the start ends with: what the model writes behind it becomes a hashtag."""
        return self.start[len(self.start.rstrip("#\uff03")) :]

    def around(self, rest: str, max_hashtags: int | None, max_chars: int | None) -> str:
        """What the model wrote behind the start -> the caption as it is posted; "" if none of it is left.

        A hashtag that there is already, or one too many, goes; so do a "#" without a word and half an emoji at the end.
        """
        seen, spans, known = set(self.hashtags), [], len(self.sign)
        for found in COUNTED_HASHTAG.finditer(self.sign + rest):
            [tag] = hashtags_of(found[0])
            if tag in seen or (max_hashtags is not None and len(seen) >= max_hashtags):
                spans.append((found.start() - known, found.end() - known))
            seen.add(tag)
        if spans and spans[0][0] < 0:  # its sign is the start's, which stays
            return ""
        rest = cut_out(rest, spans)
        rest = cut_out(rest, [found.span() for found in LONE_SIGN.finditer(rest)])
        rest = regex.sub(r"\s*(?:\u200D?\uFFFD|\u200D)?[\s#\uFF03]*$", "", rest)
        rest = rest if self.start else rest.lstrip()
        if max_chars is not None:
            rest = fit(rest, max_chars - self.size)
        return f"{self.before}{self.start}{rest}{self.after}" if rest.strip() else ""


def fill(template: str, source: ImageSource | None) -> str:
    """A text with its fields filled in for a picture; for None, with nothing.

    Raises:
        UnreadableImage: the picture lacks what a field asks for.
        UserError: it is not from a file, and so has no folder.
    """
    values = dict.fromkeys(FIELDS, "")
    if source is not None and has_field(template, "folder"):
        if not isinstance(source, str | Path):
            raise UserError("a picture that was not given as a path has no folder: give a path, or leave {folder} out")
        values["folder"] = " ".join(Path(os.path.abspath(source)).parent.name.split())
        if not values["folder"] or any("\ud800" <= letter <= "\udfff" for letter in values["folder"]):
            raise UnreadableImage("its folder has no name that {folder} could stand for")
    if source is not None and has_field(template, "date"):
        values["date"] = date_taken(source) or ""
        if not values["date"]:
            raise UnreadableImage("its EXIF holds no date that {date} could stand for")
    return template.format(**values)


def hashtags_of(text: str) -> list[str]:
    """The hashtags of a text in lower case, without the sign."""
    return [unicodedata.normalize("NFC", found[1]).casefold() for found in COUNTED_HASHTAG.finditer(text)]


def size_of(text: str) -> int:
    """Characters in UTF-16, and one more for each emoji that is one there: an emoji counts twice or more.

    Counters of Instagram's characters differ in this (https://charactercounter.app/tools/instagram-character-counter:
    emoji count as one or two, joined ones as more), and no other way of counting gives more.
    """
    single = sum(emoji <= "\uffff" for emoji in EMOJI.findall(text) if len(emoji) == 1)
    return len(text.encode("utf-16-le", "surrogatepass")) // 2 + single


# What is kept or dropped as a whole, with the blanks in front: an emoji, a hashtag, a letter of a script that puts no
# blanks between words, or a word with its punctuation. \X is a character as a reader sees it, with all its modifiers.
_HASHTAG = r"[\#\uFF03]+[\w\p{M}\u200C\u200D]+"
_UNIT = regex.compile(
    rf"\s*(?: (?={EMOJI_PATTERN})\X | {_HASHTAG} | (?={UNSPACED})\X"
    rf" | (?: (?!{EMOJI_PATTERN} | {_HASHTAG} | {UNSPACED} | \s)\X )+ )",
    regex.VERBOSE | regex.VERSION1,
)
_SENTENCE = regex.compile(
    rf""".*(?: [.!?…。！？]+ ["'”’)\]]* (?=\s|$) | {EMOJI_PATTERN} )""", regex.VERBOSE | regex.VERSION1 | regex.DOTALL
)


def fit(text: str, room: int) -> str:
    """The longest beginning of a text that has room and cuts no word, emoji or hashtag.

    Where it would break off within a sentence, it ends with the sentence before, if a third of it is left then.
    """
    if size_of(text) <= room:
        return text
    units = [found[0] for found in _UNIT.finditer(text)]
    count = sum(end <= room for end in accumulate(map(size_of, units)))
    kept, dropped = "".join(units[:count]), units[count:]
    if (
        dropped
        and regex.match(r"""\s*[\p{Ps}\p{Pi}"'¿¡]*\w""", dropped[0])
        and (whole := _SENTENCE.match(kept))
        and 3 * len(whole[0]) >= len(kept)
    ):
        kept = whole[0]
    return kept.rstrip(" \t\n,;:&–—-")
