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

from clipcap.text import LONGER_NAME, MENTION, NAME, PLACEHOLDER

Span = tuple[int, int]

# Full-width and mathematical letters and digits, the small "@", blanks: readers take them for the plain ones.
_FANCY = {
    code: plain
    for code in (*range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D800), *range(0x2000, 0x200B), 0xA0, 0x202F, 0x3000, 0xFE6B)
    if len(plain := unicodedata.normalize("NFKC", chr(code))) == 1
}
_HIDDEN = re.compile(r"(?<=[\w@.+-])[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]+(?=[\w@.(+-])", re.ASCII)
_KEYCAP = re.compile("(?<=[0-9])\ufe0f?\u20e3")

_BLANK = r"[ \t]"
_DOT = rf"(?:\.|{_BLANK}*[(\[{{]dot[)\]}}]{_BLANK}*|{_BLANK}dot{_BLANK})"
_DOMAIN = rf"(?:[\w-]{{1,63}}{_DOT}){{1,4}}"  # up to its last part
_END = r"(?![^\W\d_]|@)"
# Blanks around the "@" are how people name a place, "@ St.Tropez", unless it ends as mail addresses do, and not like a
# new sentence: "@ home.It was", "@ Cafe.de.Flore".
_USUAL = (
    "mil|int|info|biz|name|pro|app|dev|xyz|online|email|agency|art|berlin|blog|club|design|gmbh|live|"
    "media|photo|photography|photos|shop|site|space|store|studio|tech|wien|world|eu|io|co|me|tv|cc|ai|ae|ar|at|au|ba|be|bg|br|"
    "by|ca|ch|cl|cn|cr|cy|cz|de|dk|do|ec|ee|eg|es|fi|fr|ge|gh|gr|gt|hk|hr|hu|id|ie|il|in|ir|is|it|jp|ke|kr|kz|lk|lt|lu|lv|"
    "ma|mk|mt|mx|my|ng|nl|no|np|nz|pe|ph|pk|pl|pt|py|qa|ro|rs|ru|sa|se|sg|si|sk|th|tn|tr|tw|ua|uk|us|uy|ve|vn|za|рф|укр"
)
_AT = (
    rf"(?:@{_BLANK}?|{_BLANK}@{_BLANK}(?={_DOMAIN}(?:com|net|org|edu|gov|(?-i:{_USUAL}|{_USUAL.upper()})(?!\.[^\W\d_])){_END})"
    rf"|{_BLANK}*[(\[{{]at[)\]}}]{_BLANK}*"
    rf"|{_BLANK}at{_BLANK}(?=(?:gmail|yahoo|hotmail|outlook|icloud)\b))"
)
_LOCAL = r"[\w.!#$%&'*+/=?^`{|}~-]"
_ADDRESS = rf"{_LOCAL}*\w{_AT}{_DOMAIN}[^\W\d_]{{2,24}}{_END}"
_EMAIL = re.compile(rf"@?(?<!{_LOCAL}){_ADDRESS}", re.IGNORECASE)
_NEXT_EMAIL = re.compile(rf"(?<=[\W_]){_ADDRESS}", re.IGNORECASE)  # one character behind another, "a@b.com/c@d.com"

# Names that an address or a label shows for what they are. Pages of Instagram's own are nobody.
_PROFILE = re.compile(
    rf"\binstagram\.com/(?!(?:p|reels?|tv|explore|stories)/)({NAME})"
    rf"|\b(?:ig|insta|instagram){_BLANK}?:{_BLANK}?(?!https?:|www\.|instagram\.com/)({LONGER_NAME})",
    re.IGNORECASE,
)

