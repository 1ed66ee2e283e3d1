"""The files that captions are written to: one file of rows, with a format by its ending, or a .txt per picture."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from clipcap.captioning.picture_book import PictureBook
from clipcap.captioning.rows import Row, Writer
from clipcap.errors import UserError


class JsonLines(Writer):
    """One object per line: {"image", "caption"}, and "captions" if several were asked for; or {"image", "error"}."""

    def format(self, row: Row) -> str:
        """A row as one line of JSON."""
        return json.dumps(row.as_dict(), ensure_ascii=False) + "\n"

    def read(self, file: TextIO) -> Iterator[tuple[str, str | None, bool]]:
        """The lines of an earlier run."""
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                if line.startswith("{") and not line.endswith("\n"):
                    return  # an earlier run was cut short here
                raise UserError(f"{str(self.path)!r} is not a file of JSON lines; choose another output") from None
            row = row if isinstance(row, dict) else {}
            yield line.rstrip("\r\n") + "\n", row.get("image"), "error" in row


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
        return self._line([row.image, caption, "\n".join(more), row.error or row.note])

    def read(self, file: TextIO) -> Iterator[tuple[str, str | None, bool]]:
        """The rows of an earlier run."""
        rows = csv.reader(file, strict=True)
        if tuple(next(rows, ())) != self.COLUMNS:
            raise UserError(f"{str(self.path)!r} is another kind of table; choose another output")
        try:
            for cells in rows:
                if len(cells) == len(self.COLUMNS):
                    image, caption, _, error = cells
                    yield self._line(cells), self._bare(image), bool(error and not caption)
        except csv.Error:
            return  # an earlier run was cut short within quotes

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


class Sidecars:
    """A .txt beside each picture, one caption per line.

    Args:
        existing: what to do where there is a .txt already: "skip" the picture, "overwrite" the file or "append" to it.
    """

    def __init__(self, existing: str = "skip") -> None:
        self.existing = existing
        self.own: set[Path] = set()

    def wants(self, image: str | Path) -> bool:
        """Whether a caption of this picture is to be written."""
        return self.existing != "skip" or not self._file(Path(image)).exists()

    def write(self, row: Row) -> str | None:
        """Write a picture's .txt.

        Returns:
            None, or why it could not be written. That is no error of the run: other folders may be writable.
        """
        if row.error is not None:
            return None
        file = self._file(Path(row.image))
        captions = [" ".join(caption.splitlines()) for caption in row.captions] if row.asked > 1 else row.captions
        text = "\n".join(captions) + "\n"
        try:
            if self.existing == "append" and file.exists():
                before = file.read_text(encoding="utf-8")
                text = before + "\n" * bool(before and not before.endswith("\n")) + text
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            return f"its .txt cannot be written ({error.strerror})"
        except UnicodeDecodeError:
            return "its .txt is not UTF-8 text"
        self.own.add(file)
        return None

    def close(self) -> None:
        """Every .txt is closed already."""

    def _file(self, image: Path) -> Path:
        file = image.with_suffix(".txt")
        return image.with_name(image.name + ".txt") if file in self.own else file  # not one for a.jpg and a.png
