"""Photos as phones store them, lying or mirrored with a note in their EXIF -> upright."""

from __future__ import annotations

from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Box = tuple[float, float, float, float]  # left, top, right, bottom


def orientation_of(image: Image.Image) -> int:
    """1, or the EXIF orientation 2 to 8 of a picture that lies or is mirrored."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken metadata does not spoil the picture
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as it was seen when it was taken."""
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def upright_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Where a part of a picture of this size (width, height) lies once the picture is upright."""
    (left, top, right, bottom), (width, height) = box, size
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation in (5, 6, 7, 8) else (left, top, right, bottom)
