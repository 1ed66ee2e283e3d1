"""CLIP, by way of open_clip: pictures and texts -> embeddings. The only importer of open_clip.

Shapes: B batch, H x W pixels, C CLIP width. Embeddings are as CLIP's projection gives them, not normalised.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from torch import Tensor, nn

from clipcap.demo import CLIP
from clipcap.errors import UserError
from clipcap.fast_vit import FastViT, is_plain_vit
from clipcap.images import load_pixels
from clipcap.network import offline_if_unreachable
from clipcap.preprocessing import Preprocessing

OPENAI_NAMES = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
CONFIGS = ("open_clip_config.json", "config.json")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
ARCHIVE_EXTRAS = ("input_resolution", "context_length", "vocab_size")
PREFERRED = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass
class ClipEncoder:
    """A CLIP model in one precision on one device, its preprocessing, and the name that data and checkpoints record."""

    model_name: str
    pretrained: str | None
    dim: int
    preprocessing: Preprocessing
    model: nn.Module
    make_tokenizer: Callable[[], Callable[[list[str]], Tensor]]
    device: torch.device
    dtype: torch.dtype
    fast: FastViT | None = None  # computes what model.encode_image does, where it can
    _tokenizer: Any = None

    @property
    def identity(self) -> dict[str, str | int | None]:
        return {"model": self.model_name, "pretrained": self.pretrained, "dim": self.dim}

    @classmethod
    def load(
        cls,
        name: str | Path = "ViT-B/32",
        pretrained: str | Path | None = "openai",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ClipEncoder:
        """Load a CLIP model.

        Args:
            name: OpenAI's or open_clip's name of a model, also as "name:pretrained"; a folder that holds an open_clip
                config and weights; a file of OpenAI's own; "hf-hub:owner/name"; or "demo".
            pretrained: a tag that open_clip knows for this model, or a file of weights. Unused where `name` says all.
            dtype: of the weights, and so of the arithmetic; embeddings come back in float32.

        Raises:
            UserError: unknown name or tag (near ones are listed); weights that cannot be read, do not fit the model or
                cannot be downloaded.
        """
        name, pretrained = _split(str(name), str(pretrained or ""))
        if name == "demo" or Path(name).is_dir():
            folder = CLIP if name == "demo" else Path(name).resolve()
            parts = _from_folder(folder)
            name, pretrained = name if name == "demo" else str(folder), ""
        elif name.startswith("hf-hub:"):
            parts = _from_hub(name)
            pretrained = ""
        else:
            parts = _from_registry(name, pretrained)
        model = parts.model.eval().requires_grad_(False)
        plain = type(model) is open_clip.CLIP and is_plain_vit(model.visual)
        fast = FastViT(model.visual, partial(Tensor.to, device=device, dtype=dtype)) if plain else None
        model = model.to(device=device, dtype=dtype)
        preprocessing = _preprocessing(model, parts.preprocess_cfg)
        device = torch.device(device)
        return cls(name, pretrained or None, parts.dim, preprocessing, model, parts.make_tokenizer, device, dtype, fast)

    @torch.inference_mode()
    def encode_pixels(self, pixels: np.ndarray | Tensor) -> Tensor:
        """uint8 pixels (B, H, W, 3) from `preprocessing` -> float32 (B, C) on the CPU."""
        pixels = torch.as_tensor(pixels)
        at_once = self.fast.at_once if self.fast and self.device.type == "cpu" else max(1, len(pixels))
        return torch.cat([self._encode(part) for part in pixels.split(at_once)])

    def _encode(self, pixels: Tensor) -> Tensor:
        mean, std = torch.tensor([self.preprocessing.mean, self.preprocessing.std], device=self.device)
        images = torch.addcmul(-mean / std, pixels.to(self.device).float(), 1 / (255 * std))  # (B, H, W, 3)
        images = images.to(self.dtype).permute(0, 3, 1, 2)
        return (self.fast(images) if self.fast else self.model.encode_image(images.contiguous())).float().cpu()

    def encode_images(self, images: Sequence[str | Path | Image.Image], batch_size: int = 64) -> Tensor:
        """Paths or pictures -> float32 (B, C) on the CPU. Raises UnreadableImage for one that cannot be read."""
        embeddings = [torch.empty(0, self.dim)]
        for start in range(0, len(images), batch_size):
            batch = [load_pixels(image, self.preprocessing) for image in images[start : start + batch_size]]
            embeddings.append(self.encode_pixels(np.stack(batch)))
        return torch.cat(embeddings)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts, cut to the length that the model reads -> float32 (B, C) on the CPU."""
        self._tokenizer = self._tokenizer or _tokenizer(self.model_name, self.make_tokenizer)
        embeddings = [torch.empty(0, self.dim)]
        for start in range(0, len(texts), batch_size):
            tokens = self._tokenizer(list(texts[start : start + batch_size])).to(self.device)
            embeddings.append(self.model.encode_text(tokens).float().cpu())
        return torch.cat(embeddings)


def registry_name(name: str) -> str:
    """OpenAI's or open_clip's name -> open_clip's name. Raises UserError for an unknown one."""
    registered = name.replace("/", "-").replace("@", "-").removesuffix("px")
    known = open_clip.list_models()
    if registered not in known:
        near = get_close_matches(registered, known, n=5) or OPENAI_NAMES
        raise UserError(f"{name!r} is neither a folder nor a CLIP model's name; near names are: {', '.join(near)}")
    return registered


