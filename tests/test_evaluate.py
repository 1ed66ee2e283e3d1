"""evaluate.py as a user drives it, on a small real dataset with tiny models of random weights."""

import json
import random
import shutil
import signal
from itertools import count
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from tiny import save_tiny_clip, tiny_captioner_model, tiny_config

import evaluate
import load_data
from clipcap.cli.processes import Ended, Processes
from clipcap.clip.encoder import ClipEncoder
from clipcap.data.store import EmbeddingStore
from clipcap.decoding.options import Decoding
from clipcap.errors import Interrupted, UserError
from clipcap.evaluation import metrics, treebank
from clipcap.evaluation.report import read_report, rewrite_tables
from clipcap.evaluation.scores import evaluate_model
from clipcap.files import only_writer
from clipcap.model.clipcap import ClipCap
from clipcap.model.language_model import tokenizer_of
from clipcap.model.prompts import caption_embeddings
from clipcap.weights import checkpoint, places
from clipcap.weights.lora import inject, save_adapters

WORDS = ["sunset", "beach", "dog", "coffee", "love", "happy", "☀️", "😍", "#sun", "#dogs", "my", "best", "day", "!"]


def tiny_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset of drawn noise with two captions per picture, and weights: base, prompted, and one of another CLIP."""
    folder = tmp_path_factory.mktemp("world")
    clip, other = save_tiny_clip(folder / "clip"), save_tiny_clip(folder / "stranger" / "clip", seed=1)
    images = folder / "images"
    images.mkdir()
    rng = random.Random(0)
    rows = []
    for number in range(18):
        Image.frombytes("RGB", (40, 40), rng.randbytes(4800)).save(images / f"{number}.png")
        captions = [" ".join(rng.choices(WORDS, k=6)) for _ in range(2)]
        split = "test" if number < 6 else "validation" if number < 8 else "train"
        rows.append(json.dumps({"file_name": f"{number}.png", "caption": captions, "split": split}))
    (images / "metadata.jsonl").write_text("\n".join(rows))
    data = folder / "data"
    load_data.main(["--source", "folder", str(images), "--clip", str(clip), "--output", str(data), "--workers", "1"])
    tokenizer = tiny_tokenizer()

    def save(name, clip, literal=None, **changes):
        torch.manual_seed(len(name))
        gpt2 = {"vocab_size": tokenizer.get_vocab_size(), "n_positions": 128, "n_embd": 32, "n_layer": 1, "n_head": 4}
        stored = {"clip_model": str(clip), "clip_pretrained": None, "tokenizer": tokenizer.to_str(), "stop_token": 0}
        model = ClipCap(tiny_config(gpt2=gpt2, **stored, **changes), literal)
        model.record = {
            "strategy": name,
            "trained_parameters": 1234,
            "seconds": 75.0,
            "peak_memory_bytes": 5e8,
            "losses": {"history": [{"step": 1, "train_loss": 3.0}, {"step": 2, "val_loss": 2.5}]},
        }
        checkpoint.save_checkpoint(model, folder / name / f"{name}_weights.pt")
        return model

    base = save("base", clip.resolve())
    save("prompted", clip.resolve(), literal=base, prompt=" is {literal} so")
    save("stranger", other.resolve())
    (folder / "broken_weights.pt").write_bytes(b"PK not a checkpoint")
    return folder


def run(world, *models, output="report", **options):
    argv = [str(world / name) for name in models]
    argv += ["--data", str(world / "data"), "--output", str(world / output), "--max-tokens", "8", "--device", "cpu"]
    return evaluate.main(argv + [word for name, value in options.items() for word in (f"--{name}", str(value))])


def test_report(world, capsys):
    """Several references, a prompted model, another CLIP, and a broken file that must not lose the others' results."""
    models = (
        "base/base_weights.pt",
        "prompted/prompted_weights.pt",
        "stranger/stranger_weights.pt",
        "broken_weights.pt",
    )
    assert run(world, *models, pictures=4) == 1
    out, err = capsys.readouterr()
    assert "error: broken is left out" in err and "Traceback" not in err
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("BLEU-4", "CIDEr-D", "RefCLIPScore"))]
    report = read_report(world / "report")
    assert [model["name"] for model in report["models"]] == ["base", "prompted", "stranger"]
    assert list(report["failed"]) == ["broken"]
    assert report["data"]["images"] == 6 and report["data"]["captions"] == 12
    assert report["decoding"]["method"] == "greedy" and "torch" in report["versions"]
    for model in report["models"]:
        assert len(model["captions"]) == 6
        scores = model["scores"]
        assert scores["strategy"] == model["name"] and scores["seconds"] == 75 and scores["trained_parameters"] == 1234
        assert 4 < scores["loss"] < 7 and scores["perplexity"] == pytest.approx(2.71828 ** scores["loss"], rel=1e-3)
        assert 0 <= scores["clip_score"] <= 2.5 and scores["captions_per_second"] > 0
        assert scores["file_bytes"] == (world / model["weights"]).stat().st_size
    html = (world / "report" / "report.html").read_text(encoding="utf-8")
    assert html.count('<figure class="card"') == 4 and html.count("data:image/jpeg") == 4
    assert "| test loss |" in (world / "report" / "report.md").read_text(encoding="utf-8")


