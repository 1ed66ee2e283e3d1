"""Every decoder against the published code and against plain recomputation; a batch against its rows alone."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import STOP, golden, move_logits, tiny_model

from clipcap.decoding import search
from clipcap.decoding.cached_gpt2 import CachedGPT2
from clipcap.decoding.options import Decoding
from clipcap.decoding.search import NoCaption
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


def log_probabilities(model, embedding: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """Of every next token, by the plain model without a cache: (V,)."""
    return model(embedding[None], torch.tensor([[*tokens, 0]]))[0, -1].log_softmax(-1)


def plain_greedy(model, embedding: torch.Tensor, steps: int, stop: int, fewest: int = 0) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < steps and stop not in tokens:
        best = log_probabilities(model, embedding, tokens).argsort(descending=True).tolist()
        tokens.append(next(token for token in best if token != stop or len(tokens) >= fewest))
    return tokens


def plain_beams(model, embedding: torch.Tensor, beams: int, steps: int, stop: int) -> list[list[int]]:
    """ClipCap's beam search, written down as it is explained: every child of every beam, the best means stay."""
    known: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(steps):
        children = [beam for beam in known if stop in beam[0]]
        for tokens, score in (beam for beam in known if stop not in beam[0]):
            gained = log_probabilities(model, embedding, tokens).tolist()
            children += [([*tokens, token], score + gain) for token, gain in enumerate(gained)]
        known = sorted(children, key=lambda beam: -beam[1] / len(beam[0]))[:beams]
    return [tokens for tokens, _ in known]


@torch.inference_mode()
def test_captions_longer_than_the_first_cache_are_the_argmax_of_the_uncached_model(fast):
    """Guards against positions of a cache that has grown which no text has written, and all see."""
    model = tiny_model()
    model.use_fast(fast)
    found = model.generate(embeddings(3), Decoding(max_tokens=70, stop_token=-1))
    assert found == [plain_greedy(model, embedding, 70, stop=-1) for embedding in embeddings(3)]


@pytest.mark.parametrize("beams, stops, steps", [(3, True, 12), (4, False, 36), (1, True, 12), (5, True, 12)])
@torch.inference_mode()
def test_beams_are_those_of_a_search_without_a_cache(beams, stops, steps, fast):
    """Guards, without reference data, against beams that go on from another's past, and against a cache that grows."""
    model = tiny_model()
    model.use_fast(fast)
    decoding = Decoding(method="beam", beams=beams, max_tokens=steps, stop_token=-1, return_all=True)
    found, stop = model.generate(embeddings(3), decoding), -1
    if stops:  # at a token at which some beams end and others do not
        for stop in sorted({token for row in found for ids in row for token in ids}):
            found = model.generate(embeddings(3), replace(decoding, stop_token=stop))
            if {ids[-1] == stop for row in found for ids in row} == {True, False}:
                break
        else:
            raise AssertionError("no beam ends")
    assert found == [plain_beams(model, embedding, beams, steps, stop) for embedding in embeddings(3)]


@torch.inference_mode()
def test_a_finished_beam_has_one_child():
    """Guards against copies of a finished beam that take the place of others, where the model is sure of its tokens."""
    model = tiny_model()
    model.gpt.transformer.ln_f.weight.mul_(12)
    decoding = Decoding(method="beam", beams=3, max_tokens=5, stop_token=-1, return_all=True)
    for stop in {token for row in model.generate(embeddings(3), decoding) for ids in row for token in ids}:
        found = model.generate(embeddings(3), replace(decoding, stop_token=stop))
        assert found == [plain_beams(model, embedding, 3, 5, stop) for embedding in embeddings(3)]


@pytest.mark.parametrize("min_tokens", [0, 1, 2, 5])
@torch.inference_mode()
def test_a_caption_may_end_right_after_its_fewest_tokens(min_tokens):
    """Neither one token earlier nor one later; the stop token does not count."""
    model = tiny_model()
    for row in range(4):
        [free] = model.generate(embeddings()[row : row + 1], Decoding(max_tokens=8, stop_token=-1))
        stop = free[min_tokens]  # comes by itself right after the fewest tokens, perhaps earlier too
        decoding = Decoding(max_tokens=8, min_tokens=min_tokens, stop_token=stop)
        [caption] = model.generate(embeddings()[row : row + 1], decoding)
        assert caption == plain_greedy(model, embeddings()[row], 8, stop, fewest=min_tokens)
        assert len(caption) == min_tokens + 1 or stop in free[:min_tokens]


