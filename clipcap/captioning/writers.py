"""The files that captions are written to: one file of rows, with a format by its ending, or a .txt per picture."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from clipcap.captioning.picture_book import PictureBook
from clipcap.captioning.rows import Row, Writer, read_name, written_name
from clipcap.clip.images import EXTENSIONS
from clipcap.errors import UserError
from clipcap.files import NO_ROOM, only_writer, write_whole


class JsonLines(Writer):
    """One object per line: {"image", "caption"}, and "captions" if several were asked for; or {"image", "error"}."""

    LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}  # for Python's splitlines(), not for JSON

    def format(self, row: Row) -> str:
        """A row as one line of JSON."""
        return json.dumps(row.as_dict(), ensure_ascii=False).translate(self.LINE_ENDS) + "\n"

    def read(self, file: TextIO) -> Iterator[tuple[str, str | None, bool]]:
        """The lines of an earlier run."""
        for number, line in enumerate(file, 1):
            whole = line.endswith("\n")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                if not whole and _begins_as_a_row(line.lstrip("\0")):
                    return  # an earlier run was cut short here
                raise UserError(
                    f"{str(self.path)!r} is not a file of JSON lines (line {number}); choose another output"
                ) from None
            row = row if isinstance(row, dict) else {}
            image, caption = row.get("image"), row.get("caption")
            done = isinstance(image, str) and isinstance(caption, str)
            failed = isinstance(image, str) and "error" in row and "caption" not in row
            yield line.rstrip("\r\n") + "\n", image if done else None, failed


def _begins_as_a_row(line: str) -> bool:
    """Whether a line is the beginning of a row as this project writes it."""
    start = '{"image": "'
    return line.startswith(start) or start.startswith(line)


class Csv(Writer):
    """Columns: image, caption, more captions (one per line), error. No cell is read as a formula."""

    COLUMNS = ("image", "caption", "more captions", "error")
    FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")  # what a spreadsheet may run (OWASP)

    def header(self) -> str:
        """The names of the columns, behind the mark without which Excel takes the file for Latin-1."""
        return "\ufeff" + self._line(self.COLUMNS)

    def format(self, row: Row) -> str:
        """A row of the table."""
        caption, *more = row.captions or [""]
        return self._line([written_name(row.image), caption, "\n".join(more), row.error or row.note])

    def read(self, file: TextIO) -> Iterator[tuple[str, str | None, bool]]:
        """The rows of an earlier run."""
        last = ""

        def lines() -> Iterator[str]:
            nonlocal last
            for last in file:  # noqa: UP028  # `last` is what counts
                yield last

        header = file.readline()
        if len(header) > 200 or tuple(next(csv.reader([header]), ())) != self.COLUMNS:
            raise UserError(f"{str(self.path)!r} is another kind of table; choose another output")
        rows, number = csv.reader(lines(), strict=True), 1  # the line that a row ends in
        try:
            for cells in rows:
                if len(cells) == len(self.COLUMNS):
                    image, caption, _, error = cells
                    yield self._line(cells), read_name(self._bare(image)), bool(error and not caption)
                elif cells and last.endswith("\n"):
                    raise self._odd(number + 1)
                number = 1 + rows.line_num
        except csv.Error:
            # An earlier run was cut short within quotes, or else a quote too many has swallowed the rows below it.
            if last.endswith("\n") or next(file, None) is not None:
                raise self._odd(number + 1) from None

    def _odd(self, number: int) -> UserError:
        return UserError(f"{str(self.path)!r} has a broken row in line {number}; mend it, or choose another output")

    def _line(self, cells: Iterable[str]) -> str:
        """Cells as a line of CSV, with a quote in front of what would be a formula."""
        text = io.StringIO()
        csv.writer(text).writerow(["'" + cell if self.FORMULA.match(cell) else cell for cell in cells])
        return text.getvalue()

    def _bare(self, cell: str) -> str:
        """A cell without the quote that `_line` put in front of it."""
        return cell[1:] if cell.startswith("'") and self.FORMULA.match(cell[1:]) else cell


WRITERS: dict[str, type[Writer]] = {".jsonl": JsonLines, ".csv": Csv, ".html": PictureBook}


def open_writer(path: str | Path) -> Writer:
    """Open the writer for this file's ending; without an ending it writes JSON lines.

    Raises:
        UserError: the ending is unknown, or the file cannot be written or is not one that this writer has written.
    """
    ending = Path(path).suffix.lower()
    if ending not in ("", *WRITERS):
        raise UserError(f"{str(path)!r} ends in {ending!r}; an output ends in {', '.join(WRITERS)}")
    return WRITERS[ending or ".jsonl"](path)


EXISTING = ("skip", "overwrite", "append")
HELD = 64  # folders locked at a time: each takes a file handle, and systems allow 256


class Sidecars:
    """A .txt beside each picture, one caption per line: a.txt for a.jpg.

    Where a folder holds a.jpg and a.png, nobody could tell whose a.txt is: then they are a.jpg.txt and a.png.txt. No
    other run writes into the same folders meanwhile.

    Args:
        existing: what to do where there is a .txt already: "skip" the picture, "overwrite" the file or "append" to it.
    """

    def __init__(self, existing: str = "skip") -> None:
        self.existing = existing
        self._names = lru_cache(HELD)(_names)
        self._held: dict[str, ExitStack] = {}  # by folder; the one not used for longest comes first

    def wants(self, image: str | Path) -> bool:
        """Whether a caption of this picture is to be written. Raises UserError if another run writes to its folder."""
        file = self._file(Path(image))
        if self.existing == "skip" and os.path.exists(file) and os.stat(file).st_size:  # an empty one is no caption
            return False
        with suppress(OSError):  # `write` will say so
            self._hold(os.path.realpath(file.parent))
        return True

    def write(self, row: Row) -> str | None:
        """Write a picture's .txt, whole or not at all. Raises UserError when the disk is full.

        Returns:
            None, or why it could not be written. That is no error of the run: other folders may be writable.
        """
        if row.error is not None:
            return None
        file = self._file(Path(row.image))
        if file.is_symlink():  # folders of strangers bring links, and these would say where captions are written
            return "its .txt is a link, which is left as it is"
        captions = [" ".join(caption.splitlines()) for caption in row.captions] if row.asked > 1 else row.captions
        text = "\n".join(captions) + "\n"
        try:
            self._hold(os.path.realpath(Path(row.image).parent))
            if self.existing == "append" and file.is_file():
                before = file.read_text(encoding="utf-8")
                text = before + "\n" * bool(before and not before.endswith("\n")) + text
            write_whole(file, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            if error.errno in NO_ROOM:
                raise UserError(f"{str(file)!r} could not be written ({error.strerror}); run again to go on") from None
            return f"its .txt cannot be written ({error.strerror})"
        except UnicodeDecodeError:
            return "its .txt is not UTF-8 text"
        return None

    def close(self) -> None:
        """Let go of the folders; every .txt is closed already."""
        while self._held:
            self._held.popitem()[1].close()

    def _hold(self, folder: str) -> None:
        """Keep other runs out of a folder until this run ends, or has written to many others since. Raises OSError."""
        if (held := self._held.pop(folder, None)) is None:
            if len(self._held) == HELD:
                self._held.pop(next(iter(self._held))).close()
            held = ExitStack()
            try:
                held.enter_context(only_writer(Path(folder)))
            except OSError as error:
                if error.errno != errno.EMFILE or not self._held:
                    raise
                self.close()  # a system that allows few open files
                held.enter_context(only_writer(Path(folder)))
        self._held[folder] = held

    def _file(self, image: Path) -> Path:
        known = self._names(str(image.parent))
        alone = image.suffix.lower() in EXTENSIONS and known[image.stem.casefold()] <= 1
        if alone and not image.with_suffix("").is_file():  # that one's would be a.txt
            return image.with_suffix(".txt")
        return image.with_name(image.name + ".txt")


def _names(folder: str) -> Counter[str]:
    """How often a name in a folder is that of a picture, or of a picture without its ending."""
    try:
        files = [name.casefold() for name in os.listdir(folder)]
    except OSError:
        files = []
    pictures = [os.path.splitext(name) for name in files]
    return Counter(text for stem, ending in pictures if ending in EXTENSIONS for text in (stem, stem + ending))
