"""Controls: what captions can be asked for is learned, kept in the weights, and refused where it was not learned."""

import os
import pickle
import signal
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from test_training import at_step, model_and_data, same, tensors_of
from tiny import byte_tokenizer, save_tiny_clip, save_tiny_weights, tiny_config

import load_data
import predict
import prompt_finetuning
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.rules import Rules
from clipcap.data.sources import open_source
from clipcap.decoding.options import Decoding
from clipcap.errors import Interrupted, UserError
from clipcap.model.clipcap import ClipCap
from clipcap.model.controls import MEASURES, OPTIONS, Request, ask, controls_of, find_bounds
from clipcap.model.prompts import literal_captions
from clipcap.training.arguments import LoopArguments
from clipcap.training.loader import CaptionDataset
from clipcap.training.trainer import Trainer
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint
from clipcap.world.judge import judge
from clipcap.world.scenes import scenes

BOUNDS = {"length": [1, 2], "emoji": [0, 1], "hashtags": [0, 3]}


# What captions have


@pytest.mark.parametrize(
    ("caption", "words", "emoji", "hashtags"),
    [
        ("", 0, 0, 0),
        ("a red cat. let it snow ❤️🐱 #redcat #snow", 6, 2, 2),
        ("one❤️two - three!", 3, 1, 0),
        ("#only #tags", 0, 0, 2),
        ("step 1️⃣ with @ann", 3, 1, 0),
        ("my # and me", 3, 0, 0),
        ("👩‍👩‍👧 family", 1, 1, 0),
    ],
)
def test_what_a_caption_has_is_counted(caption, words, emoji, hashtags):
    """Guards against hashtags that count as words: a caption would be long because it has many of them."""
    assert [measure(caption) for measure in MEASURES.values()] == [words, emoji, hashtags]


def test_short_medium_and_long_are_thirds_of_the_captions():
    captions = ["word " * length for length in range(1, 31)]
    assert find_bounds(["length"], captions) == {"length": [10, 20]}
    stated = controls_of(byte_tokenizer(), {"length": [10, 20]}, captions)
    told = [byte_tokenizer().decode(ids) for [ids] in stated]
    assert told == [" short,"] * 10 + [" medium,"] * 10 + [" long,"] * 10


def test_classes_are_as_equal_as_ties_allow():
    """Half of the captions are of one length: thirds by rank would leave a class without captions."""
    assert find_bounds(["length"], ["a"] * 10 + ["a b"] * 4 + ["a b c"] * 4)["length"] == [1, 2]
    assert find_bounds(["length"], ["a"] * 4 + ["a b"] * 4 + ["a b c"] * 10)["length"] == [1, 2]


def test_counts_that_are_too_rare_are_folded_into_their_neighbours():
    """Guards against a count that one caption in a thousand has, which nobody could ask for with success."""
    captions = ["🐱"] * 500 + ["🐱🐶"] * 495 + ["🐱" * 9] * 5
    assert find_bounds(["emoji"], captions) == {"emoji": [1, 2]}
    [[ids]] = controls_of(byte_tokenizer(), {"emoji": [1, 2]}, ["🐱" * 9])
    assert byte_tokenizer().decode(ids) == " two emoji,"
    assert find_bounds(["emoji"], ["🐱" * count for count in range(40)]) == {"emoji": [0, 10]}


@pytest.mark.parametrize("name", ["length", "emoji", "hashtags"])
@pytest.mark.parametrize("captions", [["two words"] * 50, ["two words"] * 200 + ["a much longer one 🐱 #cat"]])
def test_captions_that_are_alike_teach_nothing(name, captions):
    with pytest.raises(UserError, match=f"alike in {name}, .*: leave {name} out of --controls"):
        find_bounds([name], captions)


# Training


def controlled() -> CaptionDataset:
    tokenizer = byte_tokenizer()
    captions = ["sun", "sun sea 🐱", "sun sea sky #a"] * 20
    ids = [tokenizer.encode(caption).ids for caption in captions]
    prompts = [tokenizer.encode(f"{row}:").ids for row in range(60)]
    return CaptionDataset(np.zeros((60, 16)), ids, prompts, None, controls_of(tokenizer, BOUNDS, captions), seed=3)


def stated(data: CaptionDataset, rows: range | list[int]) -> list[str]:
    return [byte_tokenizer().decode(data[row][1]) for row in rows]


def test_every_part_of_the_controls_is_stated_sometimes_and_follows_the_prompt():
    data = controlled()
    found = set()
    for data.epoch in range(8):
        for row, text in enumerate(stated(data, range(60))):
            assert text.startswith(f"{row}:")
            found.add(text.partition(":")[2] if row % 3 == 1 else "")
    parts = (" medium,", " one emoji,", " #no,")
    assert found == {"".join(p for place, p in enumerate(parts) if 1 << place & kept) for kept in range(8)}


