"""Files of version 0.1.0, when `clipcap/` was one flat folder: each format still opens and means what it meant.

`tests/data/flat_package/` was written by that version: weights of four kinds, a dataset with literal captions, a run
killed after its first epoch of two, a report, captions of two pictures and a broken one, and what the models said then.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import basic_finetuning
from clipcap import Decoding, load_checkpoint
from clipcap.captioning.writers import open_writer
from clipcap.data.store import EmbeddingStore
from clipcap.evaluation.ratings import add_ratings
from clipcap.evaluation.report import read_report, rewrite_tables

FILES = Path(__file__).parent / "data" / "flat_package"
EXPECTED = json.loads((FILES / "expected.json").read_text())
WEIGHTS = {
    "literal": "literal.pt",
    "base": "base_weights.pt",
    "lora": "lora_2_weights.pt",
    "prompted": "prompted_weights.pt",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_say_what_they_said(name, fast):
    """Guards against a moved class, a renamed field or a changed default that gives old files another meaning."""
    model = load_checkpoint(FILES / WEIGHTS[name])
    model.use_fast(fast)
    embeddings = torch.tensor(EXPECTED["embeddings"])
    logits = model(embeddings, torch.arange(15).view(3, 5))[:, -1, :4]
    assert torch.allclose(logits, torch.tensor(EXPECTED[name]["logits"]), atol=1e-4)
    assert model.generate(embeddings, Decoding(max_tokens=12)) == EXPECTED[name]["greedy"]
    assert (model.literal_captioner is not None) == (name == "prompted")


def test_a_dataset_opens_with_its_literal_captions():
    store = EmbeddingStore.open(FILES / "data")
    assert store.info["splits"] == {"train": 28, "validation": 8, "test": 4}
    assert store.embeddings("train").shape == (28, 8) and store.captions("test")
    [identity] = (path.name for path in (FILES / "data" / "literal_captions").iterdir())
    assert len(store.literal_captions("validation", identity)) == 8


def test_a_killed_run_goes_on_to_the_loss_it_would_have_had(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(FILES / "run", run)
    shutil.copy(FILES / "base_weights.pt", run)  # in place of those that the run had saved when it was killed
    os.utime(run / "base_weights.pt", (0, 0))
    data = ["--data", str(FILES / "data"), "--init", str(FILES / "literal.pt"), "--max-tokens", "20"]
    loop = [
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--evals-per-epoch",
        "1",
        "--device",
        "cpu",
        "--learning-rate",
        "1e-3",
    ]
    basic_finetuning.main([*data, *loop, "--output-dir", str(run), "--resume"])
    losses = [json.loads(line).get("val_loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] == pytest.approx(EXPECTED["last_validation_loss"], abs=1e-4)
    assert (run / "base_weights.pt").stat().st_mtime > 0  # written anew
    trained = load_checkpoint(run / "base_weights.pt").state_dict()
    straight = load_checkpoint(FILES / "base_weights.pt").state_dict()
    assert all(torch.allclose(trained[name], straight[name], atol=1e-5) for name in straight)


def test_a_report_takes_ratings(tmp_path):
    shutil.copytree(FILES / "report", tmp_path / "report")
    report = read_report(tmp_path / "report")
    image, model = report["images"][0]["id"], report["models"][0]["name"]
    ratings = tmp_path / "ratings.json"
    ratings.write_text(json.dumps({"report": report["id"], "ratings": {image: {model: 4}}}))
    add_ratings(report, [ratings])
    rewrite_tables(report, tmp_path / "report")
    assert "mean rating" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv", "captions.html"])
def test_captions_are_continued_and_failures_tried_again(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(FILES / name, tmp_path)
    (tmp_path / "photos").mkdir()
    for picture in ("a.png", "b.png", "broken.jpg"):
        (tmp_path / "photos" / picture).touch()
    writer = open_writer(name)
    wanted = [picture for picture in ("photos/a.png", "photos/b.png", "photos/broken.jpg") if writer.wants(picture)]
    writer.close()
    assert wanted == ["photos/broken.jpg"]
    assert (tmp_path / name).read_text().count("photos/a.png") == (FILES / name).read_text().count("photos/a.png")
