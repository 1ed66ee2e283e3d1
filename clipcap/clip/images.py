"""Files and folders -> upright RGB pictures, or the reason why a picture cannot be used.

Worker processes import this module, so it must not import torch.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from clipcap.clip.formats import open_picture, plain_jpeg
from clipcap.clip.preprocessing import Jpeg, PixelMaker, Pixels, Preprocessing
from clipcap.clip.upright import Box, orientation_of, rgb, upright, upright_box
from clipcap.errors import UserError, first_line

# A file, a file's bytes, a picture, or a function that returns one of these. The function is called in the process that
# decodes the picture.
ImageSource = str | Path | bytes | Image.Image | Callable[[], str | Path | bytes | Image.Image]
EXTENSIONS = frozenset((
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
))  # fmt: skip


class UnreadableImage(Exception):
    """A picture that cannot be used; the message is the reason, in a few words."""

    @property
    def reason(self) -> str:
        """The message, to be shown after the name of the picture."""
        return str(self)


def find_images(paths: Sequence[str | Path] | str | Path) -> Iterator[Path]:
    """Walk files and folders in the order given; each folder depth first and sorted by name.

    A file named in `paths` is always yielded; inside a folder only files with a picture's extension are. Hidden files
    are skipped, and a file or folder that several links lead to is visited once. A folder that cannot be opened is
    yielded itself, and so is a link into one, so that the run reports it like any other path that cannot be read.

    Raises:
        UserError: at once (not on the first iteration), when a path does not exist.
    """
    roots = [paths] if isinstance(paths, str | Path) else list(paths)
    for root in roots:
        try:
            os.stat(root)
        except OSError as error:
            gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
            told = "does not exist" if gone else f"cannot be opened ({error.strerror})"
            raise UserError(f"{str(root)!r} {told}; give image files or folders") from None
    return _walk(roots)


Found = tuple[str, str, bool]  # a path, the same without links, and whether it is a folder


def _walk(roots: Sequence[str | Path]) -> Iterator[Path]:
    seen: set[str] = set()
    # A stack, since folders may be nested deeper than functions may call each other.
    stack = [iter([(str(root), os.path.realpath(root), os.path.isdir(root)) for root in roots])]
    while stack:
        if (found := next(stack[-1], None)) is None:
            stack.pop()
            continue
        path, real, is_folder = found
        if real in seen:
            continue
        seen.add(real)
        content = _content(path, real) if is_folder else None
        if content is None:
            yield Path(path)
        else:
            stack.append(content)


def _content(folder: str, real_folder: str) -> Iterator[Found] | None:
    """The folders and pictures in a folder, sorted by name; None if it cannot be opened."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted((entry for entry in listing if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError:
        return None
    return filter(None, (_found(entry, real_folder) for entry in entries))


def _found(entry: os.DirEntry[str], real_folder: str) -> Found | None:
    is_picture = os.path.splitext(entry.name)[1].lower() in EXTENSIONS
    try:
        is_folder = entry.is_dir()
    except OSError as error:  # a link that leads round in circles, or into a locked folder where pictures may be
        return (entry.path, entry.path, False) if is_picture or error.errno != errno.ELOOP else None
    if not is_folder and not is_picture:
        return None
    is_link = entry.is_symlink() or getattr(entry, "is_junction", bool)()  # Windows has both; Python 3.11 knows one
    return entry.path, os.path.realpath(entry.path) if is_link else os.path.join(real_folder, entry.name), is_folder


def open_image(source: ImageSource, min_side: int | None = None) -> Image.Image:
    """Any source of a picture -> an upright picture in RGB: the first frame, transparent parts on white.

    Args:
        source: a path, bytes, a picture, or a function that returns one of these.
        min_side: how many pixels each side needs. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as both
            sides keep this length, which is several times faster. None decodes at full size.

    Raises:
        UnreadableImage: for anything that is wrong with the file or the picture.
    """
    return _decode(source, min_side)[0]


def load_pixels(source: ImageSource, preprocessing: PixelMaker[Pixels]) -> Pixels:
    """Any source of a picture -> what `preprocessing` makes of it: uint8 (H, W, 3). Raises UnreadableImage."""
    image, box = _decode(source, preprocessing.plain.min_side)
    with _too_large():
        return preprocessing.pixels(image, box, lambda min_side: open_image(source, min_side))


