"""Conceptual Captions: tables of a caption, a tab and an address, and the images downloaded from there.

Which image belongs to which row is known by its name. Two downloaders are in use beside img2dataset, whose output needs
no table, since the sources `folder` and `tar` read it:

- ClipCap's `parse_conceptual.py` (github.com/rmokady/CLIP_prefix_caption) numbers the rows: `train/00000007.jpg`. Its
  training rows begin with those of validation, whose images so take the first numbers in `train/`, if their addresses
  answer once more. Which ones did, its own records `conceptual_train_00.pkl` say; without them, nothing does.
- `download_data.py` (github.com/igorbrigadir/DownloadConceptualCaptions) takes the CRC-32 of the address:
  `training/3084632216`, without an ending.
"""

from __future__ import annotations

import csv
import os
import re
import sys
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np

from clipcap.data.examples import Example, Listing, Source, split_name
from clipcap.data.folders import existing
from clipcap.data.pickles import read_pickle
from clipcap.data.reading import Home, legible, read_captions, short
from clipcap.errors import UserError, first_line

MOST_CHARACTERS = 1 << 17  # of a line, as in Python's own reader of tables
FOLDERS = {"train": ("train", "training"), "validation": ("val", "validation"), "test": ("test",)}
REPORTS = "downloaded_"  # begins the names of those of `download_data.py`, on what became of each row
OF_VALIDATION = "Validation_GCC-1.1.0-Validation.tsv"  # the table that `parse_conceptual.py` reads
RECORDS = r"conceptual_(val|train)_\d\d\.pkl"
HOW = (
    "to download them, put a first line 'caption', a tab, 'url' into the .tsv, run img2dataset --input_format tsv "
    "--url_list IT.tsv --url_col url --caption_col caption --resize_mode keep_ratio --output_folder images, and "
    "give --source folder images"
)


def conceptual(path: str, allow_outside: bool = False) -> Source:
    """A table of Conceptual Captions, or the folder that its tables and images are in.

    Rows whose image was not downloaded are left out, and those whose image in `train/` may be one of validation; how
    many are there is told on stderr. Where the records of `parse_conceptual.py` are in the folder, they are read in
    place of the tables.

    Raises:
        UserError: there is no such path, it has no table that can be read or two of one split, no image of a table is
            there, or a link leads outside and `allow_outside` is not set.
    """
    root = existing(path)
    folder = root if root.is_dir() else root.parent
    home = Home(folder, allow_outside=allow_outside)
    tables, records = [root], []
    if root.is_dir():
        tables = sorted(file for file in root.glob("*.tsv") if not file.name.startswith(REPORTS))
        records = sorted(file for file in root.glob("*.pkl") if re.fullmatch(RECORDS, file.name) and file.is_file())
    if not (tables or records):
        raise UserError(f"{path!r} has no .tsv of captions and addresses; --source folder reads what img2dataset wrote")
    by_split = {split_name(table.stem): table for table in tables}
    if not records and len(by_split) < len(tables):
        raise UserError(f"{path!r} has several tables of one split: give the one to read, such as {str(tables[0])!r}")
    repeated = {} if records else {table: _repeated(home.check(table, repr(str(table)))) for table in tables}
    unsure = 0 if records else _unsure(home, folder)
    told: set[Path] = set()

    def examples() -> Iterator[Example]:
        if records:
            return _from_records(home, folder, records)
        return chain.from_iterable(
            _from_table(home, folder, table, split, repeated[table], unsure, told) for split, table in by_split.items()
        )

    if next(examples(), None) is None:
        above = f" with a number from {unsure} on (those below may be of validation)" if unsure else ""
        raise UserError(
            f"no image of {path!r} is there{above}, in a folder {FOLDERS['train'][0]} beside the .tsv: {HOW}"
        )
    return Source({"name": "conceptual", "path": str(root)}, Listing(examples))


