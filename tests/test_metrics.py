"""Caption metrics against pycocoevalcap, and the tokenizer that Instagram needs."""

import gc
import io
import os
import pickle
import random
import shutil
import sys

import numpy as np
import pytest

from clipcap.errors import UserError
from clipcap.evaluation.held_out import HeldOut
from clipcap.evaluation.java_metrics import java_scorer
from clipcap.evaluation.metrics import clip_scores, overlap, style, tokenize


def pycocoevalcap_scores(candidates, references):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    captions = {i: [" ".join(tokens)] for i, tokens in enumerate(candidates)}
    truths = {i: [" ".join(tokens) for tokens in texts] for i, texts in enumerate(references)}
    return [
        *Bleu(4).compute_score(truths, captions, verbose=0)[0],
        Rouge().compute_score(truths, captions)[0],
        Cider().compute_score(truths, captions)[0],
    ]


def ours(candidates, references):
    return list(overlap(candidates, references).values())


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_pycocoevalcap_on_random_captions(seed):
    """Several references, repeated words, empty captions, no match at all: each has its own corner in the scorers."""
    rng = random.Random(seed)
    words = ["a", "b", "c", "d", "e", "😍", "#sun"][: rng.randint(2, 7)]

    def caption(shortest):
        return rng.choices(words, k=rng.randint(shortest, 12))

    images = [1, 2, 5, 40, 40, 40][seed]
    candidates = [caption(0) for _ in range(images)]
    references = [[caption(0) for _ in range(rng.randint(1, 5))] for _ in range(images)]
    assert ours(candidates, references) == pytest.approx(pycocoevalcap_scores(candidates, references), abs=1e-6)


def test_a_silent_model_scores_zero():
    """A model that says nothing must score, not divide by zero; pycocoevalcap itself fails on empty references."""
    assert ours([["a"]], [[[]]]) == pytest.approx([0] * 6, abs=1e-6)
    candidates, references = [[], []], [[["a"]], [["b", "c"], []]]
    assert ours(candidates, references) == pytest.approx(pycocoevalcap_scores(candidates, references), abs=1e-6)


class PlainUnpickler(pickle.Unpickler):
    """Captions from a pickle that torch wrote, without running anything it holds."""

    def find_class(self, module, name):
        return lambda *args: None

    def persistent_load(self, pid):
        return None


def rows_of_instagram(shared):
    raw = (shared / "instagram_100" / "embeddings_RN50x4_train.pkl").read_bytes()
    return PlainUnpickler(io.BytesIO(raw)).load()["captions"]


def test_equal_to_pycocoevalcap_on_real_captions(shared):
    """Real captions hold emoji, hashtags, line breaks and other scripts."""
    tokens = [tokenize(row["caption"]) for row in rows_of_instagram(shared)]
    assert len(tokens) == 100
    rng = random.Random(0)
    candidates = [[token for token in caption if rng.random() < 0.7] for caption in tokens]
    references = [[caption, rng.choice(tokens)] for caption in tokens]
    expected = pycocoevalcap_scores(candidates, references)
    assert ours(candidates, references) == pytest.approx(expected, abs=1e-6)
    assert 0 < expected[3] < 1


@pytest.mark.parametrize(
    "caption, tokens",
    [
        ("I'm SO happy!!😍😍 #sunset @jane.doe.", "i'm so happy 😍 😍 #sunset @jane.doe"),
        ("Don’t…stop", "don't stop"),
        ("#one#two #cat🐱", "#one #two #cat🐱"),
        ("👩‍👩‍👧‍👦👍🏽🇫🇷🇩🇪 ❤️❤ 1️⃣", "👩‍👩‍👧‍👦 👍🏽 🇫🇷 🇩🇪 ❤️ ❤ 1️⃣"),
        ("© 2021 Acme™ 3.5", "2021 acme 3 5"),
        ("see https://a.b/c?d=1 now", "see https://a.b/c?d=1 now"),
        ("नमस्ते café cafe\u0301 # @ !", "नमस्ते café café"),
        ("می\u200cخواهم #می\u200cخواهم क्\u200dष", "می\u200cخواهم #می\u200cخواهم क्\u200dष"),
        ("®️ ©️ ＃夏天 1\u20e3a", "＃夏天 1\u20e3 a"),
        (" \n ", ""),
    ],
)
def test_tokenizer(caption, tokens):
    """The Java tokenizer deletes emoji and cuts hashtags off their #: two thirds of an Instagram caption's style."""
    assert tokenize(caption) == tokens.split()