def test_what_is_stated_depends_on_seed_epoch_and_row_alone():
    """Guards against a draw from a shared generator: workers, batches and --resume would each get another one."""
    one, other = controlled(), controlled()
    one.epoch = other.epoch = 2
    assert stated(one, range(60)) == stated(other, list(reversed(range(60))))[::-1]
    before = stated(one, range(60))
    one.epoch, other.seed = 3, 4
    assert before != stated(one, range(60)) != stated(other, range(60)) != before


def test_a_row_that_is_repeated_within_an_epoch_states_others_each_time():
    """Guards against `--min-steps`, which shows a small data set a hundred times with the same controls."""
    data = controlled()
    once = stated(data, range(60))
    data.rows = [*data.rows] * 8
    found = stated(data, range(480))
    assert found[:60] == once
    assert len({found[place] for place in range(1, 480, 60)}) > 3  # row 1 has three controls


def test_a_row_is_never_longer_than_its_length_says():
    data = controlled()
    for data.epoch in range(4):
        assert all(len(data[row][1]) + len(data[row][2]) <= length for row, length in enumerate(data.lengths()))


def controlled_trainer(folder: Path, **options) -> Trainer:
    model, train, validation = model_and_data()
    captions = [byte_tokenizer().decode(ids) for ids in train.captions]
    train.controls = controls_of(byte_tokenizer(), {"length": [1, 2], "emoji": [0, 1]}, captions)
    folder.mkdir(exist_ok=True)
    values = {"output_dir": str(folder), "epochs": 2, "batch_size": 12, "learning_rate": 3e-3, "device": "cpu"}
    args = LoopArguments(**(values | options))
    return Trainer(model, train, validation, args, "prompted", "weights.pt", {"data": {"rows": 48}})


def test_a_resumed_run_states_the_same_controls(tmp_path):
    """Guards against a resumed run that begins again with the controls of the first epoch."""
    whole = controlled_trainer(tmp_path / "whole")
    whole.run()
    assert whole.train_set.epoch == 1
    broken = controlled_trainer(tmp_path / "broken")
    at_step(broken, 6, lambda: os.kill(os.getpid(), signal.SIGINT))  # of 8, in the second epoch
    with pytest.raises(Interrupted):
        broken.run()
    controlled_trainer(tmp_path / "broken", resume=True).run()
    assert same(*(tensors_of(tmp_path / name / "weights.pt") for name in ("whole", "broken")))


@pytest.fixture(scope="module")
def posts(tmp_path_factory) -> Path:
    """A dataset of one to three words with or without a sun, and weights to start from that know nothing."""
    folder, chance = tmp_path_factory.mktemp("posts"), Random(0)
    texts = [
        " ".join([chance.choice(("sun", "sea")) for _ in range(chance.randint(1, 3))] + ["☀"] * chance.randrange(2))
        for _ in range(2400)
    ]
    rows = [{"image_id": row, "caption": text, "clip_embedding": row} for row, text in enumerate(texts)]
    embeddings = torch.randn(len(rows), 16, generator=torch.Generator().manual_seed(0))
    (folder / "rows.pkl").write_bytes(pickle.dumps({"clip_embedding": embeddings, "captions": rows}))
    source = ["--source", "clipcap", str(folder / "rows.pkl"), "--clip", "tiny"]
    load_data.main([*source, "--val-fraction", "0.01", "--output", str(folder / "data")])
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = tiny_config(clip_model="tiny", clip_pretrained="openai", tokenizer=tokenizer.to_str(), stop_token=0)
    config.gpt2 |= {"vocab_size": tokenizer.get_vocab_size(), "n_positions": 128}
    save_checkpoint(ClipCap(config), folder / "init.pt")
    return folder


def train(posts: Path, output: Path, *options: str) -> Path:
    line = ["--data", str(posts / "data"), "--init", str(posts / "init.pt"), "--output-dir", str(output)]
    line += ["--prompt", "none", "--epochs", "1", "--evals-per-epoch", "1", "--device", "cpu", "--batch-size", "16"]
    prompt_finetuning.main([*line, "--learning-rate", "5e-3", *options])
    return output / "prompted_weights.pt"


def test_captions_are_what_they_are_asked_to_be(posts, tmp_path):
    """The whole way: learned by the script, kept in its file, asked for by name."""
    weights = train(posts, tmp_path, "--controls", "length", "emoji")
    captioner = Captioner.load(weights, save_tiny_clip(tmp_path / "clip"), "cpu")
    assert captioner.model.config.controls == {"length": [1, 2], "emoji": [0, 1]}
    assert captioner.model.record["arguments"]["controls"] == ["emoji", "length"]
    embeddings = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))

    def mean(measure: str, **options) -> float:
        captions = captioner.caption_embeddings(embeddings, max_tokens=40, method="nucleus", **options)
        return sum(MEASURES[measure](caption) for caption, *_ in captions) / len(captions)

    assert mean("emoji", emoji_count=1) - mean("emoji", emoji_count=0) > 0.4
    assert mean("length", length="long") - mean("length", length="short") > 1


def test_controls_that_captions_cannot_teach_end_the_run_before_it_begins(posts, tmp_path):
    with pytest.raises(UserError, match="alike in hashtags"):
        train(posts, tmp_path, "--controls", "hashtags")
    assert not (tmp_path / "prompted_weights.pt").exists()


