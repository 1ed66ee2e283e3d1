"""GPT-2 for decoding: a preallocated key-value cache that several continuations of one image share.

The K continuations of an image (beams, samples) write their keys and values side by side into one cache, and a mask
says which cache positions belong to the text of each continuation. When a beam search replaces a beam by a child of
another, the new beam has that other beam's past: it is enough to copy one row of the mask, which is small, while the
keys and values stay where they are. Attention runs over the whole cache, filled or not, so that shapes stay the same
from step to step and the cache stays contiguous.

On CUDA a step is captured once for every shape, in memory that all batches of this shape use in turn. Shapes are few:
the number of images is a power of two and the cache has room for a multiple of 32 tokens.

Shapes: B images, K continuations of each, L cache positions, P prefix length, S prefix and prompt, H heads, D width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel

from clipcap.decoding.block import Block
from clipcap.fast import cuda_graph
from clipcap.fast.linear import prepare_head
from clipcap.fast.scripted import scripted

GROWTH = 32  # the number of steps that a cache has room for at first, and by which it grows
KEPT = 4 << 30  # bytes of cache, at most, that captured steps keep for later batches, unless a single one needs more


@dataclass
class DecodingState:
    """Everything that changes while a batch is decoded. Steps change it in place.

    Attributes:
        cache: keys and values (layers, 2, B, H, L, D / H).
        mask: (1 or B, K, L), 0 where a position belongs to the text of a continuation and -inf elsewhere.
        own: (K, K), the mask of the K positions that a step writes: each continuation sees only its own.
        tokens: (B, K), the next tokens to read.
        positions: (B, K), where these tokens stand in their texts.
        slots: (K,), the cache positions that their keys and values are written to.
        replay: runs the captured step; None where steps are not captured.
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
        gpt: the model; its weights must not change afterwards.
        fast: use packed weights, attention by plain products, and captured steps or scripted blocks where they help
            (`clipcap.fast`).
        capture: False captures no steps and scripts no blocks, for weights that change before it would pay.

    Attributes:
        captured: the states whose steps are captured, by their shape, the one that was used last at the end.
    """

    def __init__(self, gpt: GPT2LMHeadModel, fast: bool = True, capture: bool = True) -> None:
        self.embedding, self.position = gpt.transformer.wte.weight, gpt.transformer.wpe.weight
        blocks = [Block(block, gpt.config.n_head, fast) for block in gpt.transformer.h]
        self.norm = gpt.transformer.ln_f
        self.head = prepare_head(gpt.lm_head, fast)
        self.fast, self.capture = fast, fast and capture
        self.blocks = [scripted(block, self.embedding.device) for block in blocks] if self.capture else blocks
        self.heads = gpt.config.n_head
        self.captured: dict[tuple, DecodingState] = {}

    @property
    def captures(self) -> bool:
        """Whether steps are captured, one for every shape, so that few shapes are better."""
        return self.capture and cuda_graph.captures(self.embedding.device)

    def rows(self, images: int, most: int) -> int:
        """How many rows the next batch of so many images has, at most `most`; a captured size is a power of two."""
        return 1 << min((images - 1).bit_length(), most.bit_length() - 1) if self.captures else min(images, most)

    @property
    def vocabulary(self) -> int:
        """V, how many tokens the model has."""
        return len(self.embedding)

    @property
    def positions(self) -> int:
        """How many positions prefix and text may take together."""
        return len(self.position)

    def cache_bytes(self, before: int, width: int, steps: int) -> int:
        """The memory of the cache of one image: `before` positions, and `steps` more for each of K continuations."""
        position = 2 * len(self.blocks) * self.embedding.shape[1] * self.embedding.element_size()
        return position * self.room(before + width * steps)

    def room(self, positions: int) -> int:
        """So many positions of a cache, or some more, so that few shapes are captured."""
        return -(-positions // GROWTH) * GROWTH if self.captures else positions

    def begin(self, prefix: Tensor, prompts: Sequence[Sequence[int]] | None, width: int, steps: int) -> Session:
        """Read prefix (B, P, D) and prompts (B lists of ids, or None); the session then holds the first logits.

        Args:
            prefix: (B, P, D).
            prompts: B lists of token ids behind the prefix; lengths may differ.
            width: K.
            steps: the most tokens that a caption may get.
        """
        return Session(self, prefix, prompts, width, steps)

    def state(self, batch: int, width: int, length: int, mask_rows: int) -> DecodingState:
        """A state whose mask hides the whole cache; on CUDA there is one for each shape, with its step captured."""
        shape = (batch, width, length, mask_rows)
        if state := self.captured.pop(shape, None):
            state.cache.zero_()  # the mask hides the numbers of an earlier batch, but no NaN among them
        else:
            state = self._new_state(*shape)
        if state.replay:
            self.captured[shape] = state
        state.mask.fill_(float("-inf"))
        return state

    def _new_state(self, batch: int, width: int, length: int, mask_rows: int) -> DecodingState:
        like, index = self.embedding, self.slots(width)
        needed = batch * self.cache_bytes(length, width, 0)
        while self.captured and needed + sum(state.cache.nbytes for state in self.captured.values()) > KEPT:
            del self.captured[next(iter(self.captured))]
        state = DecodingState(
            cache=like.new_zeros(len(self.blocks), 2, batch, self.heads, length, like.shape[1] // self.heads),
            mask=like.new_zeros(mask_rows, width, length),
            own=like.new_full((width, width), float("-inf")).fill_diagonal_(0),
            tokens=index.new_zeros(batch, width),
            positions=index.new_zeros(batch, width),
            slots=index,
        )
        if self.captures:
            state.replay = cuda_graph.capture(partial(self.advance, state), like.device)
        return state

    def slots(self, count: int) -> Tensor:
        """The first `count` positions of a cache, (count,)."""
        return torch.arange(count, device=self.embedding.device)

    def read(self, x: Tensor, state: DecodingState, last: Tensor) -> Tensor:
        """Run all blocks on whole texts x (B, S, D); returns (B, 1, D), at the positions `last` (B,) alone.

        Nobody needs the last block's output elsewhere: on a CPU, reading a prefix takes 5 % less time without it.
        """
        slots = self.slots(x.shape[1])
        for block, layer in zip(self.blocks[:-1], state.cache[:-1], strict=True):
            x = block(x, layer, slots, None)
        return self.blocks[-1](x, state.cache[-1], slots, state.mask[:, :1], last)

    def advance(self, state: DecodingState) -> Tensor:
        """Read a state's tokens; returns the logits (B, K, V) of the tokens after them."""
        state.mask.index_copy_(2, state.slots, state.own.expand(len(state.mask), -1, -1))
        x = self.embedding[state.tokens] + self.position[state.positions]
        for block, layer in zip(self.blocks, state.cache, strict=True):
            x = block(x, layer, state.slots, state.mask)
        logits = self.head(self.norm(x))
        state.positions += 1
        state.slots += len(state.slots)
        return logits