def test_clip_scores_by_hand():
    """2.5 * cos for the picture; the nearest reference, not their mean, for RefCLIPScore; never below zero."""
    images = np.array([[2.0, 0.0], [1.0, 0.0]])
    candidates = np.array([[3.0, 4.0], [-1.0, 0.0]])  # cosines 0.6 and -1
    references = [np.array([[0.0, 5.0], [4.0, 3.0]]), np.array([[1.0, 0.0]])]  # nearest: 0.96; -1
    scores = clip_scores(images, candidates, references)
    assert scores["clip_score"] == pytest.approx((2.5 * 0.6 + 0) / 2)
    assert scores["ref_clip_score"] == pytest.approx((2 * 1.5 * 0.96 / (1.5 + 0.96) + 0) / 2)


def test_style():
    captions = [tokenize(text) for text in ("a b a b", "Sunny day! ☀️ #sun", "", "#1")]
    scores = style(captions, {("sunny", "day", "☀️", "#sun"), ("a", "b"), ()})
    assert scores == {
        "distinct_1": 7 / 9,
        "distinct_2": 5 / 6,
        "mean_length": 9 / 4,
        "emoji": 1 / 4,
        "hashtag": 2 / 4,
        "copied": 1 / 4,
    }
    assert style([[]])["distinct_2"] == 0


def test_the_keycap_of_a_hash_is_an_emoji_and_no_hashtag():
    scores = style([tokenize(text) for text in ("Call me #️⃣", "#⃣", "#cat", "#️⃣ #dog")])
    assert scores["hashtag"] == 2 / 4 and scores["emoji"] == 3 / 4


def test_java_metrics_say_what_they_need(monkeypatch):
    """Without Java pycocoevalcap dies with a FileNotFoundError from deep inside a subprocess."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="meteor runs on Java"):
        java_scorer("meteor")


def test_a_java_that_does_not_work_says_so_at_once(tmp_path, monkeypatch, capsys):
    """METEOR keeps its lock after an error: the second caption, or the end of the program, waited for it for ever."""
    pytest.importorskip("pycocoevalcap")
    (tmp_path / "java").write_text("#!/bin/sh\necho no runtime >&2\nexit 1\n")  # as a Mac without one has it
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UserError, match="meteor failed .* see the messages above"):
        java_scorer("meteor")
    assert capsys.readouterr().err == "no runtime\n"  # pycocoevalcap keeps to itself what its Java says


DIES = """#!/bin/sh
n=0
while read -r line; do
  n=$((n + 1))
  case $n in 1) echo 1 2;; 2) echo 0.5; echo 0.5;; *) echo no memory >&2; exit 1;; esac
done
"""


def test_a_java_that_dies_on_the_way_costs_no_other_score(tmp_path, monkeypatch, capsys):
    """A model had no score at all then, after all its pictures were captioned; and a traceback ended the run."""
    pytest.importorskip("pycocoevalcap")
    (tmp_path / "java").write_text(DIES)
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    noticed = []
    monkeypatch.setattr(sys, "unraisablehook", noticed.append)
    held_out = HeldOut.__new__(HeldOut)
    held_out.protocol, held_out.captions = "instagram", [["a dog"], ["a cat"]]
    more = {"meteor": java_scorer("meteor")}
    for model in range(2):
        scores = held_out.overlap(["a dog", "a cat"], more)
        assert scores["bleu_1"] == pytest.approx(1) and "meteor" not in scores
        told = capsys.readouterr().err
        assert "meteor is not among the scores: meteor failed" in told
        assert told.startswith("no memory\n") is (model == 0)
    more.clear()
    gc.collect()
    assert not noticed


@pytest.mark.skipif(not shutil.which("java"), reason="METEOR needs Java")
def test_meteor():
    references = [[["a", "red", "cat", "sleeps"]], [["two", "dogs"]], [["a", "boat"]]]
    assert 0.3 < java_scorer("meteor")([["a", "red", "cat", "sleeps"], [], ["a", "boat", "😍"]], references) < 0.9
