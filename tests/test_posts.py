"""Guards captions that are ready to post: limits, given texts and hashtags hold on every caption."""

import shutil

import numpy as np
import pytest
import regex
import torch
from PIL import Image
from test_captioner import ids_of  # noqa: F401
from tiny import save_tiny_weights

import predict
from clipcap import Captioner
from clipcap.captioning.candidates import Candidates, tokens_of
from clipcap.captioning.options import decoding_and_rules
from clipcap.captioning.posts import INSTAGRAM, Frame, fit, hashtags_of, size_of
from clipcap.captioning.rules import Rules
from clipcap.clip.images import UnreadableImage
from clipcap.decoding.forbidden import Forbidden
from clipcap.decoding.options import Decoding
from clipcap.errors import UserError
from clipcap.text import EMOJI

POST = "my face 💙🌼 #blueturtle #springtime and more #BlueTurtle 👨‍👩‍👧 end"
SAMPLED = {"method": "nucleus", "num_captions": 6, "max_tokens": 20, "temperature": 1.5}
EACH = [
    {"max_hashtags": 0},
    {"max_hashtags": 1},
    {"max_chars": 25},
    {"start_with": "two cats"},
    {"prepend": "TOK", "append": "\n#mine ✨"},
    {"min_tokens": 12},
    {"emoji": "none", "hashtags": "none", "mentions": "none", "ban": ["dog", "lake"]},
]
ALL = {"start_with": "my #Dog", "prepend": "TOK", "append": "#mine", "max_hashtags": 3, "max_chars": 40}
TOGETHER = [ALL, {**ALL, "min_tokens": 15, "emoji": "none", "mentions": "none", "ban": ["the"]}]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    return Captioner.load(save_tiny_weights(tmp_path_factory.mktemp("weights")), precision="fp32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pictures in folders of their own, of which the second was taken in 2024."""
    root, random = tmp_path_factory.mktemp("trips"), np.random.default_rng(0)
    paths = []
    for name in ("a dog", "two cats in the sun", "lake", "x"):
        (root / name).mkdir()
        paths.append(root / name / "1.jpg")
        exif = Image.Exif()
        if name.startswith("two"):
            exif.get_ifd(0x8769)[0x9003] = "2024:05:17 12:00:00"
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(paths[-1], exif=exif)
    return paths


def check(caption: str, options: dict) -> None:
    """That a caption keeps to every option."""
    rules = Rules(**{name: value for name, value in options.items() if name in vars(Rules())})
    frame = rules.frame()
    tags = hashtags_of(caption)
    assert len(set(tags)) == len(tags), caption
    assert rules.max_hashtags is None or len(tags) <= rules.max_hashtags, caption
    assert rules.max_chars is None or size_of(caption) <= rules.max_chars, caption
    assert caption.startswith(frame.before + frame.start) and caption.endswith(frame.after), caption
    assert rules.allows(caption) and rules.clean(caption) == caption, caption


@pytest.mark.parametrize("options", [*EACH, *TOGETHER], ids=str)
def test_every_sampled_caption_keeps_to_its_options(captioner, options, ids_of):  # noqa: F811
    """Alone and together, in batches of every size, on the odd bytes that a model with random weights writes."""
    embeddings = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    found = captioner.caption_embeddings(embeddings, **SAMPLED, **options)
    assert sum(map(len, found)) > 100
    begun = len(tokens_of(captioner.tokenizer, options.get("start_with", ""), captioner.model.config.blank))
    for row, captions in enumerate(found):
        for caption in captions:
            check(caption, options)
            written = [token for token in ids_of[row, caption] if token != captioner.model.config.stop_token]
            assert begun + len(written) >= options.get("min_tokens", 0), caption
    alone = [captioner.caption_embeddings(embedding[None], **SAMPLED, **options)[0] for embedding in embeddings[:3]]
    assert alone == found[:3]


@pytest.mark.parametrize("method", ["greedy", "beam"])
@pytest.mark.parametrize("options", TOGETHER, ids=str)
def test_options_hold_in_other_searches(captioner, method, options):
    embeddings = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))
    for [caption] in captioner.caption_embeddings(embeddings, method=method, max_tokens=20, **options):
        check(caption, options)


