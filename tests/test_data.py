"""From captions to batches: nothing is lost, nothing is padded into the loss, and the order can be repeated."""

import multiprocessing
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny_model
from tokenizers import Tokenizer

from clipcap.cli.status import requests_to_end
from clipcap.errors import UserError
from clipcap.model.batches import IGNORED, Batch, collate, encode_captions, fit_captions
from clipcap.model.prompts import encode_prompts
from clipcap.training.loader import BucketSampler, CaptionDataset, in_order, loader, share


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


def test_captions_end_with_end_of_text(tokenizer):
    """Published captions carry no end token: the model never learns to stop."""
    short, exact, long = encode_captions(tokenizer, ["hi!", "abcdefg", "abcdefgh"], max_tokens=8)
    end = tokenizer.token_to_id("<|endoftext|>")
    assert short[-1] == exact[-1] == end and len(exact) == 8
    assert len(long) == 8 and end not in long


def test_long_captions_are_cut_between_characters(tokenizer):
    for max_tokens in range(2, 12):
        [ids] = encode_captions(tokenizer, ["ab💋c💋defg"], max_tokens)
        assert len(ids) <= max_tokens and "�" not in tokenizer.decode(ids) and ids


def test_published_token_ids_of_all_instagram_captions(shared):
    from clipcap.data.pickles import read_pickle
    from clipcap.model.language_model import load_tokenizer

    captions = [
        row["caption"] for row in read_pickle(shared / "instagram_100" / "embeddings_RN50x4_train.pkl")["captions"]
    ]
    tokens, _, longest = read_pickle(shared / "instagram_100" / "embeddings_RN50x4_train_tokens.pkl")
    gpt2 = load_tokenizer(str(shared / "gpt2_tokenizer"))
    assert len(captions) == 100
    encoded = encode_captions(gpt2, captions, max_tokens=1000)
    assert [ids[:-1] for ids in encoded] == [row.tolist() for row in tokens]


def dataset(lengths=(3, 1, 5, 2), prompts=None) -> CaptionDataset:
    embeddings = np.arange(len(lengths), dtype=np.float32)[:, None].repeat(16, axis=1)
    return CaptionDataset(embeddings, [list(range(1, length + 1)) for length in lengths], prompts)


def test_labels_are_the_caption_and_nothing_else():
    data = dataset((3, 1), prompts=[[50], [60, 61]])
    batch = collate([data[0], data[1]])
    assert batch.tokens.tolist() == [[50, 1, 2, 3], [60, 61, 1, 0]]
    assert batch.labels.tolist() == [[IGNORED, 1, 2, 3], [IGNORED, IGNORED, 1, IGNORED]]
    assert batch.positions.tolist() == [1, 2, 3, 6] and batch.targets.tolist() == [1, 2, 3, 1]
    assert batch.clip_embedding.dtype == torch.float32


def test_prompt_and_caption_fit_together_or_the_prompt_is_refused():
    assert fit_captions([[1, 2, 3], [4]], [[9, 9], [9]], room=4) == [[1, 2], [4]]
    with pytest.raises(UserError, match="shorten the template"):
        fit_captions([[1]], [[9, 9, 9]], room=3)


def test_a_prompt_keeps_the_full_stop_of_the_literal_caption_and_ends_without_a_blank(tokenizer):
    [ids, bare] = encode_prompts(tokenizer, "{literal} as they say: ", [" A dog. ", "a cat"])
    assert (tokenizer.decode(ids), tokenizer.decode(bare)) == ("A dog. as they say:", "a cat as they say:")


def test_prompts_of_older_files_have_no_full_stop(tokenizer):
    [ids, bare] = encode_prompts(tokenizer, "{literal}, as they say", [" A dog. ", "a cat"], running_text=False)
    assert (tokenizer.decode(ids), tokenizer.decode(bare)) == ("A dog, as they say", "a cat, as they say")


def test_rows_choose_what_is_used():
    data = CaptionDataset(dataset().embeddings, dataset().captions, rows=[2, 0])
    assert len(data) == 2 and data.lengths() == [5, 3] and data[0][0][0] == 2


def test_batching_changes_no_loss():
    """Two epochs over the same rows give the same losses: nothing is changed in place, as the published masks were."""
    model, data = tiny_model(), dataset()
    batch = collate([data[row] for row in range(4)])
    first, second = model.token_losses(batch), model.token_losses(collate([data[row] for row in range(4)]))
    assert torch.equal(first, second)


def batches(sampler: BucketSampler, epoch: int = 0, skip: int = 0) -> list[list[int]]:
    sampler.epoch, sampler.skip = epoch, skip
    return list(sampler)


def test_every_row_comes_once_in_batches_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 60, size=1000).tolist()
    sampler = BucketSampler(lengths, batch_size=8, seed=1)
    order = batches(sampler)
    assert sorted(row for batch in order for row in batch) == list(range(1000)) and len(order) == len(sampler)
    padding = sum(max(lengths[r] for r in batch) * len(batch) - sum(lengths[r] for r in batch) for batch in order)
    assert padding < 0.1 * sum(lengths)


def test_order_depends_on_seed_and_epoch_alone():
    sampler = BucketSampler([5] * 100, batch_size=8, seed=1)
    first = batches(sampler)
    assert first == batches(BucketSampler([5] * 100, batch_size=8, seed=1)) != batches(sampler, epoch=1)
    assert batches(BucketSampler([5] * 100, batch_size=8, seed=2)) != first
    assert batches(sampler, skip=5) == first[5:]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_processes_share_the_rows_of_a_batch(count):
    """Guards against a process without a row, for which all others would wait, and against a row that counts twice."""
    rows = [dataset()[row] for row in range(count)]
    shares = [share(rows, rank, world=3) for rank in range(3)]
    whole = share(rows, 0, world=1)
    assert whole.weight == 1 and torch.equal(whole.tokens, collate(rows).tokens)
    found = [tuple(e.tolist()) for batch in shares if batch.weight for e in batch.clip_embedding]
    assert sorted(found) == sorted(tuple(e.tolist()) for e in whole.clip_embedding)
    assert [batch.weight == 0 for batch in shares] == [rank >= count for rank in range(3)]
    mean = sum(batch.targets.double().mean() * batch.weight for batch in shares) / 3
    assert mean.item() == pytest.approx(whole.targets.double().mean().item())


def test_in_order_takes_every_row_once():
    assert in_order(dataset(), 3) == [[2, 0, 3], [1]]


@pytest.mark.parametrize(("device", "beside"), [("cuda:1", True), ("mps", False), ("cpu", False)])
def test_only_cuda_copies_beside_the_computation(device, beside):
    """Guards against Apple's GPUs, which read a batch that is gone already."""
    asked = []
    part = SimpleNamespace(to=lambda device, non_blocking: asked.append((str(device), non_blocking)))
    Batch(*[part] * 6).to(torch.device(device))
    assert asked == [(device, beside)] * 6


@pytest.mark.filterwarnings("ignore:.*pin_memory.*no accelerator")
@pytest.mark.parametrize("number", requests_to_end())
def test_batches_go_on_while_the_process_group_is_asked_to_end(number):
    """Guards against a run that torchrun or Ctrl-C ends without its state: the workers of its batches ended first."""
    batches = loader(dataset([3] * 200), [[row] for row in range(200)], torch.device("cuda"))
    assert batches.multiprocessing_context.get_start_method() == "fork"  # any other copies the dataset
    found = iter(batches)
    next(found), next(found)  # one of each worker
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)
    assert len(list(found)) == 198
