"""Loading CLIP through open_clip: by name, from a folder, from a file, or from the hub.

This is the only module of the package that imports open_clip.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from clipcap.clip.archive import check_stored, is_archive, read_archive
from clipcap.clip.config import check_config, check_preprocessing, no_code
from clipcap.clip.names import CONFIGS, WIDTHS, is_folder, model_and_weights, name_of_file, open_clip_name
from clipcap.clip.preprocessing import Preprocessing
from clipcap.clip.tensors import NotResized, check_finite, check_room, uninitialised
from clipcap.errors import UserError
from clipcap.files import read_json
from clipcap.offline import offline_if_unreachable
from clipcap.world import shipped

Tokenize = Callable[[list[str]], Tensor]  # texts -> token ids (texts, context length)
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
ARCHIVE_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # not weights, though OpenAI stores them as such
PREFERRED = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


class ClipModel(Protocol):
    """What this project uses of an open_clip model, whose package carries no types. It is an `nn.Module`.

    Shapes: B batch, H x W pixels, T tokens, C CLIP width.
    """

    visual: Any  # the image tower, an nn.Module

    def encode_image(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, C)."""

    def encode_text(self, text: Tensor) -> Tensor:
        """Token ids (B, T) -> (B, C)."""

    def modules(self) -> Iterator[Any]:
        """As `nn.Module.modules`."""

    def state_dict(self) -> dict[str, Tensor]:
        """As `nn.Module.state_dict`."""

    def eval(self) -> Self:
        """As `nn.Module.eval`."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As `nn.Module.requires_grad_`."""

    def to(self, *, device: torch.device | str, dtype: torch.dtype) -> Self:
        """As `nn.Module.to`."""


def registry_name(name: str) -> str:
    """OpenAI's or open_clip's name -> open_clip's name. Raises UserError for a name that open_clip does not know."""
    registered = open_clip_name(name)
    known = open_clip.list_models()
    if registered not in known:
        near = get_close_matches(registered, known, n=5) or list(WIDTHS)
        raise UserError(f"{name!r} is neither a CLIP model's name nor a folder of one; near names: {', '.join(near)}")
    return registered


def uses_quick_gelu(name: str, pretrained: str) -> bool:
    """Whether these weights were trained with QuickGELU. With the wrong activation they load, but see badly.

    For a tag open_clip knows the answer. A file does not say it, unless it is an archive, which is always OpenAI's; so
    the model's name decides: under OpenAI's spelling of it, the file is taken to hold OpenAI's weights.
    """
    registered = registry_name(name)
    if open_clip.get_model_config(registered).get("quick_gelu", False):
        return True
    tag = open_clip.get_pretrained_cfg(registered, pretrained)
    return tag.get("quick_gelu", False) if tag else name in WIDTHS


class Parts(NamedTuple):
    """A CLIP model as it was loaded: in float32, on the CPU."""

    model: ClipModel
    dim: int
    preprocessing: Preprocessing
    make_tokenizer: Callable[[], Tokenize]

    @property
    def plain(self) -> bool:
        """Whether `visual` alone makes the image embeddings, as in OpenAI's CLIP."""
        return type(self.model) is open_clip.CLIP


def load_parts(name: str, pretrained: str) -> tuple[str, str, Parts]:
    """The name and the weights' name that datasets record, and the model; for the arguments see `ClipEncoder.load`.

    Raises:
        UserError: the name or tag is unknown, or the weights cannot be read, do not fit the model or cannot be
            downloaded.
    """
    asked, (name, pretrained) = name, model_and_weights(name, pretrained)
    if (name == "demo" or is_folder(name)) and asked.startswith(f"{name}:"):
        raise UserError(f"CLIP {name!r} has weights of its own: leave out {asked.removeprefix(name)!r}")
    if name == "demo":
        return name, "", _from_folder(shipped.CLIP)
    if is_folder(name):
        folder = Path(name).resolve()
        return str(folder), "", _from_folder(folder)
    if Path(name).is_file():
        name, pretrained = name_of_file(Path(name)), name
    if name.startswith("hf-hub:"):
        return name, "", _from_hub(name)
    return name, pretrained, _from_registry(name, pretrained)


def _from_registry(name: str, pretrained: str) -> Parts:
    registered = registry_name(name)
    tag = open_clip.get_pretrained_cfg(registered, pretrained)
    if not tag and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(registered))
        known = f"known are: {tags}" if tags else "none are known, give a file of weights"
        raise UserError(f"{pretrained!r} is neither a file nor the name of weights for CLIP {name!r}; {known}")
    config = open_clip.get_model_config(registered)
    config["quick_gelu"] = uses_quick_gelu(name, pretrained)
    model = _build(config, _download(name, pretrained, tag) if tag else Path(pretrained))
    return Parts(model, config["embed_dim"], _preprocessing(model, tag), partial(open_clip.get_tokenizer, registered))


