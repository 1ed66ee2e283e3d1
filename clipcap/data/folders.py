"""Images in a folder with their captions beside them."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from clipcap.clip.images import find_images
from clipcap.data.examples import Example, Listing, Source, split_name
from clipcap.data.reading import Home, legible, needed_text, parse_json, read_captions, read_text, repeated, short
from clipcap.errors import UserError

IMAGE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path")
CAPTION_COLUMNS = ("caption", "captions", "text")
SPLIT_COLUMN = "split"
# A subfolder that may be a split, in lower case.
SPLIT_FOLDER = re.compile(r"[a-z]+[ _-]*(\d+|set|split|data|images?|imgs?|photos?|pictures?)?")


def folder(path: str, allow_outside: bool = False) -> Source:
    """Images with `metadata.jsonl`, `metadata.csv` or `captions.csv` in the folder, or a .txt beside each image.

    A row of a table names an image (column file_name) and its caption. An image with several captions has several rows,
    or a list in JSON. A .txt holds one caption. The split is that of the column `split`, or else of the first subfolder
    if it is called train, validation or test, such as `val2014`.

    Raises:
        UserError: there is no such folder, it has no images or no captions, its table cannot be read or names
            another split, or an image is outside and `allow_outside` is not set. Without a table, listing the examples
            raises it too.
    """
    root = existing(path, folder=True)
    home = Home(root, allow_outside=allow_outside)
    tables = [root / name for name in ("metadata.jsonl", "metadata.csv", "captions.csv")]
    table = next((table for table in tables if table.is_file()), None)
    examples = (
        _from_rows(home, root, table)
        if table
        else Listing(lambda: (_with_text(home, root, image) for image in find_images(root)))
    )
    if next(iter(examples), None) is None:
        raise UserError(f"{path!r} has no images" + (f" in its {table.name}" if table else ""))
    if not any(example.captions for example in examples):
        raise UserError(f"{path!r} has images but no captions; add metadata.jsonl, captions.csv, or a .txt beside each")
    return Source({"name": "folder", "path": str(root)}, examples)


def existing(path: str, folder: bool = False) -> Path:
    """The place of a source, without links. Raises UserError if it is not there or cannot be reached."""
    try:
        root = Path(path)
        there = bool(path) and root.exists()
    except OSError as error:
        raise UserError(f"{short(path)} cannot be read ({error.strerror}); check the path") from None
    if not there or (folder and not root.is_dir()):
        raise UserError(f"{path!r} is not {'a folder' if there else 'there'}; check the path")
    return root.resolve()


def _with_text(home: Home, root: Path, image: Path) -> Example:
    """An image with the .txt beside it, `a.jpg.txt` or `a.txt`; without one it has no caption."""
    name = image.relative_to(root)
    text = image.with_name(f"{image.name}.txt")
    text = text if os.path.isfile(text) else image.with_suffix(".txt")
    home.check(image, repr(str(image)))
    captions = read_captions(read_text(home.check(text, repr(str(text)))), str(text)) if os.path.isfile(text) else ()
    return Example(legible(name.as_posix()), captions, image, _split_of(name))


def _split_of(name: Path) -> str:
    """The split that the whole name of the first subfolder says: "val2014" or "test_images", but not "Test shots"."""
    whole = len(name.parts) > 1 and SPLIT_FOLDER.fullmatch(name.parts[0].lower())
    return split_name(name.parts[0]) if whole else "train"


def _from_rows(home: Home, root: Path, table: Path) -> list[Example]:
    """The images that a table lists, in the order in which it first names them."""
    home.check(table, repr(str(table)))
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}  # where a row says one; the picture's other rows need not
    for line, row in _rows(table):
        where = f"{str(table)!r}, line {line}"
        name = Path(needed_text(_value(row, IMAGE_COLUMNS, where), f"{where}: file_name")).as_posix()  # without "./"
        texts = read_captions(_value(row, CAPTION_COLUMNS, where), where)
        if given := row.get(SPLIT_COLUMN):
            split = split_name(needed_text(given, f"{where}: split").strip(), "")
            if not split:
                raise UserError(f"{where}, has the split {short(given)}: none of train, validation, test")
            if splits.setdefault(name, split) != split:
                raise UserError(f"{where}, puts {short(name)} into {split}, and an earlier line into {splits[name]}")
        if name not in captions:
            home.check(root / name, f"{where}: {short(name)}")
        captions.setdefault(name, []).extend(texts)
    return [
        Example(legible(name), tuple(texts), root / name, splits.get(name) or _split_of(Path(name)))
        for name, texts in captions.items()
    ]


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with the number of its first line."""
    lines = io.StringIO(
        read_text(table), newline=""
    )  # not splitlines(): it would break captions at U+2028 and the like
    if table.suffix == ".csv":
        yield from _csv_rows(lines, str(table))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{str(table)!r}, line {number},")
        if not isinstance(row, dict):
            raise UserError(f"{str(table)!r}, line {number}, is not a JSON object")
        yield number, row


def _csv_rows(lines: io.StringIO, table: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row of a CSV file with the number of its first line. Raises UserError rather than guess how cells end."""
    reader = csv.reader(lines, strict=True)  # strict: else a quote that is not closed swallows the rest of the file
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            line, first = reader.line_num + 1, line
            if not columns and (twice := repeated(cells)) is not None:
                raise UserError(f"{table!r}, line {first}, has the column {short(twice)} twice")
            if not columns or not cells:
                columns = columns or cells
                continue
            if any(cells[len(columns) :]):
                raise UserError(
                    f"{table!r}, line {first}, has {len(cells)} cells for {len(columns)} columns; "
                    "put captions that hold commas into double quotes"
                )
            yield first, dict(zip_longest(columns, cells[: len(columns)]))
    except csv.Error as error:
        raise UserError(
            f"{table!r}, line {line}, cannot be read ({error}); close its double quotes, and write those inside twice"
        ) from None


def values_of(row: dict[str, Any], columns: Iterable[str]) -> list[Any]:
    """What a row has in these columns, as far as it has them; empty values last."""
    values = [row[column] for column in columns if column in row]
    return sorted(values, key=lambda value: value in (None, "", []) or value != value)  # NaN is not itself


def _value(row: dict[str, Any], columns: Iterable[str], where: str) -> Any:
    """The value of the first of these columns that is filled, or else there. Raises UserError if the row has none."""
    if values := values_of(row, columns):
        return values[0]
    has = ", ".join(short(column)[1:-1] for column in list(row)[:20])
    raise UserError(f"{where}, has no column {' or '.join(columns)}; it has {has}")