@pytest.mark.parametrize("rules", [{}, {"require": ["golden"]}, {"no_repeat_ngram": 1}, {"max_chars": 30}], ids=str)
def test_starts_of_many_lengths_give_what_each_gives_alone(captioner, folders, rules):
    """Guards against a start that moves the captions of others, and against one that is written twice or not at all."""
    rules |= {"start_with": "{folder}", "max_tokens": 20}
    together = captioner(folders, **rules)
    for path, caption in zip(folders, together, strict=True):
        assert caption.startswith(path.parent.name) and caption.count(path.parent.name) == 1
        assert caption == captioner([path], **rules)[0] and not caption.removeprefix(path.parent.name)[:1].isalnum()
    assert not set(together) & set(captioner(folders, max_tokens=20))


def test_a_caption_goes_on_from_its_start(captioner, folders):
    """With a new word, and the tokens of the start count: guards against a start on top of `max_tokens`."""
    size = len(captioner.tokenizer.encode("two cats").ids)
    for caption in captioner(folders, start_with=" two cats ", max_tokens=size + 1):
        assert regex.match(r"two cats(?!\w)", caption)
        assert len(captioner.tokenizer.encode(caption.removeprefix("two cats")).ids) <= 1


@pytest.mark.parametrize("method", ["greedy", "nucleus", "beam"])
@pytest.mark.parametrize("start", ["two cats", "golden", "my #Dog"])
def test_no_search_glues_a_word_to_the_start(captioner, method, start):
    embeddings = torch.randn(12, 16, generator=torch.Generator().manual_seed(4))
    options = {"num_captions": 3} if method != "greedy" else {}
    for captions in captioner.caption_embeddings(embeddings, start_with=start, method=method, max_tokens=20, **options):
        assert captions and all(regex.match(rf"{start}(?!\w)", caption) for caption in captions)


def test_a_caption_is_more_than_its_start(captioner, folders):
    """Guards against a model that ends right behind the start: "#love" was posted."""
    caption = captioner(folders[:1], start_with="golden", max_tokens=20)[0]
    stop = captioner.tokenizer.encode(caption.removeprefix("golden")).ids[0]
    for fewest in (0, 1):
        options = {"max_tokens": 20, "stop_token": stop, "min_tokens": fewest}
        again = captioner(folders[:1], start_with="golden", **options)[0]
        assert again.startswith("golden") and again != "golden"
    assert Rules(start_with="golden").post("golden #", Frame("golden")) == ""


def test_captions_that_limits_make_alike_are_not_searched_for_further(captioner, monkeypatch):
    """Four captions of at most 60 characters took seconds for each picture: each wider search was in vain."""
    widths = []

    def generate(self, rows, decoding, extra=None):
        widths.append(decoding.width)
        return [[self.tokenizer.encode(f" lake {widths[-1]}{k}").ids for k in range(decoding.width)] for _ in rows]

    monkeypatch.setattr(Candidates, "generate", generate)
    options = {"method": "nucleus", "num_captions": 4, "start_with": "two cats", "max_chars": 13}
    assert captioner.caption_embeddings(torch.ones(1, 16), **options) == [["two cats lake"]]
    assert widths == [4, 8]


def test_what_is_forbidden_is_so_across_the_start(captioner, folders):
    """Guards against a search that knows only what it wrote itself: the start said "dog" already."""
    begun = captioner.tokenizer.encode("a dog").ids
    for caption in captioner(folders, start_with="a dog", no_repeat_ngram=1, max_tokens=14):
        rest = captioner.tokenizer.encode(caption.removeprefix("a dog")).ids
        assert caption.startswith("a dog") and rest[0] not in begun
    for caption in captioner(folders, start_with="golden", ban=["golden hour"], max_tokens=14):
        assert caption.startswith("golden") and Rules(ban=("golden hour",)).allows(caption)


def test_fields_are_filled_for_each_picture(captioner, folders):
    caption = captioner([folders[1]], prepend="{folder}, {date}:", append="{{{date}}}", max_tokens=9)[0]
    assert caption.startswith("two cats in the sun, 2024-05-17: ") and caption.endswith(" {2024-05-17}")
    decoding, rules = decoding_and_rules(start_with="on {date}", max_tokens=20)
    rows = list(captioner.rows(folders, decoding, rules, workers=0))
    assert [row.error for row in rows if row.error] == ["its EXIF holds no date that {date} could stand for"] * 3
    assert rows[1].captions[0].startswith("on 2024-05-17")
    with pytest.raises(UserError, match="no folder"):
        captioner([Image.new("RGB", (40, 40))], start_with="{folder}")
    with pytest.raises(UserError, match="an embedding has neither"):
        captioner.caption_embeddings(torch.randn(1, 16), append="{date}")