def _from_table(
    home: Home, folder: Path, table: Path, split: str, repeated: set[int], unsure: int, told: set[Path]
) -> Iterator[Example]:
    """The rows whose image is there. Rows that share an image come last, as one example for each image."""
    places = [folder / name for name in FOLDERS[split]]
    images = next((place for place in places if place.is_dir()), places[0])
    shared: dict[Path, dict[str, list[str]]] = {}
    rows = there = left_out = 0
    for rows, (caption, url) in enumerate(_rows(table), 1):
        name = str(zlib.crc32(url.encode()))
        found = next(filter(os.path.isfile, (f"{images}/{rows - 1:08d}.jpg", f"{images}/{name}")), None)
        if found is None:
            continue
        image = home.check(Path(found), repr(found))
        if images.name == "train" and image.name != name and rows <= unsure:
            left_out += 1
            continue
        if image.name == name and int(name) in repeated:
            shared.setdefault(image, {}).setdefault(url, []).append(caption)
            continue
        there += 1
        yield _example(image, [caption], split)
    for image, captions in shared.items():
        if len(captions) == 1:  # of several addresses, nobody knows whose image it is
            (texts,) = captions.values()
            there += len(texts)
            yield _example(image, texts, split)
    if table not in told:  # it is listed several times
        why = (
            f", without {left_out} whose numbers are below {unsure}: those may be of validation, and only the records "
            "of parse_conceptual.py (conceptual_train_00.pkl, ...), in the folder that --source names, say which are"
        )
        print(f"{table}: the images of {there} of {rows} rows are there{why if left_out else ''}", file=sys.stderr)
        told.add(table)


def _from_records(home: Home, folder: Path, records: list[Path]) -> Iterator[Example]:
    """The images that the records of `parse_conceptual.py` name; those of validation that it got twice only once."""
    of_validation: set[str] = set()
    for file in sorted(records, key=lambda file: "_train_" in file.name):
        content = read_pickle(home.check(file, repr(str(file))))
        info = content.get("info") if isinstance(content, dict) else None
        if not isinstance(info, dict):
            raise UserError(f"{str(file)!r} is no record of parse_conceptual.py: it lacks 'info'")
        part = file.name.split("_")[1]
        for name, entry in info.items():
            where = f"{str(file)!r}, image {short(name)}"
            caption, url = (entry.get("caption"), entry.get("url")) if isinstance(entry, dict) else (None, None)
            if not (isinstance(name, str) and isinstance(url, str)):
                raise UserError(f"{where}, has no name and address as parse_conceptual.py writes them")
            captions = read_captions(caption, where)
            image = home.check(folder / part / f"{name}.jpg", where)
            if part == "val":
                of_validation.add(url)
            if (part == "val" or url not in of_validation) and os.path.isfile(image):
                yield Example(legible(f"{part}/{name}"), captions, image, split_name(part))


def _example(image: Path, captions: list[str], split: str) -> Example:
    return Example(f"{image.parent.name}/{image.stem}", read_captions(captions, repr(str(image))), image, split)


def _unsure(home: Home, folder: Path) -> int:
    """How many numbers in `train/` may be those of validation: all that its table has, or else its images."""
    table = folder / OF_VALIDATION
    if table.is_file():
        return sum(1 for _ in _rows(home.check(table, repr(str(table)))))
    return max(
        (int(image.stem) + 1 for image in (folder / "val").glob("[0-9]*.jpg") if image.stem.isdecimal()), default=0
    )


def _repeated(table: Path) -> set[int]:
    """The CRC-32 that several rows have, because their addresses are the same or by chance."""
    values, counts = np.unique(
        np.fromiter((zlib.crc32(url.encode()) for _, url in _rows(table)), np.uint32), return_counts=True
    )
    return set(values[counts > 1].tolist())


def _rows(table: Path) -> Iterator[tuple[str, str]]:
    """Caption and address of each row. Raises UserError for a row that is none."""
    where = repr(str(table))
    try:
        if not table.is_file():
            raise csv.Error("it is not a file")  # opening a pipe would block
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_lines(file), delimiter="\t")
            for number, row in enumerate(reader, 1):
                where = f"{str(table)!r}, line {reader.line_num},"
                if number == 1 and row[:2] == ["caption", "url"]:  # the names that img2dataset needs
                    continue
                if len(row) < 2 or "://" not in row[1]:
                    raise UserError(f"{where} is not a caption, a tab and an address: {short(row[0] if row else '')}")
                yield row[0], row[1]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{where} cannot be read ({first_line(error)}); download the table again") from None


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(MOST_CHARACTERS):
        if len(line) == MOST_CHARACTERS:
            raise csv.Error(f"a line of {MOST_CHARACTERS} characters or more")
        yield line
