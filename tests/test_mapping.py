"""Sizes, parts and arithmetic of the mapping networks; test_model.py compares them with the published figures too."""

import numpy as np
import pytest
import torch

from clipcap.model.mapping import MAPPINGS, MLP, TransformerMapper


def test_mlp_is_half_as_wide_inside_with_a_tanh_between():
    mlp = MLP(clip_dim=512, dim=768, prefix_length=10)
    assert [tuple(p.shape) for p in mlp.parameters()] == [(3840, 512), (3840,), (7680, 3840), (7680,)]
    assert mlp(torch.randn(2, 512)).shape == (2, 10, 768)


def test_transformer_has_no_bias_in_queries_keys_and_values():
    mapper = TransformerMapper(clip_dim=640, dim=64, prefix_length=5, clip_length=3, layers=2, heads=8)
    biased = {name for name, _ in mapper.named_parameters() if name.endswith("bias")}
    assert not any("to_queries" in name or "to_keys_values" in name for name in biased)
    assert mapper.transformer.layers[0].mlp.fc1.weight.shape == (128, 64)
    assert mapper(torch.randn(2, 640)).shape == (2, 5, 64)


def test_prefix_depends_on_the_image():
    for name, network in MAPPINGS.items():
        sizes = [16, 32, 4] + ([3, 2, 4] if name == "transformer" else [])
        prefixes = network(*sizes)(torch.randn(2, 16))
        assert not torch.allclose(prefixes[0], prefixes[1])


def test_mlp_computes_two_layers_with_a_tanh_between():
    mlp = MLP(clip_dim=6, dim=4, prefix_length=3)
    first, first_bias, second, second_bias = (parameter.detach().numpy() for parameter in mlp.parameters())
    x = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    by_hand = np.tanh(x @ first.T + first_bias) @ second.T + second_bias
    assert mlp(torch.from_numpy(x)).detach().numpy() == pytest.approx(by_hand.reshape(2, 3, 4), abs=1e-5)


def test_transformer_computes_what_the_paper_describes():
    """Written once more with NumPy: tokens from the embedding before learned constants, pre-norm residual layers."""
    torch.manual_seed(0)
    mapper = TransformerMapper(clip_dim=6, dim=8, prefix_length=3, clip_length=2, layers=2, heads=2)
    weights = {name: parameter.detach().numpy() for name, parameter in mapper.named_parameters()}
    weights = {name: np.random.default_rng(len(name)).normal(size=w.shape) for name, w in weights.items()}
    mapper.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    x = np.random.default_rng(0).normal(size=(4, 6))

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    tokens = linear(x, "linear").reshape(4, 2, 8)
    tokens = np.concatenate((tokens, np.broadcast_to(weights["prefix_const"], (4, 3, 8))), 1)  # (B, N, D)
    for layer in ("transformer.layers.0", "transformer.layers.1"):
        inner = norm(tokens, f"{layer}.norm1")
        query = linear(inner, f"{layer}.attn.to_queries")
        key, value = np.split(linear(inner, f"{layer}.attn.to_keys_values"), 2, -1)
        mixed = np.empty_like(query)
        for head in (slice(0, 4), slice(4, 8)):
            scores = query[..., head] @ key[..., head].transpose(0, 2, 1) / np.sqrt(4)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[..., head] = shares / shares.sum(-1, keepdims=True) @ value[..., head]
        tokens = tokens + linear(mixed, f"{layer}.attn.project")
        inner = np.maximum(linear(norm(tokens, f"{layer}.norm2"), f"{layer}.mlp.fc1"), 0)
        tokens = tokens + linear(inner, f"{layer}.mlp.fc2")
    prefixes = mapper(torch.from_numpy(x).float()).detach().numpy()
    assert prefixes == pytest.approx(tokens[:, 2:], rel=1e-3, abs=1e-3)
