"""Sources on disk: images with captions beside them, COCO's annotations, and tar shards."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from clipcap.clip.images import EXTENSIONS, find_images
from clipcap.data.examples import Example, Source, split_name
from clipcap.errors import UserError

IMAGE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path")
CAPTION_COLUMNS = ("caption", "captions", "text")
SPLIT_COLUMN = "split"


def folder(path: str) -> Source:
    """Images with `metadata.jsonl`, `metadata.csv` or `captions.csv` in the folder, or a .txt beside each image.

    A row of a table names an image (column file_name) and its caption. An image with several captions has several rows,
    or a list in JSON. A .txt holds one caption. The split is that of the column `split`, or else of the first subfolder
    if it is called train, validation or test.

    Raises:
        UserError: there is no such folder, it has no images or no captions, or its table cannot be read.
    """
    root = _existing(path, folder=True)
    tables = [root / name for name in ("metadata.jsonl", "metadata.csv", "captions.csv")]
    table = next((table for table in tables if table.is_file()), None)
    examples = _from_rows(root, table) if table else [_with_text(root, image) for image in find_images(root)]
    if not examples:
        raise UserError(f"{path!r} has no images" + (f" in its {table.name}" if table else ""))
    if not any(example.captions for example in examples):
        raise UserError(f"{path!r} has images but no captions; add metadata.jsonl, captions.csv, or a .txt beside each")
    return Source({"name": "folder", "path": str(root)}, examples)


def coco(path: str) -> Source:
    """COCO as it is unpacked: `captions_*.json` (also in annotations/), and images in train2017/, images/ or beside it.

    Raises:
        UserError: there is no such folder, or it has no caption files that can be read.
    """
    root = _existing(path, folder=True)
    files = sorted(root.glob("captions_*.json")) or sorted(root.glob("annotations/captions_*.json"))
    if not files:
        raise UserError(f"{path!r} has no captions_*.json, nor has its folder annotations; give COCO's folder")
    examples = [example for file in files for example in _from_coco(root, file)]
    return Source({"name": "coco", "path": str(root)}, examples)


def tar(path: str) -> Source:
    """Tar shards as webdataset packs them, one file or a folder: KEY.jpg with KEY.txt or KEY.json ("caption").

    Raises:
        UserError: there is no such path, or it has no shard with images that can be read.
    """
    root = _existing(path)
    shards = [root] if root.is_file() else sorted(root.rglob("*.tar"))
    if not shards:
        raise UserError(f"{path!r} has no .tar files")
    examples = [example for shard in shards for example in _from_tar(shard)]
    if not examples:
        raise UserError(f"{path!r} has no image in its tar files")
    return Source({"name": "tar", "path": str(root)}, examples)


def _existing(path: str, folder: bool = False) -> Path:
    root = Path(path)
    if not root.exists() or (folder and not root.is_dir()):
        raise UserError(f"{path!r} is not {'a folder' if folder and root.exists() else 'there'}; check the path")
    return root.resolve()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{str(path)!r} is not UTF-8 text; save it as UTF-8") from None


def _with_text(root: Path, image: Path) -> Example:
    """An image with the .txt beside it; without one it has no caption."""
    name = image.relative_to(root)
    text = image.with_suffix(".txt")
    captions = (_text(text),) if text.is_file() else ()
    return Example(name.as_posix(), captions, image, split_name(name.parts[0] if len(name.parts) > 1 else ""))


def _from_rows(root: Path, table: Path) -> list[Example]:
    """The images that a table lists, in the order in which it first names them."""
    captions: dict[tuple[str, str], list[str]] = {}
    for number, row in _rows(table):
        name, caption = _value(row, IMAGE_COLUMNS, table, number), _value(row, CAPTION_COLUMNS, table, number)
        parts = Path(str(name)).parts
        split = str(row.get(SPLIT_COLUMN) or (parts[0] if len(parts) > 1 else ""))
        texts = caption if isinstance(caption, list) else [caption]
        key = (str(name), split_name(split))
        captions.setdefault(key, []).extend("" if text is None else str(text) for text in texts)
    return [Example(name, tuple(texts), root / name, split) for (name, split), texts in captions.items()]


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with the number of its line."""
    lines = io.StringIO(_text(table), newline="")  # not splitlines(): it would break captions at U+2028 and the like
    if table.suffix == ".csv":
        reader = csv.DictReader(lines)
        yield from ((reader.line_num, row) for row in reader)
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{str(table)!r}, line {number}, is not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise UserError(f"{str(table)!r}, line {number}, is not a JSON object")
        yield number, row


def _value(row: dict[str, Any], columns: Iterable[str], table: Path, number: int) -> Any:
    """The value of the first of these columns that the row has. Raises UserError if it has none."""
    for column in columns:
        if column in row:
            return row[column]
    has = ", ".join(str(column) for column in row)
    raise UserError(f"{str(table)!r}, line {number}, has no column {' or '.join(columns)}; it has {has}")


def _from_coco(root: Path, file: Path) -> Iterator[Example]:
    try:
        content = json.loads(_text(file))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[Any, list[str]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        pairs = [(key, names[key], tuple(texts)) for key, texts in captions.items()]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{str(file)!r} is not a COCO caption file ({type(error).__name__}: {error})") from None
    part = file.stem.removeprefix("captions_")  # "train2017"
    places = [root / part, root / "images" / part, root / "images", root]
    images = next((place for place in places if pairs and (place / pairs[0][1]).is_file()), places[0])
    for key, name, texts in pairs:
        yield Example(str(key), texts, images / name, split_name(part))


def _from_tar(shard: Path) -> Iterator[Example]:
    """List a shard without reading its images: each remembers where in the file its bytes are."""
    try:
        with tarfile.open(shard, "r:") as archive:
            files = (member for member in archive if member.isfile())
            for key, members in groupby(files, key=lambda member: _key(member.name)):
                parts = {Path(member.name).suffix.lower(): member for member in members}
                image = next((member for ending, member in parts.items() if ending in EXTENSIONS), None)
                if image:
                    read = partial(_read_part, shard, image.offset_data, image.size)
                    yield Example(f"{shard.name}/{key}", _tar_captions(archive, parts), read, split_name(shard.name))
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"{str(shard)!r} is not a tar shard of images and captions ({error})") from None


def _key(name: str) -> str:
    """The key of a sample as webdataset defines it: the path up to the first dot of the file name."""
    parent, _, base = name.rpartition("/")
    return f"{parent}/{base.split('.')[0]}".lstrip("/")


def _tar_captions(archive: tarfile.TarFile, parts: dict[str, tarfile.TarInfo]) -> tuple[str, ...]:
    if ".txt" in parts:
        return (_content(archive, parts[".txt"]).decode(),)
    if ".json" in parts:
        content = json.loads(_content(archive, parts[".json"]))
        caption = next((content[column] for column in CAPTION_COLUMNS if column in content), ())
        return tuple(caption) if isinstance(caption, list | tuple) else (str(caption),)
    return ()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # only members that are files come here
    return file.read()


def _read_part(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
