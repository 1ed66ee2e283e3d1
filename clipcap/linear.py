"""Linear layers prepared for inference.

On a CPU with bf16 weights, oneDNN multiplies faster from weights that it has packed beforehand, with the activation fused.
PyTorch exposes that only by private operators, so where they are missing the public ones serve.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import NewGELUActivation


def prepare_linear(
    layer: nn.Module, activation: nn.Module | None = None, packed: bool = True
) -> Callable[[Tensor], Tensor]:
    """A function x (..., in) -> activation(layer(x)) (..., out).

    Args:
        layer: `nn.Linear`, or the `Conv1D` of GPT-2, whose weight is (in, out).
        activation: applied to the result.
        packed: whether packed weights may be used where they help.
    """
    weight = layer.weight.detach() if isinstance(layer, nn.Linear) else layer.weight.detach().t()  # (out, in)
    bias = None if layer.bias is None else layer.bias.detach()
    if isinstance(activation, NewGELUActivation):
        activation = nn.GELU(approximate="tanh")  # the same function in one kernel
    if packed and can_pack(weight):
        return _packed(weight, bias, activation)
    if activation is None:
        return lambda x: F.linear(x, weight, bias)
    return lambda x: activation(F.linear(x, weight, bias))


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's packed operators exist here and are made for this weight."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _packed(weight: Tensor, bias: Tensor | None, activation: nn.Module | None) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous().to_mkldnn())
    fused = isinstance(activation, nn.GELU)
    name, algorithm = ("gelu", activation.approximate) if fused else ("none", "")

    def linear(x: Tensor) -> Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x, packed, bias, name, [], algorithm)
        return y if fused or activation is None else activation(y)

    return linear
