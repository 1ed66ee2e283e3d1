"""Nucleus sampling draws from the exact nucleus, by each of its ways."""

import pytest
import torch

from clipcap.fast import nucleus
from clipcap.fast.nucleus import UNIFORMS, sample_nucleus

DRAWS = 20_000


def nucleus_by_sorting(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """The textbook: sort, keep until the mass is reached, renormalise."""
    ordered, tokens = logits.softmax(-1).sort(descending=True)
    kept = ordered * (ordered.cumsum(-1) - ordered < top_p)
    return torch.zeros_like(logits).scatter(0, tokens, kept / kept.sum())


def frequencies(logits, top_p, **options) -> torch.Tensor:
    uniforms = torch.rand(DRAWS, UNIFORMS, generator=torch.Generator().manual_seed(0))
    drawn = sample_nucleus(logits.expand(DRAWS, -1), uniforms, 1.0, top_p, **options)
    return torch.bincount(drawn, minlength=len(logits)) / DRAWS


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("spread", [0.3, 3.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("way", ["rejection", "sorting"])
def test_tokens_come_as_often_as_in_the_sorted_nucleus(monkeypatch, top_p, spread, way):
    monkeypatch.setattr(nucleus, "TRIES", 0 if way == "sorting" else 8)
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)) * spread
    exact, found = nucleus_by_sorting(logits, top_p), frequencies(logits, top_p)
    assert (found[exact == 0] == 0).all()
    assert (found - exact).abs().sum() < 0.05


def by_bisection(probabilities: torch.Tensor, uniform: torch.Tensor, top_p: float) -> torch.Tensor:
    """The same nucleus, found by halving the range of thresholds until one float is left."""
    bits = probabilities.view(torch.int32)
    low, high = torch.zeros_like(bits[:, :1]), torch.full_like(bits[:, :1], 0x3F800001)
    for _ in range(31):
        middle = low + (high - low) // 2
        enough = torch.where(bits >= middle, probabilities, 0).sum(-1, keepdim=True) >= top_p
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return nucleus._inverse_cdf(torch.where(bits >= low, probabilities, 0), uniform)


@pytest.mark.parametrize("top_p", [nucleus.SMALLEST, 0.1, 0.5, 0.9, 1 - 2**-24])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16", "ties", "mostly forbidden", "one token"])
def test_histograms_draw_what_bisection_drew(kind, top_p):
    """Guards against a nucleus that is one token wider or narrower, where tokens tie or are forbidden."""
    random = torch.Generator().manual_seed(3)
    for rows, vocabulary, spread in ((1, 1, 1.0), (7, 64, 0.1), (20, 2000, 5.0), (2, 50257, 3.0)):
        logits = torch.randn(rows, vocabulary, generator=random) * spread
        logits = logits.to({"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind, torch.float32)).float()
        if kind == "ties":
            logits = logits.round()
        if kind in ("mostly forbidden", "one token"):
            most = 0.99 if kind == "mostly forbidden" else 1.0
            logits[:, 1:][torch.rand(rows, vocabulary - 1, generator=random) < most] = float("-inf")
        for temperature in (0.05, 1.0):
            probabilities, uniform = (logits / temperature).softmax(-1), torch.rand(rows, generator=random)
            found = nucleus._by_histogram(probabilities, uniform, top_p)
            assert torch.equal(found, by_bisection(probabilities, uniform, top_p))
            least = probabilities[0][nucleus_by_sorting(logits[0] / temperature, top_p) > 0].min()
            assert probabilities[0, found[0]] >= least


def test_rows_without_probabilities_disturb_no_others():
    """Guards against a row of forbidden tokens that writes outside its histogram, which ends a CUDA process."""
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(5))
    uniform, expected = torch.full((4,), 0.5), logits.softmax(-1)
    for nothing in (float("-inf"), float("nan"), float("inf")):
        disturbed = logits.clone()
        disturbed[1] = nothing
        for sign in (1, -1):
            probabilities = disturbed.softmax(-1)
            probabilities[1] *= sign
            found = nucleus._by_histogram(probabilities, uniform, 0.9)
            assert 0 <= found[1] < 100
            assert torch.equal(found[[0, 2, 3]], by_bisection(expected, uniform, 0.9)[[0, 2, 3]])


def test_top_k_and_top_p_together():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0])
    exact = nucleus_by_sorting(torch.tensor([3.0, 2.0, 1.0]), 0.8)
    found = frequencies(logits, 0.8, top_k=3)
    assert torch.allclose(found[:3], exact, atol=0.02) and found[3:].sum() == 0


def test_a_token_that_must_not_come_never_does():
    logits = torch.full((100,), float("-inf"))
    logits[40] = 0.0
    assert frequencies(logits, 1.0)[40] == frequencies(logits, 0.9)[40] == 1


def test_the_largest_uniform_stays_inside():
    uniforms = torch.full((1, UNIFORMS), 1 - 2**-24)
    logits = torch.full((1, 1000), float("-inf"))
    logits[0, :7] = torch.arange(7.0)
    for top_p in (0.3, 0.9, 1.0):
        assert sample_nucleus(logits, uniforms, 1.0, top_p).item() < 7


def test_temperature_divides_the_logits(fast):
    torch.manual_seed(0)
    logits, uniforms = torch.randn(64, 50), torch.rand(64, UNIFORMS)
    for temperature in (0.25, 4.0):
        drawn = sample_nucleus(logits, uniforms, temperature, 0.9, fast=fast)
        assert torch.equal(drawn, sample_nucleus(logits / temperature, uniforms, 1.0, 0.9, fast=fast))
