"""Dropout for training on a CPU.

There PyTorch draws a floating-point number for every element, and on processors that are not Intel's one after the
other, which takes a fifth of a LoRA step. Sixteen random bits for each element are three times as fast. The rate is `p`
rounded to a multiple of 1 / 65536; where that is 0 or 1, PyTorch does the work.

What it buys, measured by turns with and without it on full-size models, 2 cores: LoRA is 1.09 times as fast in bf16 on
AVX-512, and 1.15 times in fp32 on AVX2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 1 << 16  # values of a 16-bit number
PER_DRAW = 4  # 16-bit numbers in a 64-bit number


class Dropout(nn.Dropout):
    """The same as `nn.Dropout`, which still does the work on every device but a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Elements of x, of any shape, set to 0 with probability `p` and otherwise divided by 1 - p."""
        dropped = round(self.p * LEVELS)
        if x.device.type != "cpu" or not self.training or not 0 < dropped < LEVELS:
            return super().forward(x)
        draws = torch.empty(-(-x.numel() // PER_DRAW), dtype=torch.int64).random_(-(1 << 63), None)
        numbers = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over all 16-bit numbers
        kept = torch.ge(numbers, dropped - LEVELS // 2, out=x.new_empty(x.shape))  # 1, or 0
        return x * kept.mul_(LEVELS / (LEVELS - dropped))
