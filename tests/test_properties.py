"""What holds for every input: a batch gives what each picture gives alone, in any order, saved, with any workers.

Small models with random weights; seeds are fixed, so a failure can be repeated.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import save_tiny_clip, save_tiny_weights, tiny_model

from clipcap import Captioner, ClipEncoder, Decoding
from clipcap.captioning.options import decoding_and_rules
from clipcap.data.embed import embed_shards
from clipcap.data.examples import Example
from clipcap.data.shards import Shard
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint

SEARCHES = [
    Decoding(max_tokens=12),
    Decoding(method="beam", beams=3, max_tokens=12, return_all=True),
    Decoding(method="beam", beams=1, max_tokens=12, return_all=True),
    Decoding(method="nucleus", seed=4, num_captions=2, max_tokens=12, return_all=True),
    Decoding(method="nucleus", seed=2**40, temperature=1.5, top_k=20, no_repeat_ngram=2, max_tokens=12),
]
by_search = pytest.mark.parametrize("decoding", SEARCHES, ids=lambda d: f"{d.method} {d.width}")
by_seed = pytest.mark.parametrize("seed", range(2))


def batch_of(seed: int) -> tuple[torch.Tensor, list[list[int]]]:
    """Embeddings (B, 16) and prompts of many lengths, some empty."""
    random = np.random.default_rng(seed)
    rows = int(random.integers(2, 9))
    prompts = [random.integers(0, 211, random.integers(0, 7)).tolist() for _ in range(rows)]
    return torch.tensor(random.standard_normal((rows, 16)), dtype=torch.float32), prompts


@by_search
@pytest.mark.parametrize("seed, mapping", [(0, "mlp"), (1, "transformer"), (2, "mlp")])
def test_a_batch_of_any_size_gives_what_each_gives_alone(decoding, seed, mapping, fast):
    """In float32, with the padding that prompts of many lengths need, whatever the batch is cut into."""
    model, (embeddings, prompts) = tiny_model(mapping), batch_of(seed)
    model.use_fast(fast)
    alone = [
        model.generate(embeddings[row : row + 1], decoding, prompts[row : row + 1])[0] for row in range(len(prompts))
    ]
    for size in (2, 3, len(prompts)):
        starts = range(0, len(prompts), size)
        parts = [model.generate(embeddings[s : s + size], decoding, prompts[s : s + size]) for s in starts]
        assert sum(parts, []) == alone


@by_search
@by_seed
def test_the_order_of_a_batch_does_not_matter(decoding, seed, fast):
    model, (embeddings, prompts) = tiny_model(), batch_of(seed)
    model.use_fast(fast)
    order = np.random.default_rng(seed).permutation(len(prompts)).tolist()
    captions = model.generate(embeddings, decoding, prompts)
    mixed = model.generate(embeddings[order], decoding, [prompts[row] for row in order])
    assert mixed == [captions[row] for row in order]


@by_search
def test_a_longer_prompt_in_the_batch_takes_no_tokens_from_other_captions(decoding, fast):
    """Guards against the room of the longest prompt, which was that of the whole batch."""
    model, (embeddings, _) = tiny_model(), batch_of(0)
    model.use_fast(fast)
    endless = Decoding(**(vars(decoding) | {"max_tokens": 500, "stop_token": -1}))
    prompts = [[1] * 100, [2] * 80, [1] * 100]
    together = model.generate(embeddings[:1].repeat(3, 1), endless, prompts)
    alone = [model.generate(embeddings[:1], endless, [prompt])[0] for prompt in prompts]
    assert together == alone


def test_bf16_captions_of_a_lone_picture_are_those_of_a_batch(fast):
    """Guards against attention that rounds otherwise for a single image: of these 60 captions, 21 differed.

    Two may differ, for a CPU that multiplies bf16 by other instructions for other numbers of rows.
    """
    model = tiny_model().bfloat16().requires_grad_(False)
    model.use_fast(fast)
    embeddings = torch.randn(12, 16, generator=torch.Generator().manual_seed(3))
    differ = 0
    for decoding in SEARCHES:
        alone = [model.generate(embedding[None], decoding)[0] for embedding in embeddings]
        together = model.generate(embeddings, decoding)
        differ += sum(a != b for a, b in zip(alone, together, strict=True))
    assert differ <= 2, f"{differ} of 60"


@by_search
@pytest.mark.parametrize("mapping", ["mlp", "transformer"])
def test_saved_weights_give_the_same_captions(decoding, mapping, tmp_path, fast):
    model = tiny_model(mapping, clip_model="ViT-B/32", language_model="gpt2")
    save_checkpoint(model, tmp_path / "a.pt")
    again = load_checkpoint(tmp_path / "a.pt")
    save_checkpoint(again, tmp_path / "b.pt")
    twice = load_checkpoint(tmp_path / "b.pt")
    embeddings, prompts = batch_of(1)
    captions = []
    for each in (model, again, twice):
        each.use_fast(fast)
        captions.append(each.generate(embeddings, decoding, prompts))
    assert captions[0] == captions[1] == captions[2]
    assert all(torch.equal(tensor, twice.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures of many sizes, and two files that are none."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [folder / f"{index:02}.png" for index in range(14)]
    for index, path in enumerate(paths):
        if index in (3, 10):
            path.write_text("no picture")
            continue
        small = Image.fromarray(random.integers(0, 256, (5, 4, 3), dtype=np.uint8))
        small.resize((40 + 7 * index, 90 - 4 * index), Image.Resampling.NEAREST).save(path)
    return paths


def test_workers_do_not_change_what_is_stored(photos, tmp_path):
    """Embeddings and thumbnails with no worker, one and two, bit for bit and in order."""
    encoder = ClipEncoder.load(save_tiny_clip(tmp_path))
    examples = [Example(path.name, ("a caption",), path) for path in photos]
    shards = [Shard("train", 0, examples[:9]), Shard("test", 0, examples[9:])]
    stored = []
    for workers in (0, 1, 2):
        results = [
            result
            for shard in shards
            for _, part in embed_shards([shard], encoder, 4, workers, thumbnails=shard.split == "test")
            for result in part
        ]
        stored.append([(r[0].tobytes(), r[1]) if isinstance(r, tuple) else str(r) for r in results])
    assert stored[0] == stored[1] == stored[2]
    assert len(stored[0]) == 14 and len({item[0] for item in stored[0] if isinstance(item, tuple)}) == 12


def test_workers_and_batches_do_not_change_captions(photos, tmp_path):
    captioner = Captioner.load(save_tiny_weights(tmp_path), precision="fp32")
    chosen = decoding_and_rules(max_tokens=8, method="nucleus", num_captions=2)
    rows = [
        list(captioner.rows(photos, *chosen, batch_size=size, workers=workers))
        for workers, size in ((0, 1), (0, 5), (1, 5), (2, 14))
    ]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert [row.error is None for row in rows[0]] == [index not in (3, 10) for index in range(14)]


def test_embeddings_do_not_depend_on_the_batch(photos, tmp_path):
    """Up to rounding, and in the signs, from which the random numbers of samples derive."""
    encoder = ClipEncoder.load(save_tiny_clip(tmp_path))
    readable = [path for index, path in enumerate(photos) if index not in (3, 10)]
    whole = encoder.encode_images(readable)
    for size in (1, 5):
        assert torch.allclose(encoder.encode_images(readable, size), whole, atol=1e-5)
        assert torch.equal(encoder.encode_images(readable, size) > 0, whole > 0)
