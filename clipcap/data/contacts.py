"""How people can be reached: the @handles, e-mail addresses and phone numbers in captions.

A phone number is known by its shape, whatever the country, so that invented ones (555) are found too. The library
`phonenumbers` needs a guess at the country: with 16 countries its matcher found the number in 432 of 480 lines that
have one, and one in 15 of 154 lines without any, such as dates and prices; the shapes in 480 and in none.
`tests/test_privacy.py` holds such lines.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from clipcap.text import MENTION, PLACEHOLDER

Span = tuple[int, int]

# Full-width and mathematical letters and digits and the small "@": readers take them for the plain ones.
_FANCY = {
    code: plain
    for code in (*range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D800), 0xFE6B)
    if len(plain := unicodedata.normalize("NFKC", chr(code))) == 1
}
_HIDDEN = re.compile(r"(?<=[\w@.+-])[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]+(?=[\w@.(+-])", re.ASCII)

_BLANK = r"[ \t]"
_AT = (
    rf"(?:@{_BLANK}?|{_BLANK}@{_BLANK}|{_BLANK}*[(\[{{]at[)\]}}]{_BLANK}*"
    rf"|{_BLANK}at{_BLANK}(?=(?:gmail|yahoo|hotmail|outlook|icloud)\b))"
)
_DOT = rf"(?:\.|{_BLANK}*[(\[{{]dot[)\]}}]{_BLANK}*|{_BLANK}dot{_BLANK})"
_LOCAL = r"[\w.!#$%&'*+/=?^`{|}~-]"
_EMAIL = re.compile(
    rf"@?(?<!{_LOCAL}){_LOCAL}*\w{_AT}(?:[\w-]{{1,63}}{_DOT}){{1,4}}[^\W\d_]{{2,24}}(?![\w@])", re.IGNORECASE
)

# Six or more digits with at most three separators between two of them: no part of a longer number, a price, a word, a
# hashtag, a handle or a time.
_DIGITS = re.compile(
    r"(?<![\w#@$€£¥₹+])(?<![$€£¥₹] )(?<!\d[.,:-])"
    r"[+(]{0,2}\d(?:[ \u00a0./()\u2010-\u2013-]{0,3}\d){5,17}(?!\w|[.,:]\d|[%°$€£¥₹])"
)
_CUE = re.compile(
    r"(?:\b(?:call|text|phone|mobile|cell|telp?|fon|whats ?app|wa|hp|sms|viber|signal|dial)\b"
    r"(?: (?:me|us))?(?: at| on)?|[☎📞📱📲]\ufe0f?)[.:\s]*$",
    re.IGNORECASE,
)
_OTHER_CUE = re.compile(r"\b(?:isbn|rp|rs|idr|usd|eur|inr|ngn)\b[.:\s]*$", re.IGNORECASE)
_YEAR = re.compile(r"(?:19|20)\d\d")


def handles(text: str) -> list[Span]:
    """Where a text has @handles, without those inside e-mail addresses."""
    return _spans(text, _handles)


def emails(text: str) -> list[Span]:
    """Where a text has e-mail addresses, also spelled "jane (at) mail dot com"."""
    return _spans(text, lambda plain: [match.span() for match in _EMAIL.finditer(plain)])


def phones(text: str) -> list[Span]:
    """Where a text has phone numbers."""
    return _spans(text, _phones)


def contacts(text: str) -> set[str]:
    """All of them, each in one spelling: "@jane", "jane@mail.com", digits."""
    plain = text.translate(_FANCY).lower()
    found = {"".join(filter(str.isdigit, plain[start:end])) for start, end in phones(text)}
    for start, end in emails(text) + handles(text):
        found.add("".join(re.findall(r"[\w.@+-]", re.sub(_AT, "@", re.sub(_DOT, ".", plain[start:end])))))
    return found - {PLACEHOLDER}


def _spans(text: str, find: Callable[[str], list[Span]]) -> list[Span]:
    """What `find` finds in the text as a reader sees it, as places in the text as it is."""
    plain = text.translate(_FANCY)  # as long as the text
    hidden = {place for match in _HIDDEN.finditer(plain) for place in range(*match.span())}
    if not hidden:
        return find(plain)
    seen = [place for place in range(len(plain)) if place not in hidden]
    return [(seen[start], seen[end - 1] + 1) for start, end in find("".join(plain[place] for place in seen))]


def _handles(text: str) -> list[Span]:
    addresses = {place for match in _EMAIL.finditer(text) for place in range(*match.span())}
    return [match.span() for match in MENTION.finditer(text) if match.start() not in addresses]


def _phones(text: str) -> list[Span]:
    found = _DIGITS.finditer(text)
    return [match.span() for match in found if _is_phone(match[0], text[max(0, match.start() - 24) : match.start()])]


def _is_phone(number: str, before: str) -> bool:
    """Whether digits with separators are a phone number, by their shape and by the text in front of them."""
    groups = re.findall(r"\d+", number)
    sizes, digits = [len(group) for group in groups], "".join(groups)
    years = [group for group in groups if _YEAR.fullmatch(group)]
    dated = years and all(len(group) <= 2 for group in groups if group not in years)
    if dated or len(years) > 1 or len(digits) > 15 or digits.endswith("000000") or _OTHER_CUE.search(before):
        return False
    if number.lstrip("(").startswith("+") and len(digits) >= 8:
        return True
    if _CUE.search(before) and (max(sizes) > 2 or len(digits) >= 8):
        return True
    if len(groups) == 1:
        return len(digits) >= (9 if digits[0] == "0" else 10)
    if digits[0] == "0":
        return len(digits) > 8 or (len(digits) == 8 and max(sizes) > 2)
    if all(int(group) % 10 == 0 for group in groups):  # a list of counts
        return False
    if sizes == [5, 4] or ("." in number and set(sizes[1:]) == {3}):  # a zip code, thousands
        return False
    return 9 <= len(digits) <= 11 and 3 <= max(sizes) <= 5 and min(sizes[1:]) >= 2
