"""CLIP models by name: OpenAI's names and widths, open_clip's spelling of them, and when two names mean the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from clipcap.errors import UserError

# OpenAI's models and the width C of their embeddings. A longer name stands before the name that it begins with, so that
# the first match in a file's name is the right one.
# https://github.com/openai/CLIP/blob/main/clip/clip.py
WIDTHS = {
    "ViT-L/14@336px": 768,
    "ViT-L/14": 768,
    "ViT-B/16": 512,
    "ViT-B/32": 512,
    "RN50x64": 1024,
    "RN50x16": 768,
    "RN50x4": 640,
    "RN101": 512,
    "RN50": 1024,
}
# The model that published weights of each width were trained on, for files that do not say it themselves.
CLIP_OF_WIDTH = {512: "ViT-B/32", 640: "RN50x4", 768: "ViT-L/14", 1024: "RN50"}
# The models that ClipCap itself used. For embeddings of another width the user has to name the model.
CLIP_OF_CLIPCAP = {512: "ViT-B/32", 640: "RN50x4"}
CONFIGS = ("open_clip_config.json", "config.json")  # a CLIP's folder holds one of them


class ClipIdentity(NamedTuple):
    """What datasets and weights record about the CLIP whose embeddings they hold or take."""

    model: str | None
    pretrained: str | None
    dim: int

    def __str__(self) -> str:
        pretrained = f"{self.pretrained}, " if self.pretrained else ""
        return f"{self.model or 'an unnamed CLIP'} ({pretrained}{self.dim} wide)"

    def same_as(self, other: ClipIdentity) -> bool:
        """Whether both mean the same CLIP, however its name is spelled."""
        return self._comparable() == other._comparable()

    def _comparable(self) -> tuple[str, str, int]:
        return open_clip_name(self.model or "").lower(), self.pretrained or "", self.dim


def file_name(name: str) -> str:
    """A model's name -> the name of OpenAI's file without its ending: ViT-L/14@336px -> ViT-L-14-336px."""
    return name.replace("/", "-").replace("@", "-")


def name_of_file(file: Path) -> str:
    """OpenAI's files are named after their models, as "ViT-L-14-336px.pt". Raises UserError for one that is not."""
    names = {file_name(name): name for name in WIDTHS}
    if file.stem not in names:
        raise UserError(
            f"{str(file)!r} does not say which CLIP model it holds; write MODEL:FILE, as in ViT-B/32:{file}"
        )
    return names[file.stem]


def open_clip_name(name: str) -> str:
    """A model's name -> open_clip's spelling of it: ViT-L/14@336px -> ViT-L-14-336."""
    return file_name(name).removesuffix("px")


def is_folder(name: str) -> bool:
    """Whether a CLIP's name means a folder: one with a config, or any that is written as a path, such as ./RN50x4."""
    is_path = os.path.isabs(name) or name.startswith(".")
    return os.path.isdir(name) and (is_path or any(os.path.isfile(os.path.join(name, config)) for config in CONFIGS))


def is_place(name: str) -> bool:
    """Whether a CLIP's name, or that of its weights, means a file or a folder of this machine."""
    return os.path.isfile(name) or is_folder(name)


def names_weights(name: str) -> bool:
    """Whether a CLIP's name says which weights it means: NAME:WEIGHTS, a file, a folder, one of the hub, or demo."""
    return name == "demo" or ":" in name or is_place(name)


def pretrained_of(name: str, pretrained: str | None) -> str:
    """The weights that the user names beside a model, by default OpenAI's.

    Raises:
        UserError: the model's name already says which weights it means, so that others would be ignored.
    """
    if pretrained and names_weights(name):
        raise UserError(f"--pretrained {pretrained} has no effect, since CLIP {name!r} names its weights: leave it out")
    return pretrained or "openai"


def model_and_weights(name: str, pretrained: str) -> tuple[str, str]:
    """What the user calls a CLIP, and weights for it -> its name without weights, and its weights, "" for its own.

    Raises:
        UserError: the name says already which weights it means, and `pretrained` others than "openai", the default.
    """
    if pretrained != "openai":
        pretrained_of(name, pretrained)
    if name == "demo" or name.startswith("hf-hub:") or is_place(name):
        return name, ""
    model, _, weights = name.partition(":")
    return model, weights or pretrained
