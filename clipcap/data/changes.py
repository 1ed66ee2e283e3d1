"""From which pictures and captions a dataset is made, so that a later run notices what has changed and can name it.

A picture is known by the size and the time of its file and by the SHA-256 of what was embedded. One whose size and time
are still the same counts as unchanged; of the others the content decides.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.data.examples import Deferred, Example
from clipcap.data.reading import short
from clipcap.data.tables import read_table
from clipcap.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

PICTURES = "pictures.arrow"
Mark = tuple[int | None, int | None]


def schema() -> pa.Schema:
    """The columns of a list of pictures."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("image_id", pa.large_string()),
            pa.field("split", pa.large_string()),
            pa.field("captions", pa.binary(16)),  # a hash
            pa.field(
                "size", pa.int64()
            ),  # null, like the next two: not embedded yet, unreadable, drawn by code, on the hub
            pa.field("time", pa.int64()),  # of the last modification, in nanoseconds
            pa.field("content", pa.binary(32)),  # SHA-256
        ]
    )


def pictures_of(examples: Sequence[Example], contents: bool) -> pa.Table:
    """One row per example, in order; with `contents` its file is read too."""
    import pyarrow as pa

    marks: list[Mark] = [(None, None)] * len(examples)
    hashes: list[bytes | None] = [None] * len(examples)
    if contents:
        marks = [_mark(example) for example in examples]
        hashes = _contents(examples)
    captions = [sha256(json.dumps(example.captions).encode()).digest()[:16] for example in examples]
    columns = [[example.image_id for example in examples], [example.split for example in examples], captions]
    columns += [[mark[0] for mark in marks], [mark[1] for mark in marks], hashes]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema(), strict=True)]
    return pa.table(arrays, schema())


def some(names: Sequence[str]) -> str:
    """The first three names, for a message."""
    return ", ".join([*map(short, names[:3]), *(["..."] if len(names) > 3 else [])])


def marks_of(examples: Sequence[Example]) -> list[Mark]:
    """Size and time of each picture as it is now, to be given to `changed_since` later."""
    return [_mark(example) for example in examples]


def changed_since(marks: Sequence[Mark], examples: Sequence[Example]) -> list[str]:
    """Names of the examples whose picture is not as it was, or has gone together with its folder, or its shard."""
    changed = []
    for example, before in zip(examples, marks, strict=bool(marks)):
        now = _mark(example)
        lost = example.origin or (isinstance(example.image, Path) and not example.image.parent.exists())
        gone = now == (None, None) and lost
        if now != before and (gone or now != (None, None)):
            changed.append(name_of(example))
    return changed


def changed_pictures(table: pa.Table, examples: Sequence[Example]) -> list[str]:
    """Names of those examples whose picture is there and is not the one of the table, which lists the same examples.

    A picture that is gone does not count: its embedding is still that of the name.
    """
    known = zip(table["size"].to_pylist(), table["time"].to_pylist(), strict=True)
    suspects = [
        (example, content)
        for example, mark, content in zip(examples, known, table["content"].to_pylist(), strict=True)
        if (now := _mark(example)) != (None, None) and now != mark
    ]
    contents = _contents([example for example, _ in suspects])
    return [name_of(example) for (example, before), now in zip(suspects, contents, strict=True) if now != before]


def what_differs(table: pa.Table, examples: Iterable[Example]) -> str:
    """In words, how a list of images and captions differs from the one of the table."""
    before, now = (
        {row["image_id"]: row for row in part.to_pylist()} for part in (table, pictures_of([*examples], False))
    )
    both = before.keys() & now.keys()
    kinds = {
        "new": [name for name in now if name not in before],
        "gone": [name for name in before if name not in now],
        "with other captions": [
            name for name in now if name in both and now[name]["captions"] != before[name]["captions"]
        ],
        "in another split": [name for name in now if name in both and now[name]["split"] != before[name]["split"]],
    }
    told = [f"{len(names)} {kind} (the first: {short(names[0])})" for kind, names in kinds.items() if names]
    return ", ".join(told) or "in another order"


def changed_plan(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str] | None:
    """The first part of a plan that has changed, and how; None if they are the same.

    An older version had not yet the options that a plan lacks: they are off. It recorded a hub folder as typed.
    """
    old, new = _flat(before), _flat(now)
    if os.path.realpath(str(old.get("source path")).replace("\0", "")) == new.get("source path"):
        old["source path"] = new["source path"]
    both = new.keys() & old.keys()
    different = (key for key in new | old if (new[key] != old[key] if key in both else new.get(key) or old.get(key)))
    return next(((key, f"{old.get(key)}, now {new.get(key)}") for key in different), None)


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    """{"clip": {"dim": 512}} -> {"clip dim": 512}: one level, so that a message can name what differs."""
    flat: dict[str, Any] = {}
    for key, value in plan.items():
        flat |= {f"{key} {name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def name_of(example: Example) -> str:
    """How messages call an example: by its file, or else by its identity."""
    return str(example.image) if isinstance(example.image, Path) else example.image_id


def mark_of(file: Path | None) -> Mark:
    """Size and time of a file; (None, None) if it is not there."""
    try:
        found = file.stat() if file else None
    except (OSError, ValueError):  # a name with NUL is a ValueError
        return None, None
    return (found.st_size, found.st_mtime_ns) if found and stat.S_ISREG(found.st_mode) else (None, None)


def _mark(example: Example) -> Mark:
    """That of the file that holds the picture."""
    return mark_of(example.image if isinstance(example.image, Path) else example.origin)


def _contents(examples: Sequence[Example]) -> list[bytes | None]:
    if not examples:
        return []
    with ThreadPoolExecutor() as pool:  # reading and hashing run beside each other, and beside the workers
        return list(pool.map(_content, examples))


def _content(example: Example) -> bytes | None:
    """SHA-256 of what is embedded; None if it cannot be read, is drawn by code, or lies on the hub."""
    if example.clip_embedding is not None:
        return sha256(example.clip_embedding.tobytes()).digest()
    if isinstance(example.image, Deferred) and example.origin is None:  # a commit on the hub: never changes
        return None
    source = example.open()
    if isinstance(source, bytes):
        return sha256(source).digest()
    return _content_of_file(source) if isinstance(source, Path) else None


def _content_of_file(path: Path) -> bytes | None:
    try:
        if not path.is_file():  # opening a pipe would block
            return None
        with path.open("rb") as file:
            return file_digest(file, "sha256").digest()
    except (OSError, ValueError):
        return None


def files_as_embedded(folder: Path, paths: Mapping[str, str | None]) -> dict[str, str]:
    """Those of a dataset's files, by the identities of their images, that are still what was embedded.

    Only these may be shown: a stranger's dataset may name any file of this computer, and cannot know its content. Of a
    dataset without a list of contents, which older versions made, there are none. Raises UserError for a damaged list.
    """
    file = folder / PICTURES
    if not any(paths.values()) or not file.is_file():
        return {}
    table = read_table(file)
    if table.schema != schema():
        raise UserError(f"{str(file)!r} is no list of pictures; make the dataset again")
    known = dict(zip(table["image_id"].to_pylist(), table["content"].to_pylist(), strict=True))
    return {
        image: path
        for image, path in paths.items()
        if path and known.get(image) and _content_of_file(Path(path)) == known[image]
    }
