"""ClipCap: a mapping network in front of a language model, which of its parameters train, and the loss.

Mokady et al., "ClipCap: CLIP Prefix for Image Captioning", 2021, https://arxiv.org/abs/2111.09734.

Shapes: B batch, C CLIP width, P prefix length, T tokens, D width of token embeddings, V vocabulary, N caption tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from clipcap.decoding.cached_gpt2 import CachedGPT2
from clipcap.decoding.cached_transformer import CachedTransformer, WholeTexts
from clipcap.decoding.options import Decoding
from clipcap.decoding.search import decode
from clipcap.errors import UserError
from clipcap.fast.linear import adapters_in_use
from clipcap.model.batches import Batch
from clipcap.model.config import ClipCapConfig
from clipcap.model.mapping import MAPPINGS
from clipcap.model.networks import compute_frequencies, embedding_of, language_model, outside_blocks

LITERAL_CAPTIONER = "literal_captioner."  # how the names of the literal captioner's parameters begin


class ClipCap(nn.Module):
    """CLIP embedding -> prefix -> language model.

    Attributes:
        gpt: Hugging Face's GPT-2 with its head, or another causal language model.
        clip_project: the mapping network, under the name that the published weights give it.
        literal_captioner: for prompted weights, the frozen model whose caption fills the prompt's "{literal}".
        record: how the model was trained, in plain values (see `clipcap.training.record.run_record`).
        fast: whether decoding uses `clipcap.fast`: the same captions sooner, except that samples are drawn otherwise.

    Raises:
        UserError: an unknown mapping network, or sizes that do not fit together.
    """

    def __init__(self, config: ClipCapConfig, literal_captioner: ClipCap | None = None) -> None:
        super().__init__()
        if config.mapping not in MAPPINGS:
            raise UserError(f"unknown mapping network {config.mapping!r}; choose one of {', '.join(MAPPINGS)}")
        self.config = config
        if config.mapping == "transformer" and config.width % config.mapping_heads:
            raise UserError(f"the width {config.width} cannot be divided among {config.mapping_heads} mapping heads")
        if config.prefix_length >= config.positions:
            raise UserError(f"a prefix of {config.prefix_length} does not fit into {config.positions} positions")
        self.gpt = language_model(config)
        sizes = [config.clip_dim, config.width, config.prefix_length]
        if config.mapping == "transformer":
            sizes += [config.clip_length, config.mapping_layers, config.mapping_heads]
        self.clip_project = MAPPINGS[config.mapping](*sizes)
        self.literal_captioner = literal_captioner
        self.record: dict[str, Any] = {}
        self.fast = True
        self._prepared: tuple[list[Any], CachedGPT2 | CachedTransformer] | None = None
        # The function of the class: a model that held its own method would outlive its last user, with captured steps.
        self.register_load_state_dict_post_hook(type(self)._drop_prepared)

    @property
    def device(self) -> torch.device:
        """Where the language model's weights lie."""
        return embedding_of(self.gpt).weight.device

    @property
    def room(self) -> int:
        """How many tokens fit behind the prefix; the last one is only predicted and needs no position of its own."""
        return self.config.positions - self.config.prefix_length + 1

    @property
    def head(self) -> nn.Linear:
        """The language-model head: states (..., D) -> logits (..., V)."""
        return self.gpt.get_output_embeddings()

    def prefix(self, clip_embedding: Tensor) -> Tensor:
        """CLIP embeddings (B, C) -> prefixes (B, P, D). Raises UserError for embeddings of another width."""
        if clip_embedding.ndim != 2 or clip_embedding.shape[1] != self.config.clip_dim:
            raise UserError(
                f"these weights take CLIP embeddings of shape (batch, {self.config.clip_dim}), not "
                f"{tuple(clip_embedding.shape)}: encode the images with {self.config.clip_model or 'their CLIP'}"
            )
        if self.config.normalize:
            clip_embedding = F.normalize(clip_embedding.float(), dim=-1)
        return self.clip_project(clip_embedding.to(self.device, next(self.clip_project.parameters()).dtype))

    def hidden_states(self, clip_embedding: Tensor, tokens: Tensor) -> Tensor:
        """(B, C), (B, T) -> (B, T, D): the state at [:, t] predicts tokens[:, t].

        Padding stands on the right, where causal attention hides it from every caption token, so no mask is needed.
        """
        if torch.is_grad_enabled():
            self._drop_prepared()  # an optimizer may follow
        prefix = self.prefix(clip_embedding)
        if self.config.network and torch.is_autocast_enabled(prefix.device.type):
            prefix = prefix.float()  # keeps the residual stream exact; GPT-2's is so by the positions added to it
        embedded = embedding_of(self.gpt)(tokens[:, :-1])  # the last token is only predicted, never read
        x = torch.cat((prefix, embedded.to(prefix.dtype)), 1)
        states = self.gpt.base_model(inputs_embeds=x, past_key_values=WholeTexts(), use_cache=False)
        return states.last_hidden_state[:, self.config.prefix_length - 1 :]

    def forward(self, clip_embedding: Tensor, tokens: Tensor) -> Tensor:
        """(B, C), (B, T) -> logits (B, T, V); logits[:, t] predicts tokens[:, t]."""
        return self.head(self.hidden_states(clip_embedding, tokens))

    def caption_states(self, batch: Batch) -> Tensor:
        """The states (N, D) that predict the caption tokens, without those that predict prompt or padding."""
        states = self.hidden_states(batch.clip_embedding, batch.tokens)  # (B, T, D)
        return states.flatten(0, 1).index_select(0, batch.positions)

    def token_losses(self, batch: Batch) -> Tensor:
        """Cross-entropy (N,), in nats, of every caption token. No logits are computed for prompt and padding."""
        logits = self.head(self.caption_states(batch))  # (N, V)
        return F.cross_entropy(logits.float(), batch.targets, reduction="none")

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy per caption token, a scalar in nats."""
        return self.token_losses(batch).mean()

    def train(self, mode: bool = True) -> ClipCap:
        """Training mode for the modules that train; frozen ones stay in evaluation mode, without dropout."""
        self._drop_prepared()
        try:
            super().train(mode)
        except UserError:  # int8 only captions
            super().train(False)
            raise
        for module in self.modules() if mode else ():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        # The dropout behind the embeddings has no parameters, so it follows the modules that give it its input.
        below_blocks = (self.clip_project, *outside_blocks(self.gpt, nn.Embedding))
        for dropout in outside_blocks(self.gpt, nn.Dropout):
            dropout.train(mode and any(module.training for module in below_blocks))
        return self

    def train_only(self, trains: Callable[[str], bool]) -> dict[str, int]:
        """Let only the parameters train whose name `trains` accepts; returns their names and sizes.

        The literal captioner never trains.
        """
        self.requires_grad_(False)
        chosen = {name: parameter for name, parameter in self.own_parameters() if trains(name)}
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return {name: parameter.numel() for name, parameter in chosen.items()}

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of this model, without those of its literal captioner."""
        return ((name, p) for name, p in self.named_parameters() if not name.startswith(LITERAL_CAPTIONER))

    def use_fast(self, fast: bool) -> None:
        """Decode with `clipcap.fast`, or in plain PyTorch. The literal captioner follows."""
        self.fast = fast
        self._drop_prepared()
        if self.literal_captioner is not None:
            self.literal_captioner.use_fast(fast)

    def untie_head(self) -> None:
        """Give the language-model head weights of its own, so that it can train while the embedding is frozen."""
        self.head.weight = nn.Parameter(embedding_of(self.gpt).weight.detach().clone())
        self.config.tied_head = self.gpt.config.tie_word_embeddings = False

    @torch.inference_mode()
    def generate(
        self, clip_embedding: Tensor, decoding: Decoding | None = None, prompts: Sequence[Sequence[int]] | None = None
    ) -> list[list[int]] | list[list[list[int]]]:
        """Captions for a batch of CLIP embeddings (B, C), as token ids with the stop token kept.

        In float32 a caption does not depend on the rest of its batch; in bfloat16 see `clipcap.decoding.search.decode`.

        Args:
            clip_embedding: (B, C), as CLIP gives it; it is normalised here if the weights were trained so.
            decoding: how to search; greedy when None. A `stop_token` of None stands for the checkpoint's own.
            prompts: token ids between image and caption, one list per row; lengths may differ.

        Returns:
            B lists of ids; with `decoding.return_all` B lists of lists of ids, best first.

        Raises:
            UserError: embeddings of another width, or a prompt that leaves no room for a caption.
        """
        decoding = decoding or Decoding()
        found = self.generate_all(clip_embedding, decoding, prompts)
        return found if decoding.return_all else [captions[0] for captions in found]

    @torch.inference_mode()
    def generate_all(
        self,
        clip_embedding: Tensor,
        decoding: Decoding,
        prompts: Sequence[Sequence[int]] | None = None,
        begun: Sequence[int] | None = None,
    ) -> list[list[list[int]]]:
        """As `generate`, but always every caption that the search kept: B lists of lists of ids, best first.

        `begun` says how many tokens at the end of each prompt are the beginning of its caption, see `decode`.
        """
        if not len(clip_embedding):
            return []
        if self.training and self.config.network:  # CachedGPT2 knows no dropout, and transformers' own models do
            self.eval()
            try:
                return self.generate_all(clip_embedding, decoding, prompts, begun)
            finally:
                self.train()
        stop = self.config.stop_token if decoding.stop_token is None else decoding.stop_token
        with torch.autocast(self.device.type, enabled=False):  # a caller's own would mix types in the cache
            prefix = self.prefix(clip_embedding)
            return decode(self.decoder(), prefix, decoding, stop, prompts, clip_embedding, begun)

    def decoder(self) -> CachedGPT2 | CachedTransformer:
        """The language model prepared for decoding; kept for the next call as long as its weights stay the same.

        PyTorch counts no changes by a fused optimizer or through `.data`. So what was prepared is also dropped by
        `train()`, `eval()`, loading weights and a forward pass with gradients, and is not kept in training mode.
        """
        state: list[Any] = [(w.data_ptr(), -1 if w.is_inference() else w._version) for w in self.gpt.parameters()]
        adapted: list[Any] = [module for module in self.gpt.modules() if "lora_A" in module._modules]
        state += [(adapters_in_use(m), str(m.merged_adapters), str(m.scaling)) for m in adapted]
        if self._prepared is None or self._prepared[0] != state:
            prepared: CachedGPT2 | CachedTransformer
            if isinstance(self.gpt, GPT2LMHeadModel):
                prepared = CachedGPT2(self.gpt, self.fast, capture=not self.training)
            else:
                prepared = CachedTransformer(self.gpt, self.config.positions, self.fast)
            self._prepared = None if self.training else (state, prepared)
            return prepared
        return self._prepared[1]

    def _apply(self, *args: Any, **options: Any) -> ClipCap:
        """What `to` and its like call. The frequencies of rotary positions stay in float32."""
        super()._apply(*args, **options)
        compute_frequencies(self.gpt)
        self._drop_prepared()  # which holds memory of the device that the weights have left
        return self

    def _drop_prepared(self, *_: Any) -> None:
        self._prepared = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy gets: all but what is prepared for decoding, whose packed weights cannot be copied."""
        return super().__getstate__() | {"_prepared": None}
