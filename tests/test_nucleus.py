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
@pytest.mark.parametrize("way", ["rejection", "sorting", "bisection"])
def test_tokens_come_as_often_as_in_the_sorted_nucleus(monkeypatch, top_p, spread, way):
    monkeypatch.setattr(nucleus, "TRIES", 0 if way == "sorting" else 8)
    if way == "bisection":
        monkeypatch.setattr(nucleus, "_by_rejection", lambda p, u, top_p: nucleus._by_bisection(p, u[:, 0], top_p))
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)) * spread
    exact, found = nucleus_by_sorting(logits, top_p), frequencies(logits, top_p)
    assert (found[exact == 0] == 0).all()
    assert (found - exact).abs().sum() < 0.05


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
