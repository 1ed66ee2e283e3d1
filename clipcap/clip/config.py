"""What an open_clip config from a folder or the hub may ask for."""

from __future__ import annotations

import re
from typing import Any

from clipcap.errors import UserError

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}
MOST_LAYERS = 200  # the deepest that open_clip knows has 56


def check_config(config: dict[str, Any], where: str) -> None:
    """Raise a UserError for an open_clip config that leads elsewhere, brings code, or would take hours to build."""
    for name, part in config.items():
        if not name.endswith("_cfg") or not isinstance(part, dict):
            continue
        for key in ("hf_model_name", "timm_model_name"):
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