def load_or_leave(source: ImageSource, preprocessing: PixelMaker[Any]) -> Any:
    """The same, but a JPEG that a device is to decode is only checked: a `Jpeg` then stands in place of the pixels."""
    if preprocessing.plain.jpeg_device:
        with _reasons():
            source = source() if callable(source) else source
            jpeg = None if isinstance(source, Image.Image) else _jpeg(source, preprocessing.plain)
        if jpeg:
            content = jpeg.content
            with _too_large():
                return preprocessing.left(jpeg, lambda min_side: open_image(content, min_side))
    return load_pixels(source, preprocessing)


def _jpeg(source: str | Path | bytes, preprocessing: Preprocessing) -> Jpeg | None:
    """A file, or a file's bytes -> the JPEG to leave, or None if Pillow should decode it."""
    with open_file(source) as image:
        content = plain_jpeg(image, source)
        return Jpeg(content, image.size, orientation_of(image), preprocessing) if content else None


EXIF, DATE_TIME_ORIGINAL = 0x8769, 0x9003


def date_taken(source: ImageSource) -> str | None:
    """The day on which a picture was taken, as 2025-12-31, by EXIF's DateTimeOriginal; None where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = source() if callable(source) else source
            with nullcontext(source) if isinstance(source, Image.Image) else open_file(source) as image:
                taken = str(image.getexif().get_ifd(EXIF)[DATE_TIME_ORIGINAL])
        return datetime.strptime(taken[:10], "%Y:%m:%d").date().isoformat()
    except Exception:  # a picture with broken metadata is still a picture
        return None


def _decode(source: ImageSource, min_side: int | None) -> tuple[Image.Image, Box | None]:
    """The picture, and which part of it counts (None: all).

    A JPEG decoded at half of 645 pixels has 323, of which 322.5 are picture: the box says where the picture ends.
    """
    with _reasons():
        source = source() if callable(source) else source
        if isinstance(source, Image.Image):
            if 0 in source.size:
                raise UnreadableImage("no pixels")
            return upright(rgb(source), orientation_of(source)), None
        with open_file(source) as image:
            side = min_side if image.format in ("JPEG", "MPO") else None  # a HEIC would give a thumbnail of anything
            _, box = (side and image.draft("RGB", (side, side))) or (None, None)
            loaded, orientation = rgb(image), orientation_of(image)  # in this order: loading turns a TIFF upright
            return upright(loaded, orientation), box and upright_box(box, image.size, orientation)


@contextmanager
def _too_large() -> Iterator[None]:
    """A picture of which nothing can be made, since it is too long and thin or too large, becomes UnreadableImage."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        raise UnreadableImage(_reason(error)) from error


@contextmanager
def _reasons() -> Iterator[None]:
    """Whatever is raised while a picture is read becomes UnreadableImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd metadata, and about large pictures that it opens
            yield
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise anything from struct.error to SyntaxError on a broken file
        raise UnreadableImage(_reason(error)) from error


def _expect_file(path: str | Path) -> None:
    """Raise UnreadableImage with a clearer reason than Pillow's where the path is not a file with content."""
    if os.path.isdir(path):
        os.scandir(path).close()  # `find_images` yields only folders that cannot be listed: this raises the reason
        raise UnreadableImage("a folder, not a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UnreadableImage("not a regular file")  # opening a pipe would block
    if os.stat(path).st_size == 0:
        raise UnreadableImage("empty file")


def open_file(source: str | Path | bytes) -> Image.Image:
    """Open with Pillow; HEIC through pillow-heif, which is imported only when a HEIC file turns up. Raises anything."""
    if not isinstance(source, bytes):
        _expect_file(source)
    try:
        return open_picture(source)
    except UnidentifiedImageError:
        if isinstance(source, bytes):
            brand = source[4:12]
        else:
            with open(source, "rb") as stream:
                brand = stream.read(12)[4:]
        if brand not in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1"):
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise UnreadableImage("HEIC pictures need one more package: pip install pillow-heif") from None
    register_heif_opener()
    return open_picture(source)


def _reason(error: Exception) -> str:
    """A decoder's exception in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or a format that is not supported"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels (more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000} million)"
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = first_line(error)
    return "truncated file" if "truncated" in text.lower() else text[:200]
