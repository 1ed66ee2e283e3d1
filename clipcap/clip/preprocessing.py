"""Pictures -> the pixels CLIP sees: open_clip's inference transform in plain Pillow, so that workers need no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from clipcap.clip.upright import Box

MAX_RESIZED_PIXELS = 64_000_000  # a picture 1 pixel high and 60000 wide would be resized to gigabytes


@dataclass(frozen=True)
class Preprocessing:
    """How one CLIP model wants its pictures. `size` is (height, width); `mean` and `std` are per channel, in 0..1."""

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    @property
    def min_side(self) -> int:
        """No side of a picture needs more pixels than this before it is resized."""
        return max(self.size)

    def pixels(self, image: Image.Image, box: Box | None = None) -> np.ndarray:
        """RGB picture -> uint8 (height, width, 3), not yet normalised. Equal to `open_clip.image_transform`.

        Args:
            box: left, top, right and bottom of what counts, where a picture decoded at a reduced size ends within a
                pixel; None: all of it.

        Raises:
            ValueError: when the picture is so long and thin that resizing its short side would take gigabytes.
        """
        left, top, right, bottom = box or (0, 0, *image.size)
        size = self._resized(right - left, bottom - top)
        if size[0] * size[1] > MAX_RESIZED_PIXELS:
            raise ValueError(f"too long and thin ({image.width} x {image.height} pixels)")
        if size != (right - left, bottom - top):
            image = image.resize(size, self._filter(), box)
        return np.asarray(self._centre(image))

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

    def _filter(self) -> Image.Resampling:
        # open_clip forgets the interpolation when it resizes the shortest side to a target that is not square.
        forgotten = self.resize_mode == "shortest" and self.size[0] != self.size[1]
        bilinear = self.interpolation == "bilinear" and not forgotten
        return Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC

    def _centre(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if image.width < width or image.height < height:
            canvas = Image.new("RGB", (max(width, image.width), max(height, image.height)), (self.fill_color,) * 3)
            canvas.paste(image, (max(0, width - image.width) // 2, max(0, height - image.height) // 2))
            image = canvas
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image if image.size == (width, height) else image.crop((left, top, left + width, top + height))
