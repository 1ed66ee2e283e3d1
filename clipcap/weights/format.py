"""The .pt format: a model and everything needed to rebuild it and to feed it, in one file of plain values and tensors.

    {"format": "clipcap", "version": 1,
     "config": the fields of ClipCapConfig, "record": how it was trained, "tensors": {name: tensor},
     "literal_captioner": {"config", "tensors"}         only in prompted weights
     "base": {"weights", "sha256"}, "lora": {...}}      only in LoRA weights, whose tensors are those that trained

Files are written whole or not at all, and read without executing anything in them (`weights_only`). A file must hold
exactly the tensors of its model, no fewer and no more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipcap.clip.archive import check_stored
from clipcap.errors import UserError, first_line
from clipcap.files import NO_ROOM, whole_file
from clipcap.model.clipcap import ClipCap
from clipcap.model.config import ClipCapConfig
from clipcap.model.networks import check_runs, compute_frequencies, embedding_of
from clipcap.model.prompts import check_template
from clipcap.weights.folder import read_folder
from clipcap.weights.sizes import check_sizes

FORMAT, VERSION = "clipcap", 1
CONFIG_FIELDS = {field.name for field in dataclasses.fields(ClipCapConfig)}


def header(model: ClipCap) -> dict[str, Any]:
    """What every file begins with: format, version, config and record."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": dataclasses.asdict(model.config),
        "record": model.record,
    }


def write(payload: Mapping[str, Any], path: str | Path) -> None:
    """Write a payload; the file appears only when it is complete. Raises UserError, and OSError for a full disk."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            torch.save(dict(payload), file)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another output folder") from None


def read(path: str | Path) -> dict[str, Any]:
    """The content of a .pt file, with tensors mapped from the disk where possible; nothing in it is executed.

    A `model.safetensors` gives the same, with what lies beside it.

    Raises:
        UserError: the file cannot be read, or holds something else than named tensors and plain values.
    """
    if Path(path).suffix == ".safetensors":
        return read_folder(Path(path))
    try:
        check_stored(Path(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on pickles that it did not write
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                content = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is no file of weights, or it holds more than tensors and plain values: it was not loaded"
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        reason = first_line(error)[:200]
        raise UserError(f"{path} cannot be read, it may be truncated ({reason}); copy or download it again") from None
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds a {type(content).__name__}, not the weights of a model")
    return dict(content)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal, by which the file is recognised."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_config(fields: Any) -> ClipCapConfig:
    """The config that a file holds. Raises UserError for an unknown field or a value that no config may have."""
    if not isinstance(fields, Mapping) or not fields.keys() <= CONFIG_FIELDS:
        raise UserError("its config is missing, or its fields are not those of this version")
    config = ClipCapConfig(**fields)
    check_template(config.prompt or "")
    return config


def configure(config: ClipCapConfig, overrides: Mapping[str, Any]) -> ClipCapConfig:
    """The config with new values for its own fields and for the `heads` of GPT-2; other overrides are ignored.

    Raises:
        UserError: a value is of another type or out of its range.
    """
    changed = {name: value for name, value in overrides.items() if name in CONFIG_FIELDS}
    if "heads" in overrides:
        changed["gpt2"] = {**changed.get("gpt2", config.gpt2), "n_head": overrides["heads"]}
    return dataclasses.replace(config, **changed)


def build(config: ClipCapConfig, tensors: Mapping[str, Tensor], literal_captioner: ClipCap | None = None) -> ClipCap:
    """A model of this config that holds exactly these tensors.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape, or sizes do not fit together.
    """
    check_sizes(config, tensors)
    with torch.device("meta"):
        model = ClipCap(config)
        if config.network:
            check_runs(model.gpt, config.width)
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
        model.head.weight = embedding_of(model.gpt).weight
    compute_frequencies(model.gpt)
    model.literal_captioner = literal_captioner
    return model.eval()


def _shortened(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