@pytest.mark.parametrize("taken", ["0000:00:00 00:00:00", "yesterday", ""])
def test_a_broken_date_is_none(tmp_path, taken):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = taken
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(UnreadableImage, match="no date"):
        Rules(append="{date}").frame(tmp_path / "a.jpg")


def test_a_folder_that_breaks_a_rule_costs_its_pictures_only(captioner, folders):
    decoding, rules = decoding_and_rules(start_with="{folder}", ban="lake", max_tokens=20)
    rows = list(captioner.rows(folders, decoding, rules, workers=0))
    assert [bool(row.captions) for row in rows] == [True, True, False, True]
    assert rows[2].error == "start_with is 'lake', and holds what is ruled out; drop one of the two"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_hashtags": -1}, "max_hashtags must be at least 0, not -1"),
        ({"max_hashtags": 1.5}, "max_hashtags must be a whole number"),
        ({"max_chars": 0}, "max_chars must be at least 1, not 0"),
        ({"start_with": "{place}"}, "holds {place}; the only fields are {folder}, {date}"),
        ({"prepend": "{date:%Y}"}, "prepend '{date:%Y}' gives {date} a format"),
        ({"append": "{"}, "append '{' cannot be read"),
        ({"append": "\udcff"}, "is not UTF-8 text"),
        ({"append": 5}, "append must be a text"),
        ({"append": "#a", "hashtags": "none"}, "append is '#a', and holds what is ruled out"),
        ({"start_with": "the dog", "ban": "Dog"}, "start_with is 'the dog', and holds what is ruled out"),
        ({"append": "#a #b", "max_hashtags": 1}, "hold 2 hashtags, and max_hashtags is 1"),
        ({"prepend": "#a", "append": "#A"}, "hold #a twice"),
        ({"prepend": "x" * 40, "max_chars": 40}, "have 41 characters, and max_chars is 40"),
        ({"prepend": "x" * 38, "start_with": "a", "max_chars": 40}, "have 40 characters, and max_chars is 40"),
        ({"require": "#sun", "max_hashtags": 0}, "more hashtags than max_hashtags"),
        ({"start_with": "my #", "max_hashtags": 0}, "hold 1 hashtags, and max_hashtags is 0"),
        ({"hashtag_count": 3, "max_hashtags": 2}, "3 hashtags are asked for, and max_hashtags is 2"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options, told):
    with pytest.raises(UserError, match=regex.escape(told)):
        Rules(**options)


def test_a_start_longer_than_the_room_is_one_sentence(captioner, folders, tmp_path):
    with pytest.raises(UserError, match="takes .* tokens, and a caption may have 20: shorten it"):
        captioner(folders, start_with="golden hour " * 20, max_tokens=20)
    with pytest.raises(UserError, match="and a caption may have 253"):  # the positions of GPT-2
        captioner(folders, start_with="golden hour " * 200, max_tokens=900)
    (tmp_path / ("golden hour " * 12)).mkdir()
    shutil.copy(folders[0], tmp_path / ("golden hour " * 12) / "a.jpg")
    decoding, rules = decoding_and_rules(start_with="{folder}", max_tokens=20)
    rows = list(captioner.rows([tmp_path / ("golden hour " * 12) / "a.jpg", folders[0]], decoding, rules, workers=0))
    assert "takes 35 tokens" in rows[0].error and rows[1].captions


def test_a_picture_without_a_caption_says_so(captioner, folders):
    """Guards against an empty caption, and against one without the texts that were asked for."""
    for options in ({"max_chars": 1}, {"prepend": "golden", "ban": "golden hour", "start_with": "hour"}):
        decoding, rules = decoding_and_rules(max_tokens=20, **options)
        for row in captioner.rows(folders[:2], decoding, rules, workers=0):
            assert row.error or all(row.captions)
    assert row.error == "nothing is left of its caption by the limits and the texts that were given"


# The text of a caption


