"""Any causal language model for decoding, on transformers' own cache: the same steps as `cached_gpt2`, not as fast.

Each continuation of an image has a row of its own in the cache. Prompts are padded on the right: causal attention hides
padding from what stands before it, and a mask from what is decoded behind it. It has the four dimensions that attention
adds it in: transformers asks the device about each mask of two, whether it hides anything.

Shapes: B images, K continuations of each, P prefix length, S prefix and prompt, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn
from transformers import DynamicCache, PreTrainedModel


class CachedTransformer:
    """A language model with the interface of `CachedGPT2`.

    Args:
        gpt: the model, in evaluation mode while it decodes.
        positions: how many positions prefix and text may take together.
        fast: whether samples are drawn by `clipcap.fast`.
    """

    captures = False  # its steps are not recorded

    def __init__(self, gpt: PreTrainedModel, positions: int, fast: bool = True) -> None:
        self.body: nn.Module = gpt.base_model
        self.embed = cast(nn.Embedding, gpt.get_input_embeddings())
        self.head: nn.Module = gpt.get_output_embeddings()
        self.vocabulary, self.positions, self.fast = len(self.embed.weight), positions, fast
        config = gpt.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.position_bytes = 2 * config.num_hidden_layers * heads * width * self.embed.weight.element_size()

    def rows(self, images: int, most: int) -> int:
        """How many rows the next batch of so many images has, at most `most`."""
        return min(images, most)

    def cache_bytes(self, before: int, width: int, steps: int) -> int:
        """The memory of the cache of one image: `before` positions and `steps` more, for each of K continuations."""
        return self.position_bytes * width * (before + steps)

    def begin(
        self, prefix: Tensor, prompts: Sequence[Sequence[int]] | None, width: int, steps: int
    ) -> TransformerSession:
        """Read prefix (B, P, D) and prompts (B lists of ids, or None), see `CachedGPT2.begin`."""
        return TransformerSession(self, prefix, prompts, width)

    def run(self, x: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache) -> Tensor:
        """The states (rows, T, D) of x (rows, T, D) behind what is in the cache; the mask, if any, covers both."""
        return self.body(
            inputs_embeds=x, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state


class TransformerSession:
    """One batch being decoded.

    Attributes:
        logits: (B, V), the logits of the first caption token.
        mask: (B * K, 1, 1, positions so far), -inf where a prompt was padded and 0 elsewhere; None if none was.
        positions: (B * K, 1), where the next token stands in its text.
    """

    def __init__(
        self, gpt: CachedTransformer, prefix: Tensor, prompts: Sequence[Sequence[int]] | None, width: int
    ) -> None:
        self.gpt, self.width = gpt, width
        batch, device = len(prefix), prefix.device
        prompts = prompts or [()] * batch
        lengths = torch.tensor([prefix.shape[1] + len(prompt) for prompt in prompts], device=device)
        longest = max(len(prompt) for prompt in prompts)
        padded = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device).long()
        x = torch.cat((prefix, gpt.embed(padded).to(prefix.dtype)), dim=1)  # (B, S, D)
        places = torch.arange(x.shape[1], device=device)
        self.cache = DynamicCache()
        states = gpt.run(x, None, places.expand(batch, -1), self.cache)
        self.logits = gpt.head(states[torch.arange(batch, device=device), lengths - 1])
        self.cache.batch_repeat_interleave(width)
        self.positions = lengths.repeat_interleave(width)[:, None]
        self.mask: Tensor | None = None
        if min(map(len, prompts)) < longest:
            hidden = (places >= self.positions)[:, None, None]
            self.mask = x.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of every continuation (B, K) -> logits (B, K, V) of the token after it."""
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, 1))
        x = self.gpt.embed(tokens.reshape(-1, 1))
        states = self.gpt.run(x, self.mask, self.positions, self.cache)
        self.positions = self.positions + 1
        return self.gpt.head(states[:, -1]).view(*tokens.shape, -1)

    def reorder(self, parents: Tensor) -> None:
        """Let continuation k of each image go on from continuation parents[:, k]; parents is (B, K)."""
        if self.width == 1:
            return
        first = torch.arange(len(parents), device=parents.device)[:, None] * self.width
        self.cache.reorder_cache(cast(LongTensor, (first + parents).flatten()))

    def keep(self, rows: Tensor) -> None:
        """Go on with only these images; `rows` (B',) holds their indices in the present batch."""
        kept = (rows[:, None] * self.width + torch.arange(self.width, device=rows.device)).flatten()
        self.cache.batch_select_indices(kept)
        self.positions = self.positions[kept]
        if self.mask is not None:
            self.mask = self.mask[kept]


class WholeTexts(DynamicCache):
    """A cache that keeps nothing, for texts that are read at once, as in training.

    With it, transformers knows that each row is one text. Without it, it looks for several in a row by their positions,
    and every forward pass waits until the device has said that there is one.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The keys and values to attend to: the new ones, for there are no others."""
        return key_states, value_states
