"""Images of a source -> shards of CLIP embeddings: decoded in worker processes, encoded in batches.

Shapes: B batch, H x W pixels, C CLIP width.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from clipcap.cli.progress import ProgressBar
from clipcap.clip.images import UnreadableImage
from clipcap.clip.preprocessing import Again, Jpeg, PixelMaker, Preprocessing
from clipcap.clip.upright import Box
from clipcap.clip.workers import pixel_batches
from clipcap.data.reading import legible

if TYPE_CHECKING:
    import pyarrow as pa

    from clipcap.cli.processes import Processes
    from clipcap.clip.encoder import ClipEncoder
    from clipcap.data.examples import Example
    from clipcap.data.shards import Shard
    from clipcap.data.writer import DatasetWriter

THUMBNAIL_SIDE = 512  # pixels of the longer side, at most

Decoded = np.ndarray | tuple[np.ndarray, bytes]  # uint8 (H, W, 3), with a thumbnail as a JPEG where one was asked for
Embedded = tuple[np.ndarray, bytes | None] | UnreadableImage  # embedding (C) and thumbnail, or why there is none


@dataclass(frozen=True)
class WithThumbnail:
    """A preprocessing that also makes a small JPEG of the whole picture."""

    plain: Preprocessing

    def pixels(self, image: Image.Image, box: Box | None, again: Again) -> tuple[np.ndarray, bytes]:
        """RGB picture -> uint8 (H, W, 3) for CLIP, and the thumbnail as a JPEG.

        The picture is as large as CLIP needs, and for the thumbnail it may be decoded again: that must not change the
        embedding.
        """
        large = max(image.size) >= THUMBNAIL_SIDE
        return self.plain.pixels(image, box), _thumbnail(image.copy() if large else again(THUMBNAIL_SIDE))

    def left(self, jpeg: Jpeg, again: Again) -> Jpeg:
        """The JPEG, for the device to decode, with the thumbnail, for which Pillow does."""
        return replace(jpeg, beside=_thumbnail(again(THUMBNAIL_SIDE)))


def _thumbnail(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    picture.save(file, "JPEG", quality=80, comment=b"")  # a comment may name its owner
    return file.getvalue()


def write_shards(
    writer: DatasetWriter,
    names: Sequence[str],
    encoder: ClipEncoder | None,
    width: int,
    batch_size: int,
    workers: int | None,
    processes: Processes,
) -> None:
    """Write the shards of these names, shared out among the processes, with a progress bar.

    Args:
        writer: writes them.
        names: the shards that no earlier run has written, the same in all processes.
        encoder, batch_size, workers: see `embed_shards`.
        width: C.
        processes: those of this command; each does its share, and waits for the others.
    """
    files = writer.shards.names()
    sizes = {name: images for part in files.values() for name, images in part}
    total, left = sum(sizes.values()), sum(sizes[name] for name in names)
    batch_size = min(batch_size, max(sizes.values()))  # it bounds the memory
    mine = set(names[processes.rank :: processes.world])
    train = {name for name, _ in files.get("train", ())}
    started = time.perf_counter()
    with ProgressBar(total=total, initial=total - left, unit="image", desc="embedding", smoothing=0.1) as bar:

        def advance(images: int) -> None:  # the others are about as far
            bar.update(min(images * processes.world, total - bar.n))

        # Every split but train gets thumbnails, since its pictures are shown in reports.
        for group, thumbnails in ((mine & train, False), (mine - train, True)):
            shards = writer.shards_named(group) if group else ()
            for shard, embedded in embed_shards(shards, encoder, batch_size, workers, advance, thumbnails):
                writer.write(shard, *to_rows(shard, embedded, width))
        processes.wait()
    seconds = time.perf_counter() - started
    if processes.main:
        print(f"{left} images in {seconds:.1f} s, {left / seconds:.1f} images/s", file=sys.stderr)


def embed_shards(
    shards: Iterable[Shard],
    encoder: ClipEncoder | None,
    batch_size: int,
    workers: int | None = None,
    advance: Callable[[int], object] = lambda images: None,
    thumbnails: bool = False,
) -> Iterator[tuple[Shard, list[Embedded]]]:
    """Yield each shard with one result per example, in order.

    No batch crosses the end of a shard, so a shard's embeddings depend on its own images only, and a resumed run
    computes the same ones. Shards are read about two batches ahead.

    Args:
        shards: what to embed.
        encoder: the CLIP; None where the examples bring their embeddings.
        batch_size: images in one pass of CLIP.
        workers: see `pixel_batches`.
        advance: called after each batch with its number of images.
        thumbnails: whether to make them, where there is a CLIP.
    """
    if encoder is None:
        for shard in shards:
            yield shard, [_checked(_brought(example), None) for example in shard.examples]
            advance(len(shard.examples))
        return
    ahead, shards = tee(shards)
    images = (example.open() for shard in ahead for example in shard.examples)
    plain = encoder.preprocessing
    preprocessing: PixelMaker[Decoded] = WithThumbnail(plain) if thumbnails else plain
    with closing(pixel_batches(images, preprocessing, batch_size, workers)) as batches:
        decoded = (pixels for batch in batches for _, pixels in batch)
        for shard in shards:
            results: list[Embedded] = []
            while batch := list(islice(decoded, min(batch_size, len(shard.examples) - len(results)))):
                results += _encode(batch, encoder)
                advance(len(batch))
            yield shard, results


def to_rows(shard: Shard, results: Sequence[Embedded], width: int) -> tuple[pa.Table, list[dict[str, str]]]:
    """A shard's table, one row per caption of an embedded image, and {"image", "error"} for every other image.

    `width` is C, the width of the embeddings.
    """
    import pyarrow as pa

    from clipcap.data.tables import row_schema

    skipped: list[dict[str, str]] = []
    vectors = [np.empty((0, width), np.float32)]
    images: list[int] = []  # for each row, the number of its image among the embedded ones
    rows: list[tuple[str, str, str | None, bytes | None]] = []
    for example, result in zip(shard.examples, results, strict=True):
        path = legible(str(example.image)) if isinstance(example.image, Path) else None
        if isinstance(result, UnreadableImage):
            skipped.append({"image": path or example.image_id, "error": legible(result.reason)})
            continue
        vector, thumbnail = result
        images += [len(vectors) - 1] * len(example.captions)
        vectors.append(vector[None])
        for number, caption in enumerate(example.captions):
            rows.append((caption, example.image_id, path, None if number else thumbnail))  # one thumbnail per image
    schema = row_schema(width)
    stored = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(vectors).ravel()), width)
    embeddings = pa.DictionaryArray.from_arrays(pa.array(images, pa.int32()), stored)
    columns = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(list(schema)[1:])]
    return pa.table([embeddings, *columns], schema), skipped


def _encode(batch: Sequence[Decoded | UnreadableImage], encoder: ClipEncoder) -> list[Embedded]:
    """Decoded pictures (or errors) -> embeddings (or the same errors), in one pass of CLIP."""
    pairs = [item if isinstance(item, UnreadableImage | tuple) else (item, None) for item in batch]
    pixels = [pair[0] for pair in pairs if isinstance(pair, tuple)]
    vectors = iter(encoder.encode_pixels(np.stack(pixels)).numpy() if pixels else ())  # (B, C)
    return [_checked(next(vectors), pair[1]) if isinstance(pair, tuple) else pair for pair in pairs]


def _brought(example: Example) -> np.ndarray:
    assert example.clip_embedding is not None  # a source without a CLIP to load brings embeddings for all examples
    return example.clip_embedding


def _checked(vector: np.ndarray, thumbnail: bytes | None) -> Embedded:
    return (vector, thumbnail) if np.isfinite(vector).all() else UnreadableImage("its embedding is not finite")
