"""LoRA: low-rank adapters in GPT-2, trained through peft, kept in a small file, merged for decoding.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap
from clipcap.model.config import ClipCapConfig
from clipcap.weights.convert import merge_lora
from clipcap.weights.format import FORMAT, VERSION, build, configure, sha256, write
from clipcap.weights.published import names, resolve_weights


@dataclasses.dataclass(frozen=True)
class Base:
    """The weights that adapters were trained on: a published name or a path, and the SHA-256 of the file."""

    weights: str
    sha256: str

    @classmethod
    def of(cls, weights: str) -> Base:
        return cls(weights, sha256(resolve_weights(weights)))


def adaptable_layers(model: ClipCap) -> dict[str, list[str]]:
    """Names of the linear layers in GPT-2's blocks, by their last part: {"c_attn": ["gpt.transformer.h.0...", ...]}."""
    from transformers.pytorch_utils import Conv1D

    layers: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D) and name.startswith("gpt."):
            layers.setdefault(name.rpartition(".")[2], []).append(name)
    return layers


def inject(model: ClipCap, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> Any:
    """Put adapters of this rank beside the target layers, in place; returns peft's configuration.

    The product B A, scaled by alpha / rank, is added to each adapted weight. B starts at zero, so nothing changes yet.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = adaptable_layers(model)
    unknown = [target for target in targets if target not in layers]
    if unknown or not targets:
        raise UserError(
            f"--target {' '.join(unknown)} matches no layer; GPT-2's blocks have {', '.join(sorted(layers))}"
        )
    if rank < 1:
        raise UserError(f"a LoRA rank must be at least 1, not {rank}")
    if not alpha > 0 or not 0 <= dropout < 1:
        raise UserError(f"--alpha must be above 0 and --dropout from 0 up to 1, not {alpha} and {dropout}")
    settings = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), fan_in_fan_out=True, bias="none"
    )
    inject_adapter_in_model(settings, model.gpt)
    return settings


def adapters_of(model: ClipCap) -> dict[str, Tensor]:
    """The adapters' tensors, and the mapping network's where it trains: what a LoRA file holds."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad or ".lora_" in name}
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items() if name in trained}


def save_adapters(model: ClipCap, path: str | Path, base: Base, settings: Any) -> None:
    """Write what trained, and the name of what it was trained on."""
    lora = {"rank": settings.r, "alpha": settings.lora_alpha, "targets": sorted(settings.target_modules)}
    payload = {
        "format": FORMAT,
        "version": VERSION,
        "config": dataclasses.asdict(model.config),
        "record": model.record,
        "base": dataclasses.asdict(base),
        "lora": lora,
        "tensors": adapters_of(model),
    }
    write(payload, path)


def load_adapters(content: Mapping[str, Any], base: ClipCap, overrides: Mapping[str, Any]) -> ClipCap:
    """The content of a LoRA file and its base -> the model it stands for, adapters merged into the base's weights.

    Raises:
        UserError: an adapter is missing, unexpected, or does not fit the base.
    """
    tensors, lora = dict(content["tensors"]), content["lora"]
    expected = {
        f"{layer}.lora_{side}.default.weight"
        for target in lora["targets"]
        for layer in adaptable_layers(base).get(target, [])
        for side in "AB"
    }
    mapping = {name for name in base.state_dict() if name.startswith("clip_project.")}
    if any(name.startswith("clip_project.") for name in tensors):
        expected |= mapping
    wrong = sorted(expected ^ tensors.keys())
    if wrong:
        kind = "missing" if wrong[0] in expected else "unexpected"
        raise UserError(f"its adapters do not fit the base: {wrong[0]} is {kind}")
    alpha = overrides.get("alpha", lora["alpha"])
    merged = merge_lora({**base.state_dict(), **tensors}, alpha)
    config = dataclasses.replace(ClipCapConfig(**content["config"]), tied_head=base.config.tied_head)
    model = build(configure(config, overrides), merged)
    model.record = content.get("record", {})
    return model


def find_base(content: Mapping[str, Any], file: Path, given: str | None) -> Path:
    """The base's file: the one given, the one that LoRA weights name, or one of its name beside them.

    Args:
        content: of the LoRA file.
        file: the LoRA file itself.
        given: a file or published name that the user gives instead.

    Raises:
        UserError: no such file has the SHA-256 of the weights that the adapters were trained on.
    """
    base = Base(**content["base"])
    recorded = Path(base.weights)
    places = [given] if given else [recorded, file.parent / recorded, file.parent / recorded.name]
    for place in places:
        try:
            path = resolve_weights(place if given or place != recorded else base.weights)
        except UserError:
            if base.weights in names():  # what is wrong is the download, and the message says what to do
                raise
            continue
        found = sha256(path)
        if found == base.sha256:
            return path
        if given:
            raise UserError(
                f"the base {given} has SHA-256 {found[:12]}..., and its adapters want {base.sha256[:12]}..."
            )
    raise UserError(
        f"its base is {base.weights} with SHA-256 {base.sha256[:12]}..., which is not here: give that file as the base"
    )


def merged(model: ClipCap) -> ClipCap:
    """A plain model with the adapters of an injected one added to its weights."""
    plain = build(model.config, merge_lora(dict(model.state_dict()), _alpha(model)))
    plain.record = model.record
    return plain


def _alpha(model: nn.Module) -> float:
    return next(module.lora_alpha["default"] for module in model.modules() if hasattr(module, "lora_alpha"))


def export_peft(model: ClipCap, settings: Any, folder: str | Path) -> None:
    """Write the adapters as a folder that `peft.PeftModel.from_pretrained(gpt2, folder)` loads (the mapping network is
    not in it: peft knows only the language model)."""
    from safetensors.torch import save_file

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        prefix = "base_model.model."
        tensors = {
            prefix + name.removeprefix("gpt.").replace(".default.", "."): tensor.contiguous()
            for name, tensor in adapters_of(model).items()
            if ".lora_" in name
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        settings.base_model_name_or_path, settings.task_type = model.config.language_model, "CAUSAL_LM"
        settings.inference_mode = True
        settings.save_pretrained(folder)
    except OSError as error:
        raise UserError(f"the peft folder {folder} cannot be written ({error.strerror}): choose another") from None
