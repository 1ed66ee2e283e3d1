"""How far what a computer does to be fast moves a CLIP's embeddings, measured on photos.

    python -m clipcap.clip.check RN50x4 photos/

For each photo it prints the cosine between its embedding in float32 from the whole photo, by open_clip's own forward
pass, and those by other ways. What the scripts use has to reach the threshold, or else the exit status is 1.
Where OpenAI's own package `clip` is installed, its preprocessing and model are compared too, with the same weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from io import BytesIO
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from clipcap.cli.options import arg, parse
from clipcap.cli.status import run
from clipcap.clip.encoder import ClipEncoder
from clipcap.clip.images import ImageSource, UnreadableImage, find_images, load_or_leave, open_image
from clipcap.clip.jpegs import check_device
from clipcap.clip.preprocessing import Jpeg
from clipcap.devices import pick_device
from clipcap.errors import UserError, at_least, first_line
from clipcap.world.scenes import scenes

DRAWN = 14  # pictures of the demo world, where no photos are given
ENLARGED = (1200, 1200)  # their sides in pixels, so that there is something to reduce


@dataclass
class CheckArguments:
    """What is checked, and how strictly."""

    _argument_group_name = "check"

    threshold: float = arg(0.998, "smallest cosine for what the scripts use")
    limit: int = arg(100, "use only the first N photos")
    device: str = arg("auto", "cpu, cuda, ...")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the cosines; returns 1 if one of what the scripts use is below the threshold, else 0. Raises UserError."""
    args, given = parse(
        argv,
        CheckArguments,
        description="How far faster ways to compute CLIP's embeddings move them: cosines per photo.",
        example="python -m clipcap.clip.check RN50x4 photos/",
        program="python -m clipcap.clip.check",
        positional=(
            "clip",
            {"nargs": "+", "help": "a CLIP as for load_data.py --clip, then photos (default: drawn ones)"},
        ),
    )
    if not -1 <= args.threshold <= 1:
        raise UserError(f"--threshold is a cosine, from -1 to 1, not {args.threshold}")
    at_least(1, option=True, limit=args.limit)
    name, *paths = given.clip
    photos = readable(paths, args.limit)
    columns = {way: cosines for way, cosines in ways(name, list(photos.values()), pick_device(args.device))}
    width = max(map(len, (*photos, "smallest")))
    print(" " * width, *columns, sep="  ")
    for row, photo in enumerate(photos):
        print_row(photo.ljust(width), columns, [float(cosines[row]) for cosines in columns.values()])
    print_row("smallest".ljust(width), columns, [float(cosines.min()) for cosines in columns.values()])
    print_row("mean".ljust(width), columns, [float(cosines.mean()) for cosines in columns.values()])
    low = [way for way, cosines in columns.items() if way.endswith("*") and not cosines.min() >= args.threshold]
    told = f"below {args.threshold}: {', '.join(low)}" if low else f"all at least {args.threshold}"
    print(f"* is what the scripts use, or OpenAI's own; {told}")
    return 1 if low else 0


def print_row(title: str, columns: dict[str, Tensor], values: Sequence[float]) -> None:
    """One line of the table, with each cosine below the name of its way."""
    print(title, *(f"{value:.5f}".rjust(len(way)) for way, value in zip(columns, values, strict=True)), sep="  ")


def readable(paths: Sequence[str], limit: int) -> dict[str, ImageSource]:
    """The first photos that can be read, by name; without paths, pictures that are drawn. Raises UserError."""
    if not paths:
        return {scene.image_id: enlarged(scene.draw()) for scene in scenes("test", min(DRAWN, limit))}
    found: dict[str, ImageSource] = {}
    for path in islice(find_images(paths), limit):
        try:
            open_image(path)
            found[str(path)] = path
        except UnreadableImage as error:
            print(f"{path} is left out: {error}", file=sys.stderr)
    if not found:
        raise UserError(f"there is no picture that can be read in {', '.join(map(repr, paths))}")
    return found


def enlarged(picture: Image.Image) -> bytes:
    """A picture as a large JPEG."""
    file = BytesIO()
    picture.resize(ENLARGED).save(file, "JPEG")
    return file.getvalue()


def ways(name: str, photos: list[ImageSource], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each way, and the cosines (N) of its embeddings with the exact ones. Raises UserError."""

    def load(dtype: torch.dtype = torch.float32, fast: bool = True, reduced: bool | None = False) -> ClipEncoder:
        encoder = ClipEncoder.load(name, device=device, dtype=dtype, fast=fast)
        if reduced is not None:
            encoder.preprocessing = replace(encoder.preprocessing, reduced=reduced)
        return encoder

    plain = load(fast=False)
    exact = plain.encode_images(photos)  # (N, C)

    def cosines(embeddings: Tensor) -> Tensor:
        return torch.cosine_similarity(embeddings.double(), exact.double())

    yield "fast", cosines(load().encode_images(photos))
    yield "reduced JPEG", cosines(load(fast=False, reduced=True).encode_images(photos))
    try:
        check_device(str(device))
        plain.preprocessing = replace(plain.preprocessing, jpeg_device=str(device))
        left = sum(isinstance(load_or_leave(photo, plain.preprocessing), Jpeg) for photo in photos)
        if not left:
            raise UserError("Pillow decodes all of these pictures, see docs/troubleshooting.md")
        yield f"JPEG on device ({left} of {len(photos)})", cosines(plain.encode_images(photos))
    except UserError as error:
        print(f"JPEG on device is left out: {error}", file=sys.stderr)
    for label, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for fast in (False, True):
            try:
                yield f"{'fast ' * fast}{label}", cosines(load(dtype, fast).encode_images(photos))
            except (RuntimeError, UserError):  # not every processor computes every layer in fp16, nor fits every weight
                print(f"{label} is left out: {device} cannot compute it", file=sys.stderr)
    yield "fp32*", cosines(load(reduced=None).encode_images(photos))
    yield "bf16*", cosines(load(torch.bfloat16, reduced=None).encode_images(photos))
    if (theirs := by_openai(plain, photos)) is not None:
        yield "OpenAI*", cosines(theirs)


def by_openai(encoder: ClipEncoder, photos: list[ImageSource]) -> Tensor | None:
    """Embeddings (N, C) by OpenAI's package, of the same weights; None where it is missing or has no such model."""
    try:
        clip, model = import_module("clip.clip"), import_module("clip.model")
    except ImportError as error:
        print(f"OpenAI's own is left out: its package `clip` is not installed ({first_line(error)})", file=sys.stderr)
        return None
    try:
        if not any(type(module).__name__ == "QuickGELU" for module in encoder.model.modules()):
            raise KeyError("QuickGELU")
        theirs = model.build_model(dict(encoder.model.state_dict())).float().eval().to(encoder.device)
    except (KeyError, RuntimeError, ValueError) as error:
        print(f"OpenAI's own is left out: it has no model of this kind ({type(error).__name__})", file=sys.stderr)
        return None
    transform = clip._transform(theirs.visual.input_resolution)
    with torch.inference_mode():
        return torch.cat(
            [
                theirs.encode_image(transform(open_image(photo))[None].to(encoder.device)).float().cpu()
                for photo in photos
            ]
        )


if __name__ == "__main__":
    run(main)