# Six or more digits with at most three separators between two of them: no part of a longer number, a price, a word, a
# hashtag, a handle or a time. They can be several phone numbers in a row, which may part at each `_JOINT`.
_BETWEEN = r"[ ./()+\u2010-\u2013-]{0,3}"
_DIGITS = re.compile(
    r"(?<![\w#@$€£¥₹+])(?<![$€£¥₹] )(?<!\d[.,:-])"
    rf"[+(]{{0,2}}\d(?:(?:{_BETWEEN}|(?<=\d{{3}})·(?=\d{{3}})|(?<=\d\d),(?=[+(]|0|\d-?\d\d)(?=(?:{_BETWEEN}\d){{7}}){_BETWEEN})\d)"
    r"{5,47}(?!\w|[.,:]\d|[%°$€£¥₹])"
)
_JOINT = re.compile(
    r",| +/ +|(?<=\d)(?: */ *| +)(?=[(+]|0\d|\d{9}|(?:\d-)?\d{3}[.·-]\d{3}[.·-])|(?<=\d{4})(?: */ *| +)|(?<=\d)(?=[(+])"
)
_LONGEST = 32  # characters, with separators
_EXTENSION = re.compile(r"(?<=\d{4}) ?/ ?(?!(?:19|20)\d\d)\d{1,4}$")
_CUE = re.compile(
    r"(?:\b(?:call|text|phone|mobile|cell|telp?|fon|whats ?app|wa|hp|sms|viber|signal|dial)\b"
    r"(?: (?:me|us))?(?: (?:number|no|nr)\b\.?)?(?: at| on| is)?|[☎📞📱📲]\ufe0f?)[.:\s]*$",
    re.IGNORECASE,
)
_OTHER_CUE = re.compile(r"\b(?:isbn|rp|rs|idr|usd|eur|inr|ngn)\b[.:\s]*$", re.IGNORECASE)
_YEAR = re.compile(r"(?:19|20)\d\d")


def handles(text: str) -> list[Span]:
    """Where a text has @handles, without those inside e-mail addresses."""
    return _spans(text, _handles)


def emails(text: str) -> list[Span]:
    """Where a text has e-mail addresses, also spelled "jane (at) mail dot com"."""
    return _spans(text, _emails)


def phones(text: str) -> list[Span]:
    """Where a text has phone numbers."""
    return _spans(text, _phones, _KEYCAP)


def contacts(text: str) -> set[str]:
    """All of them, each in one spelling: "@jane", "jane@mail.com", digits."""
    plain = text.translate(_FANCY)
    found = {"".join(filter(str.isdigit, plain[start:end])) for start, end in phones(text)}
    for start, end in emails(text):
        found.add(_spelled(re.sub(_AT, "@", re.sub(_DOT, ".", plain[start:end].lower()))))
    found |= {"@" + _spelled(plain[start:end].lower()).lstrip("@") for start, end in handles(text)}
    return found - {PLACEHOLDER}


def _spelled(contact: str) -> str:
    return "".join(re.findall(r"[\w.@+-]", contact))


def _spans(text: str, find: Callable[[str], list[Span]], *unseen: re.Pattern[str]) -> list[Span]:
    """What `find` finds in the text as a reader sees it, as places in the text as it is."""
    plain = text.translate(_FANCY)  # as long as the text
    hidden = {n for pattern in (_HIDDEN, *unseen) for match in pattern.finditer(plain) for n in range(*match.span())}
    if not hidden:
        return find(plain)
    seen = [place for place in range(len(plain)) if place not in hidden]
    shown = "".join(plain[place] for place in seen)
    seen.append(len(plain))
    return [(seen[start], seen[end]) for start, end in find(shown)]


def _handles(text: str) -> list[Span]:
    addresses = {place for span in _emails(text) for place in range(*span)}
    found = [match.span() for match in MENTION.finditer(text)]
    found += [match.span(match.lastindex or 0) for match in _PROFILE.finditer(text)]
    return sorted(span for span in found if span[0] not in addresses)


def _emails(text: str) -> list[Span]:
    found: list[Span] = []
    end = -1
    while match := _NEXT_EMAIL.match(text, end + 1) or _EMAIL.search(text, end):
        found.append(match.span())
        end = match.end()
    return found


def _phones(text: str) -> list[Span]:
    found = []
    for match in _DIGITS.finditer(text):
        before = text[max(0, match.start() - 24) : match.start()]
        found += [(match.start() + start, match.start() + end) for start, end in _numbers(match[0], before)]
    return found


def _numbers(row: str, before: str) -> list[Span]:
    """The phone numbers that a row begins with, parted so that they take most of its digits."""
    joints = [*(match.span() for match in _JOINT.finditer(row)), (len(row), len(row))]
    best: dict[int, list[Span]] = {}  # by the place where the first of them begins
    for start in (*(after for _, after in joints[-2::-1]), 0):
        choices = [
            [(start, end), *best.get(after, [])]
            for end, after in joints
            if start + 6 <= end <= start + _LONGEST
            and any(_is_phone(number, before) for number in {row[start:end], _EXTENSION.sub("", row[start:end])})
        ]
        best[start] = max(
            choices, key=lambda spans: sum(map(str.isdigit, "".join(row[slice(*span)] for span in spans))), default=[]
        )
    return best[0]


def _is_phone(number: str, before: str) -> bool:
    """Whether digits with separators are a phone number, by their shape and by the text in front of them."""
    if "," in number or "+" in number.lstrip("(+"):  # two numbers
        return False
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