@torch.inference_mode()
def test_samples_are_ordered_by_their_mean_log_probability(fast):
    """Guards against a score that goes on after the stop token, as long as other samples of the picture do."""
    model = tiny_model()
    model.use_fast(fast)
    decoding = Decoding(method="nucleus", num_captions=6, max_tokens=20, return_all=True, temperature=1.5, top_p=1)
    lengths = set()
    for row, samples in enumerate(model.generate(embeddings(4), decoding)):
        means = []
        for ids in samples:
            gained = [log_probabilities(model, embeddings()[row], ids[:place])[ids[place]] for place in range(len(ids))]
            means.append(float(sum(gained)) / len(ids))
            lengths.add(len(ids))
        assert means == pytest.approx(sorted(means, reverse=True), abs=1e-4)
    assert len(lengths) > 2


@pytest.mark.parametrize("method", ["greedy", "nucleus", "beam"])
def test_all_banned_sequences_with_one_beginning_are_banned(method):
    """Guards against the last one alone, and against banned beginnings of one length that hide those of another."""
    model = tiny_model()
    banned: list[tuple[int, ...]] = [(500,), (7, -1), ()]  # no tokens of this model, and no token at all
    for length in (2, 3, 2, 4, 2, 3, 2, 4):
        decoding = Decoding(method=method, max_tokens=8, stop_token=-1, banned=tuple(banned))
        [caption] = model.generate(embeddings(1), decoding)
        for sequence in banned[3:]:
            assert not any(tuple(caption[i : i + len(sequence)]) == sequence for i in range(8)), sequence
        banned.append(tuple(caption[1 : 1 + length]))


@pytest.mark.parametrize("beams", [1, 2])
def test_one_beam_is_greedy_search_however_many_pictures(beams, fast):
    """Guards against the one mask of a batch without prompts, which was indexed by every picture."""
    model = tiny_model()
    model.use_fast(fast)
    found = model.generate(embeddings(), Decoding(method="beam", beams=beams, max_tokens=20))
    assert beams > 1 or found == model.generate(embeddings(), Decoding(max_tokens=20))


@by_method
@pytest.mark.parametrize("bad", ["embedding", "weights", "forbidden"])
def test_a_picture_without_a_possible_caption_is_told_of(decoding, bad, fast):
    """Guards against a caption of token 0, which NaN and a vocabulary without an allowed token both led to."""
    model = tiny_model()
    model.use_fast(fast)
    given = embeddings()
    if bad == "embedding":
        given[2, 3] = float("inf")
    elif bad == "weights":
        model.gpt.transformer.ln_f.weight.data[0] = float("nan")
    else:
        decoding = replace(decoding, banned=tuple((token,) for token in range(211)))
    with pytest.raises(NoCaption, match="not finite"):
        model.generate(given, decoding)


def test_beams_that_begin_with_a_banned_token_do_not_come(fast):
    """Guards against more beams than there are allowed tokens, whose rest was made of forbidden ones."""
    model = tiny_model()
    model.use_fast(fast)
    banned = tuple((token,) for token in range(3, 211))
    decoding = Decoding(method="beam", beams=9, max_tokens=1, stop_token=-1, return_all=True, banned=banned)
    for beams in model.generate(embeddings(), decoding):
        assert sorted(beams) == [[0], [1], [2]]


