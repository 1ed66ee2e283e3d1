"""Dropout for training on a CPU.

PyTorch draws a floating-point number for every element there, one after the other on processors that are not Intel's:
a fifth of a LoRA step. Sixteen random bits for each element are three times as fast; the rate is `p` rounded to a
multiple of 1 / 65536.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 1 << 16
PER_DRAW = 4  # 16-bit numbers in a 64-bit one


class Dropout(nn.Dropout):
    """As `nn.Dropout`, which it leaves every other device to."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training or not 0 < self.p < 1:
            return super().forward(x)
        draws = torch.empty(-(-x.numel() // PER_DRAW), dtype=torch.int64).random_(-(1 << 63), None)
        numbers = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over all 16-bit numbers
        kept = numbers >= round(self.p * LEVELS) - LEVELS // 2
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))
