"""Language models by what their parts do, whatever transformers calls them: GPT-2, Llama, Qwen, OPT, GPT-NeoX, ...

`gpt` is a causal language model of transformers with its head, as in ClipCap: a body that reads `inputs_embeds` and
ends with a norm, then the head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from clipcap.errors import UserError, first_line, is_out_of_memory
from clipcap.model.settings import GPT2, NETWORK, check_architecture, check_network

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from clipcap.model.clipcap import ClipCap
    from clipcap.model.config import ClipCapConfig

PARTS = ("head", "mapping", "embeddings", "positions", "norms", "attention", "mlp")
# Settings that change no number of a network here: it starts from given weights, ends no text, and keeps no padding.
WITHOUT_EFFECT = {"initializer_range", "init_std", "use_cache", "pretraining_tp", "classifier_dropout", "is_decoder"}
WITHOUT_EFFECT |= {"bos_token_id", "eos_token_id", "pad_token_id", "layerdrop", "tie_word_embeddings"}


def language_model(config: ClipCapConfig) -> PreTrainedModel:
    """A language model with its head, and with weights that are yet to be loaded.

    Raises:
        UserError: a setting is impossible, or contradicts another.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    settings = {"model_type": "gpt2"} | (config.network or config.gpt2)
    kind, unused = settings.pop("model_type"), dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    try:
        made: Any = CONFIG_MAPPING[kind](**settings, **unused, tie_word_embeddings=config.tied_head)
        network: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(made)]
        return network(made)
    except Exception as error:  # each architecture checks its settings in a way of its own
        if is_out_of_memory(error):
            raise
        raise UserError(f"its settings make no {kind} model ({first_line(error)[:200]})") from None


def plain_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration of transformers says about the network, as ClipCapConfig holds it in `gpt2` or `network`.

    Raises:
        UserError: the architecture is not known here, or a setting of this one.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    kind, values = config.model_type, json.loads(json.dumps(config.to_dict(), default=str))
    if kind == "gpt2":
        return {name: values[name] for name in GPT2}
    check_architecture(kind)
    plain = {name: values[name] for name in NETWORK if name in values}
    check_network(plain)
    rebuilt = CONFIG_MAPPING[kind](**{name: value for name, value in plain.items() if name != "model_type"}).to_dict()
    for name in sorted(rebuilt.keys() - PreTrainedConfig().to_dict().keys() - WITHOUT_EFFECT):
        if rebuilt[name] != values.get(name):
            raise UserError(f"its {name} is {values.get(name)!r:.100}, which is not known here")
    return plain


def compute_frequencies(gpt: PreTrainedModel) -> None:
    """Give rotary positions their frequencies in float32: no file holds them, and rounded ones mean other positions."""
    device = embedding_of(gpt).weight.device
    for parent in gpt.modules():
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RotaryEmbedding") and device.type != "meta":
                setattr(parent, name, type(child)(gpt.config).to(device))


def embedding_of(gpt: PreTrainedModel) -> nn.Embedding:
    """The embedding of the tokens."""
    return cast(nn.Embedding, gpt.get_input_embeddings())


def blocks_of(gpt: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks, from the first to the last."""
    return next(module for module in gpt.base_model.modules() if isinstance(module, nn.ModuleList))


def outside_blocks(gpt: PreTrainedModel, kind: type[nn.Module]) -> list[nn.Module]:
    """The modules of a kind in the body that belong to no block, such as embeddings and the dropout behind them."""
    inside = set(blocks_of(gpt).modules())
    return [module for module in gpt.base_model.modules() if isinstance(module, kind) and module not in inside]


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
