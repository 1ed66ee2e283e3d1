"""Frozen matrices in bf16 or fp16 while the rest trains: no conversion in every step, and half the memory traffic.

What it buys, measured by turns with and without it on full-size models, in bf16 on 2 cores with AVX-512: LoRA is 1.15
times as fast and head-only fine-tuning 1.13 times. Runs in fp32 do not use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

RESIDUAL = re.compile(r"\.(wpe|embed_positions)\.|\.prefix_const$")  # what residual streams begin with


class FrozenInHalf:
    """Holds a rounded copy of every frozen matrix, and puts either the copies or the originals into the model.

    The originals are never written to, so they are saved bit for bit as they were loaded. Position embeddings and the
    constants of a mapping transformer are left alone: residual streams stay in fp32.

    Args:
        model: with `requires_grad` set on the parameters that train.
        precision: that of the run, "bf16" or "fp16"; any other makes this do nothing.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.matrices = [
            parameter
            for name, parameter in model.named_parameters()
            if dtype and not parameter.requires_grad and parameter.ndim == 2 and not RESIDUAL.search(name)
        ]
        self.exact = [parameter.data for parameter in self.matrices]
        self.half = [parameter.data.to(dtype) for parameter in self.matrices]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside this context the model holds the rounded copies, outside it the originals."""
        self._put(self.half)
        try:
            yield
        finally:
            self._put(self.exact)

    def _put(self, versions: list[torch.Tensor]) -> None:
        for parameter, data in zip(self.matrices, versions, strict=True):
            parameter.data = data
