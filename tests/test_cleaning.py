"""Caption cleaning: every step does its work, is counted, and leaves emoji alone."""

from dataclasses import replace

import pytest

from clipcap.data.cleaning import Cleaner, Cleaning
from clipcap.errors import UserError

OFF = Cleaning(
    unescape_html=False, strip_links=False, strip_contacts=False, mentions="keep", trim=False, drop_empty=False,
    drop_duplicates="none",
)  # fmt: skip
EMOJI = "👨‍👩‍👧‍👦 👍🏽 🇫🇷 1️⃣ #️⃣ *️⃣ ❤️‍🔥 ☺️ 🏴󠁧󠁢󠁳󠁣󠁴󠁿"


@pytest.mark.parametrize(
    ("options", "caption", "cleaned"),
    [
        ({"trim": True}, " \n a  b\t ", "a  b"),
        ({"trim": True}, "\u200b\ufeffhi\u2063", "hi"),
        ({"trim": True}, "love ☺️", "love ☺️"),
        ({"unescape_html": True}, "fish &amp; chips &lt;3 &#128293;", "fish & chips <3 🔥"),
        (
            {"unescape_html": True},
            "mom&ethan wine&paradise food&#365project &ethan;",
            "mom&ethan wine&paradise food&#365project &ethan;",
        ),
        ({"strip_links": True}, "new video https://youtu.be/x?a=1&b=2🔥 go", "new video🔥 go"),
        ({"strip_links": True}, "see http://a.b/c. (www.d.com) now", "see. () now"),
        ({"strip_links": True}, "see https://de.wikipedia.org/wiki/Zürich now", "see now"),
        ({"strip_links": True}, "see https://en.wikipedia.org/wiki/Robin_(film) (or www.a.b/c_(d).)", "see (or.)"),
        ({"strip_links": True}, "at www.foo.com(great)", "at(great)"),
        ({"strip_links": True}, "читай https://ru.wikipedia.org/wiki/Кот сейчас", "читай сейчас"),
        ({"strip_links": True}, "at www.café.fr, see https://a.b/c猫と 見てwww.a.b😀", "at, see 猫と 見て😀"),
        ({"strip_links": True}, "top https://a.b/c1️⃣ www.a.b/กไทย", "top 1️⃣ กไทย"),
        ({"strip_links": True}, "awww.so cute, KylieSkin.com 5/22", "awww.so cute, KylieSkin.com 5/22"),
        ({"mentions": "replace"}, "with @a.b_c, me@home.org and (@d)!", "with @user, me@home.org and (@user)!"),
        ({"mentions": "drop"}, "with @a.b. and 💛@c 💚", "with. and 💛 💚"),
        ({"mentions": "drop"}, "top @me1️⃣", "top 1️⃣"),
        ({"max_hashtags": 1}, "#one two #three #four❤️ five", "#one two❤️ five"),
        ({"max_hashtags": 0}, "we're #1 #été #नमस्ते #love1️⃣ a#b &#39;", "we're #1 1️⃣ a#b &#39;"),
        ({"max_hashtags": 1}, "so #love#happy #me you", "so #love you"),
        ({"max_hashtags": 0}, "so #love#happy you", "so you"),
        ({"max_hashtags": 0}, "a #ສະບາຍດີ b #မင်္ဂလာပါ c #សួស្តី d #می‌خواهم e", "a b c d e"),
        ({"max_hashtags": 0}, "x ＃猫 ＃#️⃣ ❤️#love❤️ #a", "x ＃#️⃣ ❤️❤️"),
    ],
)
def test_a_step_does_its_work_and_is_counted_once(options: dict, caption: str, cleaned: str) -> None:
    """Guards against steps that eat punctuation, e-mail addresses, entities or the emoji next to what they remove."""
    cleaner = Cleaner(replace(OFF, **options))
    assert cleaner(caption, "image") == cleaned
    assert cleaner.counts == {next(iter(options)): int(cleaned != caption)}


@pytest.mark.parametrize("mentions", ["keep", "replace", "drop"])
def test_emoji_stay(mentions: str) -> None:
    """Guards against broken families, skin tones, flags and keycaps (whose "#" and digits are plain characters)."""
    assert Cleaner(Cleaning(mentions=mentions, max_hashtags=0))(EMOJI, "image") == EMOJI


def test_everything_can_be_switched_off() -> None:
    """Guards against a step that runs although it was switched off."""
    cleaner = Cleaner(OFF)
    for caption in (" &amp; https://a.b @c #d ", " &amp; https://a.b @c #d ", ""):
        assert cleaner(caption, "image") == caption
    assert cleaner.counts == {}


def test_empty_captions_are_left_out_and_counted() -> None:
    """Guards against captions that are empty only after the other steps, or look empty and are not."""
    cleaner = Cleaner(Cleaning(mentions="drop"))
    blanks = [*"\u00ad\u115f\u1160\u200b\u200e\u200f\u2060\u2063\u2800\u3164\ufeff\uffa0", "\u2800 \n\u2800"]
    captions = ["", " @a ", *blanks, "\u2800🔥\u3164"]
    assert [cleaner(caption, "image") for caption in captions] == [None] * (len(captions) - 1) + ["🔥"]
    assert cleaner.counts["drop_empty"] == len(captions) - 1


@pytest.mark.parametrize(("mode", "dropped"), [("image", 1), ("caption", 2), ("none", 0)])
def test_exact_duplicates(mode: str, dropped: int) -> None:
    """Guards against losing "❤" of a second image, unless that is asked for."""
    cleaner = Cleaner(Cleaning(drop_duplicates=mode))
    kept = [cleaner(*pair) for pair in (("❤", "a"), ("❤ ", "a"), ("❤", "b"), ("x", "b"))]
    assert kept.count(None) == dropped == cleaner.counts.get("drop_duplicates", 0)


def test_a_negative_number_of_hashtags_is_refused() -> None:
    with pytest.raises(UserError, match="--max-hashtags"):
        Cleaning(max_hashtags=-1)
