"""Arrow tables of embedded captions, and files that appear whole or not at all.

Shapes: N rows, C CLIP width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from clipcap.errors import UserError


def row_schema(width: int) -> pa.Schema:
    """A row is one caption. An image with several has as many rows: all with its embedding, one with its thumbnail."""
    return pa.schema(
        [
            pa.field("clip_embedding", pa.list_(pa.float32(), width)),
            pa.field("caption", pa.large_string()),
            pa.field("image_id", pa.large_string()),
            pa.field("image_path", pa.large_string()),
            pa.field("thumbnail", pa.large_binary()),
        ]
    )


def embedding_array(table: pa.Table) -> np.ndarray:
    """float32 (N, C), read-only, and without a copy where the table is one record batch."""
    column = table["clip_embedding"]
    width = column.type.list_size
    chunks = [chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty((0, width), np.float32), *chunks])


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({type(error).__name__}); make the dataset again") from None


def read_table(path: Path) -> pa.Table:
    """Map an Arrow file into memory. Raises UserError."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{str(path)!r} is missing or damaged ({type(error).__name__}); make the dataset again"
        ) from None


def write_whole(path: Path, content: bytes) -> None:
    with _whole_file(path) as file:
        file.write(content)


def write_table(path: Path, table: pa.Table) -> None:
    with _whole_file(path) as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when all of it is on the disk."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
