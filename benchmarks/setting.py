"""What is measured on: full-size models with random weights, and photos with the spectrum of real ones.

Speed does not depend on what the weights have learnt, so nothing is downloaded and a clean clone measures the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from benchmarks.alternative import Alternative
from benchmarks.published import PublishedClipCap
from clipcap.captioning.captioner import Captioner
from clipcap.clip.encoder import ClipEncoder
from clipcap.clip.images import find_images
from clipcap.clip.tensors import convert
from clipcap.devices import pick_dtype
from clipcap.fast.exchange import speed_up
from clipcap.model.clipcap import ClipCap
from clipcap.model.config import END_OF_TEXT, ClipCapConfig

PHOTOS = ((640, 480), (480, 640), (800, 600), (1024, 768), (1080, 1080), (1080, 1350), (1600, 1200))
DIFFERENT_PHOTOS = 42  # a larger folder holds them several times
OURS = "ours"  # the contender that computes as the project does where nothing is said
Module = TypeVar("Module", bound=nn.Module)
SLOPE = 1.2  # amplitude falls with frequency ** SLOPE: about half a byte per pixel, as COCO's photos have


@dataclass(frozen=True)
class Sizes:
    """The architecture that is measured."""

    name: str = "CLIP ViT-B/32, MLP with prefix length 10, GPT-2 small"
    clip: dict = field(default_factory=lambda: open_clip.get_model_config("ViT-B-32") | {"quick_gelu": True})
    gpt2: dict = field(default_factory=dict)  # GPT2Config's defaults are GPT-2 small
    vocabulary: int = 50257
    prefix_length: int = 10
    photos: tuple[tuple[int, int], ...] = PHOTOS


TINY = Sizes(
    name="tiny models, which only show that the benchmark runs",
    clip={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    },
    gpt2={"vocab_size": 211, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4},
    vocabulary=211,
    prefix_length=4,
    photos=((64, 48), (48, 64)),
)


class Setting:
    """Models and photos, made on first use.

    Args:
        folder: an empty one, for photos and CLIP's weights.
        device: where to compute.
        sizes: of the models, and of the photos that are made.
        photos: a folder of photos to measure on instead.
    """

    def __init__(self, folder: Path, device: torch.device, sizes: Sizes, photos: str | None = None) -> None:
        self.folder, self.device, self.sizes, self.own_photos = folder, device, sizes, photos
        self.fast = pick_dtype("auto", device)
        self.precisions = {OURS: "auto"}  # contender: precision; all that a user would choose on this device
        if self.fast != torch.float32:
            self.precisions["ours, fp32"] = "fp32"
        if device.type == "cpu":
            self.precisions["ours, int8"] = "int8"

    def photos(self, count: int) -> list[Path]:
        """A folder of `count` photos."""
        folder = self.folder / f"photos_{count}"
        if not folder.is_dir():
            folder.mkdir()
            for number in range(count):
                photo = self._different_photos[number % len(self._different_photos)]
                os.link(photo, folder / f"{number:05}{photo.suffix}")
        return sorted(folder.iterdir())

    @cached_property
    def _different_photos(self) -> list[Path]:
        folder = self.folder / "photos"
        folder.mkdir()
        if self.own_photos:
            for number, photo in enumerate(find_images(self.own_photos)):
                (folder / f"{number:05}{photo.suffix}").write_bytes(photo.read_bytes())
        else:
            for number in range(DIFFERENT_PHOTOS):
                picture = noise_photo(*self.sizes.photos[number % len(self.sizes.photos)], seed=number)
                picture.save(folder / f"{number:05}.jpg", quality=90)
        return sorted(folder.iterdir())

    def describe_photos(self) -> str:
        """How many different ones there are, of what kind and how large."""
        files = self._different_photos
        size = sum(file.stat().st_size for file in files) / len(files)
        shapes = " to ".join("{} x {}".format(*self.sizes.photos[i]) for i in (0, -1))
        kind = self.own_photos and "the user's own" or f"noise with the spectrum of photographs, {shapes}"
        return f"{len(files)} different, {kind}, {size / 1000:.0f} kB on average"

    @cached_property
    def clip_folder(self) -> Path:
        """A CLIP model as open_clip saves one."""
        folder = self.folder / "clip"
        folder.mkdir()
        config = {"model_cfg": self.sizes.clip, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        model = seeded(lambda: open_clip.CLIP(**self.sizes.clip))
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        return folder

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Any byte-level BPE of the right size will do: here each token is a word, with the space in front of it."""
        words = {f"Ġword{number}": number for number in range(self.sizes.vocabulary - 1)}
        end = {END_OF_TEXT: self.sizes.vocabulary - 1}
        tokenizer = Tokenizer(models.BPE(words | end, merges=[], unk_token=END_OF_TEXT))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def model(self, dtype: torch.dtype = torch.float32) -> ClipCap:
        """ClipCap with random weights, the same ones at every call."""
        config = ClipCapConfig(
            clip_model=str(self.clip_folder),
            clip_pretrained=None,
            clip_dim=self.sizes.clip["embed_dim"],
            prefix_length=self.sizes.prefix_length,
            gpt2=self.sizes.gpt2,
            stop_token=self.sizes.vocabulary - 1,
            tokenizer=self.tokenizer.to_str(),
        )
        return seeded(lambda: ClipCap(config)).eval().to(self.device, dtype)

    def dtype(self, precision: str) -> torch.dtype:
        """Of the products with weights."""
        return torch.int8 if precision == "int8" else pick_dtype(precision, self.device)

    def encoder(self, precision: str = "auto") -> ClipEncoder:
        """The project's own encoder of the CLIP in `clip_folder`."""
        dtype = pick_dtype(precision, self.device)
        return ClipEncoder.load(self.clip_folder, None, self.device, dtype, int8=precision == "int8")

    def captioner(self, precision: str = "auto") -> Captioner:
        """What predict.py captions with."""
        return Captioner(self.decoder(precision), self.encoder(precision), self.tokenizer)

    def decoder(self, precision: str = "auto") -> ClipCap:
        """A model as `Captioner.load` leaves it: nothing in it trains."""
        model = self.model().requires_grad_(False)
        speed_up(model, int8=precision == "int8")
        return convert(model, pick_dtype(precision, self.device), self.device)

    def published(self, model: ClipCap) -> PublishedClipCap:
        """The baseline, on the weights of a float32 model and with its GPT-2."""
        return PublishedClipCap.of(model.state_dict(), model.gpt, *self._open_clip(torch.float32))

    def alternative(self, model: ClipCap) -> Alternative:
        """The pipeline that one would assemble instead, with a model's mapping network and GPT-2, in its dtype."""
        dtype = model.gpt.dtype
        return Alternative(*self._open_clip(dtype), model.clip_project, model.gpt)

    def _open_clip(self, dtype: torch.dtype) -> tuple[open_clip.CLIP, Callable]:
        clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{self.clip_folder}")
        return clip.eval().to(self.device, dtype), transform


def seeded(make: Callable[[], Module]) -> Module:
    """A module with the same random weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def noise_photo(width: int, height: int, seed: int) -> Image.Image:
    """Noise whose spectrum is that of photographs, so that its JPEG is as large and as slow to decode as theirs."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height, 1 / height)[:, None], np.fft.rfftfreq(width, 1 / width))
    frequency[0, 0] = 1
    planes = []
    for contrast in (50, 12, 12):  # luminance, blue and red difference
        noise = np.fft.irfft2(np.fft.rfft2(random.standard_normal((height, width))) / frequency**SLOPE, (height, width))
        planes.append(noise * (contrast / noise.std()) + 120)
    pixels = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels, "YCbCr").convert("RGB")
