"""The demo world: what is held out is held out, what ships is small and good, what is read back is right."""

import hashlib
import json
import subprocess
import sys
from itertools import combinations as pairs

import pytest

from clipcap.errors import UserError
from clipcap.world.captions import EMOJI, KINDS, MOODS, OPENINGS, PLACES, TAGS
from clipcap.world.judge import is_instagram, judge, shares
from clipcap.world.scenes import COLOURS, SPLITS, Scene, combinations, scenes
from clipcap.world.settings import SETTINGS
from clipcap.world.shipped import CLIP, GPT2, LITERAL, WEIGHTS
from clipcap.world.subjects import SUBJECTS
from demo.corpus import documents

RED_CAT = Scene("test", 0, "cat", "red", "beach")


@pytest.fixture(scope="module")
def held_out() -> list[Scene]:
    return list(scenes("test"))


@pytest.fixture(scope="module")
def pictures(held_out):
    return [scene.draw() for scene in held_out]


@pytest.fixture(scope="module")
def encoder():
    from clipcap.clip.encoder import ClipEncoder

    return ClipEncoder.load("demo")


# The world


def test_world_is_large_enough():
    assert len(SUBJECTS) >= 12 and len(COLOURS) == 8 and len(SETTINGS) >= 4
    assert SPLITS["test"] >= 200


def test_splits_share_no_combination():
    """A held-out picture whose combination was trained on would measure memory."""
    for one, other in pairs(SPLITS, 2):
        assert not set(combinations(one)) & set(combinations(other))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_pair_of_traits_held_out_is_trained_on_elsewhere(split):
    """A trait never seen in training cannot be named."""
    for first, second in pairs(range(3), 2):
        trained = {(combination[first], combination[second]) for combination in combinations("train")}
        assert {(combination[first], combination[second]) for combination in combinations(split)} <= trained


def test_scenes_show_every_combination_before_any_twice(held_out):
    shown = [(scene.subject, scene.colour, scene.setting) for scene in held_out]
    assert set(shown) == set(combinations("test"))
    assert max(map(shown.count, shown)) == len(shown) // len(combinations("test"))


def test_scenes_continue_where_they_stopped():
    assert list(scenes("train", 5, start=700)) == list(scenes("train", 705))[700:]


