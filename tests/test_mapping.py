"""Sizes and parts of the mapping networks; their figures are compared with the published ones in test_model.py."""

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
