"""Caption cleaning in small steps. Each step can be switched off, and what it changed is counted."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from hashlib import sha256

import regex

from clipcap.cli.options import arg
from clipcap.data.contacts import emails, handles, phones
from clipcap.errors import UserError, at_least
from clipcap.text import HASHTAG, PLACEHOLDER, UNSPACED, cut_out

# A link ends where an emoji begins, or a script without blanks, whose text goes on right behind it; brackets belong to
# it in pairs behind a _, as in Wikipedia's, and punctuation that closes the sentence stays.
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{Nd}}_]--[\uFE0E\uFE0F\u20E3]--{UNSPACED}]"
_OF_LINK = rf"[!#$%&'*+,./:;=?@~\-{_LETTER}]"
_IN_BRACKETS = rf"(?<=_)\({_OF_LINK}*+\)"
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z]\w{1,31});", re.IGNORECASE | re.ASCII)
_LINK = regex.compile(
    r"(?:https?://|(?<![a-z0-9_])(?:www\.|instagram\.com/))"
    rf"(?:{_OF_LINK}|{_IN_BRACKETS})*(?:[/=~#&\-{_LETTER}](?![\uFE0F\u20E3])|{_IN_BRACKETS})",
    regex.IGNORECASE | regex.VERSION1,
)
# White space, and the invisible characters that people post in place of a caption: Braille's blank, Hangul's fillers,
# marks of direction. Joiners and variation selectors are not among them, since they are parts of emoji. Both patterns
# look behind, to try each run of blanks only once, since otherwise the time grows with the square of its length.
_BLANK = r"[\s\u00ad\u115f\u1160\u200b\u200e\u200f\u2060\u2063\u2800\u3164\ufeff\uffa0]"
_EDGES = re.compile(rf"^{_BLANK}+|(?<!{_BLANK}){_BLANK}+$")


@dataclass(frozen=True)
class Cleaning:
    """Which steps run. No step touches emoji, whether joined, with skin tones, flags or keycaps."""

    _argument_group_name = "caption cleaning"

    unescape_html: bool = arg(True, "turn &amp; into &")
    strip_links: bool = arg(True, "remove web addresses")
    strip_contacts: bool = arg(True, "remove phone numbers and e-mail addresses")
    mentions: str = arg(
        "replace", f"@names: replace by {PLACEHOLDER}, drop, or keep", choices=["replace", "drop", "keep"]
    )
    keep_mentions: bool = arg(False, "the same as --mentions keep")
    max_hashtags: int | None = arg(None, "keep the first N hashtags of a caption (default: all)")
    trim: bool = arg(True, "remove white space at both ends")
    drop_empty: bool = arg(True, "leave out captions without text")
    drop_duplicates: str = arg(
        "image",
        "leave out a caption seen before: on the same image, on any image (caption), or never (none)",
        choices=["image", "caption", "none"],
    )

    def __post_init__(self) -> None:
        at_least(0, option=True, max_hashtags=self.max_hashtags)
        if self.keep_mentions and self.mentions == "drop":
            raise UserError("--keep-mentions and --mentions drop contradict each other: give one of them")
        if self.keep_mentions:  # one spelling in the dataset's plan
            object.__setattr__(self, "mentions", "keep")
            object.__setattr__(self, "keep_mentions", False)


class Cleaner:
    """Cleans captions one after the other; `counts` says for each step how many captions it changed or left out."""

    def __init__(self, options: Cleaning) -> None:
        self.options = options
        self.steps = {
            "unescape_html": _unescape if options.unescape_html else None,
            "strip_links": _strip_links if options.strip_links else None,
            "strip_contacts": _strip_contacts if options.strip_contacts else None,
            "mentions": None if options.mentions == "keep" else self._mentions,
            "max_hashtags": None if options.max_hashtags is None else self._hashtags,
            "trim": (lambda text: _EDGES.sub("", text)) if options.trim else None,
        }
        dropping = {"drop_empty": options.drop_empty, "drop_duplicates": options.drop_duplicates != "none"}
        self.counts = {name: 0 for name, active in (self.steps | dropping).items() if active}
        self._seen: set[bytes] = set()

    def __call__(self, caption: str, image_id: str) -> str | None:
        """The cleaned caption, or None when it is left out."""
        for name, step in self.steps.items():
            if step and (cleaned := step(caption)) != caption:
                caption = cleaned
                self.counts[name] += 1
        if self.options.drop_empty and not _EDGES.sub("", caption):
            self.counts["drop_empty"] += 1
            return None
        if self.options.drop_duplicates != "none":
            whose = image_id if self.options.drop_duplicates == "image" else ""
            key = sha256(json.dumps([whose, caption]).encode()).digest()[:16]  # there may be millions
            if key in self._seen:
                self.counts["drop_duplicates"] += 1
                return None
            self._seen.add(key)
        return caption

    def _mentions(self, caption: str) -> str:
        spans = handles(caption)
        if self.options.mentions == "drop":
            return cut_out(caption, spans)
        starts = [0, *(stop for _, stop in spans)]
        ends = [*(start for start, _ in spans), len(caption)]
        return PLACEHOLDER.join(caption[start:end] for start, end in zip(starts, ends, strict=True))

    def _hashtags(self, caption: str) -> str:
        spans = [match.span() for match in HASHTAG.finditer(caption)]
        return cut_out(caption, spans[self.options.max_hashtags :])


def _unescape(text: str) -> str:
    """Entities that end in ";" alone: browsers read others too, such as the "&eth" of "mom&ethan"."""
    return _ENTITY.sub(_character, text)


def _character(entity: re.Match[str]) -> str:
    read = html.unescape(entity[0])
    return read if len(read) <= 2 else entity[0]  # the longest have two; "&ethan;" would become "ðan;"


def _strip_links(text: str) -> str:
    return cut_out(text, (match.span() for match in _LINK.finditer(text)))


def _strip_contacts(text: str) -> str:
    text = cut_out(text, emails(text))
    return cut_out(text, phones(text))
