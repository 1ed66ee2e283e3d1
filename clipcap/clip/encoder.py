"""CLIP, loaded through open_clip: pictures and texts -> embeddings.

Shapes: B batch, H x W pixels, C CLIP width. Embeddings are the output of CLIP's projection and are not normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipcap.clip.images import ImageSource, UnreadableImage
from clipcap.clip.jpegs import check_device
from clipcap.clip.loading import ClipModel, Tokenize, load_parts, load_text_tokenizer
from clipcap.clip.preprocessing import Preprocessing
from clipcap.clip.tensors import convert
from clipcap.clip.workers import pixel_batches
from clipcap.fast.int8 import give_back
from clipcap.fast.resnet import fold_batch_norms, is_resnet
from clipcap.fast.vit import FastViT, is_plain_vit


@dataclass
class ClipEncoder:
    """A CLIP model on one device and in one precision, with its preprocessing.

    Attributes:
        model_name: the name that datasets and checkpoints record.
        pretrained: which weights of that model, where the name alone does not say.
        dim: C, the width of the embeddings.
        preprocessing: from a picture to the pixels that the model takes.
        model: open_clip's model.
        make_tokenizer: loads the tokenizer; called when the first text is encoded, since most runs encode none.
        device: where the model is.
        dtype: of its weights.
        vit: computes the same as `model.encode_image`, only sooner; None where the model is not one that it supports.
            It stands in place of `model.visual`, which is let go.
    """

    model_name: str
    pretrained: str | None
    dim: int
    preprocessing: Preprocessing
    model: ClipModel
    make_tokenizer: Callable[[], Tokenize]
    device: torch.device
    dtype: torch.dtype
    vit: FastViT | None = None
    _tokenizer: Tokenize | None = None

    @property
    def identity(self) -> dict[str, str | int | None]:
        """What datasets and weights record about this CLIP."""
        return {"model": self.model_name, "pretrained": self.pretrained, "dim": self.dim}

    @classmethod
    def load(
        cls,
        name: str | Path = "ViT-B/32",
        pretrained: str | Path | None = "openai",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        fast: bool = True,
        int8: bool = False,
        decode_on_device: bool = False,
    ) -> ClipEncoder:
        """Load a CLIP model.

        Args:
            name: OpenAI's or open_clip's name of a model, also as "name:pretrained"; a folder that holds an open_clip
                config and weights; a file of OpenAI's own; "hf-hub:owner/name"; or "demo".
            pretrained: a tag that open_clip knows for this model, or a file of weights. Where `name` already names the
                weights, none but the default can be given.
            device: where to compute.
            dtype: of the weights, and so of the arithmetic; embeddings come back in float32.
            fast: use `clipcap.fast` where the model allows it: the same embeddings sooner.
            int8: keep the linear layers of a plain vision transformer in int8, on a CPU. What else there is, such as a
                ResNet, the text encoder and the other kinds of transformers, stays in `dtype`.
            decode_on_device: let the device decode JPEGs, see `clipcap.clip.jpegs`.

        Raises:
            UserError: the name or tag is unknown (near ones are listed), both name weights, or the weights cannot be
                read, do not fit the model or cannot be downloaded; or the device cannot decode JPEGs.
        """
        if decode_on_device:
            check_device(str(device))
        name, pretrained, parts = load_parts(str(name), str(pretrained or ""))
        model = parts.model.eval().requires_grad_(False)
        plain = fast and parts.plain and is_plain_vit(model.visual)
        # Before the model is converted: what scales weights should round them only once.
        vit = FastViT(model.visual, partial(Tensor.to, device=device, dtype=dtype), int8) if plain else None
        resnet = is_resnet(model.visual)
        if vit and int8:  # whose weights need not fit into `dtype`
            del model.visual
        if fast and resnet:
            fold_batch_norms(model.visual)
        model = convert(model, dtype, device)
        if vit and not int8:
            del model.visual
        if int8:
            give_back()
        return cls(
            model_name=name,
            pretrained=pretrained or None,
            dim=parts.dim,
            # With random weights reduced JPEGs moved the embeddings of RN50x4 to a cosine of 0.62, of ViTs to 0.998.
            preprocessing=replace(
                parts.preprocessing, reduced=not resnet, jpeg_device=str(device) if decode_on_device else None
            ),
            model=model,
            make_tokenizer=parts.make_tokenizer,
            device=torch.device(device),
            dtype=dtype,
            vit=vit,
        )

    @torch.inference_mode()
    def encode_pixels(self, pixels: np.ndarray | Tensor) -> Tensor:
        """uint8 pixels (B, H, W, 3) from `preprocessing` -> float32 (B, C) on the CPU."""
        pixels = torch.as_tensor(pixels)
        # On a CPU a batch is split into parts whose activations stay in the caches.
        at_once = self.vit.at_once if self.vit and self.device.type == "cpu" else max(1, len(pixels))
        with torch.autocast(self.device.type, enabled=False):  # a caller's own would round embeddings
            return torch.cat([self._encode(part) for part in pixels.split(at_once)])

    def _encode(self, pixels: Tensor) -> Tensor:
        """One part of a batch: uint8 (B, H, W, 3) -> float32 (B, C) on the CPU."""
        mean, std = torch.tensor([self.preprocessing.mean, self.preprocessing.std], device=self.device)
        # (pixels / 255 - mean) / std, as one multiplication and addition per value
        images = torch.addcmul(-mean / std, pixels.to(self.device).float(), 1 / (255 * std))  # (B, H, W, 3)
        images = images.to(self.dtype).permute(0, 3, 1, 2)  # (B, 3, H, W)
        return (self.vit(images) if self.vit else self.model.encode_image(images.contiguous())).float().cpu()

    def encode_images(self, images: Sequence[ImageSource], batch_size: int = 64) -> Tensor:
        """Paths, bytes or pictures -> float32 (B, C) on the CPU. Raises UnreadableImage if one cannot be read."""
        embeddings = [torch.empty(0, self.dim)]
        for batch in pixel_batches(images, self.preprocessing, batch_size, workers=0):
            embeddings.append(self.encode_pixels(np.stack([_readable(pixels) for _, pixels in batch])))
        return torch.cat(embeddings)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts, cut to the model's context length -> float32 (B, C) on the CPU."""
        self._tokenizer = self._tokenizer or load_text_tokenizer(self.model_name, self.make_tokenizer)
        embeddings = [torch.empty(0, self.dim)]
        for start in range(0, len(texts), batch_size):
            tokens = self._tokenizer(list(texts[start : start + batch_size])).to(self.device)
            embeddings.append(self.model.encode_text(tokens).float().cpu())
        return torch.cat(embeddings)


def _readable(pixels: np.ndarray | UnreadableImage) -> np.ndarray:
    if isinstance(pixels, UnreadableImage):
        raise pixels
    return pixels
