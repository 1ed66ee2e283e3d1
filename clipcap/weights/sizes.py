"""The sizes of a model as the names and shapes of its tensors tell them, and whether its config agrees."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clipcap.errors import UserError
from clipcap.model.config import ClipCapConfig
from clipcap.model.settings import GPT2_SIZES

READ = ("mlp", "transformer")  # mapping networks whose sizes are read here


def gpt2_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes of GPT-2, by their names in GPT2Config. Raises UserError where they cannot be told."""
    vocabulary, width = _shape(tensors, "gpt.transformer.wte.weight")
    positions, _ = _shape(tensors, "gpt.transformer.wpe.weight")
    layers = _count(tensors, r"gpt\.transformer\.h\.(\d+)\.")
    return {"vocab_size": vocabulary, "n_positions": positions, "n_embd": width, "n_layer": layers}


def mapping_sizes(tensors: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    """The mapping network and its sizes, by their names in ClipCapConfig. Raises UserError where they cannot be told.

    Args:
        tensors: the state dict.
        width: of GPT-2.
    """
    if "clip_project.model.0.weight" in tensors or "clip_project.model.2.weight" in tensors:
        clip_dim = _shape(tensors, "clip_project.model.0.weight")[1]
        rows = _shape(tensors, "clip_project.model.2.weight")[0]
        return {"mapping": "mlp", "clip_dim": clip_dim, "prefix_length": rows // width}
    rows, clip_dim = _shape(tensors, "clip_project.linear.weight")
    return {
        "mapping": "transformer",
        "clip_dim": clip_dim,
        "prefix_length": _shape(tensors, "clip_project.prefix_const")[0],
        "clip_length": rows // width,
        "mapping_layers": _count(tensors, r"clip_project\.transformer\.layers\.(\d+)\."),
    }


def check_sizes(config: ClipCapConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise a UserError unless the config's sizes are those of the tensors.

    A model of a billion layers would take hours and all memory, even one without numbers.
    """
    if config.network:
        found: dict[str, Any] = {"num_hidden_layers": _count(tensors, r"gpt\.(?:[a-z_]+\.)+?(\d+)\.")}
        said: dict[str, Any] = {name: config.network[name] for name in found}
    else:
        found = gpt2_sizes(tensors)
        said = {name: (GPT2_SIZES | config.gpt2)[name] for name in found}
    if config.mapping in READ:
        mapping = mapping_sizes(tensors, config.width if config.network else found["n_embd"])
        found |= mapping
        said |= {name: getattr(config, name) for name in mapping}
    for name, size in found.items():
        if said[name] != size:
            raise UserError(f"its config says {name} {said[name]}, and its tensors say {size}")
    heads = (GPT2_SIZES | config.gpt2)["n_head"]
    if not config.network and config.width % heads:
        raise UserError(f"GPT-2's width {config.width} cannot be divided among {heads} heads")
    if config.stop_token >= config.vocabulary:
        raise UserError(f"stop_token {config.stop_token} is no token of a vocabulary of {config.vocabulary}")
    if config.prefix_length >= config.positions:
        raise UserError(f"prefix_length {config.prefix_length} leaves no room for text in {config.positions} positions")


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name not in tensors:
        raise UserError(f"this is no ClipCap model: {name} is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"this is no ClipCap model: {name} has shape {shape}")
    return shape[0], shape[1]


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many blocks there are. Different numbers are counted, so that a large one in a name means nothing."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})
