"""Replace layers of a model, in place, by faster ones with the same parameters, names and gradients.

What GELU in one kernel buys, measured by turns with and without it on full-size GPT-2: full fine-tuning is 1.07 times
as fast in fp32 on 2 cores with AVX2. The figures of the other layers stand in their own modules.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from transformers import GPT2PreTrainedModel, PreTrainedModel

from clipcap.errors import UserError
from clipcap.fast.dropout import Dropout
from clipcap.fast.int8 import Int8Linear, give_back
from clipcap.fast.large_weights import LargeEmbedding, LargeLinear
from clipcap.fast.linear import in_one_kernel, is_linear, weight_and_bias
from clipcap.fast.lora import adapted

# From this many numbers in a weight on, clearing fresh memory for its gradients costs a step more than what
# `large_weights` does instead. GPT-2's token embedding and the second layer of ClipCap's MLP have more.
LARGE = 1 << 23


def speed_up(model: nn.Module, large: int = LARGE, int8: bool = False) -> None:
    """Replace dropout, GELU, adapters, large embeddings and large linear layers with a bias by their faster equals.

    Args:
        model: changed in place; its parameters keep their names and whether they train.
        large: from how many numbers on a weight counts as large.
        int8: first put int8 in place of the linear layers of all GPT-2s in it, which can only caption then.

    Raises:
        UserError: int8, and another language model. With the inputs of SmolLM2's layers in int8, a third of the tokens
            that a fine-tuned one chooses were others, and the mean KL divergence from fp32 was 0.5 nats.
    """
    if int8:
        for network in model.modules():
            if isinstance(network, GPT2PreTrainedModel):
                _to_int8(network)
            elif isinstance(network, PreTrainedModel):
                kind = network.config.model_type
                raise UserError(f"int8 is for GPT-2, and would change too many captions of {kind}: take fp32 or bf16")
        model._apply(torch.clone)  # what is left may be mapped from a file, all of which would stay in memory
        give_back()
    for module in list(model.modules()):
        if hasattr(module, "lora_A"):
            vars(module)["forward"] = partial(adapted, module)
        for name, child in module.named_children():
            faster = _faster(child, large)
            if faster is not child:
                setattr(module, name, faster.train(child.training))


def _to_int8(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if is_linear(child):  # its weights are let go here, one layer after the other
            setattr(module, name, Int8Linear(*weight_and_bias(child)))
        else:
            _to_int8(child)


def _faster(module: nn.Module, large: int) -> nn.Module:
    if type(module) is nn.Dropout:
        return Dropout(module.p)
    faster: nn.Linear | nn.Embedding
    if type(module) is nn.Linear and module.bias is not None and module.weight.numel() >= large:
        faster = LargeLinear(module.in_features, module.out_features, device="meta")
        faster.weight, faster.bias = module.weight, module.bias
        return faster
    if type(module) is nn.Embedding and module.padding_idx is None and module.weight.numel() >= large:
        faster = LargeEmbedding(module.num_embeddings, module.embedding_dim, device="meta")
        faster.weight = module.weight
        return faster
    return in_one_kernel(module)
