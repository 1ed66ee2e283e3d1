"""Language models by what their parts do, whatever transformers calls them: GPT-2, Llama, Qwen, OPT, GPT-NeoX, ...

`gpt` is a causal language model of transformers with its head, as in ClipCap: a body that reads `inputs_embeds` and
ends with a norm, then the head.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from clipcap.errors import UserError, first_line, is_out_of_memory
from clipcap.model.settings import GPT2, NETWORK, check_architecture, check_network

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from clipcap.model.config import ClipCapConfig

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
    configuration: Any = CONFIG_MAPPING[kind]
    network: Any = MODEL_FOR_CAUSAL_LM_MAPPING[configuration]
    try:
        return network(configuration(**settings, **unused, tie_word_embeddings=config.tied_head))
    except Exception as error:  # each architecture checks its settings in a way of its own
        if is_out_of_memory(error):
            raise
        raise UserError(f"its settings make no {kind} model ({first_line(error)[:200]})") from None


def check_runs(gpt: PreTrainedModel, width: int) -> None:
    """Raise a UserError unless a model on the meta device can read token embeddings of this width.

    Settings that fit the tensors may contradict each other, as numbers of heads, or the part of a head that is rotated.
    """
    training = gpt.training
    try:
        gpt.eval()  # in training, OPT looks at a random number whether to leave a layer out
        with torch.device("meta"):  # where a mask of any other shape is looked at
            x, mask, positions = torch.empty(1, 1, width), torch.empty(1, 1, 1, 1), torch.zeros(1, 1).long()
            gpt.base_model(inputs_embeds=x, attention_mask=mask, position_ids=positions, use_cache=False)
    except Exception as error:  # whatever its layers raise
        kind = gpt.config.model_type
        raise UserError(f"its settings make no {kind} model that computes ({first_line(error)[:200]})") from None
    finally:
        gpt.train(training)


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
