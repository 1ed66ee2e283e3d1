"""Guards the rules for captions: they hold on every text, whatever the spelling, the case or the emoji."""

import os
import threading
import time
from itertools import accumulate
from types import SimpleNamespace

import pytest
from tiny import tiny_tokenizer

import predict
from clipcap.captioning.choice import Choice, Found
from clipcap.captioning.options import CaptionArguments, DecodingArguments, chosen, decoding_and_rules
from clipcap.captioning.posts import Frame
from clipcap.captioning.rules import Rules
from clipcap.captioning.words import WHOLE
from clipcap.decoding.options import Decoding
from clipcap.errors import UserError

EMOJI = [
    "😀",
    "❤",
    "❤️",
    "☀️",
    "✨",
    "👍🏽",
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇫🇷",
    "🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "1️⃣",
    "#️⃣",
    "👩🏿‍🚀",
    "⛱",
    "🫠",
    "⛵",
    "♥",
    "©️",
    "‼️",
    "🅰️",
]


@pytest.mark.parametrize("emoji", EMOJI)
def test_no_part_of_an_emoji_is_left(emoji):
    """Joined people, skin tones, flags and keycaps are several characters, and some of them are invisible."""
    rules = Rules(emoji="none")
    assert rules.clean(f"at the lake {emoji} again") == "at the lake again"
    assert rules.clean(f"{emoji}{emoji} sun{emoji}") == "sun"


def test_what_is_no_emoji_stays():
    text = "1 of 2 #3 * “café” – क्‍ष niño 東京 50% (a+b) → C © Jane® ™"
    assert Rules(emoji="none", append=text).clean(text) == text


def test_a_time_is_no_mention():
    text = "Doors @ 8pm, show @9:30, end @23h"
    assert Rules(mentions="none", append=text).clean(text) == text
    assert Rules(mentions="none").clean("with @8pm_jane @7.jane @24.7gym @9.5.jane @ jane, @") == "with jane,"
    assert Rules(mentions="none").clean("at @9.30pm") == "at @9.30pm"


def test_a_caption_of_signs_is_read_in_linear_time():
    started = time.process_time()
    assert sum(1 for _ in WHOLE.finditer("#" * 20_000)) == 20_000
    assert time.process_time() - started < 5  # it took 30 seconds


def test_no_blank_stays_in_front_of_a_sign_behind_what_was_cut_out():
    assert Rules(emoji="none").clean("Love this 🐢 ! yes 🐢 .") == "Love this! yes."
    assert Rules(ban=("dog",)).clean("see the dog , yes :)") == "see the, yes :)"
    assert Rules(mentions="none").clean("hi @user , there") == "hi, there"


def test_hashtags_and_mentions_go():
    text = "Sunset #golden_hour at #plage2024 with @bob.smith! #日本"
    assert Rules(hashtags="none").clean(text) == "Sunset at with @bob.smith!"
    assert Rules(mentions="none").clean("hi @bob_1, mail a@b.org") == "hi, mail a@b.org"
    assert Rules(hashtags="none", mentions="none").clean("#a@b #c#d") == ""
    assert Rules(hashtags="none").clean("step 1️⃣ and #️⃣") == "step 1️⃣ and #️⃣"
    assert Rules().clean(text) == text
    assert Rules(mentions="none").clean("和@user一起去海边了 #夏天") == "和一起去海边了 #夏天"
    assert Rules(mentions="none").clean("@jane님과 함께") == "님과 함께"


@pytest.mark.parametrize("caption", ["@user님과", "@userさん", "和@user一起", "@userน่ารัก", "by @user's", "@USER!"])
def test_what_stands_for_a_mention_goes_before_letters_of_any_script(caption):
    """Guards against posts with "@user" in them: cleaning puts it in front of these letters."""
    assert not Rules().allows(caption) and "@" not in Rules().clean(caption)
    assert Rules().allows("@users and @user_1")


@pytest.mark.parametrize(
    ("word", "caption", "rest"),
    [
        ("猫", "我家的猫 so cute", "我家的 so cute"),
        ("猫", "うちの猫です", "うちのです"),
        ("猫", "今日 #猫", "今日"),
        ("แมว", "รักแมวมาก", "รักมาก"),
        ("cat", "我的cat很可爱", "我的很可爱"),
        ("❤️", "❤️love", "love"),
        ("love", "❤️love", "❤️"),
        ("1️⃣", "1️⃣love", "love"),
        ("东京", "东京's best", "best"),
        ("cat猫", "cat猫です", "です"),
        ("@Jane", "@jane님과", "님과"),
    ],
)
def test_words_are_found_where_no_blanks_are_put(word, caption, rest):
    """Guards against banned words in most captions of these scripts, and required ones that are never found."""
    assert Rules(ban=(word,)).clean(caption) == rest and Rules(require=(word,)).missing([caption]) == []