@by_method
def test_a_batch_is_cut_until_its_cache_fits(decoding, monkeypatch):
    """Guards against 73 GB for 32 pictures of 400 beams: memory, not the caller, bounds what is decoded together."""
    model = tiny_model()
    whole, sizes = model.generate(embeddings(40), decoding), []
    begin = CachedGPT2.begin

    def counted(self, prefix, prompts, width, steps):
        sizes.append(len(prefix) * self.cache_bytes(prefix.shape[1], width, steps))
        return begin(self, prefix, prompts, width, steps)

    monkeypatch.setattr(CachedGPT2, "begin", counted)
    monkeypatch.setattr(search, "CACHE", 400_000)
    assert model.generate(embeddings(40), decoding) == whole
    assert len(sizes) > 1 and max(sizes) <= 400_000
    sizes.clear()
    monkeypatch.setattr(search, "CACHE", 1)  # less than one picture needs, which is decoded alone then
    assert model.generate(embeddings(2), decoding) == whole[:2] and len(sizes) == 2


def test_the_most_probable_token_alone_is_greedy_search(fast):
    """Guards against a top_k that the sampler is not told."""
    model = tiny_model()
    model.use_fast(fast)
    one = Decoding(method="nucleus", top_k=1, top_p=1.0, temperature=5, max_tokens=12)
    assert model.generate(embeddings(), one) == model.generate(embeddings(), Decoding(max_tokens=12))


@pytest.mark.parametrize("top_p", [1e-300, 1e-30, 1e-6])
def test_the_smallest_nucleus_holds_the_most_probable_token(top_p, fast):
    """Guards against a top_p that rounds to 0 in float32, after which any token was drawn."""
    model = tiny_model()
    model.use_fast(fast)
    found = model.generate(embeddings(), Decoding(method="nucleus", top_p=top_p, max_tokens=12))
    assert found == model.generate(embeddings(), Decoding(max_tokens=12))


@pytest.mark.parametrize("temperature", [0.001, 1000])
def test_temperatures_at_their_bounds_give_captions(temperature, fast):
    """Guards against logits that overflow, and with them every probability."""
    model = tiny_model()
    model.use_fast(fast)
    options = {"method": "nucleus", "temperature": temperature, "max_tokens": 12, "banned": ((3,), (4,))}
    found = model.generate(embeddings(), Decoding(**options))
    greedy = model.generate(embeddings(), Decoding(max_tokens=12, banned=((3,), (4,))))
    assert (found == greedy) == (temperature < 1)
    assert len({tuple(ids) for ids in found}) == 6 and not {3, 4} & set(sum(found, []))


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


def test_samples_do_not_depend_on_the_last_bits_of_an_embedding(fast):
    """Guards against other samples of the same photo in a batch of another size, or on another machine."""
    model = tiny_model()
    model.use_fast(fast)
    sampling = Decoding(method="nucleus", max_tokens=12, seed=3)
    given = embeddings()
    assert model.generate(given, sampling) == model.generate(given * (1 + 1e-6), sampling)


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


def test_weights_that_move_leave_nothing_prepared_behind():
    """Guards against a GPU that keeps the packed weights and captured steps of a model that has left it."""
    model = tiny_model()
    model.generate(embeddings(), METHODS[0])
    assert model.to("cpu")._prepared is None


def test_a_long_prompt_leaves_room_or_is_refused():
    model = tiny_model()
    [caption] = model.generate(embeddings(1), Decoding(stop_token=-1), [[1] * 100])
    assert len(caption) == 128 + 1 - 104
    with pytest.raises(UserError, match="shorten the prompt"):
        model.generate(embeddings(1), Decoding(), [[1] * 130])


@by_method
def test_logits_far_from_zero_lose_nothing_in_half_precision(decoding, fast):
    """GPT-2's are near -70, where bf16 rounded them to halves: the lowest of several equal ids was taken."""
    captions = []
    for shift in (0, -10):
        model = tiny_model()
        move_logits(model, 10 * shift)
        model.use_fast(fast)
        captions.append(model.bfloat16().generate(embeddings().bfloat16(), decoding))
    assert captions[0] == captions[1]