def _download(name: str, pretrained: str, tag: dict[str, Any]) -> Path:
    offline_if_unreachable()
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # each layer below has its own exceptions for "no network"
        raise UserError(
            f"the weights {pretrained!r} of CLIP {name!r} are not on this machine and could not be downloaded "
            f"({type(error).__name__}); go online once, or give a file as {name}:FILE, or a folder saved by open_clip"
        ) from error


def _from_hub(name: str) -> Parts:
    """Config and weights, which the hub's client puts into one folder. The tokenizer stays where the config says."""
    offline_if_unreachable()
    repository = name.removeprefix("hf-hub:")
    try:
        _, folder = (Path(download_pretrained_from_hf(repository, file)).parent for file in (None, CONFIGS[0]))
    except Exception as error:
        told = f"({_first_lines(error)}); check its spelling, and go online once"
        raise UserError(f"CLIP {name!r} could not be loaded {told}") from error
    return _from_folder(folder, has_tokenizer=False)


def _from_folder(folder: Path, has_tokenizer: bool = True) -> Parts:
    """A folder as open_clip saves it: {"model_cfg": ..., "preprocess_cfg": ...}, weights, and perhaps a tokenizer."""
    file = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    weights = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if not file or not weights:
        missing = CONFIGS[0] if not file else f"weights ({', '.join(WEIGHTS)})"
        raise UserError(f"the CLIP folder {str(folder)!r} holds no {missing}; give a folder saved by open_clip")
    saved = read_json(file)
    try:
        config = saved["model_cfg"]
        dim, text = config["embed_dim"], config["text_cfg"]
        preprocessing = saved.get("preprocess_cfg", {})
    except (KeyError, TypeError) as error:
        raise UserError(f"{str(file)!r} is not an open_clip config with a complete 'model_cfg'") from error
    check_config(config, str(file), has_tokenizer)
    check_preprocessing(preprocessing, str(file))
    model = _build(config, next((file for file in weights if file.name in PREFERRED), weights[0]))
    tokenizer = partial(_tokenizer, text, folder if has_tokenizer else None)
    return Parts(model, dim, _preprocessing(model, preprocessing), tokenizer)


def _tokenizer(text: dict[str, Any], folder: Path | None) -> Tokenize:
    # The config names the tokenizer's original home; as open_clip does, a folder's is read from the folder instead.
    length, options = text.get("context_length", 77), text.get("tokenizer_kwargs") or {}
    if home := text.get("hf_tokenizer_name"):
        options = options | {"tokenizer_mode": text.get("tokenizer_mode"), "trust_remote_code": False}
        return HFTokenizer(str(folder or home), context_length=length, **options)
    return open_clip.SimpleTokenizer(context_length=length, **options)


def load_text_tokenizer(name: str, make: Callable[[], Tokenize]) -> Tokenize:
    """The tokenizer of a model's texts. Raises UserError."""
    try:
        return make()
    except Exception as error:
        raise UserError(f"the tokenizer of CLIP {name!r} could not be loaded ({_first_lines(error)})") from error


def _build(config: dict[str, Any], weights: Path) -> ClipModel:
    """The model that an open_clip config describes, with all of its tensors loaded and no tensor of the file unused."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    hf_text = "hf_model_name" in config["text_cfg"]
    if hf_text:
        config["text_cfg"]["hf_model_pretrained"] = False
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) or hf_text else open_clip.CLIP
    kind = open_clip.CoCa if "multimodal_cfg" in config else kind
    try:
        state = read_archive(weights) if is_archive(weights) else None
        if state is not None:
            config["quick_gelu"] = True  # OpenAI alone publishes archives, and trained all of its models with it
        with no_code(), torch.device("meta"):
            check_room(kind(**copy.deepcopy(config)), weights)
        model = uninitialised(partial(kind, **config))
        if state is not None:
            model.load_state_dict({name: tensor for name, tensor in state.items() if name not in ARCHIVE_EXTRAS})
        else:
            if weights.suffix != ".safetensors":
                check_stored(weights)
            with NotResized():
                open_clip.load_checkpoint(model, str(weights), weights_only=True)
        check_finite(model.state_dict())
    except Exception as error:
        raise UserError(f"{str(weights)!r} does not hold weights of this CLIP model ({_first_lines(error)})") from error
    return model


def _preprocessing(model: ClipModel, config: dict[str, Any]) -> Preprocessing:
    """The model's preprocessing: its image size, and what `config` says about the rest."""
    size = model.visual.image_size
    known = {field.name for field in fields(Preprocessing)} - {"size", "reduced"}
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items() if name in known
    }
    return Preprocessing(size=(size, size) if isinstance(size, int) else tuple(size), **options)


def _first_lines(error: Exception) -> str:
    """The first two lines of a message: PyTorch's first says only that something does not fit, the second says what."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
