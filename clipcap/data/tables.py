"""Arrow tables of embedded captions, and the description beside them, which may come from strangers.

Shapes: N rows, C CLIP width.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from clipcap.data.canaries import MOST_CANARIES, Canary
from clipcap.errors import UserError
from clipcap.files import whole_file

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 2
REPEATED = 1  # the older format, which is read too: it repeats an embedding for each caption of its image
INFO = "dataset.json"
DATA = "data.arrow"  # in a folder per split
PARTS = ".parts"  # of a dataset that is not complete
PLAN = "plan.json"  # in these
SHARDS = "shards"  # what `.parts` is called in a dataset that keeps them
MAY_LACK = {"image_path", "thumbnail"}  # the columns that may hold nulls


def row_schema(width: int, repeated: bool = False) -> pa.Schema:
    """The columns of a dataset whose embeddings have C = `width`; with `repeated` those of the older format.

    A row is one caption. An image with several captions has several rows: they share its embedding, which is one entry
    of a dictionary, and the first of them holds its thumbnail. Each shard is a record batch with its own dictionary.
    """
    import pyarrow as pa

    embedding = pa.list_(pa.float32(), width)
    return pa.schema(
        [
            pa.field("clip_embedding", embedding if repeated else pa.dictionary(pa.int32(), embedding)),
            pa.field("caption", pa.large_string()),
            pa.field("image_id", pa.large_string()),
            pa.field("image_path", pa.large_string()),
            pa.field("thumbnail", pa.large_binary()),
        ]
    )


def read_json(path: Path, kind: type) -> Any:
    """The content of a dataset's JSON file, which must be of this type. Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise TypeError
        return content
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({type(error).__name__}); make the dataset again") from None


def read_info(folder: Path) -> dict[str, Any]:
    """The content of a complete dataset's dataset.json. Raises UserError if it lacks anything that is read from it."""
    info = read_json(folder / INFO, dict)
    if info.get("format") not in (FORMAT, REPEATED) or not _described(info):
        raise UserError(f"data {str(folder)!r} is not of format {FORMAT}, which this version reads; make it again")
    return info


def _described(info: dict[str, Any]) -> bool:
    """Whether a dataset.json says what the scripts read from it, and its splits are folders of the dataset."""
    clip, splits, source, identity = (info.get(key) for key in ("clip", "splits", "source", "identity"))
    return (
        isinstance(clip, dict)
        and clip.keys() == {"model", "pretrained", "dim"}
        and all(
            isinstance(clip[key], str | None) and (clip[key] or "").isprintable() for key in ("model", "pretrained")
        )
        and _is_count(clip["dim"])
        and 0 < clip["dim"] < 2**31
        and _are_counts(splits)
        and _are_counts(info.get("shards", {}))
        and info.get("shards", splits).keys() == splits.keys()
        and 0 not in info.get("shards", {}).values()
        and all(name == Path(name).name != ".." for name in splits)
        and isinstance(source, dict)
        and isinstance(source.get("name"), str)
        and isinstance(identity, str)
        and re.fullmatch("[0-9a-f]{64}", identity) is not None
        and _is_count(info.get("skipped"))
        and _are_counts(info.get("cleaning"))
        and isinstance(info.get("plan", {}), dict)
        and _are_canaries(info.get("canaries", []))
    )


def _are_canaries(value: Any) -> bool:
    names = {field.name for field in fields(Canary)}
    return (
        isinstance(value, list)
        and len(value) <= MOST_CANARIES
        and all(isinstance(entry, dict) and entry.keys() == names for entry in value)
        and all(isinstance(text, str) for entry in value for text in entry.values())
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63  # true is an int too


def _are_counts(value: Any) -> TypeGuard[dict[str, int]]:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def read_table(path: Path, advice: str = "make the dataset again") -> pa.Table:
    """Map an Arrow file into memory. Raises UserError, with advice what to do, if it is missing or damaged."""
    return map_table(path, advice)[0]


def map_table(path: Path, advice: str = "make the dataset again") -> tuple[pa.Table, pa.Buffer]:
    """The table of an Arrow file, and the map of the file into memory that it lies in. Raises UserError."""
    import pyarrow as pa

    try:
        with pa.memory_map(os.fsencode(path)) as file:  # the map outlives it, and leaves no file open: they may be many
            mapped = file.read_buffer()
        table = pa.ipc.open_stream(mapped).read_all()
        table.validate(full=True)  # offsets that lead out of the file would end the process later
        return table, mapped
    except Exception as error:  # a damaged file raises anything
        raise UserError(f"{str(path)!r} is missing or damaged ({type(error).__name__}); {advice}") from None


def let_go(maps: Iterable[pa.Buffer]) -> None:
    """Give back the memory of mapped files; what is used again is read again."""
    if hasattr(mmap, "MADV_DONTNEED"):  # Windows does so itself
        system = ctypes.CDLL(None)
        for mapped in maps:
            system.madvise(ctypes.c_void_p(mapped.address), ctypes.c_size_t(mapped.size), mmap.MADV_DONTNEED)


def is_whole(table: pa.Table, width: int) -> bool:
    """Whether these are rows as `row_schema` describes them, without a null where none may be."""
    repeated = table.schema == row_schema(width, repeated=True)
    return (
        (repeated or table.schema == row_schema(width))
        and not any(table[name].null_count for name in table.column_names if name not in MAY_LACK)
        and not any(
            stored.null_count or stored.flatten().null_count
            for chunk in table["clip_embedding"].chunks
            for stored in [chunk if repeated else chunk.dictionary]
        )
    )


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow file, whole or not at all. Raises OSError."""
    write_tables(path, table.schema, [table])


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write the rows of all tables to one Arrow file, whole or not at all, with one table in memory at a time.

    Raises OSError.
    """
    import pyarrow as pa

    with whole_file(path) as file, pa.ipc.new_stream(file, schema) as stream:
        for table in tables:
            stream.write_table(table)


def as_bytes(table: pa.Table) -> bytes:
    """A table in Arrow's stream format."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def from_bytes(stream: bytes) -> pa.Table:
    """The table that `as_bytes` wrote."""
    import pyarrow as pa

    return pa.ipc.open_stream(stream).read_all()
