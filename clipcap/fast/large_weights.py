"""Training with the largest weights on a CPU: token embedding, head, and the second layer of the mapping MLP.

Left to autograd and autocast, each of these weights costs a step several fresh tensors of its size: the weight in bf16,
its gradient in bf16 and in fp32 (for the embedding, a gradient that is zero except for the batch's few tokens), and for
the head the logits and their gradients. Clearing that memory takes a CPU as long as the arithmetic. Here gradients are
added directly to `.grad`, the loss and its gradient are computed together, in the memory of the logits, which is kept
for the next step. Where head and final norm train alone, the norm's gradients follow from the head's, which spares one
of the products with all of the head's weights.

Only `backward()` fills these gradients in; `torch.autograd.grad` and hooks do not see them. Therefore none of this is
used on other devices, or where several processes exchange the gradients that autograd gives them.

What it buys, measured by turns with and without it on full-size models, 2 cores: in bf16 on AVX-512, full fine-tuning
is 1.17 times as fast, LoRA 1.13 and head-only 1.18 times. In fp32 on AVX2 nothing is converted; there the head's loss
with its gradients is 1.1 to 1.2 times as fast, and what three things do besides makes full fine-tuning 1.05, LoRA 1.09
and head-only 1.14 times as fast: logits are multiplied in parts (`TOKENS`), few rows are multiplied transposed
(`_few_rows`), and the final norm's gradients are derived (`_add_gradients`).

Shapes: N caption tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 16  # caption tokens whose losses are computed at a time, so that their logits stay in a CPU's cache
TOKENS = 512  # of the vocabulary that are multiplied with at a time, for the same reason
FEW = 512  # rows at most, as many as a batch has captions: blocks of other language models have more
BYTES = 1 << 24  # bytes of a gradient that are converted at a time


class LargeLinear(nn.Linear):
    """The same as `nn.Linear`; for few rows in fp32, as converting the weight to bf16 costs more than it saves."""

    def forward(self, x: Tensor) -> Tensor:
        """Input (..., in) -> output (..., out)."""
        few = x.numel() <= FEW * self.in_features
        if not few or not takes_over(self.weight, frozen=self.weight.dtype == torch.float32):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return _Linear.apply(x.to(self.weight.dtype), self.weight) + self.bias


class LargeEmbedding(nn.Embedding):
    """The same as `nn.Embedding`, but only the gradients of the batch's own tokens are touched."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (...) -> embeddings (..., D)."""
        return _Embed.apply(self.weight, tokens) if takes_over(self.weight) else super().forward(tokens)


class HeadLoss:
    """Logits and cross-entropy of a language-model head in one operation, in memory that every step uses again."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def __call__(self, states: Tensor, head: nn.Linear, targets: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """Cross-entropy (N,), in nats, of the targets (N,) after the states (N, D).

        With a `norm`, the states have no gradient and lack its weight and bias (see `without_affine`), which train; the
        head must be one that this module takes over.
        """
        if head.bias is not None or not takes_over(head.weight, frozen=True):
            assert norm is None
            return F.cross_entropy(head(states).float(), targets, reduction="none")
        return _Losses.apply(states, head.weight, targets, self, norm)

    def take(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """A matrix (rows, width) with arbitrary content, which only the caller uses until it is given back."""
        kept = self.kept.pop(name, None)
        if kept is None or kept.dtype != dtype or kept.shape[1] != width or len(kept) < rows:
            kept = torch.empty(rows, width, dtype=dtype)
        return kept[:rows]

    def give_back(self, name: str, matrix: Tensor) -> None:
        """Keep the memory of a matrix that `take` gave for the next call with this name."""
        assert matrix._base is not None, "take() returns a view of the memory that it keeps"
        self.kept[name] = matrix._base


@contextmanager
def without_affine(norm: nn.LayerNorm | None) -> Iterator[None]:
    """Inside this context a norm, if there is one, only normalises, and leaves out its weight and bias."""
    if norm is None:
        yield
        return
    kept = {"weight": norm.weight, "bias": norm.bias}
    for name in kept:
        norm.register_parameter(name, None)
    try:
        yield
    finally:
        for name, parameter in kept.items():
            norm.register_parameter(name, parameter)


def takes_over(weight: Tensor, frozen: bool = False) -> bool:
    """Whether this module computes with a weight; `frozen` if it does so for weights that do not train, too."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return weight.device.type == "cpu" and torch.is_grad_enabled() and (frozen or weight.requires_grad) and not several


