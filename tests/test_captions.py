"""Guards the rules for captions: they hold on every text, whatever the spelling, the case or the emoji."""

import pytest
from tiny import tiny_tokenizer

from clipcap.captioning.rules import Rules
from clipcap.errors import UserError

EMOJI = ["😀", "❤", "❤️", "☀️", "✨", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "1️⃣", "#️⃣", "👩🏿‍🚀", "⛱", "🫠", "©️", "‼️", "🅰️"]


@pytest.mark.parametrize("emoji", EMOJI)
def test_no_part_of_an_emoji_is_left(emoji):
    """Joined people, skin tones, flags and keycaps are several characters, and some of them are invisible."""
    rules = Rules(emoji="none")
    assert rules.clean(f"at the lake {emoji} again") == "at the lake again"
    assert rules.clean(f"{emoji}{emoji} sun{emoji}") == "sun"


def test_what_is_no_emoji_stays():
    text = "1 of 2 #3 * “café” – क्‍ष niño 東京 50% (a+b) → C"
    assert Rules(emoji="none").clean(text) == text


def test_hashtags_and_mentions_go():
    text = "Sunset #golden_hour at #plage2024 with @bob.smith! #日本"
    assert Rules(hashtags="none").clean(text) == "Sunset at with @bob.smith!"
    assert Rules(mentions="none").clean("hi @bob_1, mail a@b.org") == "hi, mail a@b.org"
    assert Rules(hashtags="none", mentions="none").clean("#a@b #c#d") == ""
    assert Rules(hashtags="none").clean("step 1️⃣ and #️⃣") == "step 1️⃣ and #️⃣"
    assert Rules().clean(text) == text


@pytest.mark.parametrize("text", ["a Dog.", "DOG", "my dog's bed", "#dog", "the\ndog", "“dog”", "dog-friendly", "@dog"])
def test_a_banned_word_is_found_in_any_dress(text):
    rules = Rules(ban=("dog",))
    assert not rules.allows(text)
    assert rules.allows(rules.clean(text))


@pytest.mark.parametrize("text", ["a hotdog", "dogs", "doggy", "cat_dog_cat", "endogenous"])
def test_words_that_only_contain_it_are_no_banned_words(text):
    assert Rules(ban=("dog",)).allows(text) and Rules(ban=("dog",)).clean(text) == text


def test_banned_phrases_accents_and_signs():
    assert not Rules(ban=("golden hour",)).allows("Golden  Hour!")
    assert not Rules(ban=("straße",)).allows("STRASSE")
    decomposed = "cafe\u0301"
    assert Rules(ban=("café",)).clean(f"a {decomposed} here") == "a here"
    assert not Rules(ban=("café",)).allows(decomposed) and not Rules(require=("café",)).missing([decomposed])
    assert not Rules(ban=("c++",)).allows("I love C++!")
    assert not Rules(ban=("😀",)).allows("hi😀")


def test_cleaning_does_not_bring_a_banned_word_together():
    """ "dogdog dog" and the like: what is cut out must not leave what it cut out."""
    rules = Rules(ban=("big dog", "dog"), emoji="none")
    for text in ("big big dog dog", "do😀g", "d😀og"):
        assert rules.allows(rules.clean(text))


def test_words_from_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("\ufeffdog\r\n\n  Cat \n", encoding="utf-8")
    rules = Rules(ban=["bird"], ban_file=tmp_path / "words.txt")
    assert rules.ban == ("bird", "dog", "Cat")
    with pytest.raises(UserError, match="cannot be read"):
        Rules(ban_file=tmp_path / "nowhere.txt")


def test_what_cannot_be_is_refused():
    for wrong in ({"rank": "luck"}, {"emoji": "no"}, {"num_captions": 0}):
        with pytest.raises(UserError):
            Rules(**wrong)
    for contradiction in ({"ban": "dog", "require": "Dog"}, {"hashtags": "none", "require": "#sun"}):
        with pytest.raises(UserError, match="required, and ruled out"):
            Rules(**contradiction)


def test_required_words_may_be_spread_over_captions():
    rules = Rules(require=("dog", "sun"))
    assert rules.missing(["a dog", "the SUN!"]) == []
    assert rules.missing(["dogs", "sun"]) == ["dog"]


def test_tokens_that_begin_what_is_ruled_out(shared):
    from clipcap.model.gpt2 import load_tokenizer

    tokenizer = load_tokenizer(str(shared / "gpt2_tokenizer"))
    banned = {token for (token,) in Rules(hashtags="none", emoji="none", mentions="none").banned_tokens(tokenizer)}
    for text in ("#dog", " #dog", "@dog", " @", *EMOJI[:6], "👍🏽", "1️⃣"):
        assert banned & set(tokenizer.encode(text).ids), text
    plain = "A dog's “day” – at the café… 50% off, 1st of 3: niño 東京"
    assert not banned & set(tokenizer.encode(plain).ids)
    assert Rules().banned_tokens(tokenizer) == ()


def test_banned_words_as_tokens():
    tokenizer = tiny_tokenizer()
    sequences = Rules(ban=("dog",)).banned_words(tokenizer)
    for spelling in ("dog", " dog", "Dog", " DOG"):
        assert tuple(tokenizer.encode(spelling).ids) in sequences
