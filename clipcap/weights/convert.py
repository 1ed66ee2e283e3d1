"""Published weights, converted to models of this project: names, shapes, adapters and old buffers.

ClipCap (https://github.com/rmokady/CLIP_prefix_caption) and its Instagram fine-tuning
(https://github.com/olafbrah/cs182proj) saved bare state dicts. Sizes are read off the shapes; the few things that
shapes do not show (the number of heads, the stop token, normalisation) are taken from the published code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clipcap.clip.names import CLIP_OF_WIDTH
from clipcap.errors import UserError
from clipcap.model.config import ClipCapConfig

STOP = 13  # ".", where the published code ends a caption
LORA_ALPHA = 16  # the alpha of the published adapters
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
    if dropped not in (0, 2 * _count(kept, r"gpt\.transformer\.h\.(\d+)\.")):
        raise UserError(f"the file holds {dropped} of the old attn.bias and attn.masked_bias buffers, not all of them")
    return kept


def merge_lora(tensors: Mapping[str, Tensor], alpha: float | None = None) -> dict[str, Tensor]:
    """A state dict saved through peft -> one of the plain model, with B A alpha / rank added to each adapted weight.

    Both naming schemes are read, with `base_layer` (peft 0.7 and later) and without. A state dict without adapters
    comes back with the same tensors.

    Raises:
        UserError: half of an adapter, an adapter without its weight, or one that does not fit it.
    """
    plain = {name.removeprefix("base_model.model.").replace(".base_layer.", "."): t for name, t in tensors.items()}
    adapters = {name for name in plain if ".lora_" in name}
    for name in sorted(adapters):
        layer, _, half = name.partition(".lora_")
        needed = [f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight", f"{layer}.weight"]
        lost = [part for part in needed if part not in plain]
        if lost or half not in ("A.default.weight", "B.default.weight"):
            raise UserError(f"the LoRA adapter {name} is incomplete: {', '.join(lost) or 'unknown name'}")
    for name in sorted(name for name in adapters if ".lora_A." in name):
        layer = name.partition(".lora_")[0]
        down, up = plain[name].float(), plain[name.replace("lora_A", "lora_B")].float()
        weight = plain[f"{layer}.weight"]  # GPT-2's weights are (in, out)
        if up.shape[1] != len(down) or weight.shape != (down.shape[1], len(up)):
            raise UserError(f"the LoRA adapter of {layer} does not fit its weight of shape {tuple(weight.shape)}")
        scale = (LORA_ALPHA if alpha is None else alpha) / len(down)
        plain[f"{layer}.weight"] = weight + (up @ down).t().to(weight.dtype) * scale
    return {name: tensor for name, tensor in plain.items() if name not in adapters}


def infer_config(tensors: Mapping[str, Tensor], heads: int | None = None) -> ClipCapConfig:
    """The config of a published model, from the names and shapes of its state dict.

    Args:
        tensors: the state dict, without adapters and old buffers.
        heads: GPT-2's attention heads; None takes those of published GPT-2s, which are 64 wide.

    Raises:
        UserError: a tensor that a size is read from is missing or has an impossible shape.
    """
    vocabulary, width = _shape(tensors, "gpt.transformer.wte.weight", 2)
    positions, _ = _shape(tensors, "gpt.transformer.wpe.weight", 2)
    if heads is None and width % HEAD_WIDTH:
        raise UserError(f"GPT-2's number of heads cannot be told from its width {width}: give heads=...")
    gpt2 = {
        "vocab_size": vocabulary,
        "n_positions": positions,
        "n_embd": width,
        "n_layer": _count(tensors, r"gpt\.transformer\.h\.(\d+)\."),
        "n_head": heads or width // HEAD_WIDTH,
    }
    config: dict[str, Any]
    if "clip_project.model.0.weight" in tensors or "clip_project.model.2.weight" in tensors:
        clip_dim = _shape(tensors, "clip_project.model.0.weight", 2)[1]
        config = {"mapping": "mlp", "prefix_length": _shape(tensors, "clip_project.model.2.weight", 2)[0] // width}
    else:
        rows, clip_dim = _shape(tensors, "clip_project.linear.weight", 2)
        config = {
            "mapping": "transformer",
            "prefix_length": _shape(tensors, "clip_project.prefix_const", 2)[0],
            "clip_length": rows // width,
            "mapping_layers": _count(tensors, r"clip_project\.transformer\.layers\.(\d+)\."),
            "normalize": clip_dim == 640,  # the published RN50x4 transformer was trained with --normalize_prefix
        }
    head, embedding = tensors.get("gpt.lm_head.weight"), tensors["gpt.transformer.wte.weight"]
    return ClipCapConfig(
        clip_model=CLIP_OF_WIDTH.get(clip_dim),
        clip_pretrained="openai" if clip_dim in CLIP_OF_WIDTH else None,
        clip_dim=clip_dim,
        gpt2=gpt2,
        tied_head=head is None or head.shape != embedding.shape or bool((head == embedding).all()),
        stop_token=STOP,
        **config,
    )


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise UserError(f"this is no ClipCap model: {name} is missing")
    if tensors[name].ndim != dimensions:
        raise UserError(f"this is no ClipCap model: {name} has shape {tuple(tensors[name].shape)}")
    return tuple(tensors[name].shape)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many blocks there are: one more than the largest number in names that match."""
    found = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1
