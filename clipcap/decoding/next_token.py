"""Logits -> the next token: the most probable one, or a draw from the nucleus.

Shapes: B images, K continuations of each, T tokens, V vocabulary, R rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clipcap.decoding.options import Decoding
from clipcap.fast.nucleus import UNIFORMS, sample_nucleus

CPU_ROWS = 32  # rows of logits for which a CPU chooses a token at a time


def _some_rows(x: Tensor) -> Sequence[Tensor]:
    """(..., V) -> the rows in order, as matrices (R, V); on a CPU of few rows, so that they stay in its cache."""
    rows = x.flatten(0, -2)
    return rows.split(CPU_ROWS) if rows.device.type == "cpu" else (rows,)


def argmax(logits: Tensor) -> Tensor:
    """(B, K, V) -> (B, K). On a CPU NumPy's is used: it is vectorised, PyTorch's is not and is slowest in bf16."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    found = [torch.from_numpy(rows.float().numpy().argmax(-1)) for rows in _some_rows(logits)]
    return torch.cat(found).view(logits.shape[:-1])


def most_probable(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Logits (..., V) -> log-probabilities and ids of the `count` most probable tokens, (..., count) each."""
    found = [rows.float().log_softmax(-1).topk(count) for rows in _some_rows(logits)]
    shape = (*logits.shape[:-1], count)
    return torch.cat([best for best, _ in found]).view(shape), torch.cat([ids for _, ids in found]).view(shape)


def draw(logits: Tensor, numbers: Tensor, decoding: Decoding, fast: bool = True) -> Tensor:
    """Logits (B, K, V) and random numbers (B, K, UNIFORMS) -> tokens (B, K) drawn from the nuclei."""
    parts = zip(_some_rows(logits), _some_rows(numbers), strict=True)
    found = [
        sample_nucleus(rows, uniforms, decoding.temperature, decoding.top_p, decoding.top_k, fast)
        for rows, uniforms in parts
    ]
    return torch.cat(found).view(logits.shape[:-1])


def random_numbers(streams: Tensor, seed: int | None, width: int, steps: int) -> Tensor:
    """Random numbers (B, K, T, UNIFORMS), a stream for each image, from the seed and the signs of its embedding.

    Only the signs are used, because the last bits of an embedding depend on the batch in which CLIP computed it.

    Args:
        streams: (B, anything), the embeddings.
        seed: None draws numbers that cannot be repeated.
        width: K.
        steps: T.
    """
    shape = (width, steps, UNIFORMS)
    rows = []
    for signs in (streams > 0).cpu().numpy():
        random = np.random.default_rng(None if seed is None else (seed, zlib.crc32(signs.tobytes())))
        rows.append(torch.from_numpy(random.random(shape, dtype=np.float32)))
    return torch.stack(rows)
