"""Frozen matrices in bf16 or fp16 while others train: faster, and what is frozen stays what it was to the bit."""

import pytest
import torch
from test_model import batch_of
from tiny import tiny_model

from clipcap.fast.half import FrozenInHalf

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
in_each = pytest.mark.parametrize("precision", DTYPES)


@in_each
def test_frozen_matrices_are_rounded_inside_and_untouched_outside(precision):
    model = tiny_model()
    model.train_only(lambda name: name.startswith("clip_project."))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = FrozenInHalf(model, precision)
    with frozen.used():
        half = {name for name, parameter in model.named_parameters() if parameter.dtype == DTYPES[precision]}
        with torch.autocast("cpu", DTYPES[precision]):
            model.loss(batch_of([[5, 9, 3], [4, 8]])).backward()
    assert half == {name for name, p in model.named_parameters() if name.startswith("gpt.") and p.ndim == 2} - {
        "gpt.transformer.wpe.weight"
    }
    assert all(parameter.grad is not None for parameter in model.clip_project.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@in_each
def test_the_residual_stream_of_a_frozen_mapping_transformer_stays_exact(precision):
    model = tiny_model(mapping="transformer")
    model.train_only(lambda name: name.startswith("gpt."))
    with FrozenInHalf(model, precision).used(), torch.autocast("cpu", DTYPES[precision]):
        assert model.prefix(torch.randn(2, model.config.clip_dim)).dtype == torch.float32


@in_each
def test_gradients_are_those_of_autocast(precision):
    gradients = []
    for copied in ("no", precision):
        model = tiny_model()
        model.train_only(lambda name: name.startswith("clip_project."))
        with FrozenInHalf(model, copied).used(), torch.autocast("cpu", DTYPES[precision]):
            model.loss(batch_of([[5, 9, 3], [4, 8]])).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.clip_project.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
