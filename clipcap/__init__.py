"""ClipCap for Instagram captioning: CLIP embedding -> prefix -> GPT-2 -> caption.

The public names are imported when first used, so that a command pays only for what it runs.
"""

from importlib import import_module

_HOMES = {
    "Captioner": "captioning.captioner",
    "ClipCap": "model.clipcap",
    "ClipCapConfig": "model.config",
    "ClipEncoder": "clip.encoder",
    "Decoding": "decoding.options",
    "UserError": "errors",
    "load_checkpoint": "weights.checkpoint",
    "save_checkpoint": "weights.checkpoint",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'clipcap' has no attribute {name!r}")
    return getattr(import_module(f"clipcap.{_HOMES[name]}"), name)
