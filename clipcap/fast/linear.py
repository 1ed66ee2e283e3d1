"""Linear layers prepared for inference.

On a CPU, oneDNN multiplies faster with weights that it has packed beforehand and with the activation fused. PyTorch
exposes this only by private operators, so where they are missing the public ones are used.

What it buys, measured by turns with and without it on full-size models: decoding is 1.3 to 1.9 times as fast in bf16
on AVX-512, and in fp32 on 2 cores with AVX2 1.27 times at batch 1 and 1.45 times at batch 32.

Shapes: in and out are the widths of a layer's input and output; "..." stands for any dimensions.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from clipcap.fast.int8 import Int8Linear

FUSED = {nn.GELU: "gelu", nn.SiLU: "swish"}  # the activations that oneDNN computes with the product


def prepare_linear(layer: nn.Module, activation: nn.Module | None = None, fast: bool = True) -> nn.Module:
    """A module x (..., in) -> activation(layer(x)) (..., out).

    Args:
        layer: `nn.Linear`, or the `Conv1D` of GPT-2, whose weight is (in, out); with or without peft's adapters. Or
            `Int8Linear`, which is prepared already.
        activation: applied to the result.
        fast: use packed weights and fused activations where they help.
    """
    if isinstance(layer, Int8Linear):
        return _followed_by(layer, activation and in_one_kernel(activation))
    return prepare_weight(*weight_and_bias(layer), activation, fast)


def prepare_weight(
    weight: Tensor, bias: Tensor | None, activation: nn.Module | None = None, fast: bool = True
) -> nn.Module:
    """As `prepare_linear`, for a weight (out, in) and a bias (out,); the module keeps them or packed copies."""
    if fast:
        activation = activation and in_one_kernel(activation)
        if can_pack(weight):
            return _followed_by(Packed(weight, bias, activation), None if type(activation) in FUSED else activation)
    return _followed_by(Plain(weight, bias), activation)


def prepare_head(head: nn.Module, fast: bool) -> nn.Module:
    """As `prepare_linear`, for the head of a language model; in half precision its logits get less by one number.

    GPT-2's lie near -70 after a few words (https://github.com/Sciform/sciform-nano-gpt-2 prints some), where bf16 tells
    apart only what differs by 0.5. Without the mean of the weight's rows they lie around 0; probabilities and the order
    of tokens stay.
    """
    if not is_linear(head):  # `Int8Linear`; there the rows without their mean agreed less with fp32 on the demo world
        return prepare_linear(head, fast=fast)
    weight, bias = weight_and_bias(head)
    if weight.dtype != torch.float32:
        exact = weight.float()
        weight = (exact - exact.mean(0)).to(weight.dtype)
    return prepare_weight(weight, bias, fast=fast)


def prepare_int8(weight: Tensor, bias: Tensor | None, activation: nn.Module | None = None) -> nn.Module:
    """As `prepare_weight`, in int8."""
    return _followed_by(Int8Linear(weight, bias), activation)


def _followed_by(linear: nn.Module, activation: nn.Module | None) -> nn.Module:
    return linear if activation is None else nn.Sequential(linear, activation)


class Plain(nn.Module):
    """As `nn.Linear`, for a weight (out, in) and a bias (out,) that stay what they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """Input (..., in) -> output (..., out)."""
        return F.linear(x, self.weight, self.bias)


class Packed(nn.Module):
    """A linear layer, and an activation if oneDNN has it, whose weight (out, in) is packed for oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: nn.Module | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self.bias = bias
        self.activation = FUSED.get(type(activation), "none")
        self.algorithm = str(getattr(activation, "approximate", ""))

    def __deepcopy__(self, _: object) -> Packed:
        return self  # what is packed cannot be copied, and never changes

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"weight": self.weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Input (..., in) -> output (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], self.algorithm)


def in_one_kernel(activation: nn.Module) -> nn.Module:
    """PyTorch's own GELU in place of transformers': eight operations, or one that cannot be scripted; others stay."""
    tanh = isinstance(activation, NewGELUActivation | GELUTanh)
    return nn.GELU(approximate="tanh") if tanh else activation


def is_linear(layer: nn.Module) -> bool:
    """Whether this is a layer that `prepare_linear` takes, in floating point."""
    return isinstance(getattr(layer, "base_layer", layer), nn.Linear | Conv1D)


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight (out, in) and the bias (out,) of a linear layer; with those of peft's adapters that add to it now."""
    base = getattr(layer, "base_layer", layer)  # peft wraps the layer itself
    assert isinstance(base, nn.Linear | Conv1D)
    weight = base.weight.detach()
    adapted: Any = layer
    for adapter, sign in adapters_in_use(layer):
        weight = torch.add(weight, adapted.get_delta_weight(adapter).detach(), alpha=sign)
    return weight if isinstance(base, nn.Linear) else weight.t(), None if base.bias is None else base.bias.detach()


def adapters_in_use(layer: nn.Module) -> list[tuple[str, int]]:
    """The LoRA adapters that peft adds to the weight of a layer (1), or takes from it: merged, and off (-1)."""
    if "lora_A" not in layer._modules:  # `hasattr` takes long where it is not, as in most modules
        return []
    adapted: Any = layer  # only peft's layers have these attributes, and peft is not imported for them
    off, merged = adapted.disable_adapters, adapted.merged_adapters
    names = merged if off else [] if merged else adapted.active_adapters
    return [(name, -1 if off else 1) for name in names if name in adapted.lora_A]


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's packed operators exist here and take weights of this device and dtype."""
    return (
        weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16) and _packing_works(weight.dtype)
    )


@cache
def _packing_works(dtype: torch.dtype) -> bool:
    """Try the private operators on something small: another release of PyTorch may lack or change them."""
    x, weight = torch.ones(2, 16, dtype=dtype), torch.eye(16, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        product = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return torch.equal(product, x)
