"""A model as a folder, as the hub keeps one: tensors as safetensors, everything else as JSON.

    model.safetensors    the tensors; those of a literal captioner begin with "literal_captioner."; of two that are one,
                         as with a tied head, the first alone, and in the metadata the name of the other
    config.json          {"format": "clipcap", "version", "config", "record", "literal_captioner": {"config"}}
    tokenizer.json       the tokenizer of each config that has no field "tokenizer"

The content is that of a .pt file (see `clipcap.weights.format`), and is checked in the same way.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipcap.errors import UserError, first_line
from clipcap.files import read_json, read_text
from clipcap.model.clipcap import LITERAL_CAPTIONER

TENSORS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def read_folder(file: Path) -> dict[str, Any]:
    """What a .pt file would hold, from a `model.safetensors` and what lies beside it.

    Raises:
        UserError: a file is missing or damaged, or the model is not one of this project.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    described = read_json(file.with_name(CONFIG))
    if not isinstance(described, dict) or described.get("format") != "clipcap":
        raise UserError(f"{file.with_name(CONFIG)} does not describe a model of this project: give other weights")
    if "base" in described:  # which could lead back here: the SHA-256 of the tensors says nothing about the config
        raise UserError(
            f"{file.with_name(CONFIG)} names a base, and only adapters in a .pt have one: give other weights"
        )
    try:
        tensors = load_file(file)
        with safe_open(file, framework="pt") as stored:
            same = stored.metadata() or {}
    except Exception as error:  # the library raises what it likes
        raise UserError(
            f"{file} cannot be read, it may be truncated ({first_line(error)[:200]}); get it again"
        ) from None
    tensors |= {name: tensors[first] for name, first in same.items() if first in tensors and name not in tensors}
    literal = described.get("literal_captioner")
    parts = [(described, {n: t for n, t in tensors.items() if literal is None or not n.startswith(LITERAL_CAPTIONER)})]
    if isinstance(literal, dict):
        mine = {n.removeprefix(LITERAL_CAPTIONER): t for n, t in tensors.items() if n.startswith(LITERAL_CAPTIONER)}
        parts.append((literal, mine))
    for part, own in parts:
        config = part.get("config")
        if isinstance(config, dict) and "tokenizer" not in config:
            config["tokenizer"] = read_text(file.with_name(TOKENIZER))
        part["tensors"] = own
    return described


def write_folder(payload: Mapping[str, Any], folder: Path) -> None:
    """Write what `checkpoint.model_payload` gives into a folder. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    described = {name: value for name, value in payload.items() if name != "tensors"}
    described["config"], tokenizer = _split(payload["config"])
    tensors = dict(payload["tensors"])
    if literal := payload.get("literal_captioner"):
        config, own = _split(literal["config"])
        described["literal_captioner"] = {"config": config if own == tokenizer else literal["config"]}
        tensors |= {LITERAL_CAPTIONER + name: tensor for name, tensor in literal["tensors"].items()}
    if tokenizer is not None:
        (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(_plain(described), indent=1, ensure_ascii=False), encoding="utf-8")
    first: dict[int, str] = {}
    firsts = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    same = {name: earlier for name, earlier in firsts.items() if earlier != name}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if name not in same}
    try:
        save_file(kept, folder / TENSORS, metadata={"format": "pt"} | same)
    except SafetensorError as error:
        raise _os_error(error, folder / TENSORS) from None


def _os_error(error: Exception, file: Path) -> Exception:
    """The OSError that safetensors has put into words ("No space left on device (os error 28)"), or else its own."""
    told = re.search(r"([^:]*) \(os error (\d+)\)", str(error))
    number = int(told[2]) if told else 0
    return OSError(number, told[1].strip(), str(file), number) if told else error  # the last one counts in Windows


def _split(config: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """A config without its tokenizer, and the tokenizer; one without a tokenizer stays as it is."""
    tokenizer = config["tokenizer"]
    return {name: value for name, value in config.items() if name != "tokenizer" or tokenizer is None}, tokenizer


def _plain(value: Any) -> Any:
    """A record's values as JSON has them: a loss that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
