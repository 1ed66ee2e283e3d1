"""LoRA: low-rank adapters in the language model, trained through peft, kept in a small file, merged for decoding.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipcap.clip.tensors import check_finite
from clipcap.errors import UserError, at_least
from clipcap.model.clipcap import ClipCap
from clipcap.model.networks import blocks_of
from clipcap.weights.format import build, configure, header, read_config, write
from clipcap.weights.places import Base

LORA_ALPHA = 16  # the alpha of the published adapters
ALL_LINEAR = "all-linear"  # as peft calls all linear layers of the blocks


def adaptable_layers(model: ClipCap) -> dict[str, list[str]]:
    """Full names of the linear layers in the blocks, by their last part: {"c_attn": ["gpt.transformer.h.0..."]}."""
    from transformers.pytorch_utils import Conv1D

    layers: dict[str, list[str]] = {}
    inside = set(blocks_of(model.gpt).modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module in inside and ".lora_" not in name:
            layers.setdefault(name.rpartition(".")[2], []).append(name)
    return layers


def inject(model: ClipCap, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> Any:
    """Put adapters of this rank beside the target layers, in place; returns peft's configuration.

    The product B A, scaled by alpha / rank, is added to each adapted weight. B starts at zero, so the model computes
    the same as before until the adapters train.

    Args:
        model: changed in place.
        rank: of the adapters.
        alpha: their scale, together with the rank.
        dropout: probability of dropping an input of an adapter.
        targets: names of layers, as `adaptable_layers` lists them; ALL_LINEAR for all of them.

    Raises:
        UserError: a value is out of its range, or a target matches no layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = adaptable_layers(model)
    unknown = [target for target in targets if target not in (*layers, ALL_LINEAR)]
    targets = list(layers) if ALL_LINEAR in targets else targets
    if unknown or not targets:
        raise UserError(f"--target {' '.join(unknown)} matches no layer; the blocks have {', '.join(sorted(layers))}")
    at_least(1, option=True, rank=rank)
    if not 0 < alpha < math.inf or not 0 <= dropout < 1:
        raise UserError(f"--alpha must be above 0 and --dropout at least 0 and below 1, not {alpha} and {dropout}")
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft declares an int, and only divides it by the rank
        lora_dropout=dropout,
        target_modules=list(targets),
        fan_in_fan_out=_fan_in_fan_out(model),
        bias="none",
    )
    inject_adapter_in_model(settings, model.gpt)
    return settings


