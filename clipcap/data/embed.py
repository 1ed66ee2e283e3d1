"""Images of a source -> shards of CLIP embeddings: decoded in worker processes, encoded in batches.

Shapes: B batch, H x W pixels, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from clipcap.clip.images import UnreadableImage
from clipcap.clip.preprocessing import Preprocessing
from clipcap.clip.upright import Box
from clipcap.clip.workers import pixel_batches

if TYPE_CHECKING:
    import pyarrow as pa

    from clipcap.clip.encoder import ClipEncoder
    from clipcap.data.shards import Shard

THUMBNAIL_SIDE = 320  # pixels, the longer side at most

Embedded = tuple[np.ndarray, bytes | None] | UnreadableImage  # embedding (C) and JPEG, or why there is none


@dataclass(frozen=True)
class WithThumbnail:
    """A preprocessing that also makes a small JPEG of the whole picture, from the same decoded pixels."""

    preprocessing: Preprocessing

    @property
    def min_side(self) -> int:
        return self.preprocessing.min_side  # no more, so that the embedding is what it would be without the thumbnail

    def pixels(self, image: Image.Image, box: Box | None = None) -> tuple[np.ndarray, bytes]:
        pixels = self.preprocessing.pixels(image, box)
        small, file = image.copy(), BytesIO()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        small.save(file, "JPEG", quality=80)
        return pixels, file.getvalue()


def embed_shards(
    shards: Sequence[Shard],
    encoder: ClipEncoder | None,
    batch_size: int,
    workers: int | None = None,
    advance: Callable[[int], object] = lambda images: None,
) -> Iterator[tuple[Shard, list[Embedded]]]:
    """Shard by shard, one result per example, in order.

    Splits that are looked at (all but train) get thumbnails. No batch reaches over the end of a shard, so a shard's
    embeddings depend on its own images alone, and a resumed run gives the same ones.

    Args:
        encoder: None: the examples bring their embeddings.
        workers: see `pixel_batches`.
        advance: told how many images were done, batch after batch.
    """
    for thumbnails in (False, True):
        group = [shard for shard in shards if (shard.split != "train") == thumbnails]
        if encoder is None:
            for shard in group:
                yield shard, [_checked(example.clip_embedding, None) for example in shard.examples]
                advance(len(shard.examples))
            continue
        images = (example.open() for shard in group for example in shard.examples)
        preprocessing = WithThumbnail(encoder.preprocessing) if thumbnails else encoder.preprocessing
        with closing(pixel_batches(images, preprocessing, batch_size, workers)) as batches:
            decoded = (pixels for batch in batches for _, pixels in batch)
            for shard in group:
                results: list[Embedded] = []
                while batch := list(islice(decoded, min(batch_size, len(shard.examples) - len(results)))):
                    results += _encode(batch, encoder)
                    advance(len(batch))
                yield shard, results


def to_rows(shard: Shard, results: Sequence[Embedded], width: int) -> tuple[pa.Table, list[dict[str, str]]]:
    """One row per caption of the images that could be embedded, and {"image", "error"} for each of the others."""
    import pyarrow as pa

    from clipcap.data.tables import row_schema

    skipped, vectors, rows = [], [np.empty((0, width), np.float32)], []
    for example, result in zip(shard.examples, results, strict=True):
        path = str(example.image) if isinstance(example.image, Path) else None
        if isinstance(result, UnreadableImage):
            skipped.append({"image": path or example.image_id, "error": result.reason})
            continue
        vector, thumbnail = result
        vectors.append(np.tile(vector, (len(example.captions), 1)))
        for number, caption in enumerate(example.captions):
            rows.append((caption, example.image_id, path, None if number else thumbnail))
    schema = row_schema(width)
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(vectors).ravel()), width)
    columns = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(list(schema)[1:])]
    return pa.table([embeddings, *columns], schema), skipped


def _encode(batch: list, encoder: ClipEncoder) -> list[Embedded]:
    """Decoded pictures (or errors) -> embeddings (or the same errors), in one pass of CLIP."""
    readable = [item if isinstance(item, tuple) else (item, None) for item in batch if not isinstance(item, Exception)]
    vectors = iter(encoder.encode_pixels(np.stack([pixels for pixels, _ in readable])).numpy() if readable else ())
    thumbnails = iter(thumbnail for _, thumbnail in readable)
    return [item if isinstance(item, Exception) else _checked(next(vectors), next(thumbnails)) for item in batch]


def _checked(vector: np.ndarray, thumbnail: bytes | None) -> Embedded:
    return (vector, thumbnail) if np.isfinite(vector).all() else UnreadableImage("its embedding is not finite")