def test_drawing_and_captions_are_the_same_in_every_process(held_out):
    """Data drawn in worker processes must not depend on hash seeds or on what was drawn before."""
    code = (
        "import hashlib; from clipcap.world.scenes import scenes\n"
        "print(*(hashlib.sha256(s.draw().tobytes() + s.post().encode()).hexdigest() for s in scenes('test', 2, 5)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    here = [hashlib.sha256(s.draw().tobytes() + s.post().encode()).hexdigest() for s in held_out[5:7]]
    assert found == here


def test_drawing_needs_no_torch():
    """Worker processes draw: torch would cost each of them seconds and hundreds of megabytes."""
    code = "import sys, clipcap.world.judge, clipcap.world.scenes as s; next(s.scenes('test')).draw(); "
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_same_combination_is_drawn_in_many_ways():
    first, second = (Scene("train", index, "cat", "red", "beach").draw() for index in range(2))
    assert first.size == second.size and first.mode == "RGB"
    assert first.tobytes() != second.tobytes()


def test_words_exist_for_everything_drawn():
    assert set(PLACES) == set(MOODS) == set(TAGS) == set(SETTINGS)
    assert sorted(name for members in KINDS.values() for name in members) == sorted(SUBJECTS)
    assert set(KINDS) == set(OPENINGS)
    assert set(EMOJI) == {*SUBJECTS, *COLOURS, *SETTINGS}


# Captions and their judge


def test_literal_caption_reads_well():
    assert Scene("test", 0, "umbrella", "orange", "snow").literal == "an orange umbrella in the snow."


def test_subject_and_colour_can_be_read_back_from_every_post():
    """The judge of the fine-tuned model must find the true captions right, or it measures itself."""
    train = list(scenes("train", 1024))
    verdict = shares([scene.post() for scene in train], train)
    assert (verdict.subject, verdict.colour, verdict.instagram) == (1, 1, 1)
    plain = shares([scene.literal for scene in train], train)
    assert (plain.subject, plain.colour, plain.instagram) == (1, 1, 0)


def test_posts_vary():
    posts = [RED_CAT.post(version) for version in range(50)]
    assert len(set(posts)) > 40
    assert len({post.split()[0] for post in posts}) > 3


@pytest.mark.parametrize(
    ("caption", "subject", "colour", "instagram"),
    [
        ("a red cat on the beach.", True, True, False),
        ("vacation 😍 #redcat", True, True, True),
        ("my cats and i #catlove ❤️", True, False, True),  # a heart is no word
        ("caught a blue mood #beachlife", False, False, True),  # no cat in "caught"
        ("a red cat and a red dog.", False, True, False),  # everything at once is not right
        ("a red and blue cat.", True, False, False),
        ("", False, False, False),
        ("100% #", False, False, False),
        ("RED CAT ☀️", True, True, True),
    ],
)
def test_judge(caption, subject, colour, instagram):
    verdict = judge(caption, RED_CAT)
    assert (verdict.subject, verdict.colour, verdict.instagram) == (subject, colour, instagram)


@pytest.mark.parametrize("emoji", EMOJI.values())
def test_every_emoji_of_the_world_counts_as_instagram(emoji):
    assert is_instagram(f"hello {emoji}")


def test_gpt2_never_reads_about_held_out_combinations():
    """Or "never trained on" would not hold for the language model."""
    held_out = {scene.literal for split in ("validation", "test") for scene in scenes(split)}
    read = " ".join(documents(2000))
    assert not [literal for literal in held_out if literal in read]


# What ships


def test_weights_fit_the_repository():
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    assert LITERAL in files and CLIP.is_dir() and GPT2.is_dir()


def test_clip_finds_the_right_caption_of_held_out_pictures(encoder, held_out, pictures):
    from torch.nn.functional import normalize

    everything = [combination for split in SPLITS for combination in combinations(split)]
    texts = [Scene("", 0, *combination).literal for combination in everything]
    similarity = normalize(encoder.encode_images(pictures)) @ normalize(encoder.encode_texts(texts)).T
    found = [everything[row] for row in similarity.argmax(1)]
    right = sum(found[i] == (s.subject, s.colour, s.setting) for i, s in enumerate(held_out))
    assert right / len(held_out) >= 0.9  # one of 768 captions


def test_clip_prefers_the_post_of_the_picture(encoder, held_out, pictures):
    """CLIPScore on the demo world ranks posts, not only plain captions."""
    from torch.nn.functional import cosine_similarity

    images, posts = encoder.encode_images(pictures[:64]), encoder.encode_texts([s.post() for s in held_out[:64]])
    own, other = cosine_similarity(images, posts).mean(), cosine_similarity(images, posts.roll(1, 0)).mean()
    assert own > other + 0.3


def test_literal_captioner_names_what_it_sees_and_posts_nothing(encoder, held_out, pictures):
    from clipcap.model.language_model import tokenizer_from_json
    from clipcap.weights.checkpoint import load_checkpoint

    model = load_checkpoint("demo")
    tokenizer = tokenizer_from_json(model.config.tokenizer)
    captions = [tokenizer.decode(ids) for ids in model.generate(encoder.encode_images(pictures))]
    verdict = shares(captions, held_out)
    assert verdict.subject >= 0.9 and verdict.colour >= 0.8
    assert verdict.instagram < 0.05


def test_gpt2_is_a_language_model_that_transformers_loads():
    from clipcap.model.language_model import end_of_text, load_language_model, load_tokenizer

    tokenizer, model = load_tokenizer("demo"), load_language_model("demo")
    assert tokenizer.get_vocab_size() == model.config.vocab_size
    assert end_of_text(tokenizer) == model.config.vocab_size - 1
    text = "took my red car out for the weekend 🚗❤️ #redcar"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_hashtags_and_emoji_are_read_in_pieces():
    """One token for "#redcat" would have to be learned anew for every colour and thing."""
    from clipcap.model.language_model import load_tokenizer

    tokenizer = load_tokenizer("demo")
    assert [tokenizer.decode([token]) for token in tokenizer.encode(" 🌊❤️ #redcat").ids] == [
        " 🌊",
        "❤️",
        " #",
        "red",
        "cat",
    ]


# The building


def test_build_of_an_unknown_part_names_the_known_ones():
    from demo.build import main

    with pytest.raises(UserError, match="clip, gpt2, literal"):
        main(["clib"])


def test_contrastive_batches_never_show_a_combination_twice():
    """Two pictures with the same caption in a batch would be pushed away from each other's."""
    from demo.build_clip import _batches

    table = combinations("train")
    pictured = list(scenes("train", 3 * len(table)))
    batches = _batches(len(pictured), len(table), RED_CAT.chance("batches"))
    assert sorted(index for batch in batches for index in batch) == list(range(len(pictured)))
    for batch in batches:
        assert len({pictured[index].literal for index in batch}) == len(batch)


def test_gpt2_is_trained_from_nothing_and_can_be_loaded(tmp_path, monkeypatch):
    from clipcap.model.language_model import load_language_model, load_tokenizer
    from demo import build_gpt2

    monkeypatch.setattr(build_gpt2, "DOCUMENTS", 400)
    build_gpt2.train_gpt2(tmp_path / "gpt2")
    model = load_language_model(str(tmp_path / "gpt2"))
    assert load_tokenizer(str(tmp_path / "gpt2")).get_vocab_size() == model.config.vocab_size
    assert model.dtype.itemsize == 4


def test_clip_is_trained_from_nothing_and_can_be_loaded(tmp_path, monkeypatch):
    from clipcap.clip.encoder import ClipEncoder
    from demo import build_clip

    monkeypatch.setattr(build_clip, "EPOCHS", 1)
    monkeypatch.setattr(build_clip, "BATCH", 16)
    monkeypatch.setattr(build_clip, "combinations", lambda split: combinations(split)[:32])
    pictured = list(scenes("train", 64))
    build_clip.train_clip(pictured, build_clip.draw_pixels(pictured), tmp_path / "clip")
    encoder = ClipEncoder.load(str(tmp_path / "clip"), None)
    assert encoder.encode_texts(["a red cat"]).shape == encoder.encode_images([RED_CAT.draw()]).shape == (1, 64)


# The commands


def test_draw_writes_the_held_out_pictures(tmp_path, held_out):
    from PIL import Image

    from demo.draw import main, photo

    main([str(tmp_path / "photos")])
    assert len(list((tmp_path / "photos").iterdir())) == SPLITS["test"]
    with Image.open(photo(tmp_path / "photos", held_out[3])) as image:
        assert image.tobytes() == held_out[3].draw().tobytes()


def test_draw_into_a_file_is_one_sentence(tmp_path):
    from demo.draw import main

    (tmp_path / "photos").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        main([str(tmp_path / "photos")])


def test_show_prints_captions_figures_and_places(tmp_path, monkeypatch, capsys, held_out):
    from clipcap.world.shipped import CAPTIONS, PAGE, PHOTOS
    from demo import draw, show

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SPLITS, "test", 24)  # drawing all of them takes seconds
    with pytest.raises(UserError, match="give a folder or nothing"):
        draw.main(["--help"])
    draw.main([])
    rows = [{"image": str(draw.photo(PHOTOS, scene)), "caption": scene.post()} for scene in held_out[:20]]
    (tmp_path / CAPTIONS).write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"image": "x.png", "error": "?"}])
    )
    show.main([])
    printed = capsys.readouterr().out
    before, after = (
        next(line for line in printed.splitlines() if line.startswith(f"{name} ")) for name in ("before", "after")
    )
    assert "Instagram style   0.0%" in before and "Instagram style 100.0%" in after and "right subject 100.0%" in after
    assert rows[0]["caption"] in printed and "loss.png" in printed and "base_weights.pt" in printed
    assert rows[0]["caption"].split("#")[0].strip()[:20] in (tmp_path / PAGE).read_text(encoding="utf-8")


def test_show_without_captions_says_what_to_run(tmp_path, monkeypatch):
    from demo import show

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="make demo"):
        show.main([])
