"""What counts as an emoji, a hashtag, a mention; texts with fields to fill in; and how large a JSON text is.

Emoji, hashtags and mentions have two definitions each, since they serve two purposes. What counts or keeps them needs
whole ones, as a person sees them: an emoji with its skin tone, a hashtag that Instagram would link. What removes them
from a caption needs every trace (`*_TRACE`), even of half-written ones: a lone "#", or a variation selector without its
emoji.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

import regex

from clipcap.errors import UserError

# One whole emoji (a flag, a keycap, or pictograms with modifiers and joiners), for use inside a VERBOSE pattern.
# The signs © ® ™ are pictograms in Unicode, but readers take them for text.
EMOJI_PATTERN = r"""(?: \p{RI}\p{RI} | [0-9\#*]\uFE0F?\u20E3
  | [\p{Extended_Pictographic}--[©®™]][\uFE0F\p{Emoji_Modifier}]*
    (?: \u200D\p{Extended_Pictographic}[\uFE0F\p{Emoji_Modifier}]* )* )"""
EMOJI = regex.compile(EMOJI_PATTERN, regex.VERBOSE | regex.VERSION1)

# As Instagram links them. A hashtag needs a letter, and may hold combining marks, and joiners between letters. It may
# stand right behind another one (\G), but behind no other word. \w of `regex` matches what belongs to emoji too, so it
# is written out. Neither a hashtag nor a mention may swallow the digit of a keycap emoji that follows it. A time
# ("@7pm", "@9:30") is no mention. Mentions use `re`, whose \w has no marks.
# Instagram's names are ASCII; people also write other Latin, Greek and Cyrillic letters, and then the whole word goes.
# Right behind a word only a longer name counts ("by@jane", not "tod@s").
_NO_KEYCAP = r"(?![\uFE0F\u20E3])"
_OF_TAG = r"[[\p{L}\p{N}\p{M}_]--[\uFE0E\uFE0F\u20E3]]"
HASHTAG = regex.compile(
    rf"(?:(?<![\p{{L}}\p{{N}}_&])|(?!^)\G)[#\uFF03](?=\p{{Nd}}*[\p{{L}}\p{{Nl}}\p{{No}}_])"
    rf"{_OF_TAG}+(?:[\u200C\u200D]{_OF_TAG}+)*{_NO_KEYCAP}",
    regex.VERSION1,
)
OF_NAME = r"a-z0-9_\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u0373\u0386\u0388-\u052F\u1E00-\u1EFF"
NAME = rf"[{OF_NAME}](?:[{OF_NAME}.]*[{OF_NAME}])?{_NO_KEYCAP}"
LONGER_NAME = rf"(?=\d*[^\W\d][{OF_NAME}.]{{2}}){NAME}"  # with a letter; to be used where a short word is none
_TIME = rf"\d{{1,2}}(?:[.:]\d\d)?(?:[ap]m|h)?(?![{OF_NAME}]|\.[{OF_NAME}.]*[^\W\d])"
MENTION = re.compile(
    rf"(?<![{OF_NAME}])@(?!{_TIME}){NAME}|(?<=[{OF_NAME}]{{2}})@{LONGER_NAME}",
    re.IGNORECASE,
)
PLACEHOLDER = "@user"  # stands for a mention in training captions, so that the sentence stays whole

# The characters of Chinese and Japanese, which are written without blanks, for use inside a set of a pattern.
CJK = r"\p{Han}\p{Hiragana}\p{Katakana}\u30FC"
UNSPACED = rf"[{CJK}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}]"  # of all scripts without blanks between words

OF_EMOJI = r"\uFE0E\uFE0F\u200D\u20E3\p{Emoji_Modifier}\U000E0020-\U000E007F"  # what follows a pictogram, for a set
# What is removed from a caption that must not hold any of them. U+FE0F makes pictures of © ® ™.
EMOJI_TRACE = regex.compile(
    r"(?:[0-9#*]\uFE0F?\u20E3|[©®™](?=\uFE0F)"
    r"|[[\p{Extended_Pictographic}\p{Regional_Indicator}\p{Emoji_Modifier}\uFE0F]--[©®™]])"
    rf"[{OF_EMOJI}]*",
    regex.VERSION1,
)
# A "#" that stands alone takes the word behind it away too, which was meant to be a hashtag.
HASHTAG_TRACE = regex.compile(r"(?:[#\uFF03](?!\uFE0F?\u20E3))+[^\S\n]*[\w\p{M}\u200C\u200D]*")
MENTION_TRACE = regex.compile(  # but no mail address and no time
    rf"@(?:(?<![\w.]@)|(?![\w-]+\.\w))(?![^\S\n]*{_TIME})[{OF_NAME}.]*", regex.IGNORECASE
)

# Hashtags as a limit counts them: all that some reader might take for one, with digits alone or right behind a word,
# together with a "'s" behind it.
COUNTED_HASHTAG = regex.compile(r"(?:[#\uFF03](?!\uFE0F?\u20E3))+([\w\p{M}\u200C\u200D]+)(?:['’]s\b)?")
# Signs of a hashtag that has no word.
LONE_SIGN = regex.compile(r"(?:[#\uFF03](?!\uFE0F?\u20E3))++(?![\p{M}\u200C\u200D]*[\p{L}\p{N}_])")

BLANK_END = regex.compile(r"[ \t]*+(?=\n|$|[,.!?](?:[\s.!?]|$))")  # of a line, or in front of a sign that ends words


MARKDOWN = re.compile(r"[\\`*~\[\]<>|&]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)  # its signs within a line


# What would move a terminal's cursor, start a new line, or turn the direction of the text that follows.
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def cut_out(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """A text without some of its parts, (start, end) each, and the blanks in front of them. Words do not join.

    Where a line ends behind such a part, or a comma, full stop or the like follows, the blanks between go too.
    """
    kept, end = "", 0
    for start, stop in spans:
        kept = (kept + text[end:start]).rstrip(" \t")
        blank = BLANK_END.match(text, stop)
        end = blank.end() if blank else stop
        if regex.match(UNSPACED, kept[-1:]) and regex.match(UNSPACED, text[end:]):
            continue
        if regex.match(r"[^\s\p{Ps}\p{Pi}#\uFF03@]", kept[-1:]) and regex.match(r"[\w#@\uFF03]", text[end:]):
            kept += " "
    return kept + text[end:]


def visible(text: str) -> str:
    """A text for one line of a terminal, in which what a terminal would obey is written as Python does."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_markdown(text: str) -> str:
    """A line of somebody else's for a page in Markdown, where it makes no link, picture, tag or cell."""
    return MARKDOWN.sub(r"\\\g<0>", text)


def check_fields(what: str, template: str, fields: Iterable[str]) -> None:
    """Raise a UserError unless the only braces of a text are "{field}" for these fields, or doubled ones."""
    try:
        template.encode()
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{what} {template!r} cannot be read ({error}); write {{{{ for a brace") from None
    found = [(name, spec, conversion) for _, name, spec, conversion in parsed if name is not None]
    unknown = sorted({name for name, _, _ in found} - set(fields))
    known = [f"{{{name}}}" for name in fields]
    if unknown:
        shown = ", ".join("{" + name + "}" for name in unknown)
        told = f"the only field is {known[0]}" if len(known) == 1 else f"the only fields are {', '.join(known)}"
        raise UserError(f"{what} {template!r} holds {shown}; {told}")
    for name, spec, conversion in found:
        if spec or conversion:
            raise UserError(f"{what} {template!r} gives {{{name}}} a format; write plain {{{name}}}")


def has_field(template: str, field: str) -> bool:
    """Whether a text holds "{field}"."""
    return any(name == field for _, name, _, _ in string.Formatter().parse(template))


def json_parts(text: str) -> int:
    """How many lists and objects a JSON text has, at the most: 3 bytes of it become 70 in memory once it is parsed."""
    return text.count("{") + text.count("[")
