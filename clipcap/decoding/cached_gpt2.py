"""GPT-2 for decoding: a preallocated key-value cache that several continuations of one image share.

The K continuations of an image (beams, samples) write their keys and values side by side into one cache, and a mask
says which of them each continuation descends from. Reordering beams then moves rows of the mask, never the cache.
Attention runs over the whole cache, filled or not: shapes stay the same from step to step, and the cache contiguous.

On CUDA a step is captured once for every shape, in memory that serves all batches of this shape.

Shapes: B images, K continuations of each, L cache positions, S prefix and prompt, H heads, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from clipcap.fast import cuda_graph
from clipcap.fast.attention import attend
from clipcap.fast.linear import prepare_linear

GROWTH = 32  # steps for which a cache has room at first, and by which it grows
SHAPES = 8  # whose captured steps are kept


class Block:
    """One transformer block with its weights prepared for inference."""

    def __init__(self, block: nn.Module, heads: int, fast: bool) -> None:
        self.heads, self.scaling, self.fast = heads, block.attn.scaling, fast
        self.norm_1, self.norm_2 = block.ln_1, block.ln_2
        self.qkv = prepare_linear(block.attn.c_attn, fast=fast)
        self.attention_output = prepare_linear(block.attn.c_proj, fast=fast)
        self.up = prepare_linear(block.mlp.c_fc, activation=block.mlp.act, fast=fast)
        self.down = prepare_linear(block.mlp.c_proj, fast=fast)

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, slots: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, K, D) -> (B, K, D); writes positions `slots` (K,) of keys and values (B, H, L, D / H).

        Without a mask x is the whole text so far, and attention is causal.
        """
        query, key, value = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        keys.index_copy_(2, slots, key)
        values.index_copy_(2, slots, value)
        if mask is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scaling)
        else:
            mixed = attend(query, keys, values, mask, self.scaling, self.fast)
        x = x + self.attention_output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm_2(x)))


@dataclass
class State:
    """Where a batch stands. Steps change it in place.

    Attributes:
        cache: keys and values (layers, 2, B, H, L, D / H).
        mask: (1 or B, K, L), 0 where a continuation descends from the position and -inf elsewhere.
        own: (K, K), the mask of the positions that a step writes: each continuation sees its own.
        tokens: (B, K), the next to read.
        positions: (B, K), of these tokens in their texts.
        slots: (K,), positions of the cache that they are written to.
        replay: where the step is captured, what it is.
    """

    cache: Tensor
    mask: Tensor
    own: Tensor
    tokens: Tensor
    positions: Tensor
    slots: Tensor
    replay: Callable[[], Tensor] | None = None


