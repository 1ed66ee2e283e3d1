"""Arrow tables of embedded captions.

Shapes: N rows, C CLIP width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipcap.errors import UserError
from clipcap.files import whole_file


def row_schema(width: int) -> pa.Schema:
    """The columns of a dataset whose embeddings have C = `width`.

    A row is one caption. An image with several captions has several rows: each holds its embedding, the first one its
    thumbnail.
    """
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
    """Float32 (N, C), read-only; without a copy where the table is one record batch."""
    column = table["clip_embedding"]
    width = column.type.list_size
    chunks = [chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty((0, width), np.float32), *chunks])


def read_json(path: Path, kind: type) -> Any:
    """The content of a dataset's JSON file, which must be of this type. Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise TypeError
        return content
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({type(error).__name__}); make the dataset again") from None


def read_table(path: Path) -> pa.Table:
    """Map an Arrow file into memory. Raises UserError if it is missing or damaged."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{str(path)!r} is missing or damaged ({type(error).__name__}); make the dataset again"
        ) from None


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow file, whole or not at all. Raises OSError."""
    with whole_file(path) as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