def uses_quick_gelu(name: str, pretrained: str) -> bool:
    """Whether these weights were trained with QuickGELU: with the wrong activation they load, and see badly.

    A tag knows. A file does not, so the model's name decides: OpenAI's names promise OpenAI's weights.
    """
    registered = registry_name(name)
    if open_clip.get_model_config(registered).get("quick_gelu", False):
        return True
    tag = open_clip.get_pretrained_cfg(registered, pretrained)
    return tag.get("quick_gelu", False) if tag else name in OPENAI_NAMES


class _Parts(NamedTuple):
    model: nn.Module
    dim: int
    preprocess_cfg: dict
    make_tokenizer: Callable[[], Callable[[list[str]], Tensor]]


def _split(name: str, pretrained: str) -> tuple[str, str]:
    if Path(name).is_file():
        return _name_of_file(Path(name)), name
    if name.startswith("hf-hub:") or Path(name).is_dir():
        return name, ""
    model, _, weights = name.partition(":")
    return model, weights or pretrained


def _name_of_file(file: Path) -> str:
    """OpenAI's files bear the names of their models: "ViT-L-14-336px.pt"."""
    names = {name.replace("/", "-").replace("@", "-"): name for name in OPENAI_NAMES}
    if file.stem not in names:
        raise UserError(
            f"{str(file)!r} does not say which CLIP model it holds; write MODEL:FILE, as in ViT-B/32:{file}"
        )
    return names[file.stem]


def _from_registry(name: str, pretrained: str) -> _Parts:
    registered = registry_name(name)
    tag = open_clip.get_pretrained_cfg(registered, pretrained)
    if not tag and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(registered))
        known = f"known are: {tags}" if tags else "none are known, give a file of weights"
        raise UserError(f"{pretrained!r} is neither a file nor the name of weights for CLIP {name!r}; {known}")
    config = open_clip.get_model_config(registered)
    config["quick_gelu"] = uses_quick_gelu(name, pretrained)
    model = _build(config, _download(name, pretrained, tag) if tag else Path(pretrained))
    return _Parts(model, config["embed_dim"], tag, partial(open_clip.get_tokenizer, registered))


def _download(name: str, pretrained: str, tag: dict) -> Path:
    offline_if_unreachable()
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # each layer below has its own exceptions for "no network"
        raise UserError(
            f"the weights {pretrained!r} of CLIP {name!r} are not on this machine and could not be downloaded "
            f"({type(error).__name__}); go online once, or give a file as {name}:FILE, or a folder saved by open_clip"
        ) from error


def _from_hub(name: str) -> _Parts:
    offline_if_unreachable()
    try:
        model, config = open_clip.create_model(name, require_pretrained=True), open_clip.get_model_config(name)
    except Exception as error:
        raise UserError(f"CLIP {name!r} could not be loaded ({type(error).__name__}); go online once") from error
    return _Parts(model, config["embed_dim"], model.visual.preprocess_cfg, partial(open_clip.get_tokenizer, name))


def _from_folder(folder: Path) -> _Parts:
    """A folder as open_clip saves it: {"model_cfg": ..., "preprocess_cfg": ...}, weights, and its tokenizer if any."""
    file = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    weights = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if not file or not weights:
        missing = CONFIGS[0] if not file else f"weights ({', '.join(WEIGHTS)})"
        raise UserError(f"the CLIP folder {str(folder)!r} holds no {missing}; give a folder saved by open_clip")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        config = saved["model_cfg"]
        dim, text = config["embed_dim"], config["text_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(file)!r} is not an open_clip config with a complete 'model_cfg'") from error
    model = _build(config, next((file for file in weights if file.name in PREFERRED), weights[0]))
    return _Parts(model, dim, saved.get("preprocess_cfg", {}), partial(_folder_tokenizer, folder, text))


def _folder_tokenizer(folder: Path, text: dict) -> Callable[[list[str]], Tensor]:
    # open_clip reads an HF tokenizer from the folder itself, whatever name its config gives.
    length, options = text.get("context_length", 77), text.get("tokenizer_kwargs") or {}
    if text.get("hf_tokenizer_name"):
        mode = text.get("tokenizer_mode")
        return HFTokenizer(str(folder), context_length=length, tokenizer_mode=mode, **options)
    return open_clip.SimpleTokenizer(context_length=length, **options)


def _tokenizer(name: str, make: Callable[[], Callable[[list[str]], Tensor]]) -> Callable[[list[str]], Tensor]:
    try:
        return make()
    except Exception as error:
        raise UserError(f"the tokenizer of CLIP {name!r} could not be loaded ({_first_line(error)})") from error


def _build(config: dict, weights: Path) -> nn.Module:
    """The model that an open_clip config describes, filled strictly: no tensor missing, none left over."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    hf_text = "hf_model_name" in config["text_cfg"]
    if hf_text:
        config["text_cfg"]["hf_model_pretrained"] = False
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) or hf_text else open_clip.CLIP
    try:
        model = (open_clip.CoCa if "multimodal_cfg" in config else kind)(**config)
        if _is_torchscript(weights):
            state = torch.jit.load(str(weights), map_location="cpu").state_dict()
            model.load_state_dict({name: tensor for name, tensor in state.items() if name not in ARCHIVE_EXTRAS})
        else:
            open_clip.load_checkpoint(model, str(weights))
    except Exception as error:
        raise UserError(f"{str(weights)!r} does not hold weights of this CLIP model ({_first_line(error)})") from error
    return model


def _is_torchscript(file: Path) -> bool:
    """OpenAI's own downloads are TorchScript archives, which `torch.load(weights_only=True)` refuses."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _preprocessing(model: nn.Module, config: dict) -> Preprocessing:
    size = model.visual.image_size
    known = {field.name for field in fields(Preprocessing)} - {"size"}
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items() if name in known
    }
    return Preprocessing(size=(size, size) if isinstance(size, int) else tuple(size), **options)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
