"""Literal captions for prompts: one for each image, on the device of the run, and kept as far as they were computed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_embeddings import build, picture

from clipcap.cli.processes import ALONE
from clipcap.data.examples import Example
from clipcap.data.store import EmbeddingStore
from clipcap.errors import UserError
from clipcap.training import literals
from clipcap.training.literals import stored_literal_captions

ROWS = 12  # two captions for each of six images


class Captioner:
    """Says of each embedding what it is, and remembers of how many embeddings it was asked, and where it was then.

    Args:
        fails_after: calls that go well; the next one is interrupted.
    """

    def __init__(self, fails_after: int | None = None) -> None:
        self.device, self.fails_after, self.asked = "cpu", fails_after, []

    def to(self, device: object) -> None:
        self.device = str(device)

    def captions(self, embeddings: object) -> list[str]:
        if len(self.asked) == self.fails_after:
            raise KeyboardInterrupt
        self.asked.append((len(embeddings), self.device))
        return [str(embedding) for embedding in np.asarray(embeddings)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingStore:
    monkeypatch.setattr(literals, "caption_embeddings", lambda model, embeddings, *_, **__: model.captions(embeddings))
    monkeypatch.setattr(literals, "pick_device", torch.device)
    monkeypatch.setattr(literals, "PART", 5)
    return build(tmp_path, [Example(str(i), ("one", "two"), picture(i), "train") for i in range(ROWS // 2)])


def literal(store: EmbeddingStore, model: Captioner, rows: int = ROWS) -> list[str]:
    experiment = SimpleNamespace(store=store, processes=ALONE, loop_args=SimpleNamespace(device="cuda:0"))
    return stored_literal_captions(experiment, "train", rows, model, "a")


def expected(store: EmbeddingStore) -> list[str]:
    return [str(embedding) for embedding in np.asarray(store.embeddings("train"))]


def test_each_image_is_captioned_once_and_on_the_device_of_the_run(store: EmbeddingStore) -> None:
    """Guards against five captions for each image of COCO, on the CPU beside an idle GPU."""
    model = Captioner()
    assert literal(store, model) == expected(store)
    assert model.asked == [(3, "cuda:0"), (2, "cuda:0"), (1, "cuda:0")] and model.device == "cpu"
    again = Captioner()
    assert literal(store, again) == expected(store) and not again.asked


def test_a_limited_run_captions_what_it_uses_and_the_next_one_the_rest(store: EmbeddingStore) -> None:
    """Guards against literal captions for all of COCO to train on a hundred, and a part that is taken for the whole."""
    few, all_of_them, fewer = Captioner(), Captioner(), Captioner()
    assert literal(store, few, 3) == expected(store)[:3] == store.literal_captions("train", "a")
    assert literal(store, all_of_them) == expected(store) and literal(store, fewer, 4) == expected(store)[:4]
    assert [sum(count for count, _ in model.asked) for model in (few, all_of_them, fewer)] == [2, 4, 0]
    assert store.literal_captions("train", "a") == expected(store)


def test_what_an_interrupted_run_has_captioned_is_kept(store: EmbeddingStore) -> None:
    interrupted, next_one = Captioner(fails_after=2), Captioner()
    with pytest.raises(KeyboardInterrupt):
        literal(store, interrupted)
    assert store.literal_captions("train", "a") == expected(store)[:10]
    assert literal(store, next_one) == expected(store) and [count for count, _ in next_one.asked] == [1]


def test_a_dataset_that_cannot_be_written_is_refused_before_the_work(store: EmbeddingStore) -> None:
    """Guards against hours of captions that have no place."""
    model = Captioner()
    (store.path / "literal_captions").write_text("")
    with pytest.raises(UserError, match="cannot keep literal captions in"):
        literal(store, model)
    assert not model.asked