@pytest.mark.parametrize(
    ("written", "most", "posted"),
    [
        ("🏙️ # sunset magic", None, "🏙️ sunset magic"),
        ("so # #turtle", 0, "so"),
        ("so # #turtle #tent", 1, "so #turtle"),
        ("so ## ＃, and", None, "so, and"),
        ("a#🐢 b #", None, "a🐢 b"),
        ("press #️⃣ ##️⃣ now #1", None, "press #️⃣ #️⃣ now #1"),
    ],
)
def test_a_sign_without_a_word_goes(written, most, posted):
    """ "# sunset magic" was posted, where a required word was put behind the sign."""
    assert Frame().around(written, most, None) == posted
    assert Frame(start="my #", after=" #").around(f" {written}", most, None) == f"my # {posted} #"


def test_the_start_may_begin_a_hashtag():
    """It counts: "#" and a limit of 0 gave one, and "#" and `append="#dog"` two."""
    assert Frame(start="my #").around("dog on #dog", 2, None) == "my #dog on"
    assert Frame(start="my #", after=" #dog").around("dog on", None, None) == ""


def test_a_hashtag_comes_once_and_no_more_than_allowed():
    frame = Frame(start="", before="", after=" #Mine")
    assert frame.around(POST, 9, None) == "my face 💙🌼 #blueturtle #springtime and more 👨‍👩‍👧 end #Mine"
    assert frame.around(POST + " #mine", 2, None) == "my face 💙🌼 #blueturtle and more 👨‍👩‍👧 end #Mine"
    assert Frame().around("we are #1 #2024", 1, None) == "we are #1"
    assert Frame().around("a#b#c d", 1, None) == "a#b d"


def test_a_hashtag_comes_once_however_it_is_spelled():
    assert Frame().around("#café #cafe\u0301 by", None, None) == "#café by"
    assert Frame(after=" #cafe\u0301").around("at #café", None, None) == "at #cafe\u0301"
    assert Frame().around("#love, #love's day, #Love’s #loves", None, None) == "#love, day, #loves"


@pytest.mark.parametrize("left", ["\ufffd", " 👩\u200d\ufffd", " #", "\n", " \ufffd #"])
def test_half_an_emoji_or_hashtag_at_the_end_goes(left):
    assert Frame().around(f"at the lake{left}", None, None) in ("at the lake", "at the lake 👩")


def test_no_word_emoji_or_hashtag_is_cut():
    """Every length of a caption with joined emoji, a flag, keycaps and a script without blanks."""
    text = "one, two 👨‍👩‍👧‍👦🏴󠁧󠁢󠁳󠁣󠁴󠁿🇫🇷👍🏽1️⃣ #three_four naïve 東京で #東京 end"
    whole = {"", *regex.findall(r"\X", text), "one", "two", "naïve", "end", "#three_four", "#東京"}
    for room in range(size_of(text) + 2):
        kept = fit(text, room)
        assert size_of(kept) <= room and text.startswith(kept)
        rest = text[len(kept) :]
        last = regex.search(r"#?\w*$", kept)[0] or regex.findall(r"\X|^", kept)[-1]
        assert last in whole or last in ("東京", "東京で", "東"), (room, kept)
        assert regex.findall(r"\X", kept) + regex.findall(r"\X", rest) == regex.findall(r"\X", text)
    assert fit(text, size_of(text)) == text and fit(text, -5) == ""


def test_a_cut_caption_ends_with_a_sentence_where_it_can():
    assert fit("so hot and so worth it! this red turtle just made", 40) == "so hot and so worth it!"
    assert fit("hi! this red turtle just made my whole week", 30) == "hi! this red turtle just made"
    assert fit("so hot! this red bear just", 22) == "so hot!"  # a third of 21
    assert fit("so hot! this red house just", 23) == "so hot! this red house"  # less than a third of 22
    assert fit("a red turtle. let it snow #one #two", 31) == "a red turtle. let it snow #one"


@pytest.mark.parametrize("word", ["(beautiful", '"beautiful', "“beautiful", "['beautiful", "¿beautiful"])
def test_a_sentence_goes_on_with_a_bracket_or_a_quote(word):
    assert fit(f"love this place. it is so {word} and warm", 30) == "love this place."


