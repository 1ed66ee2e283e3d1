"""The parts of a model by what they do, as the names of their parameters: what a strategy lets train."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap
from clipcap.model.networks import blocks_of, embedding_of, outside_blocks

PARTS = ("head", "mapping", "embeddings", "positions", "norms", "attention", "mlp")


def parameters_of(model: ClipCap, part: str) -> set[str]:
    """The names of the parameters of a part of the model: one of PARTS, or "last:N" for the last N blocks.

    Raises:
        UserError: the model has no such part.
    """
    gpt, blocks = model.gpt, blocks_of(model.gpt)
    embedding, norms = embedding_of(gpt), [module for module in gpt.modules() if _is_norm(module)]
    inside = set(blocks.modules())
    children = [child for block in blocks for child in block.children()]
    attention = [child for child in children if "Attention" in type(child).__name__]
    modules: dict[str, Iterable[nn.Module]] = {
        "head": [gpt.get_output_embeddings(), *(norm for norm in norms if norm not in inside)],
        "mapping": [model.clip_project],
        "embeddings": [embedding],
        "positions": [module for module in outside_blocks(gpt, nn.Embedding) if module is not embedding],
        "norms": norms,
        "attention": attention,
        "mlp": [child for child in children if not _is_norm(child) and child not in attention],
    }
    last = re.fullmatch(r"last:(\d{1,9})", part)
    if last and 1 <= int(last[1]) <= len(blocks):
        modules[part] = blocks[-int(last[1]) :]
    chosen = {parameter for module in modules.get(part, ()) for parameter in module.parameters()}
    if not chosen:
        known = ", ".join(name for name in PARTS if any(list(module.parameters()) for module in modules[name]))
        raise UserError(
            f"--train {part} is no part of this model; choose from {known}, and last:1 to last:{len(blocks)}"
        )
    return {name for name, parameter in model.own_parameters() if parameter in chosen}


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def tied_names(model: ClipCap) -> tuple[str, str]:
    """The names of the weights of token embedding and head, which are one tensor where the head is tied."""
    names = {module: name for name, module in model.named_modules()}
    return f"{names[embedding_of(model.gpt)]}.weight", f"{names[model.head]}.weight"
