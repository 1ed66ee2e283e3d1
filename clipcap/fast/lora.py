"""LoRA's adapters with fewer passes over the outputs of their layers.

peft computes the product of an adapter, scales it and adds it to what the layer gives: three matrices of that size, and
as many gradients. Here the product is scaled and added while it is computed.

What it buys, measured by turns with and without it on full-size GPT-2, rank 4, in fp32 on 2 cores with AVX2: LoRA is
1.05 times as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipcap.fast.linear import adapters_in_use


def adapted(layer: Any, x: Tensor) -> Tensor:
    """What peft's LoRA layer makes of an input (..., in): (..., out)."""
    match adapters_in_use(layer):
        case [(name, 1)]:
            result, a, b = layer.base_layer(x), layer.lora_A[name], layer.lora_B[name]
            hidden = a(layer.lora_dropout[name](x.to(a.weight.dtype)))  # (..., rank)
            rows, factors = result.flatten(0, -2), hidden.flatten(0, -2)
            return torch.addmm(rows, factors, b.weight.t(), alpha=layer.scaling[name]).view_as(result)
    return type(layer).forward(layer, x)