def test_mentions_are_left_out_one_after_the_other():
    assert fit("Loved this day! 🌞 @beach @hotel", 26) == "Loved this day! 🌞 @beach"


def test_an_emoji_counts_as_networks_count_it():
    assert size_of("a©") == 2 and size_of("🐢") == 2 and size_of("👨‍👩‍👧") == 8
    assert all(size_of(emoji) == 2 for emoji in (*"✨☕⭐⚡❤☀♥⛵", "❤️", "1\u20e3"))
    assert fit("sun ✨✨", 8) == "sun ✨✨" and fit("sun ✨✨", 7) == "sun ✨"
    assert (INSTAGRAM.hashtags, INSTAGRAM.characters) == (5, 2200)


@pytest.mark.parametrize("ruled_out", [("emoji", "hashtags"), ("emoji", "hashtags", "mentions"), ("hashtags",)])
@pytest.mark.parametrize(
    "text", ["face🐢#blueturtle", "face 🐢 # blueturtle", "face#🐢blueturtle", "face ##blueturtle"]
)
def test_whole_hashtags_go_and_words_do_not_join(ruled_out, text):
    """ "my faceblueturtle": the sign was taken out, and its word was left."""
    cleaned = EMOJI.sub(" ", Rules(**dict.fromkeys(ruled_out, "none")).clean(f"my {text} day")).split()
    assert cleaned[:1] == ["my"] and cleaned[-1:] == ["day"] and "faceblueturtle" not in cleaned
    assert "#" not in "".join(cleaned)


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ("so happy :) love you 🐢", "so happy :) love you"),
        ("Bonjour ! ça va ? 🐢 oui", "Bonjour ! ça va ? oui"),
        ("wait for it ... 🐢 .5 miles", "wait for it ... .5 miles"),
        ("two  blanks, and🐢 \n a line 🐢\t\n🐢", "two  blanks, and\n a line"),
        ("a 🐢, a dog 🐢!", "a, a dog!"),
    ],
)
def test_a_caption_stays_as_it_is_where_nothing_is_cut(written, left):
    """ "so happy:) love you": blanks in front of punctuation went in the whole caption."""
    assert Rules(emoji="none").clean(written) == left


@pytest.mark.parametrize("start", ["hello :) world", "Paris ?", "two  blanks", "two \nlines"])
def test_a_start_stays_as_it_is_where_something_is_cut_behind_it(start):
    rules = Rules(emoji="none", start_with=start)
    assert rules.post(f"{start}, nice day 🐢", rules.frame()) == f"{start}, nice day"


def test_punctuation_follows_a_start_that_a_cut_reaches_into():
    rules = Rules(start_with="my #", ban=("dog",))
    assert rules.post("my #dog, and a cat", rules.frame()) == "my #, and a cat"
    assert rules.post("my #dog and a cat", rules.frame()) == "my # and a cat"


def test_words_do_not_join_where_something_goes():
    assert Rules(emoji="none").clean("sun🐢day") == "sun day"
    assert Rules(ban=("-",)).clean("well-known") == "well known"
    assert Rules(mentions="none").clean("hi@bob there a@b.org I@ home") == "hi there a@b.org I home"


# The search


def test_a_word_ends_where_what_would_end_it_is_forbidden():
    """Tokens: 0 goes on with a word, 1 is another word, 2 is "#", 3 the end. The model wants "#"; and then a word."""
    decoding = Decoding(banned=((2,),), word_parts=(0,), min_tokens=1)
    constrain = Forbidden(decoding, 3, 4, torch.device("cpu"))
    rows, nothing = torch.arange(2), torch.zeros(2, 1, 0, dtype=torch.long)
    logits = torch.tensor([[[1.0, 0.0, 2.0, 0.5]], [[3.0, 0.0, 0.5, 0.2]]])
    found = constrain.behind([[], []])(logits, nothing, rows).tolist()
    assert found == [[[-np.inf, 0.0, -np.inf, -np.inf]], [[3.0, 0.0, -np.inf, -np.inf]]]
    constrain = Forbidden(Decoding(word_parts=(0,)), 3, 4, torch.device("cpu"))
    found = constrain.behind([[], []])(logits, nothing, rows)
    assert found[:, 0, 0].tolist() == [-np.inf, 3.0]  # "i could look myso happy": behind a start, nothing is forbidden