def _gradient(weight: Tensor) -> Tensor:
    """The tensor to add the gradient of a weight to; its memory is kept beyond `zero_grad`."""
    if weight.grad is None:
        kept = vars(weight).get("kept_gradient")
        if kept is None:
            kept = vars(weight)["kept_gradient"] = torch.empty_like(weight)
        weight.grad = kept.zero_()
    return weight.grad


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.x, ctx.weight = x.flatten(0, -2), weight
        return _few_rows(ctx.x, weight).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows = gradient.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            _gradient(ctx.weight).addmm_(rows.t(), ctx.x)
        return _few_rows(rows, ctx.weight.t()).view(*gradient.shape[:-1], ctx.x.shape[1]), None


def _few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """Rows (N, in) and a weight (out, in) -> (N, out). Of 16 rows the transposed product takes half the time."""
    return torch.mm(weight, x.t()).t().contiguous()


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> Tensor:
        ctx.weight, ctx.tokens = weight, tokens
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        _gradient(ctx.weight).index_add_(0, ctx.tokens.flatten(), gradient.flatten(0, -2))
        return None, None


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, memory: HeadLoss, norm: nn.LayerNorm | None
    ) -> Tensor:
        ctx.memory, ctx.weight, ctx.norm, ctx.dtype = memory, weight, norm, states.dtype
        if norm is not None:
            assert not ctx.needs_input_grad[0]
            ctx.normalized = states
            states = torch.addcmul(norm.bias, states, norm.weight)
        size, count = len(weight), len(states)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else states.dtype
        ctx.states, ctx.product = states.to(dtype), weight
        if weight.dtype != dtype:
            ctx.product = memory.take("weight", size, weight.shape[1], dtype).copy_(weight)
        # First the logits, then the gradient of each loss by its logits, (N, V).
        ctx.gradients = memory.take("gradients", count, size, dtype)
        step = TOKENS if dtype == torch.float32 else size  # measured in fp32 alone, where it takes 0.8 of the time
        for start in range(0, size, step):
            part = slice(start, start + step)
            torch.mm(ctx.states, ctx.product[part].t(), out=ctx.gradients[:, part])
        losses = states.new_empty(count, dtype=torch.float32)
        for start in range(0, count, ROWS):
            rows, target = slice(start, start + ROWS), targets[start : start + ROWS, None]
            found = ctx.gradients[rows].float().log_softmax(-1)
            losses[rows] = -found.gather(1, target)[:, 0]
            ctx.gradients[rows] = found.exp_().scatter_add_(1, target, found.new_full(target.shape, -1))
        return losses

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        """`scale` (N,), the gradient of each loss, multiplies the small matrices instead of the large one."""
        scale, gradients, memory = scale[:, None], ctx.gradients, ctx.memory
        towards_states = None
        if ctx.needs_input_grad[0]:
            towards_states = (gradients @ ctx.product).to(ctx.dtype) * scale
        if ctx.norm is not None:
            _add_gradients(ctx.weight, ctx.norm, ctx.normalized, gradients, scale)
        elif ctx.needs_input_grad[1]:
            found, states = _gradient(ctx.weight), (ctx.states * scale).to(ctx.states.dtype)
            if states.dtype == found.dtype:
                found.addmm_(gradients.t(), states)
            else:
                room = memory.take("weight gradient", *found.shape, states.dtype)
                product = torch.mm(gradients.t(), states, out=room)
                step = BYTES // 4 // found.shape[1]
                for start in range(0, len(found), step):
                    found[start : start + step] += product[start : start + step]
                memory.give_back("weight gradient", room)
        memory.give_back("gradients", gradients)
        if ctx.product is not ctx.weight:
            memory.give_back("weight", ctx.product)
        del ctx.gradients, ctx.product  # the memory has been given back, so a second backward pass must fail
        return towards_states, None, None, None, None


def _add_gradients(head: Tensor, norm: nn.LayerNorm, states: Tensor, gradients: Tensor, scale: Tensor) -> None:
    """Those of a head (V, D) and of the norm before it, from one product with the norm's input.

    Logits are head @ (norm.weight * state + norm.bias). Their gradients, multiplied by the states, are summed up over
    all tokens; this (V, D) times norm.weight is what goes to the head, and times the head, what goes to norm.weight.

    Args:
        head: its weight.
        norm: with the width D.
        states: (N, D), normalised.
        gradients: (N, V), of each loss by its logits.
        scale: (N, 1), the gradient of each loss.
    """
    states, sums = (states * scale).to(gradients.dtype), (gradients.t() @ scale.to(gradients.dtype))[:, 0].float()
    to_head, to_weight = _gradient(head), _gradient(norm.weight)
    for start in range(0, len(head), TOKENS):
        part = slice(start, start + TOKENS)
        product = torch.mm(gradients[:, part].t(), states).float()
        to_weight += (product * head[part]).sum(0)
        to_head[part].addcmul_(product, norm.weight).addr_(sums[part], norm.bias)
    _gradient(norm.bias).add_(sums @ head)