class CachedGPT2:
    """The weights of a Hugging Face GPT-2, prepared once for many decoding sessions, in the dtype they have.

    Args:
        fast: use packed weights, attention by plain products and captured steps where they help (`clipcap.fast`).
    """

    def __init__(self, gpt: GPT2LMHeadModel, fast: bool = True) -> None:
        self.embedding, self.position = gpt.transformer.wte.weight, gpt.transformer.wpe.weight
        self.blocks = [Block(block, gpt.config.n_head, fast) for block in gpt.transformer.h]
        self.norm = gpt.transformer.ln_f
        self.head: Callable[[Tensor], Tensor] = prepare_linear(gpt.lm_head, fast=fast)
        self.fast = fast
        self.heads = gpt.config.n_head
        self.captured: dict[tuple, State] = {}

    @property
    def captures(self) -> bool:
        """Whether steps are captured, one for every shape: then few shapes are better."""
        return self.fast and cuda_graph.captures(self.embedding.device)

    def begin(self, prefix: Tensor, prompts: Sequence[Sequence[int]] | None, width: int, steps: int) -> Session:
        """Read prefix (B, P, D) and prompts; the session's `logits` then predict the first caption token."""
        return Session(self, prefix, prompts, width, steps)

    def state(self, batch: int, width: int, length: int, mask_rows: int) -> State:
        """A state that sees nothing of its cache; on CUDA there is one for each shape, with its step captured."""
        shape = (batch, width, length, mask_rows)
        state = self.captured.get(shape) or self._new_state(*shape)
        state.mask.fill_(float("-inf"))
        return state

    def _new_state(self, batch: int, width: int, length: int, mask_rows: int) -> State:
        like, index = self.embedding, self.slots(width)
        state = State(
            cache=like.new_zeros(len(self.blocks), 2, batch, self.heads, length, like.shape[1] // self.heads),
            mask=like.new_zeros(mask_rows, width, length),
            own=like.new_full((width, width), float("-inf")).fill_diagonal_(0),
            tokens=index.new_zeros(batch, width),
            positions=index.new_zeros(batch, width),
            slots=index,
        )
        if self.captures:
            state.replay = cuda_graph.capture(partial(self.advance, state), like.device)
            if len(self.captured) >= SHAPES:
                self.captured.pop(next(iter(self.captured)))
            self.captured[batch, width, length, mask_rows] = state
        return state

    def slots(self, count: int) -> Tensor:
        """The first positions of a cache (count,)."""
        return torch.arange(count, device=self.embedding.device)

    def run(self, x: Tensor, cache: Tensor, slots: Tensor, mask: Tensor | None) -> Tensor:
        """The blocks: x (B, K, D) -> (B, K, D)."""
        for block, (keys, values) in zip(self.blocks, cache, strict=True):
            x = block(x, keys, values, slots, mask)
        return x

    def advance(self, state: State) -> Tensor:
        """Read a state's tokens: logits (B, K, V) of those after them."""
        state.mask.index_copy_(2, state.slots, state.own.expand(len(state.mask), -1, -1))
        x = self.embedding[state.tokens] + self.position[state.positions]
        logits = self.head(self.norm(self.run(x, state.cache, state.slots, state.mask)))
        state.positions += 1
        state.slots += len(state.slots)
        return logits


class Session:
    """One batch being decoded.

    Attributes:
        logits: (B, V), those of the first caption token.
    """

    def __init__(
        self, gpt: CachedGPT2, prefix: Tensor, prompts: Sequence[Sequence[int]] | None, width: int, steps: int
    ) -> None:
        self.gpt, self.width = gpt, width
        batch, device = len(prefix), prefix.device
        prompts = prompts or [()] * batch
        lengths = torch.tensor([prefix.shape[1] + len(prompt) for prompt in prompts], device=device)
        longest = max(len(prompt) for prompt in prompts)
        padded = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device).long()
        x = torch.cat((prefix, gpt.embedding[padded]), dim=1)  # (B, S, D), prompts padded on the right
        self.end = x.shape[1]
        room = self.end + width * max(steps - 1, 1)  # for the one step of a capture, too
        few_shapes = gpt.captures
        room = -(-room // GROWTH) * GROWTH if few_shapes else min(room, self.end + width * GROWTH)
        alike = width == 1 and min(map(len, prompts)) == longest
        self.state = gpt.state(batch, width, room, 1 if alike else batch)
        seen = gpt.slots(self.end) < lengths[: len(self.state.mask), None]  # not the padding
        self.state.mask[:, :, : self.end].masked_fill_(seen[:, None], 0)
        self.state.positions.copy_(lengths[:, None])
        self.state.slots.copy_(self.end + gpt.slots(width))
        states = gpt.run(x + gpt.position[: self.end], self.state.cache, gpt.slots(self.end), mask=None)
        last = states[torch.arange(batch, device=device), lengths - 1]
        self.logits = gpt.head(gpt.norm(last))

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of every continuation (B, K) -> logits (B, K, V) of the one after it, until the next step."""
        self.end += self.width
        if self.end > self.state.cache.shape[-2]:
            self._grow()
        self.state.tokens.copy_(tokens)
        return self.state.replay() if self.state.replay else self.gpt.advance(self.state)

    def _grow(self) -> None:
        more = self.width * GROWTH
        self.state.cache = F.pad(self.state.cache, (0, 0, 0, more))
        self.state.mask = F.pad(self.state.mask, (0, more), value=float("-inf"))

    def reorder(self, parents: Tensor) -> None:
        """Continuation k of an image goes on from its continuation parents[:, k]; parents is (B, K)."""
        mask = self.state.mask
        mask.copy_(mask.gather(1, parents[:, :, None].expand_as(mask)))

    def keep(self, rows: Tensor) -> None:
        """Go on with these images alone; `rows` holds their indices in the present batch."""
        old = self.state
        alike = len(old.mask) < len(old.tokens)
        self.state = self.gpt.state(len(rows), self.width, old.cache.shape[-2], 1 if alike else len(rows))
        torch.index_select(old.cache, 2, rows, out=self.state.cache)
        self.state.mask.copy_(old.mask if alike else old.mask[rows])
        self.state.positions.copy_(old.positions[rows])
        self.state.slots.copy_(old.slots)
