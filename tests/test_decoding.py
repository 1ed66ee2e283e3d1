"""Every decoder against the published code and against plain recomputation; a batch against its rows alone."""

import copy

import pytest
import torch
from tiny import STOP, golden, tiny_model

from clipcap.decoding.cached_gpt2 import CachedGPT2
from clipcap.decoding.options import Decoding
from clipcap.errors import UserError
from clipcap.fast import linear

GOLDEN = ["mlp_a", "transformer_a"]
PROMPTS = [[1, 2, 3], [5], [], [7, 8], [9, 9, 9, 9, 9], [4]]
METHODS = [
    Decoding(max_tokens=20),
    Decoding(method="beam", beams=4, max_tokens=20, return_all=True),
    Decoding(method="nucleus", num_captions=3, max_tokens=20, return_all=True, temperature=0.8, seed=5),
]
by_method = pytest.mark.parametrize("decoding", METHODS, ids=[decoding.method for decoding in METHODS])


def embeddings(rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", GOLDEN)
def test_greedy_is_the_published_one_token_for_token(shared, tmp_path, name, fast):
    figures, model = golden(shared, name, tmp_path)
    model.use_fast(fast)
    decoding = Decoding(max_tokens=figures["config"]["gen"])
    assert model.generate(figures["clip_embedding"], decoding) == figures["greedy"]


@pytest.mark.parametrize("name", GOLDEN)
def test_all_five_beams_are_the_published_ones(shared, tmp_path, name, fast):
    figures, model = golden(shared, name, tmp_path)
    model.use_fast(fast)
    decoding = Decoding(method="beam", beams=5, max_tokens=figures["config"]["gen"], return_all=True)
    assert model.generate(figures["clip_embedding"], decoding) == figures["beam5"]
    best = model.generate(
        figures["clip_embedding"], Decoding(method="beam", beams=5, max_tokens=figures["config"]["gen"])
    )
    assert best == [beams[0] for beams in figures["beam5"]]


def test_greedy_is_the_argmax_of_the_uncached_model(fast):
    model = tiny_model()
    model.use_fast(fast)
    prompts = torch.tensor([PROMPTS[0]] * 6)
    generated = model.generate(embeddings(), Decoding(max_tokens=12, stop_token=-1), prompts.tolist())
    tokens = prompts
    for _ in range(12):
        padded = torch.cat((tokens, torch.zeros(6, 1, dtype=torch.long)), dim=1)
        following = model(embeddings(), padded)[:, -1].argmax(-1)
        tokens = torch.cat((tokens, following[:, None]), dim=1)
    assert generated == tokens[:, 3:].tolist()


@by_method
@pytest.mark.parametrize("prompts", [None, PROMPTS], ids=["no prompt", "prompts of many lengths"])
@pytest.mark.parametrize("mapping", ["mlp", "transformer"])
def test_a_caption_of_a_batch_is_the_one_decoded_alone(decoding, prompts, mapping, fast):
    model = tiny_model(mapping)
    model.use_fast(fast)
    together = model.generate(embeddings(), decoding, prompts)
    for row in range(6):
        alone = model.generate(embeddings()[row : row + 1], decoding, prompts and prompts[row : row + 1])
        assert together[row] == alone[0]


@by_method
def test_captions_end_at_the_stop_token_and_keep_it(decoding, fast):
    model = tiny_model()
    model.use_fast(fast)
    captions = model.generate(embeddings(40), decoding)
    flat = [ids for row in captions for ids in row] if decoding.return_all else captions
    assert all(STOP not in ids[:-1] and (ids[-1] == STOP or len(ids) == 20) for ids in flat)
    assert any(ids[-1] == STOP for ids in flat)


def test_finished_rows_leave_the_batch(monkeypatch):
    """Work for captions that have ended is not repeated."""
    model = tiny_model()
    sizes = []
    step = CachedGPT2.begin

    def counted(self, *args):
        session = step(self, *args)
        plain = session.step
        session.step = lambda tokens: (sizes.append(len(tokens)), plain(tokens))[1]
        return session

    monkeypatch.setattr(CachedGPT2, "begin", counted)
    many = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    captions = model.generate(many, Decoding(max_tokens=40))
    lengths = sorted(map(len, captions))
    assert lengths[0] < lengths[-1], "the test needs captions of different lengths"
    assert sizes[0] == 64 and sizes[-1] < 64
    assert sum(sizes) <= sum(lengths) / 0.75 + 64


def test_samples_differ_between_seeds_and_not_between_calls(fast):
    """Published top-p is followed by argmax: every call returns the same caption."""
    model = tiny_model()
    model.use_fast(fast)
    samples = [model.generate(embeddings(), Decoding(method="nucleus", seed=seed, max_tokens=12)) for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    free = Decoding(method="nucleus", seed=None, max_tokens=12)
    assert model.generate(embeddings(), free) != model.generate(embeddings(), free)


def test_images_that_look_alike_to_the_model_still_get_samples_of_their_own():
    model = tiny_model()
    with torch.no_grad():
        model.clip_project.model[2].weight.zero_()  # every image has the same prefix
    samples = model.generate(embeddings(), Decoding(method="nucleus", max_tokens=12))
    assert len({tuple(ids) for ids in samples}) > 1


def test_constraints_hold_in_every_caption(fast):
    model = tiny_model()
    model.use_fast(fast)
    free = model.generate(embeddings(), Decoding(max_tokens=20, stop_token=-1))
    word, pair = free[0][2], tuple(free[1][3:5])
    for method in ("greedy", "nucleus", "beam"):
        decoding = Decoding(method=method, max_tokens=20, min_tokens=8, banned=((word,), pair), no_repeat_ngram=2)
        for ids in model.generate(embeddings(), decoding):
            pairs = list(zip(ids, ids[1:], strict=False))
            assert word not in ids and pair not in pairs and len(pairs) == len(set(pairs))
            assert len(ids) >= 8 and STOP not in ids[:8]


@pytest.mark.parametrize("fused", [True, False])
def test_weights_that_an_optimizer_changes_are_seen_by_the_next_call(fused):
    model = tiny_model()
    before = model.generate(embeddings(), METHODS[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.3, fused=fused)
    model(embeddings(), torch.ones(6, 3, dtype=torch.long)).sum().backward()
    optimizer.step()
    after = model.generate(embeddings(), METHODS[0])
    assert after != before
    afresh = copy.deepcopy(model).requires_grad_(False)
    assert afresh.generate(embeddings(), METHODS[0]) == after


def test_frozen_weights_that_change_in_place_are_seen_too(fast):
    model = tiny_model().requires_grad_(False)
    model.use_fast(fast)
    before = model.generate(embeddings(), METHODS[0])
    model.gpt.transformer.h[0].mlp.c_proj.weight.neg_()
    assert model.generate(embeddings(), METHODS[0]) != before


def test_loading_weights_is_seen_by_the_next_call():
    """Guards against captions of the weights that were there before."""
    model, other = tiny_model().requires_grad_(False), tiny_model(seed=5)
    before = model.generate(embeddings(), METHODS[0])
    prepared = model._prepared
    assert prepared is not None and model.generate(embeddings(), METHODS[0]) == before
    assert model._prepared is prepared, "unchanged weights are not prepared again"
    model.load_state_dict(other.state_dict())
    assert model._prepared is None
    assert model.generate(embeddings(), METHODS[0]) == other.generate(embeddings(), METHODS[0]) != before


def test_weights_that_may_train_are_not_prepared_again_in_evaluation_mode():
    """Guards against every call of a loaded model packing all of GPT-2 anew."""
    model = tiny_model()
    model.generate(embeddings(), METHODS[0])
    prepared = model._prepared
    model.generate(embeddings(), METHODS[0])
    assert model._prepared is prepared is not None
    model.train().generate(embeddings(), METHODS[0])
    assert model._prepared is None


def test_a_long_prompt_leaves_room_or_is_refused():
    model = tiny_model()
    [caption] = model.generate(embeddings(1), Decoding(stop_token=-1), [[1] * 100])
    assert len(caption) == 128 + 1 - 104
    with pytest.raises(UserError, match="shorten the prompt"):
        model.generate(embeddings(1), Decoding(), [[1] * 130])


def test_bf16_differs_from_fp32_only_where_the_best_logits_tie():
    """With weights rounded to bf16, in both precisions: the first difference is a tie within bf16's resolution."""
    model = tiny_model().bfloat16()
    exact = tiny_model().bfloat16().float()
    decoding = Decoding(max_tokens=20, stop_token=-1)
    rough = model.generate(embeddings(), decoding)
    fine = exact.generate(embeddings(), decoding)
    for row, (a, b) in enumerate(zip(rough, fine, strict=True)):
        step = next((step for step in range(20) if a[step] != b[step]), None)
        if step is not None:
            tokens = torch.tensor([[*b[:step], 0]])
            logits = exact(embeddings()[row : row + 1], tokens)[0, -1]
            assert logits[b[step]] - logits[a[step]] < 0.03 * logits.abs().max()


@pytest.mark.skipif(not linear.can_pack(torch.empty(2, 2, dtype=torch.bfloat16)), reason="no packed bf16 on this CPU")
@pytest.mark.parametrize("activation", [None, torch.nn.GELU(approximate="tanh"), torch.nn.ReLU()])
def test_packed_and_public_linear_layers_agree(activation):
    layer = torch.nn.Linear(64, 96).bfloat16()
    x = torch.randn(5, 3, 64).bfloat16()
    packed, public = (linear.prepare_linear(layer, activation, fast=fast)(x) for fast in (True, False))
    assert packed.shape == public.shape == (5, 3, 96)
    assert torch.allclose(packed.float(), public.float(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "options",
    [{"method": "contrastive"}, {"beams": 0}, {"temperature": 0}, {"top_p": 0}, {"top_p": 1.5}, {"max_tokens": 0}]
    + [{"min_tokens": 67}, {"num_captions": 0}, {"top_k": -1}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(UserError):
        Decoding(**options)
