"""Models to and from files: our own format, LoRA files with their base, and what others published.

The format itself is described in `format`, published files are read by `convert`, adapters by `lora`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipcap.clip.tensors import check_finite, check_plain
from clipcap.errors import UserError, shown
from clipcap.model.clipcap import LITERAL_CAPTIONER, ClipCap
from clipcap.model.parts import tied_names
from clipcap.weights import convert, lora
from clipcap.weights.format import CONFIG_FIELDS, FORMAT, VERSION, build, configure, header, read, read_config, write
from clipcap.weights.places import base_among, check_language_model_place, find_base
from clipcap.weights.published import resolve_weights

# Of a record: beyond these it is no record, but something to make the machine work.
LARGEST_NUMBER, DEEPEST, MOST_VALUES = 10**300, 50, 2_000_000
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold
OVERRIDES = CONFIG_FIELDS | {"heads", "alpha", "base"}


def save_checkpoint(model: ClipCap, path: str | Path) -> None:
    """Write a model, with its config, record and literal captioner, to one file. Raises UserError."""
    write(model_payload(model), path)


def model_payload(model: ClipCap) -> dict[str, Any]:
    """What `save_checkpoint` writes, before it is written."""
    payload = header(model) | {"tensors": _tensors(model)}
    if model.literal_captioner is not None:
        literal = model.literal_captioner
        payload["literal_captioner"] = {"config": dataclasses.asdict(literal.config), "tensors": _tensors(literal)}
    return payload


def _tensors(model: ClipCap) -> dict[str, Tensor]:
    tensors = {n: t.detach().cpu() for n, t in model.state_dict().items() if not n.startswith(LITERAL_CAPTIONER)}
    if model.config.tied_head:
        embedding, head = tied_names(model)
        tensors[head] = tensors[embedding]  # one storage, written once
    return tensors


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu", **overrides: Any) -> ClipCap:
    """A model from a file of this project or a published one, in evaluation mode.

    Args:
        path: a file, or a name known to `clipcap.weights.published` ("coco", "conceptual", "coco-transformer", ...).
        device: where to put the model.
        overrides: any field of ClipCapConfig; `heads` of GPT-2 and LoRA's `alpha` for published files, which do not
            hold them; `normalize` and `prompt` for those alone, since a file of this project says both itself; `base`,
            the weights that LoRA weights were trained on. `prompt=PROMPTS["template"]` puts the prompt of
            `prompt_finetuning.py` into published prompted weights, whose own code captions without one.

    Raises:
        UserError: the file cannot be read, does not hold exactly the tensors of a model, or an override is unknown.
    """
    unknown = sorted(set(overrides) - OVERRIDES)
    if unknown:
        raise UserError(f"unknown keyword {unknown[0]!r} for weights; known are {', '.join(sorted(OVERRIDES))}")
    overrides = {name: value for name, value in overrides.items() if value is not None}
    file = resolve_weights(path)
    content = read(file)
    try:
        model = _model_of(content, file, overrides)
        if "base" in overrides and "base" not in content:
            raise UserError(f"it holds no adapters and so has no base: leave out {overrides['base']} (--base)")
        if "language_model" not in overrides:
            check_language_model_place(model.config, file)
        if model.literal_captioner is not None:
            check_language_model_place(model.literal_captioner.config, file)
    except UserError as error:
        raise UserError(f"{file} cannot be used: {error}") from None
    return model.to(device).eval()


def _model_of(content: Mapping[str, Any], file: Path, overrides: Mapping[str, Any]) -> ClipCap:
    """The model in a file of either kind, adapters merged into their base. Raises UserError."""
    most_bytes = 2 * file.stat().st_size  # a tied head is stored once and has two names
    if content.get("format") != FORMAT:
        _check_published(content, most_bytes)
        return _from_published(content, overrides)
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise UserError(
            f"it has version {shown(content.get('version'))} of the format, and this release reads {VERSION}: "
            "use the release that wrote it, or update the project"
        )
    _check_own(content, most_bytes)
    _check_said(content.get("config"), overrides)
    if "base" not in content:
        return _from_own(content, overrides)
    given = overrides.get("base")
    base = find_base(content, file, given)
    whole = load_checkpoint(base, base=base_among(base, given))  # the base may hold adapters itself
    return lora.load_adapters(content, whole, overrides)


def _check_own(content: Mapping[str, Any], most_bytes: int) -> None:
    """Raise a UserError unless the parts of a file of our own are what they should be, before any of them is used."""
    literal = content.get("literal_captioner")
    for part in (content, literal) if literal is not None else (content,):
        if not isinstance(part, Mapping) or not isinstance(part.get("tensors"), Mapping):
            raise UserError("its tensors are missing")
        check_plain(part["tensors"], most_bytes)
        check_finite(part["tensors"])
    _check_record(content.get("record", {}))


def _check_said(config: Any, overrides: Mapping[str, Any]) -> None:
    """Raise a UserError where a file of our own, which says what it was trained with, is contradicted."""
    if not isinstance(config, Mapping):
        return
    said = config.get("normalize", False)
    if overrides.get("normalize", said) != said:
        flag, done = ("--normalize", "without") if overrides["normalize"] else ("--no-normalize", "with")
        raise UserError(
            f"it was trained {done} normalisation of CLIP's embeddings, as it says itself: leave {flag} out"
        )
    if overrides.get("prompt", said := config.get("prompt")) != said:
        raise UserError(
            f"it was trained with the prompt {said!r}, as it says itself: leave prompt= (--with-prompt) out"
        )


def _check_record(record: Any) -> None:
    """Raise a UserError unless the record is a dictionary of plain values, as a report or JSON can show them."""
    if not isinstance(record, dict):
        raise UserError("its record of how it was trained is no dictionary")
    waiting, seen = [(record, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        plain = value is None or isinstance(value, bool | float | str | list | tuple | dict)
        plain = plain or (isinstance(value, int) and abs(value) < LARGEST_NUMBER)
        if isinstance(value, str):
            plain = not SURROGATE.search(value)
        elif isinstance(value, dict):
            plain = all(isinstance(key, str) and not SURROGATE.search(key) for key in value)
            waiting += [(part, depth + 1) for part in value.values()]
        elif isinstance(value, list | tuple):
            waiting += [(part, depth + 1) for part in value]
        if not plain or depth > DEEPEST or seen + len(waiting) > MOST_VALUES:
            raise UserError("its record of how it was trained holds more than texts, numbers, lists and dictionaries")


def _from_own(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> ClipCap:
    literal = content.get("literal_captioner")
    model = build(
        configure(read_config(content.get("config")), overrides),
        content["tensors"],
        build(read_config(literal.get("config")), literal["tensors"]) if literal is not None else None,
    )
    model.record = content.get("record", {})
    return model


def _check_published(content: Mapping[str, Any], most_bytes: int) -> None:
    """Raise a UserError unless these are named tensors of finite numbers."""
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        raise UserError("it is neither a file of this project nor a published state dict")
    # GPT-2's old masks are not read.
    used = {name: t for name, t in content.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    check_plain(used, most_bytes)
    check_finite(used)


def _from_published(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> ClipCap:
    tensors, literal_tensors = convert.split_literal(lora.merge_lora(content, overrides.get("alpha")))
    literal = None
    if literal_tensors:
        literal_tensors = convert.without_old_buffers(literal_tensors)
        literal = build(convert.infer_config(literal_tensors, overrides.get("heads")), literal_tensors)
    tensors = convert.without_old_buffers(tensors)
    config = convert.infer_config(tensors, overrides.get("heads"))
    return build(configure(config, overrides), tensors, literal)
