"""ClipCap for Instagram captioning: CLIP embedding -> prefix -> GPT-2 -> caption.

The public names are imported when they are first used, so that a command loads only what it needs.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Captioner": "captioning.captioner",
    "ClipCap": "model.clipcap",
    "ClipCapConfig": "model.config",
    "ClipEncoder": "clip.encoder",
    "Decoding": "decoding.options",
    "UserError": "errors",
    "load_checkpoint": "weights.checkpoint",
    "push_to_hub": "weights.publish",
    "save_checkpoint": "weights.checkpoint",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clipcap' has no attribute {name!r}")
    return getattr(import_module(f"clipcap.{_HOMES[name]}"), name)
