"""The .pt format: a model and everything needed to rebuild it and to feed it, in one file of plain values and tensors.

    {"format": "clipcap", "version": 1,
     "config": the fields of ClipCapConfig, "record": how it was trained, "tensors": {name: tensor},
     "literal_captioner": {"config", "tensors"}         only in prompted weights
     "base": {"weights", "sha256"}, "lora": {...}}      only in LoRA weights, whose tensors are those that trained

Files are written whole or not at all, and read without executing anything that they hold (`weights_only`). Every tensor
must find its place and every place its tensor.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipcap import published
from clipcap.errors import UserError
from clipcap.model import ClipCap, ClipCapConfig
from clipcap.prompts import PROMPTS

FORMAT, VERSION = "clipcap", 1
CONFIG_FIELDS = {field.name for field in dataclasses.fields(ClipCapConfig)}
OVERRIDES = CONFIG_FIELDS | {"heads", "alpha", "base"}


def save_checkpoint(model: ClipCap, path: str | Path) -> None:
    """Write a model, with its config, record and literal captioner, to one file."""
    write(model_payload(model), path)


def model_payload(model: ClipCap) -> dict[str, Any]:
    """What `save_checkpoint` writes."""
    payload = {
        "format": FORMAT,
        "version": VERSION,
        "config": dataclasses.asdict(model.config),
        "record": model.record,
        "tensors": _tensors(model),
    }
    if model.literal_captioner is not None:
        literal = model.literal_captioner
        payload["literal_captioner"] = {"config": dataclasses.asdict(literal.config), "tensors": _tensors(literal)}
    return payload


def _tensors(model: ClipCap) -> dict[str, Tensor]:
    tensors = {n: t.detach().cpu() for n, t in model.state_dict().items() if not n.startswith("literal_captioner.")}
    if model.config.tied_head:
        tensors["gpt.lm_head.weight"] = tensors["gpt.transformer.wte.weight"]  # one storage, written once
    return tensors


def write(payload: Mapping[str, Any], path: str | Path) -> None:
    """Write a payload atomically: under another name first, renamed when it is complete on the disk."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(dict(payload), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another output folder") from None


def read(path: str | Path) -> dict[str, Any]:
    """What a .pt file holds, mapped from the disk, without executing anything in it."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is no file of weights, or holds more than tensors and plain values: not loaded"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read, it may be truncated ({reason}); copy or download it again") from None
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds a {type(content).__name__}, not the weights of a model")
    return dict(content)


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu", **overrides: Any) -> ClipCap:
    """A model from its own or a published file, in evaluation mode.

    Args:
        path: a file, or a name known to `clipcap.published` ("coco", "conceptual", "coco-transformer", ...).
        device: where to put the model.
        overrides: any field of ClipCapConfig; `heads` of GPT-2 and LoRA's `alpha` for published files, which do not
            tell them; `base`, the weights that LoRA weights were trained on.

    Raises:
        UserError: the file cannot be read, or is not a complete model and nothing else.
    """
    unknown = sorted(set(overrides) - OVERRIDES)
    if unknown:
        raise UserError(f"unknown keyword {unknown[0]!r} for weights; known are {', '.join(sorted(OVERRIDES))}")
    overrides = {name: value for name, value in overrides.items() if value is not None}
    file = published.resolve_weights(path)
    content = read(file)
    try:
        if content.get("format") != FORMAT:
            model = _from_published(content, overrides)
        elif content.get("version") != VERSION:
            raise UserError(f"it is of version {content.get('version')}, newer than this project knows ({VERSION})")
        elif "base" in content:
            from clipcap.lora import load_adapters

            model = load_adapters(content, file, overrides)
        else:
            model = _from_own(content, overrides)
    except UserError as error:
        raise UserError(f"{file} cannot be used: {error}") from None
    return model.to(device).eval()


def read_record(path: str | Path) -> dict[str, Any]:
    """How the model in a file was trained; empty for published files."""
    content = read(published.resolve_weights(path))
    return content.get("record", {}) if content.get("format") == FORMAT else {}


def sha256(path: str | Path) -> str:
    """Identity of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def configure(config: ClipCapConfig, overrides: Mapping[str, Any]) -> ClipCapConfig:
    """The config with the overrides that are its fields, and GPT-2's `heads`, applied."""
    config = dataclasses.replace(config, **{name: v for name, v in overrides.items() if name in CONFIG_FIELDS})
    if "heads" in overrides:
        config.gpt2 = {**config.gpt2, "n_head": overrides["heads"]}
    width, heads = config.gpt2.get("n_embd", 768), config.gpt2.get("n_head", 12)
    if width % heads:
        raise UserError(f"GPT-2's width {width} cannot be divided among {heads} heads")
    return config


def _from_own(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> ClipCap:
    known = isinstance(content.get("config"), Mapping) and content["config"].keys() <= CONFIG_FIELDS
    if not known or not isinstance(content.get("tensors"), Mapping):
        raise UserError("its config or its tensors are missing or not those of this version")
    literal = content.get("literal_captioner")
    model = build(
        configure(ClipCapConfig(**content["config"]), overrides),
        content["tensors"],
        build(ClipCapConfig(**literal["config"]), literal["tensors"]) if literal else None,
    )
    model.record = content.get("record", {})
    return model


def _from_published(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> ClipCap:
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        raise UserError("it is neither a file of this project nor a published state dict")
    tensors, literal_tensors = published.split_literal(published.merge_lora(content, overrides.get("alpha")))
    literal = None
    if literal_tensors:
        literal_tensors = published.without_old_buffers(literal_tensors)
        literal = build(published.infer_config(literal_tensors, overrides.get("heads")), literal_tensors)
    tensors = published.without_old_buffers(tensors)
    config = published.infer_config(tensors, overrides.get("heads"))
    if literal is not None:
        config.prompt = PROMPTS["template"]
    return build(configure(config, overrides), tensors, literal)


def build(config: ClipCapConfig, tensors: Mapping[str, Tensor], literal_captioner: ClipCap | None = None) -> ClipCap:
    """A model of this config that holds exactly these tensors.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        model = ClipCap(config)
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    misshapen = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    if missing or unexpected:
        told = [
            f"{kind} {_shortened(found)}" for kind, found in (("missing", missing), ("unexpected", unexpected)) if found
        ]
        raise UserError(f"its tensors are not those of the model: {'; '.join(told)}")
    if misshapen:
        name = misshapen[0]
        raise UserError(
            f"{name} has shape {tuple(tensors[name].shape)}, and the model wants {tuple(expected[name].shape)}"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True, assign=True)
    if config.tied_head:
        model.gpt.lm_head.weight = model.gpt.transformer.wte.weight
    model.literal_captioner = literal_captioner
    return model.eval()


def _shortened(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
