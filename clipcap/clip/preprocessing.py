"""Pictures -> the pixels that CLIP sees.

This is open_clip's inference transform in plain Pillow, so that worker processes do not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from clipcap.clip.upright import Box

MAX_RESIZED_PIXELS = 64_000_000  # a picture 1 pixel high and 60000 wide would be resized to gigabytes
Pixels = TypeVar("Pixels", covariant=True)
Again = Callable[[int], Image.Image]  # decodes a picture once more, each side with as many pixels as this or all it has


@dataclass(frozen=True)
class Jpeg:
    """A JPEG that is left for a device to decode, as `clipcap.clip.jpegs` does.

    Attributes:
        content: of its file.
        size: width and height by its header, before it is turned upright.
        orientation: by its EXIF.
        preprocessing: what is to be made of it.
        beside: what is made of it already, to stand beside the pixels.
    """

    content: bytes
    size: tuple[int, int]
    orientation: int
    preprocessing: Preprocessing
    beside: bytes | None = None


class PixelMaker(Protocol[Pixels]):
    """What decoding asks of a preprocessing. `pixels` gives an array, or a tuple that holds one and something more."""

    @property
    def plain(self) -> Preprocessing:
        """What makes the array; how a picture is decoded is up to it."""

    def pixels(self, image: Image.Image, box: Box | None, again: Again) -> Pixels:
        """RGB picture, which part of it counts, and a function that decodes it with longer sides -> pixels."""

    def left(self, jpeg: Jpeg, again: Again) -> Jpeg:
        """The same for a picture that is left for the device, with what stands beside its pixels."""


@dataclass(frozen=True)
class Preprocessing:
    """How one CLIP model wants its pictures; the field names are those of open_clip's `preprocess_cfg`.

    Attributes:
        size: (height, width) in pixels.
        mean: per channel, on a scale from 0 to 1.
        std: per channel, on the same scale.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (the short side is resized to fit, the rest cropped), "longest" (padded) or "squash".
        fill_color: grey value, 0 to 255, of the padding.
        reduced: whether a large JPEG may be decoded at a part of its size. That is several times faster and moves an
            embedding a little, as `python -m clipcap.clip.check` tells.
        jpeg_device: the device that decodes JPEGs, at their full size; None: Pillow does.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0
    reduced: bool = True
    jpeg_device: str | None = None

    @property
    def plain(self) -> Preprocessing:
        """Itself, since it makes nothing but the array."""
        return self

    @property
    def min_side(self) -> int | None:
        """How many pixels each side of a picture needs before it is resized; None for all that it has."""
        return max(self.size) if self.reduced else None

    def pixels(self, image: Image.Image, box: Box | None = None, again: Again | None = None) -> np.ndarray:
        """RGB picture -> uint8 (height, width, 3), not yet normalised. Equal to `open_clip.image_transform`.

        Args:
            image: upright and in RGB.
            box: left, top, right and bottom of the part that counts, for a picture that was decoded at a reduced size
                and ends within a pixel; None: all of it.
            again: not used, since the picture has what CLIP needs.

        Raises:
            ValueError: when the picture is so long and thin that resizing its short side would take gigabytes.
        """
        left, top, right, bottom = box or (0, 0, *image.size)
        size = self.resized(right - left, bottom - top)
        if size != (right - left, bottom - top):
            image = image.resize(size, self.filter, box)
        return np.asarray(self._centre(image))

    def left(self, jpeg: Jpeg, again: Again | None = None) -> Jpeg:
        """The JPEG itself, for the device to decode."""
        return jpeg

    def resized(self, width: float, height: float) -> tuple[int, int]:
        """(width, height) in pixels to which a picture is resized, before it is cropped or padded to `size`.

        Raises:
            ValueError: see `pixels`.
        """
        size = self._resized(width, height)
        if size[0] * size[1] > MAX_RESIZED_PIXELS:
            raise ValueError(f"too long and thin ({width:.0f} x {height:.0f} pixels)")
        return size

    def _resized(self, width: float, height: float) -> tuple[int, int]:
        target_height, target_width = self.size
        if self.resize_mode == "squash":
            return target_width, target_height
        if self.resize_mode == "shortest" and target_height == target_width:
            long_side = int(target_width * max(width, height) / min(width, height))
            return (target_width, long_side) if width <= height else (long_side, target_width)
        ratios = height / target_height, width / target_width
        ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    @property
    def filter(self) -> Image.Resampling:
        """How a picture is resized: bicubic or bilinear, and antialiased."""
        # open_clip ignores the setting when it resizes the shortest side to a target that is not square.
        ignored = self.resize_mode == "shortest" and self.size[0] != self.size[1]
        bilinear = self.interpolation == "bilinear" and not ignored
        return Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC

    def _centre(self, image: Image.Image) -> Image.Image:
        """Pad and crop around the centre to `size`."""
        height, width = self.size
        if image.width < width or image.height < height:
            canvas = Image.new("RGB", (max(width, image.width), max(height, image.height)), (self.fill_color,) * 3)
            canvas.paste(image, (max(0, width - image.width) // 2, max(0, height - image.height) // 2))
            image = canvas
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image if image.size == (width, height) else image.crop((left, top, left + width, top + height))