@pytest.mark.parametrize(("dtype", "resolution"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_differs_from_fp32_only_where_the_best_logits_tie(dtype, resolution):
    """With weights rounded to it, in both precisions: the first difference is a tie within its resolution."""
    model = tiny_model().to(dtype)
    exact = tiny_model().to(dtype).float()
    decoding = Decoding(max_tokens=20, stop_token=-1)
    rough = model.generate(embeddings(), decoding)
    fine = exact.generate(embeddings(), decoding)
    for row, (a, b) in enumerate(zip(rough, fine, strict=True)):
        step = next((step for step in range(20) if a[step] != b[step]), None)
        if step is not None:
            tokens = torch.tensor([[*b[:step], 0]])
            logits = exact(embeddings()[row : row + 1], tokens)[0, -1]
            assert logits[b[step]] - logits[a[step]] < resolution * logits.abs().max()


@pytest.mark.skipif(not linear.can_pack(torch.empty(2, 2, dtype=torch.bfloat16)), reason="no packed bf16 on this CPU")
@pytest.mark.parametrize("activation", [None, torch.nn.GELU(approximate="tanh"), torch.nn.ReLU()])
def test_packed_and_public_linear_layers_agree(activation):
    layer = torch.nn.Linear(64, 96).bfloat16()
    x = torch.randn(5, 3, 64).bfloat16()
    packed, public = (linear.prepare_linear(layer, activation, fast=fast)(x) for fast in (True, False))
    assert packed.shape == public.shape == (5, 3, 96)
    assert torch.allclose(packed.float(), public.float(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"method": "contrastive"}, "method"),
        ({"beams": 0}, "beams must be at least 1"),
        ({"beams": 400}, "beams must be at most 256, not 400"),
        ({"method": "beam", "beams": 100, "max_tokens": 500}, "beams must be at most 34 .* max_tokens"),
        ({"beams": "5"}, "beams must be a whole number"),
        ({"num_captions": 0}, "num_captions must be at least 1"),
        ({"num_captions": 10**6}, "num_captions must be at most 256"),
        ({"method": "nucleus", "num_captions": 200, "max_tokens": 10**30}, "num_captions must be at most 16"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"temperature": float("inf")}, "temperature must be from 0.001 to 1000, not inf"),
        ({"temperature": 1e-9}, "temperature must be from 0.001"),
        ({"temperature": "warm"}, "temperature must be a number"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": 3.5}, "max_tokens must be a whole number"),
        ({"min_tokens": 67}, "min_tokens .67. must be below max_tokens"),
        ({"min_tokens": -1}, "min_tokens must be at least 0"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"banned": 5}, "banned must be sequences of token ids, not 5"),
        ({"banned": ((1, "a"),)}, "banned must be sequences of token ids"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options, told):
    with pytest.raises(UserError, match=told):
        Decoding(**options)


@pytest.mark.parametrize(
    "options",
    [{"method": "beam", "beams": 211}, {"method": "beam", "beams": 256, "max_tokens": 67}]
    + [{"method": "nucleus", "seed": seed} for seed in (2**32, 2**64, 10**40)]
    + [{"method": "nucleus", "top_k": 10**30}, {"max_tokens": 10**30}, {"no_repeat_ngram": 10**30}],
    ids=str,
)
def test_the_largest_options_are_done_or_refused_at_once(options):
    model = tiny_model()
    decoding = Decoding(**({"max_tokens": 4} | options))
    if decoding.beams > 211:
        with pytest.raises(UserError, match="beams must be at most 211, the number of tokens"):
            model.generate(embeddings(2), decoding)
    else:
        assert len(model.generate(embeddings(2), decoding)) == 2


def test_fewest_tokens_that_the_positions_have_no_room_for_are_refused():
    """Guards against a caption that is shorter than was asked for."""
    model = tiny_model()
    [caption] = model.generate(embeddings(1), Decoding(min_tokens=124, max_tokens=500), [[]])
    assert len(caption) == 125
    for min_tokens, prompt in ((125, []), (100, [1] * 25)):
        with pytest.raises(UserError, match="min_tokens must be below"):
            model.generate(embeddings(1), Decoding(min_tokens=min_tokens, max_tokens=500), [prompt])


def test_more_captions_than_beams_take_more_beams():
    model = tiny_model()
    found = model.generate(torch.randn(2, 16), Decoding("beam", beams=2, num_captions=5, max_tokens=6, return_all=True))
    assert [len({tuple(ids) for ids in captions}) for captions in found] == [5, 5]