@pytest.mark.parametrize("caption", ["concatenate", "cats", "고양이cat_1", "cat́"])
def test_a_part_of_a_word_is_not_the_word(caption):
    assert Rules(ban=("cat",)).clean(caption) == caption


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


@pytest.mark.parametrize(
    ("word", "caption", "rest"),
    [
        ("👍", "so good 👍🏽 today", "so good today"),
        ("👍", "👍👍🏽🐢👍", "🐢"),
        ("❤", "love ❤️ you", "love you"),
        ("love ❤", "i love ❤️ you", "i you"),
        ("👩", "a 👩‍👧 b 👧", "a b 👧"),
        ("👧", "a 👩🏽‍👧 b 👩🏽", "a b 👩🏽"),
        ("👩‍👧", "a 👩‍👩‍👧‍👦 b 👩", "a b 👩"),
        ("🏴", "a 🏴󠁧󠁢󠁥󠁮󠁧󠁿 b", "a b"),
        ("🇩🇪", "🇫🇷🇩🇪🇦🇩🇪🇸", "🇫🇷🇦🇩🇪🇸"),
        ("1", "top 1️⃣ day, 1 of 1⃣", "top 1️⃣ day, of 1⃣"),
        ("1️⃣", "top 1️⃣ day 1", "top day 1"),
        ("#", "a # b #️⃣", "a b #️⃣"),
        ("۱", "a\u200d b", "a\u200d b"),
    ],
)
def test_a_banned_emoji_goes_as_a_whole(word, caption, rest):
    """Guards against a skin tone, a joiner or half a keycap that stays behind."""
    assert Rules(ban=(word,)).clean(caption) == rest
    assert Rules(ban=(word,)).allows(rest)


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
    from clipcap.model.language_model import load_tokenizer

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


