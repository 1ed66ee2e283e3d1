"""The words of COCO's tables, against those of pycocoevalcap's own tokenizer: stored, and live where Java is."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
from test_metrics import pycocoevalcap_scores, rows_of_instagram

from clipcap.evaluation.metrics import overlap
from clipcap.evaluation.treebank import tokenize
from clipcap.world.scenes import scenes

# Captions with every kind of punctuation, and what PTBTokenizer of pycocoevalcap 1.2 makes of each, read by itself.
STORED = json.loads(Path(__file__).with_name("data").joinpath("coco_words.json").read_text(encoding="utf-8"))
CAPTIONS = [caption for caption, _ in STORED]


def test_words_are_those_of_the_java_program():
    """Guards against a table of CIDEr that differs from published ones by its words: BLEU-4 by two points."""
    assert len(STORED) == 550
    for caption, words in STORED:
        assert tokenize(caption) == words.split(), caption


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("", ""),
        ("...!", ""),
        ("A man can't ride the dog's bike.", "a man ca n't ride the dog 's bike"),
        ("gonna CANNOT 'tis", "gon na can not 't is"),
        ("at 5:30 p.m. in the U.S. (really)", "at 5:30 p.m. in the u.s. -lrb- really -rrb-"),
        ("a plan b. A dog", "a plan b a dog"),
        ("on Sat., Jan. 5", "on sat. jan. 5"),
        ("Oakland A's, D'Arcy’s, y'all", "oakland a 's d'arcy 's y' all"),
        ("AT&amp;T, <PERSON> &lt;3", "at&t <person> < 3"),
        ("one\r\ntwo\u2028three\tfour", "one two three four"),
        ("😍a😍b ❤️", "a b ❤"),
    ],
)
def test_words(caption, words):
    assert tokenize(caption) == words.split()


@pytest.mark.parametrize(
    "part", ["a.", "a-", "a/", "a'", "a@", "<a", "#a", "1,", "_a", "www.", "http://", "n't", "B. ", "&"]
)
def test_long_captions_take_no_longer_by_the_word(part):
    """Guards against a rule that begins anew at every character: "http://" 10,000 times once took 10 seconds."""
    start = time.process_time()
    tokenize(part * 20_000)
    assert time.process_time() - start < 5


def scored(words, rng):
    """Scores of captions with two true ones each, that share some of their words."""
    candidates = [[word for word in caption if rng.random() < 0.8] for caption in words]
    return candidates, [[caption, rng.choice(words)] for caption in words]


def test_scores_are_those_of_pycocoevalcap():
    """Before their multiplication by 100: CIDEr-D is on a scale of 0 to 10 and the others are on one of 0 to 1."""
    ours = overlap(*scored([tokenize(caption) for caption in CAPTIONS], random.Random(3)))
    theirs = pycocoevalcap_scores(*scored([words.split() for _, words in STORED], random.Random(3)))
    assert list(ours.values()) == pytest.approx(theirs, abs=1e-4)
    assert theirs[-1] > 1


def by_java(captions):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # The program reads on into the next line, where it looks for the beginning of a sentence.
    told = PTBTokenizer().tokenize({n: [{"caption": text}, {"caption": "x"}] for n, text in enumerate(captions)})
    return [told[n][0].split() for n in range(len(captions))]


@pytest.mark.skipif(not shutil.which("java"), reason="pycocoevalcap's own tokenizer needs Java")
def test_live_words():
    """Guards against stored words that another version of pycocoevalcap no longer gives."""
    rng = random.Random(2)
    pieces = [piece for caption in CAPTIONS for piece in caption.split()]
    mixed = [" ".join([*rng.choices(pieces, k=8), "end"]) for _ in range(600)]
    different = [text for text, java in zip(mixed, by_java(mixed), strict=True) if java != tokenize(text)]
    assert not different


@pytest.mark.skipif(not shutil.which("java"), reason="pycocoevalcap's own tokenizer needs Java")
def test_live_words_of_the_demo_world():
    shown = [*scenes("train", 200)]
    captions = [text for scene in shown for text in (scene.literal, scene.post(), scene.varied_post())]
    assert by_java(captions) == [tokenize(caption) for caption in captions]


@pytest.mark.skipif(not shutil.which("java"), reason="pycocoevalcap's own tokenizer needs Java")
def test_live_words_of_instagram(shared):
    captions = [" ".join(row["caption"].split()) for row in rows_of_instagram(shared)]
    assert by_java(captions) == [tokenize(caption) for caption in captions]
