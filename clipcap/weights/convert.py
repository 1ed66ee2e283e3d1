"""Published weights, converted to models of this project: names, shapes and old buffers.

ClipCap (https://github.com/rmokady/CLIP_prefix_caption) and its Instagram fine-tuning
(https://github.com/olafbrah/cs182proj) saved bare state dicts. Sizes are read off the shapes; the few things that
shapes do not show (the number of heads, the stop token, normalisation) are taken from the published code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from clipcap.clip.names import CLIP_OF_WIDTH
from clipcap.errors import UserError
from clipcap.model.config import ClipCapConfig
from clipcap.weights.sizes import gpt2_sizes, mapping_sizes

STOP = 13  # ".", where the published code ends a caption
HEAD_WIDTH = 64  # the width of an attention head in every published GPT-2
OLD_BUFFER = re.compile(r"gpt\.transformer\.h\.\d+\.attn\.(bias|masked_bias)")  # GPT-2's causal masks until 2023


def split_literal(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of published prompted weights, separated into the model's own and those of its literal captioner."""
    prefix = "original_model."
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    return own, {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def without_old_buffers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the causal masks that old GPT-2 checkpoints hold.

    Raises:
        UserError: some blocks have them and others do not.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not OLD_BUFFER.fullmatch(name)}
    dropped = len(tensors) - len(kept)
    if dropped not in (0, 2 * gpt2_sizes(kept)["n_layer"]):
        raise UserError(f"the file holds {dropped} of the old attn.bias and attn.masked_bias buffers, not all of them")
    return kept


def infer_config(tensors: Mapping[str, Tensor], heads: int | None = None) -> ClipCapConfig:
    """The config of a published model, from the names and shapes of its state dict.

    Args:
        tensors: the state dict, without adapters and old buffers.
        heads: GPT-2's attention heads; None takes those of published GPT-2s, which are 64 wide.

    Raises:
        UserError: a tensor that a size is read from is missing or has an impossible shape.
    """
    gpt2 = gpt2_sizes(tensors)
    width = gpt2["n_embd"]
    if heads is None and width % HEAD_WIDTH:
        raise UserError(f"GPT-2's number of heads cannot be told from its width {width}: give heads=...")
    gpt2["n_head"] = width // HEAD_WIDTH if heads is None else heads
    config = mapping_sizes(tensors, width)
    clip_dim = config["clip_dim"]
    # The published RN50x4 transformer was trained with --normalize_prefix; others may not be, see `load_checkpoint`.
    normalize = config["mapping"] == "transformer" and clip_dim == 640
    head, embedding = tensors.get("gpt.lm_head.weight"), tensors["gpt.transformer.wte.weight"]
    return ClipCapConfig(
        clip_model=CLIP_OF_WIDTH.get(clip_dim),
        clip_pretrained="openai" if clip_dim in CLIP_OF_WIDTH else None,
        normalize=normalize,
        gpt2=dict(gpt2),
        tied_head=head is None or head.shape != embedding.shape or bool((head == embedding).all()),
        stop_token=STOP,
        **config,
    )
