"""From the export of one person's posts to captions in her voice, as three commands, with the demo's weights."""

import json
from pathlib import Path

import numpy as np
import pytest

import load_data
import lora_finetuning
import predict
from clipcap.clip.encoder import ClipEncoder
from clipcap.errors import UserError
from clipcap.model.batches import encode_captions
from clipcap.model.language_model import tokenizer_of
from clipcap.training.arguments import LoopArguments
from clipcap.training.loader import CaptionDataset
from clipcap.training.losses import validation_loss
from clipcap.weights.checkpoint import load_checkpoint
from clipcap.world.author import is_own_voice, own_post
from clipcap.world.judge import is_instagram, shares
from clipcap.world.scenes import Scene, scenes
from demo import archive

POSTS, SHOWN = 200, 64
# A sixth of what the defaults see, learned faster: 94% in her voice in place of all.
SHORT = ["--min-steps", "100", "--batch-size", "16", "--evals-per-epoch", "1", "--learning-rate", "8e-3"]


def loss_of(weights: str, pictured: list[Scene]) -> float:
    """What her own captions of these pictures cost, in nats per token."""
    model = load_checkpoint(weights)
    embeddings = ClipEncoder.load("demo").encode_images([scene.draw() for scene in pictured]).numpy()
    captions = encode_captions(tokenizer_of(model.config), [own_post(scene) for scene in pictured], 67)
    return validation_loss(model, CaptionDataset(embeddings, captions), 32)


def test_three_commands_learn_a_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against defaults under which few posts are learnt by heart, or not at all, or cost the right subject."""
    monkeypatch.chdir(tmp_path)
    held_out = list(scenes("test", SHOWN))
    Path("photos").mkdir()
    for scene in held_out:
        scene.draw().save(f"photos/{scene.image_id}.png")
    archive.main(["export.zip", str(POSTS)])
    small = ["--clip", "demo", "--workers", "0"]
    load_data.main(["--source", "instagram-archive", "export.zip", "--output", "my_posts", *small])
    start = ["--data", "my_posts", "--init", "demo", "--freeze-mapping", "--device", "cpu"]
    lora_finetuning.main([*start, "--output-dir", "runs/voice", *SHORT])
    weights = "runs/voice/lora_4_weights.pt"
    assert predict.main(["--weights", weights, "photos", "--output", "captions.jsonl", "--workers", "0"]) == 0
    rows = [json.loads(line) for line in Path("captions.jsonl").read_text(encoding="utf-8").splitlines()]
    captions = [row["caption"] for row in rows]
    assert [Path(row["image"]).stem for row in rows] == [scene.image_id for scene in held_out]
    verdict = shares(captions, held_out)
    assert np.mean([is_own_voice(caption) for caption in captions]) >= 0.85, captions
    assert verdict.subject >= 0.9, captions
    assert loss_of(weights, held_out) < loss_of("demo", held_out) / 4


def test_her_voice_is_told_from_every_other() -> None:
    """The judge must find her own posts right and nobody else's, or it measures itself."""
    pictured = list(scenes("train", 256))
    posts = [own_post(scene) for scene in pictured]
    assert all(map(is_own_voice, posts)) and len(set(posts)) > 200
    assert not any(is_own_voice(told) for scene in pictured for told in (scene.literal, scene.post()))
    verdict = shares(posts, pictured)
    assert verdict.subject == verdict.colour == 1 and all(map(is_instagram, posts))
    for caption in ("look at this red cat", posts[0] + " #redcat", posts[0].upper(), posts[0] + ".", ""):
        assert not is_own_voice(caption)


@pytest.mark.parametrize(("captions", "repeats"), [(1, 1600), (50, 32), (196, 9), (1600, 1), (1601, 1), (28360, 1)])
def test_a_small_data_set_is_repeated_until_there_are_enough_steps(captions: int, repeats: int) -> None:
    """Five epochs of 50 posts were ten steps, in which nothing is learnt."""
    loop = LoopArguments(epochs=5, batch_size=32, min_steps=250)
    assert loop.repeats(captions) == repeats
    assert LoopArguments().repeats(captions) == 1


def test_steps_of_several_batches_need_the_captions_of_all_of_them() -> None:
    """Guards against half of the promised steps: 250 steps of 2 batches of 32 are 64 times 50 captions, 5 times."""
    assert LoopArguments(epochs=5, batch_size=32, min_steps=250, accumulate=2).repeats(50) == 64


def test_an_archive_that_cannot_be_drawn_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a number, not 'many'"):
        archive.main([str(tmp_path / "a.zip"), "many"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        archive.main([str(tmp_path / "file" / "a.zip"), "1"])
