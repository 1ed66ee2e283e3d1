"""Parquet files with images inside, read where they lie: on this computer, or on the Hugging Face hub.

Listing them reads the captions alone. Images are read a row group at a time, in order, so that one row group is in
memory: as many rows as the writer put into it, 100 with `datasets` and img2dataset.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from clipcap.cli.progress import ProgressBar
from clipcap.clip.images import UnreadableImage
from clipcap.data.examples import Deferred, Example, Listing, Source, split_of
from clipcap.data.hub import image_of
from clipcap.data.patterns import SourceFile, find_shards
from clipcap.data.reading import Home, legible, read_captions, short
from clipcap.errors import UserError, first_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MOST_BYTES = 2 << 30  # of one column in one row group, which is read at once
REMOTE = "hf:"


@dataclass(frozen=True)
class Part:
    """One parquet file.

    Attributes:
        name: within the source; it says the split, and begins the identities of its images.
        told: how messages call it.
        file: gives what pyarrow reads from.
        origin: the file on this computer; None on the hub.
    """

    name: str
    told: str
    file: Callable[[], Any]
    origin: Path | None = None

    def open(self) -> pq.ParquetFile:
        """The file, its footer read. Raises UserError."""
        import pyarrow.parquet as pq

        with _legible(self):
            return pq.ParquetFile(self.file())


Captions = Callable[[Part], Iterator[tuple[str, ...]]]  # those of each row of a file


def parquet(path: str, image_column: str, caption_column: str, allow_outside: bool = False) -> Source:
    """Parquet files with a column of images, binary or as `datasets` writes them, and one of captions.

    Args:
        path: a file, a folder or a pattern (see `clipcap.data.patterns`), or `hf:owner/name` (see
            `clipcap.data.remote`).
        image_column, caption_column: their names.
        allow_outside: files may be links to outside, and rows may name image files there.

    Raises:
        UserError: there is no such place, or it has no rows that can be read. Listing the examples raises it too, for
            the first file that cannot be read.
    """
    captions_of: Captions = partial(_captions, image_column=image_column, caption_column=caption_column)
    if path.startswith(REMOTE):
        from clipcap.data.remote import find_files

        place, files = find_files(path, ".parquet")
        parts = [Part(name, f"{name!r} of {place}", file) for name, file in files.items()]
        captions_of = _Copies(parts, captions_of)
    else:
        found, shards = find_shards(path, ".parquet", allow_outside)
        place = str(found)
        parts = [Part(shard.name, repr(str(shard.path)), partial(_checked, shard), shard.path) for shard in shards]
    images = _Images(image_column, allow_outside)

    def examples() -> Iterator[Example]:
        for part in parts:
            for row, captions in enumerate(captions_of(part)):
                read = Deferred(partial(images.read, part, row))
                yield Example(legible(f"{part.name}/{row}"), captions, read, split_of(part.name), origin=part.origin)

    listing = Listing(examples)
    if next(iter(listing), None) is None:
        raise UserError(f"{path!r} has no rows in its parquet files")
    return Source({"name": "parquet", "path": place, "image column": image_column}, listing)


def _checked(shard: SourceFile) -> str:
    shard.check()
    if not shard.path.is_file():
        raise OSError("it is not a file")  # opening a pipe would block
    return str(shard.path)


class _Copies:
    """The captions of files on the hub, in temporary files here, so that the network is asked for them once."""

    def __init__(self, parts: Sequence[Part], captions_of: Captions) -> None:
        self.folder = TemporaryDirectory(prefix="clipcap-")
        self.files = {part.name: Path(self.folder.name, str(number)) for number, part in enumerate(parts)}
        for part in ProgressBar(parts, "captions", unit="file", leave=False):
            with self.files[part.name].open("wb") as file:
                file.writelines(json.dumps(captions).encode() + b"\n" for captions in captions_of(part))

    def __call__(self, part: Part) -> Iterator[tuple[str, ...]]:
        with self.files[part.name].open("rb") as file:
            yield from (tuple(json.loads(line)) for line in file)


def _captions(part: Part, image_column: str, caption_column: str) -> Iterator[tuple[str, ...]]:
    """The captions of each row. Raises UserError if the file cannot be read, or an image could not be."""
    row = 0
    with _legible(part):
        file = part.open()
        _check_columns(file, part, image_column, caption_column)
        groups = range(file.num_row_groups)
        at_once = min((_rows_at_once(file, group, caption_column, 1000) for group in groups), default=1000)
        for batch in file.iter_batches(batch_size=at_once, columns=[caption_column], use_threads=False):
            for value in batch.column(caption_column).to_pylist():
                yield read_captions(value, f"{part.told}, row {row}")
                row += 1
        if row != file.metadata.num_rows:
            raise ValueError(f"it has {row} captions and says that it has {file.metadata.num_rows}")


def _check_columns(file: pq.ParquetFile, part: Part, image_column: str, caption_column: str) -> None:
    """Raise a UserError for columns that are not there, hold no images, or are too large to be read."""
    import pyarrow as pa

    schema, metadata = file.schema_arrow, file.metadata
    for column in (image_column, caption_column):
        if schema.names.count(column) != 1:
            found = "several columns" if column in schema.names else "no column"
            has = ", ".join(short(name)[1:-1] for name in schema.names[:20])
            advice = "name another --image-column or --caption-column"
            raise UserError(f"{part.told} has {found} {column!r}; it has {has}; {advice}")
    kind = schema.field(image_column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f"column {image_column!r} of {part.told} holds no images; name another --image-column")
    for number in range(metadata.num_row_groups):
        for column in (image_column, caption_column):
            _check_size(_size(file, number, column), part, number)


def _size(file: pq.ParquetFile, number: int, column: str) -> int:
    """The bytes that a row group says it has of a column, each of those that it repeats counted once."""
    group = file.metadata.row_group(number)
    chunks = (group.column(place) for place in range(group.num_columns))
    own = (chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{column}."))
    return sum(chunk.total_uncompressed_size for chunk in own)


def _rows_at_once(file: pq.ParquetFile, number: int, column: str, most: int) -> int:
    """How many rows to read together: each of them may hold all that the row group has of this column."""
    return max(1, min(most, MOST_BYTES // 8 // max(1, _size(file, number, column))))


def _check_size(size: int, part: Part, group: int) -> None:
    if size > MOST_BYTES:
        raise UserError(
            f"row group {group} of {part.told} has a column of over {MOST_BYTES / 1e9:.1f} GB, which would have to be "
            "in memory at once: write the file again with row groups of 100 rows"
        )


class _Images:
    """Reads images, and keeps the row group of the last one. Threads may share it."""

    def __init__(self, column: str, allow_outside: bool) -> None:
        self.column, self.allow_outside = column, allow_outside
        self.lock = Lock()
        self.part: Part | None = None
        self.cells: Any = None
        self.rows = range(0)  # that `cells` holds

    def read(self, part: Part, row: int) -> bytes | Path:
        """The image of a row: its bytes, or the file beside the parquet file that the row names.

        Raises ValueError, OSError or UnreadableImage if it cannot be read, UserError if that holds for the whole file.
        """
        with self.lock:
            if part is not self.part:
                self.part, self.rows, self.cells = None, range(0), None
                self.file = part.open()
                groups = range(self.file.num_row_groups)
                self.ends = np.cumsum([self.file.metadata.row_group(group).num_rows for group in groups])
                self.part = part
            if row not in self.rows:
                self.rows, self.cells = range(0), None  # before the next one is read
                group = int(np.searchsorted(self.ends, row, side="right"))
                self.cells = self._read_group(part, group)
                end = int(self.ends[group])
                self.rows = range(end - len(self.cells), end)
            cell = self.cells[row - self.rows.start].as_py()
        content, file = (cell["bytes"], cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if content is not None or not isinstance(file, str) or part.origin is None:  # the hub's rows name no file here
            return content or b""
        home = Home(part.origin.parent, allow_outside=self.allow_outside)
        return image_of({"bytes": None, "path": part.origin.parent / file}, home)

    def _read_group(self, part: Part, group: int) -> pa.ChunkedArray:
        """A few rows at a time: a small file may hold one large image many times over."""
        import pyarrow as pa

        size, cells, at_once = 0, [], _rows_at_once(self.file, group, self.column, 16)
        try:
            for batch in self.file.iter_batches(at_once, row_groups=[group], columns=[self.column], use_threads=False):
                cells.append(batch.column(self.column))
                size += batch.nbytes
                _check_size(size, part, group)
        except NotImplementedError as error:  # what pyarrow cannot do
            raise UnreadableImage(first_line(error)) from None
        return pa.chunked_array(cells)


@contextmanager
def _legible(part: Part) -> Iterator[None]:
    """Turn what pyarrow raises inside into a UserError that names the file."""
    try:
        yield
    except (ValueError, OSError, NotImplementedError) as error:
        raise UserError(f"{part.told} cannot be read as parquet ({first_line(error)}); get it again") from None