def test_words_come_from_a_pipe_or_a_device_only_once_and_not_for_ever(tmp_path):
    """Guards against a pipe that is read twice, and is empty then, and against /dev/zero, which never ends."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("dog\ncat\n"), daemon=True)
    writer.start()
    arguments = CaptionArguments(ban_file=str(pipe))
    writer.join(10)
    _, rules = chosen(DecodingArguments(), arguments)
    assert rules.ban == ("dog", "cat")
    with pytest.raises(UserError, match="more than 1 MB"):
        Rules(ban_file="/dev/zero")


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"num_captions": 10**6}, "num_captions must be at most 256"),
        ({"ban": 5}, "must be texts"),
        ({"require": [1]}, "must be"),
    ]
    + [
        ({"ban": [f"w{n}" for n in range(5000)]}, "ban holds 5000 words"),
        ({"require": [f"w{n}" for n in range(65)]}, "64"),
    ],
    ids=["captions", "ban", "require", "many banned", "many required"],
)
def test_rules_that_would_take_for_ever_are_refused(wrong, told):
    with pytest.raises(UserError, match=told):
        Rules(**wrong)


@pytest.mark.parametrize(
    "searching, wishes, told",
    [
        ({"beams": 5}, {}, "--beams has an effect only with --method beam, and the method is greedy"),
        ({"beams": 5}, {"num_captions": 3}, "--method beam, and the method is nucleus"),
        ({"temperature": 1.0}, {}, "--temperature has an effect only with --method nucleus, and the method is greedy"),
        ({"top_p": 0.9, "method": "beam"}, {"num_captions": 3}, "--top-p .* the method is beam"),
        ({"top_k": 0, "method": "beam"}, {}, "--top-k"),
        ({"seed": 0}, {}, "--seed"),
        ({}, {"rank": "clip"}, "--rank"),
        ({"method": "nucleus"}, {"rank": "clip"}, "--num-captions"),
    ],
)
def test_options_that_cannot_have_an_effect_are_refused(searching, wishes, told):
    """Also where the value is the default: who says --beams 5 means a beam search."""
    with pytest.raises(UserError, match=told):
        chosen(DecodingArguments(**searching), CaptionArguments(**wishes))


def test_options_that_have_an_effect_are_taken():
    decoding, rules = chosen(DecodingArguments(temperature=0.5, seed=3), CaptionArguments(num_captions=3, rank="clip"))
    assert (decoding.method, decoding.temperature, decoding.seed, rules.rank) == ("nucleus", 0.5, 3, "clip")
    assert chosen(DecodingArguments(method="beam", beams=7), CaptionArguments(rank="clip"))[0].beams == 7
    assert chosen(DecodingArguments(), CaptionArguments(rank="clip", require=["dog"]))[1].require == ("dog",)
    assert chosen(DecodingArguments()) == (Decoding(), Rules())
    # In Python the same options may go to all methods, as in a comparison of them.
    assert decoding_and_rules(method="greedy", beams=3, temperature=0.5)[0].method == "greedy"


@pytest.mark.parametrize("wrong", [{"beams": 400}, {"temperature": float("nan")}, {"seed": -1}, {"max_tokens": 0}])
def test_impossible_options_are_refused_before_anything_is_loaded(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        DecodingArguments(**wrong)


@pytest.mark.parametrize(
    "options, told",
    [
        (["--beams", "5"], "--beams has an effect only with --method beam"),
        (["--existing", "overwrite"], "--existing overwrite has an effect only with --sidecar"),
        (["--beams", "400", "--method", "beam"], "beams must be at most 256"),
        (["--num-captions", "1000000"], "num_captions must be at most 256"),
        (["--batch-size", "1000000000"], "--batch-size must be at most 4096"),
        (["--workers", "100000"], "--workers must be at most 256"),
        (["--method", "nucleus", "--temperature", "nan"], "temperature must be above 0"),
        (["--method", "nucleus", "--temperature", "inf"], "temperature must be from 0.001 to 1000"),
        (["--method", "nucleus", "--top-p", "nan"], "top_p must be above 0"),
        (["--method", "nucleus", "--seed", "-1"], "seed must be at least 0"),
    ],
    ids=" ".join,
)
def test_predict_says_at_once_which_option_cannot_be(options, told):
    """Before the weights, which do not exist, are looked for."""
    with pytest.raises(UserError, match=told):
        predict.main(["--weights", "nowhere.pt", "photos", *options])


@pytest.mark.parametrize("option", ["ban", "require"])
def test_words_that_are_no_text_are_refused(option):
    with pytest.raises(UserError, match="is not UTF-8 text"):
        Rules(**{option: ["\udcff"]})


def test_words_of_thousands_of_characters_are_refused():
    """A word of a megabyte took half a minute, for each caption."""
    with pytest.raises(UserError, match="may have 1000 characters, and 'aaaa.*has more"):
        Rules(ban=["a" * 1001])


def test_a_file_of_words_is_a_path():
    with pytest.raises(UserError, match="file of banned words '5' cannot be read"):
        Rules(ban_file=5)


def test_captions_that_differ_in_case_alone_are_one():
    choice = object.__new__(Choice)
    choice.rules, choice.frames = Rules(), [Frame()]
    choice.candidates = SimpleNamespace(text=lambda row, ids: "".join(map(chr, ids)))
    found = Found()
    for text in ("A dog", "a Dog", "a cat"):
        choice._add(0, found, list(map(ord, text)))
    assert list(found.good) == ["A dog", "a cat"]


def test_a_required_word_is_put_between_whole_words_and_emoji():
    """Guards against the first bytes of an emoji, or of a word, in front of the required one."""
    choice, tokenizer = object.__new__(Choice), tiny_tokenizer()
    config = SimpleNamespace(stop_token=0, blank="")
    choice.candidates = SimpleNamespace(
        tokenizer=tokenizer, model=SimpleNamespace(config=config), room=lambda row, most: most, end=-1
    )
    choice.frames, choice.decoding = [Frame()], Decoding(max_tokens=400)
    half = tokenizer.encode("🐢").ids[:1]
    openings = choice._openings(0, tokenizer.encode("breakfast 👨‍👩‍👧 東京 isn't! #goldenhour").ids + half, "cat")
    wholes = accumulate(["", "breakfast ", "👨‍👩‍👧 ", "東", "京 ", "isn't", "! ", "#goldenhour "])
    assert [tokenizer.decode(ids) for ids in openings] == [f"{whole.strip()} cat".strip() for whole in wholes]


@pytest.mark.parametrize(("opening", "kept"), [([1, 2, 1], 0), ([1, 2, 4], 1)])
def test_a_word_that_repeats_what_stands_before_it_is_not_put_in(opening, kept):
    """The search looks for repetition in what it writes itself, and not in the beginning that it is given."""
    choice = object.__new__(Choice)
    choice.rules, choice.frames, choice.decoding = Rules(), [Frame()], Decoding(no_repeat_ngram=1)
    choice.strict, choice._openings = choice.decoding, lambda row, ids, word: iter([opening])
    choice.candidates = SimpleNamespace(generate=lambda rows, decoding, extra: [[[3]]], text=lambda row, ids: "a dog")
    assert len(choice._with_word("dog", {0: opening})[0]) == kept


def test_what_a_cut_joins_is_cut_again():
    rules = Rules(ban=["hot dog", "red"])
    assert rules.clean("a hot red dog runs") == "a runs"
