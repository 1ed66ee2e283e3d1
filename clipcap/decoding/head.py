"""The language-model head of a GPT-2 that only decodes."""

from __future__ import annotations

import torch
from torch import nn

from clipcap.fast.linear import is_linear, prepare_linear, prepare_weight, weight_and_bias


def prepare_head(head: nn.Module, fast: bool) -> nn.Module:
    """A module of states (..., D) -> logits (..., V), in half precision less by one number for all tokens.

    GPT-2's logits lie near -70 after a few words (https://github.com/Sciform/sciform-nano-gpt-2 prints some), where
    bf16 tells apart only what differs by 0.5. Without the mean of the weight's rows they lie around 0; probabilities
    and the order of tokens stay what they are.
    """
    if not is_linear(head):  # in int8
        return prepare_linear(head, fast=fast)
    weight, bias = weight_and_bias(head)
    if weight.dtype != torch.float32:
        exact = weight.float()
        weight = (exact - exact.mean(0)).to(weight.dtype)
    return prepare_weight(weight, bias, fast=fast)