def test_a_word_ends_where_what_would_go_on_with_it_is_forbidden():
    """Tokens: 0 and 1 go on with a word, 2 begins another. The model wants 0: "#nofilter andgoodvibes"."""
    constrain = Forbidden(Decoding(banned=((0,),), word_parts=(0, 1)), -1, 3, torch.device("cpu"))
    nothing = torch.zeros(1, 1, 0, dtype=torch.long)
    found = constrain.behind([[]])(torch.tensor([[[3.0, 2.0, 1.0]]]), nothing, torch.arange(1))
    assert found.tolist() == [[[-np.inf, -np.inf, 1.0]]]


def test_the_end_may_come_behind_a_word_but_not_behind_the_start():
    constrain = Forbidden(Decoding(go_on=True), 1, 2, torch.device("cpu")).behind([[0], []])
    rows, nothing = torch.arange(2), torch.zeros(2, 1, 1, dtype=torch.long)
    found = constrain(torch.zeros(2, 1, 2), nothing[..., :0], rows)
    assert found[:, 0, 1].tolist() == [-np.inf, 0.0]
    assert constrain(torch.zeros(2, 1, 2), nothing, rows)[:, 0, 1].tolist() == [0.0, 0.0]


def test_a_search_writes_no_hashtag_twice_and_no_more_than_allowed():
    """Tokens: 0 and 1 begin tags, 2 is "#", 3 a blank. What stands in a caption's beginning counts too."""
    decoding = Decoding(word_parts=(0, 1), hashtag_signs=(2,), most_hashtags=2)
    constrain = Forbidden(decoding, -1, 4, torch.device("cpu"))

    def allowed(history: list[int], beginning: tuple[int, ...] = ()) -> list[int]:
        logits, tokens = torch.tensor([[[2.0, 4.0, 0.0, 0.0]]]), torch.tensor([[history]])
        found = constrain.behind([beginning])(logits, tokens, torch.arange(1))
        return found[0, 0].isfinite().nonzero()[:, 0].tolist()

    assert allowed([2, 0, 3, 2]) == [1]
    assert allowed([3, 2], (2, 1)) == [0]
    assert allowed([2, 0, 3]) == [1, 2, 3]
    assert 2 not in allowed([2, 1, 3], (2, 0))
    logits, nothing = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]]), torch.zeros(1, 1, 0).long()
    found = constrain.behind([(2,)])(logits, nothing, torch.arange(1))
    assert found[0, 0].isfinite().tolist() == [True, True, False, False]  # the start "#"
    assert 0 in allowed([2, 0, 1])  # "#p", "ur", "p", "le" became "#purendog"


def test_padding_repeats_no_hashtag(captioner):
    """`--min-tokens` filled captions up with one hashtag, eight times."""
    embeddings = torch.randn(12, 16, generator=torch.Generator().manual_seed(3))
    for [caption] in captioner.caption_embeddings(embeddings, start_with="#dog", min_tokens=30, max_tokens=40):
        check(caption, {"start_with": "#dog"})
        assert caption.casefold().count("#dog") == 1 or regex.search(r"#dog\w", caption, regex.IGNORECASE)


# predict.py


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-hashtags", "-1"], "max_hashtags must be at least 0, not -1"),
        (["--start-with", "{where}"], "the only fields are"),
        (["--existing", "prepend"], "has an effect only with --sidecar or --xmp"),
    ],
    ids=" ".join,
)
def test_predict_says_at_once_what_cannot_be(options, told):
    with pytest.raises(UserError, match=told):
        predict.main(["--weights", "nowhere.pt", "photos", *options])


def test_predict_writes_posts(captioner, folders, tmp_path, capsys):
    weights = save_tiny_weights(tmp_path)
    texts = ["--start-with", "{folder}", "--append", "#mine", "--max-hashtags", "1", "--max-chars", "60"]
    texts += ["--max-tokens", "20"]  # one word of random weights is longer than a caption may be
    paths = [str(path) for path in folders]
    assert predict.main(["--weights", str(weights), *paths, *texts, "--workers", "0"]) == 0
    for line, path in zip(capsys.readouterr().out.splitlines(), folders, strict=True):
        caption = line.split("\t")[1]
        assert caption.startswith(path.parent.name) and caption.endswith(" #mine") and caption.count("#") == 1
