"""What an open_clip config from a folder or the hub may ask for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clipcap.errors import UserError

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
RESIZE_MODES = ("shortest", "longest", "squash")
TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}
LARGEST = 1_000_000  # of any whole number in a config; the largest vocabularies have 256000 tokens
LARGEST_IMAGE = 4096  # pixels of a side
MOST_LAYERS = 200  # the deepest that open_clip knows has 56


def check_config(config: dict[str, Any], where: str, has_tokenizer: bool = True) -> None:
    """Raise a UserError for an open_clip config that leads elsewhere, brings code, or would take hours to build.

    Where the folder has the tokenizer, the name of the tokenizer's original home leads nowhere.
    """
    names = ("hf_model_name", "timm_model_name", *(() if has_tokenizer else ("hf_tokenizer_name",)))
    for name in ("text_cfg", "vision_cfg", *(name for name in ("multimodal_cfg",) if name in config)):
        if not isinstance(config.get(name), dict):
            raise UserError(f"{where} has no {name} that is a dictionary: use the config that open_clip saved")
    for name, part in config.items():
        if not name.endswith("_cfg") or not isinstance(part, dict):
            continue
        for key in names:
            if not HUB_NAME.fullmatch(str(part.get(key) or "none")):
                raise UserError(f"{where} names {key} {part[key]!r}, which is no model's name: it is not opened")
        options = part.get("tokenizer_kwargs") or {}
        if not isinstance(options, dict) or not options.keys() <= TOKENIZER_OPTIONS:
            raise UserError(f"{where} gives its tokenizer other options than {', '.join(sorted(TOKENIZER_OPTIONS))}")
        layers = part.get("layers", 0)
        for number in layers if isinstance(layers, list) else [layers]:
            if type(number) is not int or not 0 <= number <= MOST_LAYERS:
                raise UserError(f"{where} wants {str(number)[:20]} layers; no CLIP has more than {MOST_LAYERS}")
        part.pop("timm_model_pretrained", None)  # the weights are here, and no others are to be fetched
    for name, value in [("embed_dim", config.get("embed_dim")), *_numbers(config)]:
        if type(value) is not int or not -LARGEST <= value <= LARGEST or (name == "embed_dim" and value < 1):
            raise UserError(f"{where} says {name} {str(value)[:20]!r}, which is no size of a CLIP")
    sides = config["vision_cfg"].get("image_size", 224)
    sides = sides if isinstance(sides, list) and len(sides) == 2 else [sides]
    if not all(type(side) is int and 1 <= side <= LARGEST_IMAGE for side in sides):
        raise UserError(f"{where} says image_size {str(sides)[:40]}; each side has 1 to {LARGEST_IMAGE} pixels")


def _numbers(config: dict[str, Any]) -> list[tuple[str, int]]:
    """Every whole number of the config's parts, with its name."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    listed = [(name, value if isinstance(value, list) else [value]) for part in parts for name, value in part.items()]
    return [(name, value) for name, values in listed for value in values if type(value) is int]


@contextmanager
def no_code() -> Iterator[None]:
    """Inside, a config that brings code is refused: open_clip lets transformers ask whether to run it."""
    from transformers import dynamic_module_utils

    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def check_preprocessing(config: Any, where: str) -> None:
    """Raise a UserError unless this is a `preprocess_cfg` whose values are those of pictures."""
    if not isinstance(config, dict):
        raise UserError(f"{where} has a preprocess_cfg that is no dictionary: use the config that open_clip saved")
    for name, least in (("mean", -math.inf), ("std", 0)):
        value = config.get(name, [0.5] * 3)
        three = isinstance(value, list | tuple) and len(value) == 3
        if not three or not all(type(number) in (int, float) and least < number < math.inf for number in value):
            raise UserError(f"{where} says {name} {str(value)[:40]!r}, and it must be three numbers, std's above 0")
    if config.get("resize_mode", "shortest") not in RESIZE_MODES:
        raise UserError(f"{where} wants another resize_mode than {', '.join(RESIZE_MODES)}")
    if not isinstance(config.get("interpolation", "bicubic"), str):
        raise UserError(f"{where} has an interpolation that is no name, as bicubic is")
    fill = config.get("fill_color", 0)
    if type(fill) is not int or not 0 <= fill <= 255:
        raise UserError(f"{where} says fill_color {str(fill)[:40]!r}, and it must be a grey value from 0 to 255")