def test_captions_per_second_are_captions_by_seconds(world, monkeypatch):
    """Guards against a rate upside down: six captions in two seconds are three a second."""
    monkeypatch.setattr("clipcap.evaluation.scores.time", Mock(perf_counter=count(0, 2).__next__))
    assert run(world, "base/base_weights.pt", output="timed") == 0
    assert read_report(world / "timed")["models"][0]["scores"]["captions_per_second"] == 3


def test_each_caption_is_scored_beside_its_own_picture(world, monkeypatch):
    """Guards against other pictures' captions or embeddings; the models' own captions score 0 whatever is wrong."""
    store = EmbeddingStore.open(world / "data")
    captions = [store.captions("train")[0], *store.captions("test")[2::2]]
    monkeypatch.setattr("clipcap.evaluation.scores.caption_embeddings", lambda *args, **options: captions)
    run(world, "base/base_weights.pt", output="scored", **{"clip-prompt": "On this day:"})
    report = read_report(world / "scored")
    scores, references = report["models"][0]["scores"], [image["captions"] for image in report["images"]]
    truths = [[metrics.tokenize(caption) for caption in texts] for texts in references]
    wanted = metrics.overlap([metrics.tokenize(caption) for caption in captions], truths)
    assert wanted["bleu_4"] > 0.5 and scores["copied"] == pytest.approx(1 / 6)
    encoder, ids = ClipEncoder.load(world / "clip"), store.column("test", "image_id")
    images = store.embeddings("test")[[ids.index(image["id"]) for image in report["images"]]]
    asked = [[f"On this day: {text}" for text in texts] for texts in (captions, *references)]
    candidates, *others = (encoder.encode_texts(texts).numpy() for texts in asked)
    wanted |= metrics.clip_scores(images, candidates, others)
    assert wanted["clip_score"] > 0 and {name: scores[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)


def test_coco_protocol(world, capsys, monkeypatch):
    """Guards against scores beside published ones that were counted in other words, or on another scale."""
    true = EmbeddingStore.open(world / "data").captions("test")[::2]  # the model's own captions score 0
    monkeypatch.setattr("clipcap.evaluation.scores.caption_embeddings", lambda *args, **options: true)
    assert run(world, "base/base_weights.pt", output="coco", protocol="coco") == 0
    report = read_report(world / "coco")
    (model,), shown = report["models"], capsys.readouterr().out
    words = [treebank.tokenize(caption) for caption in model["captions"]]
    truths = [[treebank.tokenize(caption) for caption in image["captions"]] for image in report["images"]]
    wanted = {f"coco_{name}": pytest.approx(score) for name, score in metrics.overlap(words, truths).items()}
    assert {name: score for name, score in model["scores"].items() if name.startswith("coco_")} == wanted
    assert f"{100 * model['scores']['coco_bleu_1']:.2f}" in shown and "cider_d" not in model["scores"]
    assert "COCO protocol, × 100" in (world / "coco" / "report.html").read_text()


def test_normalisation_that_contradicts_the_file_leaves_it_out(world, capsys):
    argv = [str(world / "base" / "base_weights.pt"), "--data", str(world / "data"), "--output", str(world / "no")]
    with pytest.raises(UserError, match="none of the 1 models"):
        evaluate.main([*argv, "--device", "cpu", "--max-tokens", "4", "--normalize"])
    assert "leave --normalize out" in capsys.readouterr().err
    assert evaluate.main([*argv, "--device", "cpu", "--max-tokens", "4", "--no-normalize"]) == 0


def test_captions_are_those_of_the_captioner(world):
    """The stored embeddings, batches and prompts must give what predict.py gives for the same pictures."""
    from clipcap.captioning.captioner import Captioner

    run(world, "prompted/prompted_weights.pt", "stranger/stranger_weights.pt", batch_size=4, precision="fp32")
    report = read_report(world / "report")
    for model in report["models"]:
        clip = world / ("stranger/clip" if model["name"] == "stranger" else "clip")
        captioner = Captioner.load(model["weights"], clip=clip, device="cpu", precision="fp32")
        images = [world / "images" / image["id"] for image in report["images"]]
        captions = captioner(images, max_tokens=8)
        same = sum(ours == theirs for ours, theirs in zip(model["captions"], captions, strict=True))
        assert same == 6 or (model["name"] == "stranger" and same >= 4)  # thumbnails are JPEGs of these pictures


def test_limit_and_names(world, capsys):
    """Two files called alike must not share a column."""
    assert run(world, "base/base_weights.pt", "base/../base/base_weights.pt", limit=2, pictures=0) == 0
    report = read_report(world / "report")
    assert len(set(model["name"] for model in report["models"])) == 2
    assert report["data"]["images"] == 2 and len(report["models"][0]["captions"]) == 2


def test_no_two_models_share_a_name():
    """Guards against two versions of one repository that become one model on the page and among the ratings."""
    versions = ["hf:jane/voice@v1.0", "hf:jane/voice@v1.1", "hf:joe/voice@v1.1", "a/voice.pt", "b/voice_weights.pt"]
    names = [name for name, _ in places.short_names(versions)]
    assert names == ["voice@v1.0", *versions[1:]]
    [(name, _)] = places.short_names(["runs/\x1b]0;owned\x07.pt"])
    assert name == r"\x1b]0;owned\x07"  # a terminal would take it for its title
    assert list(places.short_names(["coco", "runs/base/base_weights.pt", "coco"])) == [
        ("coco", "coco"),
        ("base", "runs/base/base_weights.pt"),
    ]
    assert dict(places.short_names(["hf:jane/my.voice", "coco", "runs/base/base_weights.pt"])) == {
        "my.voice": "hf:jane/my.voice",
        "coco": "coco",
        "base": "runs/base/base_weights.pt",
    }


def test_paths_that_are_not_utf8_cost_no_report(world, tmp_path):
    """Guards against a traceback in the place of the report, and of the models after it."""
    shutil.copy(world / "base" / "base_weights.pt", tmp_path / "caf\udce9_weights.pt")
    (tmp_path / "data\udce9").symlink_to(world / "data")
    models = (tmp_path / "caf\udce9_weights.pt", "base/base_weights.pt")  # torch itself opens no such file
    assert run(world, *models, data=tmp_path / "data\udce9", output=tmp_path / "report", limit=2) == 1
    report = read_report(tmp_path / "report")
    assert [model["name"] for model in report["models"]] == ["base"] and list(report["failed"]) == [r"caf\udce9"]
    rewrite_tables(report, tmp_path / "report")
    assert read_report(tmp_path / "report") == report


def test_ratings_are_added(world, tmp_path, capsys):
    """Ratings go into the table of the report that they were made with, and into no other."""
    run(world, "base/base_weights.pt", "prompted/prompted_weights.pt", output="rated")
    report = read_report(world / "rated")
    ratings = {image["id"]: {"base": number % 3 + 2, "prompted": 1} for number, image in enumerate(report["images"])}
    file = tmp_path / "ratings.json"
    file.write_text(json.dumps({"report": report["id"], "ratings": ratings}))
    assert evaluate.main(["--ratings", str(file), "--output", str(world / "rated")]) == 0
    assert "3.00 (" in capsys.readouterr().out
    base = read_report(world / "rated")["models"][0]["scores"]
    assert base["rating"]["mean"] == 3 and base["rating"]["low"] < 3 < base["rating"]["high"] and base["rated"] == 6
    html = (world / "rated" / "report.html").read_text(encoding="utf-8")
    assert "mean rating" in html and html.count("data:image/jpeg") == 6

    ratings["nobody.png"] = {"base": 1}
    file.write_text(json.dumps({"report": report["id"], "ratings": ratings}))
    with pytest.raises(UserError, match="'nobody.png'"):
        evaluate.main(["--ratings", str(file), "--output", str(world / "rated")])
    file.write_text(json.dumps({"report": "0000", "ratings": {}}))
    with pytest.raises(UserError, match="another report"):
        evaluate.main(["--ratings", str(file), "--output", str(world / "rated")])
    with pytest.raises(UserError, match="leave the models out"):
        evaluate.main(["coco", "--ratings", str(file), "--output", str(world / "rated")])
    with pytest.raises(UserError, match="no .*report.json"):
        evaluate.main(["--ratings", str(file), "--output", str(tmp_path)])


@pytest.mark.parametrize(
    "models, options, message",
    [
        ((), {}, "no models given"),
        (("base/base_weights.pt",), {"split": "tset"}, "no split 'tset'; it has"),
        (("base/base_weights.pt",), {"data": "nowhere"}, "does not exist"),
        (("base/base_weights.pt",), {"limit": 0}, "--limit must be at least 1"),
        (("base/base_weights.pt",), {"temperature": 0}, "temperature must be above 0"),
        (("broken_weights.pt",), {}, "none of the 1 models"),
    ],
)
def test_bad_input(world, models, options, message):
    """One sentence before any captioning, not a traceback after it."""
    with pytest.raises(UserError, match=message):
        run(world, *models, output="bad", **options)


def test_output_that_cannot_be_written(world, tmp_path):
    """Found before the captioning starts."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(world, "base/base_weights.pt", output=tmp_path / "file" / "report")


@pytest.mark.parametrize("gone", ["id", "models", "images", "failed", "data", "decoding"])
def test_report_of_another_shape_is_one_sentence(world, tmp_path, gone):
    run(world, "base/base_weights.pt", output=tmp_path, limit=2)
    report = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "ratings.json").write_text(json.dumps({"report": report["id"], "ratings": {}}))
    del report[gone]
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="holds no report as evaluate.py writes it"):
        evaluate.main(["--ratings", str(tmp_path / "ratings.json"), "--output", str(tmp_path)])


def test_prompt_that_is_no_text_costs_no_report(world, tmp_path):
    with pytest.raises(UserError, match="--clip-prompt .* is not UTF-8"):
        run(world, "base/base_weights.pt", output=tmp_path, **{"clip-prompt": "\udcff"})


def test_a_base_that_no_model_has_is_refused(world, tmp_path):
    """Guards against --base that does nothing, in silence, and a refusal in the place of what is wrong with a file."""
    base = world / "base/base_weights.pt"
    with pytest.raises(UserError, match=f"--base {base} is for LoRA weights, and none are named here: leave it out"):
        run(world, "base/base_weights.pt", "stranger/stranger_weights.pt", output=tmp_path, base=base)
    assert list(tmp_path.iterdir()) == []
    assert run(world, "base/base_weights.pt", "broken_weights.pt", output=tmp_path, base=base, limit=2) == 1


def test_lora_weights_are_compared_though_their_base_has_moved(world, tmp_path, capsys):
    """Guards against --base without effect."""
    base = shutil.copy(world / "base" / "base_weights.pt", tmp_path / "base.pt")
    model = checkpoint.load_checkpoint(base)
    settings = inject(model, 2, 4.0, 0.0, ["c_attn"])
    save_adapters(model, tmp_path / "lora_weights.pt", places.Base.of(str(base)), settings)
    moved = shutil.move(base, tmp_path / "moved.pt")
    with pytest.raises(UserError, match="none of the 1 models"):
        run(world, tmp_path / "lora_weights.pt", output=tmp_path / "report", limit=2)
    assert "give it with --base" in capsys.readouterr().err
    assert run(world, tmp_path / "lora_weights.pt", output=tmp_path / "report", limit=2, base=moved) == 0


@pytest.mark.parametrize("moment", [0, 1])
def test_a_lost_process_costs_no_report_by_advice_to_go_on(world, tmp_path, monkeypatch, moment):
    """Guards against the sentence for other scripts, "run the same command to go on", which replaced the report."""
    from torch import distributed

    class Lost(Processes):
        def largest(self, value):
            with self.watched():
                raise distributed.DistBackendError("Connection closed by peer")

    scored, counted = evaluate_model, iter(range(9))

    def lost(*args):
        return Lost(0, 2).wait() if next(counted) == moment else scored(*args)

    monkeypatch.setattr("clipcap.evaluation.scores.evaluate_model", lost)
    with pytest.raises(Ended, match="another of the 2 processes has ended, and its own message says why") as caught:
        run(world, "base/base_weights.pt", "stranger/stranger_weights.pt", output=tmp_path, limit=2)
    held = f"the report in {tmp_path} holds 1 of 2 models" if moment else "no report was written yet"
    assert f"; {held}; the same command begins anew" in str(caught.value) and "to go on" not in str(caught.value)


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_an_interruption_says_what_the_report_holds_and_that_it_begins_anew(world, tmp_path, monkeypatch, moment):
    """Guards against the advice to run the same command, "to go on", which replaced six models by the first of them."""
    scored, counted = evaluate_model, iter(range(9))

    def interrupted(*args):
        if next(counted) == moment:
            raise Interrupted("terminated: run the same command to go on", signal.SIGTERM)
        return scored(*args)

    monkeypatch.setattr("clipcap.evaluation.scores.evaluate_model", interrupted)
    models = ("broken_weights.pt", "base/base_weights.pt", "stranger/stranger_weights.pt", "base/base_weights.pt")
    with pytest.raises(Interrupted) as caught:
        run(world, *models, output=tmp_path, limit=2)
    held = f"the report in {tmp_path} holds 1 of 3 models" if moment == 2 else "no report was written yet"
    assert caught.value.number == signal.SIGTERM and str(caught.value).startswith(f"interrupted: {held}; the same")
    assert (tmp_path / "report.json").exists() == (moment == 2)


def test_report_has_one_writer(world, tmp_path):
    with only_writer(tmp_path), pytest.raises(UserError, match="is being written by process"):
        run(world, "base/base_weights.pt", output=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_split(world, monkeypatch):
    from clipcap.data.store import EmbeddingStore

    monkeypatch.setattr(EmbeddingStore, "column", lambda self, split, column: [])
    with pytest.raises(UserError, match="split 'test' of .* is empty"):
        run(world, "base/base_weights.pt")


def test_captions_of_the_demo_world_are_read():
    """The demo's target, four captions of five right, is a row of its report; other data have no such rows."""
    from clipcap.evaluation.scores import demo_scores
    from clipcap.world.scenes import scenes

    drawn = list(scenes("test", 2))
    captions = [f"my {drawn[0].colour} {drawn[0].subject} 😍", "nothing at all"]
    assert demo_scores("demo", "test", [scene.image_id for scene in drawn], captions) == {
        "right_subject": 0.5,
        "right_colour": 0.5,
        "instagram_style": 0.5,
    }
    assert demo_scores("folder", "test", ["a.png"], ["my red cat"]) == {}
    # One word in a stranger's dataset.json cost all scores: a KeyError, after captioning.
    assert demo_scores("demo", "test", [drawn[0].image_id, "p34.jpg"], captions) == {}
    assert demo_scores("demo", "other", ["p34.jpg"], ["my red cat"]) == {}


@pytest.mark.parametrize("learned", [True, False], ids=["end-of-text", "another end"])
def test_the_loss_is_that_of_every_token_of_the_true_captions(world, tmp_path, learned):
    """With end-of-text where the weights learned it, and without it where they end captions otherwise."""
    from clipcap.data.store import EmbeddingStore

    model = checkpoint.load_checkpoint(world / "base" / "base_weights.pt")
    model.config.stop_token = 0 if learned else 13
    checkpoint.save_checkpoint(model, tmp_path / "a_weights.pt")
    run(world, tmp_path / "a_weights.pt", output=tmp_path / "report")
    store, tokenizer, losses = EmbeddingStore.open(world / "data"), tiny_tokenizer(), []
    for caption, embedding in zip(store.captions("test"), store.embeddings("test"), strict=True):
        ids = torch.tensor(tokenizer.encode(caption).ids + [0] * learned)
        logits = model(torch.tensor(embedding)[None], ids[None])[0].log_softmax(-1)
        losses += (-logits.gather(1, ids[:, None])[:, 0]).tolist()
    [found] = read_report(tmp_path / "report")["models"]
    assert found["scores"]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_the_loss_is_of_the_tokens_that_the_model_has_room_for(world, tmp_path):
    """Guards against models of few positions that no report had, and on a GPU none of the models after them."""
    gpt2 = checkpoint.load_checkpoint(world / "base" / "base_weights.pt").config.gpt2
    clip = {"clip_model": str((world / "clip").resolve()), "clip_pretrained": None, "stop_token": 0}
    model = ClipCap(tiny_config(gpt2=gpt2 | {"n_positions": 14}, tokenizer=tiny_tokenizer().to_str(), **clip))
    checkpoint.save_checkpoint(model, tmp_path / "short_weights.pt")
    assert run(world, tmp_path / "short_weights.pt", output=tmp_path / "report") == 0
    assert 4 < read_report(tmp_path / "report")["models"][0]["scores"]["loss"] < 7


def test_what_a_strangers_file_says_about_its_training_is_not_believed(world, tmp_path):
    """Guards against tracebacks from the table and the plot, after hours of captioning."""
    model = checkpoint.load_checkpoint(world / "base" / "base_weights.pt")
    rows = [
        {"step": 1, "train_loss": 2.0},
        {"step": "x", "val_loss": 1.0},
        {"val_loss": float("nan"), "step": 2},
        7,
        {},
    ]
    model.record = {"trained_parameters": "many", "seconds": float("nan"), "peak_memory_bytes": -1}
    strategies = (["x"], "a\x1b]0;title\x07\nb", "x" * 10_000)
    for number, losses in enumerate(({"history": rows}, {"history": 5}, 5)):
        model.record |= {"strategy": strategies[number], "losses": losses}
        checkpoint.save_checkpoint(model, tmp_path / f"{number}_weights.pt")
    assert run(world, *(tmp_path / f"{number}_weights.pt" for number in range(3)), output=tmp_path / "report") == 0
    models = read_report(tmp_path / "report")["models"]
    assert [found["losses"] for found in models] == [[{"step": 1, "train_loss": 2.0}], [], []]
    said = ("strategy", "trained_parameters", "seconds", "peak_memory_bytes")
    assert all(found["scores"][name] is None for found in models for name in said)


def test_a_score_that_is_not_finite_is_no_result(world, monkeypatch, capsys):
    monkeypatch.setattr("clipcap.evaluation.scores.summed_loss", lambda *args, **options: (float("nan"), 1))
    with pytest.raises(UserError, match="none of the 1 models"):
        run(world, "base/base_weights.pt", output="bad")
    assert "base is left out: its loss is nan" in capsys.readouterr().err


def test_as_many_are_decoded_together_as_decode_well(monkeypatch):
    """Guards against evaluation, or literal captions, in smaller batches than captioning takes."""
    sizes = []
    monkeypatch.setattr(
        ClipCap, "generate_all", lambda model, batch, *_: sizes.append(len(batch)) or [[[1]]] * len(batch)
    )
    model, embeddings = tiny_captioner_model(), torch.zeros(300, 16)
    for decoding in (Decoding(), Decoding(method="beam"), Decoding(method="nucleus", num_captions=100)):
        caption_embeddings(model, embeddings[: 4 * decoding.batch], decoding)
    assert sizes == [256, 44, *[51] * 4, *[8] * 4]


def test_a_caption_ends_at_end_of_text(monkeypatch):
    """Weights that stop at another token, as the published ones do, wrote on, and the text behind was scored too."""
    model = tiny_captioner_model()
    tokenizer = tokenizer_of(model.config)
    ids = tokenizer.encode("hello there").ids
    monkeypatch.setattr(ClipCap, "generate_all", lambda *_: [[[*ids, tokenizer.token_to_id("<|endoftext|>"), *ids]]])
    assert caption_embeddings(model, torch.zeros(1, 16), Decoding()) == ["hello there"]


def test_a_huge_batch_does_not_make_huge_logits(world, monkeypatch):
    from clipcap.evaluation import scores

    sizes, plain = [], scores.in_order
    monkeypatch.setattr(scores, "in_order", lambda dataset, size: sizes.append(size) or plain(dataset, size))
    assert run(world, "base/base_weights.pt", batch_size=4096) == 0
    assert sizes == [scores.LOSS_BATCH]
    with pytest.raises(UserError, match="--batch-size must be at most 4096"):
        run(world, "base/base_weights.pt", batch_size=4097)


@pytest.mark.parametrize("option, value", [("beams", 5), ("temperature", 0.5), ("seed", 1)])
def test_options_that_cannot_have_an_effect_are_refused(world, option, value):
    with pytest.raises(UserError, match=f"--{option} has an effect only with"):
        run(world, "base/base_weights.pt", output="bad", **{option: value})


@pytest.mark.parametrize("unused", [["--limit", "3"], ["--split", "train"], ["--data", "x"], ["--seed", "1"]])
def test_adding_ratings_refuses_options_that_it_does_not_use(unused, tmp_path):
    with pytest.raises(UserError, match=f"leave {unused[0]} out"):
        evaluate.main(["--ratings", "ratings.json", "--output", str(tmp_path), *unused])
