"""Where captions go: a file of rows, chosen by its ending, or a .txt beside each picture."""

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
    """An object a line: {"image", "caption"}, with "captions" where several were wanted; or {"image", "error"}."""

    def format(self, row: Row) -> str:
        return json.dumps(row.as_dict(), ensure_ascii=False) + "\n"

    def read(self, file: TextIO) -> Iterator[tuple[str, str | None, bool]]:
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
    """Columns image, caption, more captions (a line each), error. No cell begins a formula."""

    COLUMNS = ("image", "caption", "more captions", "error")
    FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")  # what spreadsheets may run, OWASP

    def header(self) -> str:
        return "\ufeff" + self._line(self.COLUMNS)  # Excel takes a file without the mark for Latin-1

    def format(self, row: Row) -> str:
        caption, *more = row.captions or [""]
        return self._line([row.image, caption, "\n".join(more), row.error or row.note])

    def read(self, file: TextIO) -> Iterator[tuple[str, str | None, bool]]:
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
        text = io.StringIO()
        csv.writer(text).writerow(["'" + cell if self.FORMULA.match(cell) else cell for cell in cells])
        return text.getvalue()

    def _bare(self, cell: str) -> str:
        return cell[1:] if cell.startswith("'") and self.FORMULA.match(cell[1:]) else cell


WRITERS: dict[str, type[Writer]] = {".jsonl": JsonLines, ".csv": Csv, ".html": PictureBook}


def open_writer(path: str | Path) -> Writer:
    """The writer for this file's ending; without an ending it is .jsonl. Raises UserError."""
    ending = Path(path).suffix.lower()
    if ending not in ("", *WRITERS):
        raise UserError(f"{str(path)!r} ends in {ending!r}; an output ends in {', '.join(WRITERS)}")
    return WRITERS[ending or ".jsonl"](path)


EXISTING = ("skip", "overwrite", "append")


class Sidecars:
    """A .txt beside each picture, one caption a line."""

    def __init__(self, existing: str = "skip") -> None:
        """`existing`: what to do where a .txt is there already: "skip" the picture, "overwrite" or "append" to it."""
        self.existing = existing
        self.own: set[Path] = set()

    def wants(self, image: str | Path) -> bool:
        return self.existing != "skip" or not self._file(Path(image)).exists()

    def write(self, row: Row) -> str | None:
        """Returns why the .txt could not be written, if so: other folders may do better."""
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
        return image.with_name(image.name + ".txt") if file in self.own else file  # a.jpg and a.png do not share one
