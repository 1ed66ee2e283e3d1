"""LoRA's adapters with fewer passes over the outputs of their layers.

peft computes the product of an adapter, scales it and adds it to what the layer gives: three matrices of that size, and
as many gradients. Here the layer's own product is added to the adapter's while it is computed, in the same memory.

What it buys, measured by turns with and without it on full-size GPT-2, rank 4, in fp32 on 2 cores with AVX2: LoRA is
1.05 times as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clipcap.fast.linear import adapters_in_use


def adapted(layer: Any, x: Tensor) -> Tensor:
    """What peft's LoRA layer makes of an input (..., in): (..., out)."""
    match adapters_in_use(layer):
        case [(name, 1)]:
            base, a, b = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
            weight = base.weight.t() if isinstance(base, nn.Linear) else base.weight  # (in, out)
            rows = x.flatten(0, -2)  # (N, in); first, so that its gradient comes last, and is added in place
            hidden = a(layer.lora_dropout[name](x.to(a.weight.dtype))).flatten(0, -2)  # (N, rank)
            factor = b.weight.t().contiguous() * layer.scaling[name]  # (rank, out), and its gradient in this layout
            result = hidden @ factor if base.bias is None else torch.addmm(base.bias, hidden, factor)
            result.addmm_(rows.to(result.dtype), weight.to(result.dtype))
            return result.view(*x.shape[:-1], weight.shape[1])
    return type(layer).forward(layer, x)