def test_controls_are_those_of_the_captions_that_are_learned(posts, tmp_path):
    """Guards against bounds from captions that --limit-train leaves out, and against those of the --init weights."""
    model = load_checkpoint(train(posts, tmp_path / "first", "--controls", "emoji", "--limit-train", "40"))
    init = tmp_path / "first" / "prompted_weights.pt"
    assert model.config.controls == {"emoji": [0, 1]}
    again = train(posts, tmp_path / "again", "--init", str(init), "--limit-train", "16")
    assert load_checkpoint(again).config.controls == {}


def test_a_prompt_with_all_its_controls_leaves_room_for_the_caption(posts, tmp_path):
    with pytest.raises(UserError, match="leaves no room for a caption within"):
        train(posts, tmp_path, "--controls", "length", "--prompt", "template", "--template", "x" * 120)


# Asking


def test_what_is_asked_for_is_worded_as_it_was_learned():
    """Guards against a wording that differs between training and use, where the model would not recognise it."""
    tokenizer = byte_tokenizer()
    [learned] = controls_of(tokenizer, BOUNDS, ["sun sea 🐱"])
    asked = ask(tokenizer, BOUNDS, Request(length="medium", emoji_count=1, hashtag_count=0))
    assert asked == [token for control in learned for token in control]
    assert ask(tokenizer, BOUNDS, Request()) == []


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    bounds = {"emoji": [0, 3], "length": [4, 9]}
    return save_tiny_weights(tmp_path_factory.mktemp("weights"), literal=True, prompt="{literal}: ", controls=bounds)


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_request_stands_behind_the_literal_caption(weights, picture):
    captioner = Captioner.load(weights, device="cpu")
    embeddings = captioner.encoder.encode_images([Image.open(picture)])
    decoding = Decoding(max_tokens=9)
    for options, words in (({}, ""), ({"length": "long"}, " long,"), ({"emoji_count": 2}, " two emoji,")):
        [literal] = literal_captions(captioner.model, embeddings)
        prompt = (
            captioner.tokenizer.encode(f"{literal.removesuffix('.')}: ").ids + captioner.tokenizer.encode(words).ids
        )
        [ids] = captioner.model.generate(embeddings, decoding, [prompt])
        assert captioner([picture], decoding, **options)[0] == captioner.tokenizer.decode(ids).strip().removesuffix(
            "\ufffd"
        )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--hashtag-count", "1"], "have not learned what hashtag_count asks for.*--controls hashtags"),
        (["--emoji-count", "4"], "emoji_count must be from 0 to 3 with these weights.*not 4"),
        (["--emoji-count", "-1"], "emoji_count must be a whole number of at least 0, not -1"),
        (["--emoji-count", "2", "--emoji", "none"], "2 emoji are asked for, and emoji are ruled out"),
        (["--hashtag-count", "1", "--hashtags", "none"], "1 hashtags are asked for, and hashtags are ruled out"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_sentence(weights, picture, options, told):
    """Guards against an option that is ignored in silence."""
    with pytest.raises(UserError, match=told) as refused:
        predict.main(["--weights", str(weights), str(picture), "--device", "cpu", *options])
    assert "\n" not in str(refused.value)


def test_predict_asks(weights, picture, capsys):
    for options in (["--length", "short"], ["--emoji-count", "0", "--emoji", "none"]):
        assert (
            predict.main(["--weights", str(weights), str(picture), "--device", "cpu", "--max-tokens", "9", *options])
            == 0
        )
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("options", [{"length": "tiny"}, {"emoji_count": "2"}, {"hashtag_count": True}])
def test_python_is_refused_the_same(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Rules(**options)


def test_weights_without_controls_load_and_say_so(tmp_path, picture):
    """Weights of before have no such field in their config."""
    file = save_tiny_weights(tmp_path)
    content = torch.load(file, weights_only=True)
    del content["config"]["controls"]
    torch.save(content, file)
    captioner = Captioner.load(file, device="cpu")
    assert captioner([picture], max_tokens=5)
    with pytest.raises(UserError, match="have not learned what length asks for"):
        captioner([picture], length="short")


def test_varied_posts_teach_every_control():
    """The demo world's usual posts are alike in length and emoji, so that nothing can be asked of what learned them."""
    given = list(scenes("validation"))
    posts = [scene.varied_post() for scene in given]
    bounds = find_bounds(OPTIONS, posts)
    assert bounds["emoji"] == bounds["hashtags"] == [0, 3] and bounds["length"][1] - bounds["length"][0] > 3
    assert all(
        judge(post, scene).subject and judge(post, scene).colour for post, scene in zip(posts, given, strict=True)
    )


def test_the_demo_has_no_other_posts():
    with pytest.raises(UserError, match="--source demo has no posts 'odd'"):
        open_source(["demo", "odd"])
    assert open_source(["demo", "varied"]).info == {"name": "demo", "posts": "varied"}
