"""Pictures of any kind (rotated, mirrored, grey, transparent, CMYK, 16 bits) -> upright and in RGB."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag
METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow looks for the orientation
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STRIP = 1024  # rows
Box = tuple[float, float, float, float]  # left, top, right, bottom


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation: 1 for an upright picture, 2 to 8 for one that is rotated or mirrored."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a picture with broken metadata is still a picture
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as it was seen when it was taken, with nothing left in it that would have it turned once more."""
    if orientation not in UPRIGHT:
        return image
    turned, exif = image.transpose(UPRIGHT[orientation]), image.getexif()
    for name in METADATA:
        turned.info.pop(name, None)
    with suppress(Exception):  # a picture with broken metadata is still a picture
        del exif[ORIENTATION]
        turned.info["exif"] = exif.tobytes()  # the rest, such as the date
    return turned


def upright_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Where a part of a picture of this size (width, height) lies once the picture is upright."""
    (left, top, right, bottom), (width, height) = box, size
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation in (5, 6, 7, 8) else (left, top, right, bottom)


def rgb(image: Image.Image) -> Image.Image:
    """Load any picture as RGB, with white behind its transparent parts. Raises whatever Pillow raises."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # all that Pillow can turn it into
    if image.has_transparency_data:
        return _on_white(image)
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Transparent parts become white, strip by strip: RGBA takes four times the memory of a palette."""
    image.load()
    canvas = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):
        box = (0, top, image.width, min(top + STRIP, image.height))
        strip = image.crop(box).convert("RGBA")
        canvas.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), box)
    return canvas


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, integer and floating-point grey -> 8 bits, scaled by their range: Pillow itself would clip at 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    top = 65535.0 if image.mode.startswith("I;16") else float(values.max(initial=0.0))
    scale = 255.0 / (65535.0 if top > 255 and top <= 65535 else top if top > 65535 or 0 < top <= 1 else 255.0)
    return Image.fromarray(np.clip(values * scale, 0, 255).round().astype(np.uint8))