def adapters_of(model: ClipCap) -> dict[str, Tensor]:
    """The tensors that a LoRA file holds: those of the adapters, and of the mapping network if it trains."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad or ".lora_" in name}
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items() if name in trained}


def save_adapters(model: ClipCap, path: str | Path, base: Base, settings: Any) -> None:
    """Write the tensors that trained, and which base they belong to. Raises UserError.

    Args:
        model: with its adapters.
        path: the file.
        base: the weights that the adapters were trained on.
        settings: peft's configuration, from `inject`.
    """
    lora = {"rank": settings.r, "alpha": settings.lora_alpha, "targets": sorted(settings.target_modules)}
    write(header(model) | {"base": dataclasses.asdict(base), "lora": lora, "tensors": adapters_of(model)}, path)


def files_of_ranks(ranks: Sequence[int], merged: bool, rank: int, folder: str) -> list[Path]:
    """The weights that the runs of all ranks write. `folder` is that of `rank`: of several, each ends in its rank."""
    folders = {other: f"{folder.removesuffix(str(rank))}{other}" for other in ranks} | {rank: folder}
    kinds = ["weights", "merged_weights"] if merged else ["weights"]
    return [Path(folders[other], f"lora_{other}_{kind}.pt") for other in ranks for kind in kinds]


def load_adapters(content: Mapping[str, Any], base: ClipCap, overrides: Mapping[str, Any]) -> ClipCap:
    """A plain model: the base, with the adapters of a LoRA file merged into its weights.

    Args:
        content: of the LoRA file.
        base: the weights that its adapters were trained on.
        overrides: fields of the config, `heads`, and `alpha` in place of the file's own.

    Raises:
        UserError: an adapter is missing, unexpected, or does not fit the base.
    """
    base.literal_captioner = None  # of prompted weights: adapters are trained without their prompt
    tensors, lora = dict(content["tensors"]), content.get("lora")
    if not isinstance(lora, Mapping) or not isinstance(lora.get("targets"), list):
        raise UserError("it does not say which layers its adapters belong to")
    layers = adaptable_layers(base)
    expected = {
        f"{layer}.lora_{side}.default.weight"
        for target in layers
        if target in lora["targets"]
        for layer in layers[target]
        for side in "AB"
    }
    mapping = {name for name in base.state_dict() if name.startswith("clip_project.")}
    if any(name.startswith("clip_project.") for name in tensors):
        expected |= mapping
    wrong = sorted(expected ^ tensors.keys())
    if wrong:
        kind = "missing" if wrong[0] in expected else "unexpected"
        raise UserError(f"its adapters do not fit the base: {wrong[0]} is {kind}")
    alpha = overrides.get("alpha", lora.get("alpha"))
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise UserError(f"its alpha must be a number above 0, not {str(alpha)[:40]!r}")
    for name, tensor in tensors.items():
        if ".lora_A." in name and (type(lora.get("rank")) is not int or tensor.shape[:1] != (lora["rank"],)):
            raise UserError(f"it says rank {str(lora.get('rank'))[:40]}, and {name} has shape {tuple(tensor.shape)}")
    whole = merge_lora({**base.state_dict(), **tensors}, alpha, _fan_in_fan_out(base))
    config = dataclasses.replace(read_config(content.get("config")), tied_head=base.config.tied_head)
    model = build(configure(config, overrides), whole)
    model.record = content.get("record", {})
    return model


def merge_lora(
    tensors: Mapping[str, Tensor], alpha: float | None = None, fan_in_fan_out: bool = True
) -> dict[str, Tensor]:
    """A state dict saved through peft -> one of the plain model, with B A alpha / rank added to each adapted weight.

    Both naming schemes are read, with `base_layer` (peft 0.7 and later) and without. A state dict without adapters
    comes back with the same tensors. GPT-2's weights are (in, out), which peft calls `fan_in_fan_out`; others are not.

    Raises:
        UserError: half of an adapter, an adapter without its weight, or one that does not fit it.
    """
    plain = {name.removeprefix("base_model.model.").replace(".base_layer.", "."): t for name, t in tensors.items()}
    if len(plain) < len(tensors):
        raise UserError("it holds a tensor twice, with and without peft's prefix: keep one")
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
        weight = plain[f"{layer}.weight"]
        fits = down.ndim == up.ndim == 2 and len(down) > 0 and up.shape[1] == len(down)
        if not fits or weight.shape != ((down.shape[1], len(up)) if fan_in_fan_out else (len(up), down.shape[1])):
            raise UserError(f"the LoRA adapter of {layer} does not fit its weight of shape {tuple(weight.shape)}")
        scale = (LORA_ALPHA if alpha is None else alpha) / len(down)
        product = (up @ down).t() if fan_in_fan_out else up @ down
        plain[f"{layer}.weight"] = weight + product.to(weight.dtype) * scale
        check_finite({f"{layer}.weight with its adapter": plain[f"{layer}.weight"]})
    return {name: tensor for name, tensor in plain.items() if name not in adapters}


def merged(model: ClipCap) -> ClipCap:
    """A plain model, with the adapters of one that `inject` changed added to its weights."""
    plain = build(model.config, merge_lora(dict(model.state_dict()), _alpha(model), _fan_in_fan_out(model)))
    plain.record = model.record
    return plain


def _fan_in_fan_out(model: ClipCap) -> bool:
    """Whether the weights of the blocks are (in, out), as GPT-2's are."""
    return not model.config.network


def _alpha(model: nn.Module) -> float:
    """The alpha that peft keeps, by the name of an adapter, in each layer that it has adapted."""
    alphas = (getattr(module, "lora_alpha", None) for module in model.modules())
    return next(by_adapter["default"] for by_adapter in alphas if by_adapter is not None)
