"""Pictures of any kind (palette, grey, alpha, CMYK, 16 bits, ...) -> RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image


def rgb(image: Image.Image) -> Image.Image:
    """Any picture, loaded and in RGB, what is transparent on white. Raises what Pillow raises."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, integer and floating-point grey -> 8 bits: their whole range, not what is left after clipping."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    top = 65535.0 if image.mode.startswith("I;16") else float(values.max(initial=0.0))
    scale = 255.0 / (65535.0 if top > 255 and top <= 65535 else top if top > 65535 or 0 < top <= 1 else 255.0)
    return Image.fromarray(np.clip(values * scale, 0, 255).round().astype(np.uint8))
