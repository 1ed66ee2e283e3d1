"""JPEGs decoded, resized and cropped by torch, on the device of CLIP: an option for a GPU that waits for its photos.

Worker processes read and check the files; this process decodes what they leave. Pillow decodes all else: other formats,
what `plain_jpeg` does not let pass, and what the device fails at. **No GPU has run this yet**, only the CPU, where it
takes 2 to 4 times as long as Pillow, which decodes a large JPEG at a part of its size.

Pixels of 13 photos, from 0 to 255, differ by 0.1 on average and by 11 at most from Pillow's at full size, where Pillow
rounds between the two directions of resizing, and by 0.5 and 55 from those at a part of it. Cosines of embeddings by a
ViT-B/32 with random weights: at least 0.99999 and 0.9999.

Shapes: H x W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from clipcap.clip.images import ImageSource, UnreadableImage, load_pixels
from clipcap.clip.preprocessing import Jpeg, Preprocessing
from clipcap.devices import tell_once
from clipcap.errors import UserError, first_line

AT_ONCE = 8  # pictures that are decoded together: at most 0.4 GB, and 0.2 GB to resize one of them
FAILURES = (RuntimeError, ValueError, MemoryError)


def check_device(device: str) -> None:
    """Raise a UserError unless JPEGs can be decoded on this device."""
    file = BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError("torchvision has no decoder for it")
        _decode([Jpeg(file.getvalue(), (64, 64), 1, Preprocessing(jpeg_device=device))])
        if torch.device(device).type == "cpu":
            tell_once("--decode-on-device is for GPUs: on a CPU it takes 2 to 4 times as long as without it")
    except (ImportError, AttributeError, *FAILURES) as error:
        raise UserError(
            f"JPEGs cannot be decoded on the device {device} here ({first_line(error)}): "
            "leave out --decode-on-device (decode_on_device=True)"
        ) from None


def decode_left(batch: Sequence[tuple[ImageSource, Any]]) -> list[tuple[ImageSource, Any]]:
    """A batch of `pixel_batches` with what a preprocessing makes, or UnreadableImage, in place of each `Jpeg`."""
    left = [item for _, item in batch if isinstance(item, Jpeg)]
    decoded = [pixels for i in range(0, len(left), AT_ONCE) for pixels in _decoded(left[i : i + AT_ONCE])]
    finished = iter([_joined(pixels, jpeg) for pixels, jpeg in zip(decoded, left, strict=True)])
    return [(source, next(finished) if isinstance(item, Jpeg) else item) for source, item in batch]


def _joined(pixels: np.ndarray | UnreadableImage, jpeg: Jpeg) -> Any:
    """What `PixelMaker.pixels` would have given."""
    return (pixels, jpeg.beside) if jpeg.beside and not isinstance(pixels, UnreadableImage) else pixels


def _decoded(jpegs: list[Jpeg]) -> list[np.ndarray | UnreadableImage]:
    """By the device; where it fails at one, all are decoded one by one, and that one by Pillow."""
    try:
        return [*_decode(jpegs)]
    except FAILURES as error:
        if len(jpegs) > 1:
            return [pixels for jpeg in jpegs for pixels in _decoded([jpeg])]
        tell_once(f"the device fails at some JPEGs ({first_line(error)}), which Pillow decodes, more slowly")
    [jpeg] = jpegs
    try:
        return [load_pixels(jpeg.content, jpeg.preprocessing)]
    except UnreadableImage as error:
        return [UnreadableImage(error.reason)]  # without its cause and traceback, which keep memory alive


@torch.inference_mode()
def _decode(jpegs: Sequence[Jpeg]) -> list[np.ndarray]:
    """All for the same device -> uint8 (H, W, 3) of each."""
    from torchvision.io import ImageReadMode, decode_jpeg

    contents = [torch.frombuffer(bytearray(jpeg.content), dtype=torch.uint8) for jpeg in jpegs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision 0.29 wants its decoders to be replaced by torchcodec's
        images = decode_jpeg(contents, ImageReadMode.RGB, device=jpegs[0].preprocessing.jpeg_device)
    return [resized(image, jpeg).cpu().numpy() for image, jpeg in zip(images, jpegs, strict=True)]


def resized(image: Tensor, jpeg: Jpeg) -> Tensor:
    """uint8 (3, height, width), as decoded -> uint8 (H, W, 3): up to rounding, what `Preprocessing.pixels` makes of it.

    Raises:
        ValueError: the picture is not of the size that its header told Pillow, or is too long and thin.
    """
    if image.shape != (3, *reversed(jpeg.size)):
        raise ValueError("two decoders do not agree on its size")
    if jpeg.orientation in (5, 6, 7, 8):
        image = image.transpose(1, 2)
    if jpeg.orientation in (2, 3, 6, 7):
        image = image.flip(2)
    if jpeg.orientation in (3, 4, 7, 8):
        image = image.flip(1)
    preprocessing = jpeg.preprocessing
    width, height = preprocessing.resized(image.shape[2], image.shape[1])
    mode = preprocessing.filter.name.lower()
    image = interpolate(image[None].float(), (height, width), mode=mode, antialias=True)[0]
    image = pad(
        image,
        (*_margins(width, preprocessing.size[1]), *_margins(height, preprocessing.size[0])),
        value=preprocessing.fill_color,
    )
    return image.clamp(0, 255).round().byte().permute(1, 2, 0)


def _margins(side: int, target: int) -> tuple[int, int]:
    """What to add to a side at its beginning and its end, around the centre; negative numbers take away."""
    before = (target - side) // 2 if side < target else -round((side - target) / 2)
    return before, target - side - before