class Session:
    """One batch being decoded.

    Attributes:
        logits: (B, V), the logits of the first caption token.
        end: how many cache positions are in use.
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
        room = gpt.room(self.end + width * max(steps - 1, 1))  # capturing runs one step, even if the search takes none
        if not gpt.captures:
            room = min(room, self.end + width * GROWTH)
        # With one continuation per image and prompts of one length, the mask is the same for every image.
        alike = width == 1 and min(map(len, prompts)) == longest
        self.state = gpt.state(batch, width, room, 1 if alike else batch)
        # The cache positions of prefix and prompt are seen by every continuation, those of padding by none. A caption's
        # first token takes the position in the text right behind its own prompt, not behind the longest.
        seen = gpt.slots(self.end) < lengths[: len(self.state.mask), None]
        self.state.mask[:, :, : self.end].masked_fill_(seen[:, None], 0)
        self.state.positions.copy_(lengths[:, None])
        self.state.slots.copy_(self.end + gpt.slots(width))
        last = gpt.read(x + gpt.position[: self.end], self.state, lengths - 1)
        self.logits = gpt.head(gpt.norm(last))[:, 0]

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of every continuation (B, K) -> logits (B, K, V) of the token after it.

        The result is valid until the next step, which may write its own logits into the same memory.
        """
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
        """Let continuation k of each image go on from continuation parents[:, k]; parents is (B, K).

        Only rows of the mask are copied: they say whose keys and values a continuation sees.
        """
        if self.width == 1:  # a lone continuation has no other to follow, and its mask may have one row for all images
            return
        mask = self.state.mask
        mask.copy_(mask.gather(1, parents[:, :, None].expand_as(mask)))

    def keep(self, rows: Tensor) -> None:
        """Go on with only these images; `rows` (B',) holds their indices in the present batch."""
        old = self.state
        alike = len(old.mask) < len(old.tokens)
        self.state = self.gpt.state(len(rows), self.width, old.cache.shape[-2], 1 if alike else len(rows))
        torch.index_select(old.cache, 2, rows, out=self.state.cache)
        self.state.mask.copy_(old.mask if alike else old.mask[rows])
        self.state.positions.copy_(old.positions[rows])
        self.state.slots.copy_(old.slots)
