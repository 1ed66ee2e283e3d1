"""Opening pictures, in the formats that the project reads and in no other.

Pillow knows forty formats by their content, whatever the name of the file: a PostScript file called holiday.jpg would
start Ghostscript. So this is the only place that opens one.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

# Pillow's names of them; the last is tried last, since nothing marks a file of it. HEIF comes with another
# package, and JPEG stands for MPO too.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "HEIF", "TGA")

START_OF_SCAN = b"\xff\xda"  # does not occur within a scan (ITU-T T.81, B.1.1.5)
MOST_SCANS = 100  # of a progressive JPEG: encoders write a dozen, and each costs a pass over all pixels, in few bytes

END = b"\xff\xd9"  # of a JPEG
MOST_BYTES = 1_000_000  # of a JPEG that is left for the device: hundreds of them wait in memory
MOST_PIXELS = 16_000_000  # of the same: resizing them takes 12 bytes each

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # a picture with a long comment is still a picture


def open_picture(source: str | Path | bytes) -> Image.Image:
    """A file, or a file's bytes -> a picture whose pixels are not decoded yet.

    Raises:
        OSError: the file cannot be read, has too many scans, or (UnidentifiedImageError) is in none of FORMATS. On a
            broken file Pillow raises other errors too.
    """
    Image.init()  # a build of Pillow may lack some formats, and must not be asked for these
    formats = [name for name in FORMATS if name in Image.OPEN]
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    if image.format == "TIFF":
        image.filename = ""  # Pillow maps some TIFFs into memory by it, and scrambles those that lie on their side
    if image.info.get("progressive"):
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        if content.count(START_OF_SCAN) > MOST_SCANS:
            raise OSError(f"a progressive JPEG of more than {MOST_SCANS} scans")
    return image


def plain_jpeg(image: Image.Image, source: str | Path | bytes) -> bytes | None:
    """The content of a picture's file, if it is a JPEG that other decoders understand as Pillow does; else None.

    That is one picture, grey or YCbCr, with an end, of at most MOST_BYTES and MOST_PIXELS. Others may be CMYK, RGB, cut
    off, or say their size twice.
    """
    if not isinstance(image, JpegImageFile) or image.format != "JPEG" or image.width * image.height > MOST_PIXELS:
        return None
    components = [number for number, *_ in image.layer]
    if components not in ([1], [1, 2, 3]) or image.info.get("adobe_transform", 1) != 1:
        return None
    if not isinstance(source, bytes):
        with open(source, "rb") as file:
            source = file.read(MOST_BYTES + 1)
    return source if len(source) <= MOST_BYTES and source.endswith(END) else None
