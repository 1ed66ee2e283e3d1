"""The files of rows that captions are written to, with a format by their ending."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from clipcap.captioning.picture_book import PictureBook
from clipcap.captioning.rows import Row, Writer, one_line, read_name, written_name
from clipcap.errors import UserError

MOST_CELL = 1 << 24  # characters: 256 captions of any length


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

    COLUMNS: tuple[str, ...] = ("image", "caption", "more captions", "error")
    # What a spreadsheet may run (OWASP); also behind quotes, or nobody could tell whether the first one is a guard.
    FORMULA = re.compile(r"'*(\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])")

    def header(self) -> str:
        """The names of the columns, behind the mark without which Excel takes the file for Latin-1."""
        return "\ufeff" + self._line(self.COLUMNS)

    def format(self, row: Row) -> str:
        """A row of the table."""
        caption, *more = row.captions or [""]
        error = row.error or row.note
        cells = [written_name(row.image), caption, "\n".join(map(one_line, more)), error, row.literal or ""]
        return self._line(cells[: len(self.COLUMNS)])

    def read(self, file: TextIO) -> Iterator[tuple[str, str | None, bool]]:
        """The rows of an earlier run."""
        last = ""

        def lines() -> Iterator[str]:
            nonlocal last
            for last in file:  # noqa: UP028  # `last` is what counts
                yield last

        header = file.readline()
        columns = tuple(next(csv.reader([header]), ())) if len(header) <= 200 else ()
        if columns != self.COLUMNS:
            told = {
                Csv.COLUMNS: "was written without --show-literal: leave it out, or",
                CsvWithLiterals.COLUMNS: "was written with --show-literal: give it, or",
            }.get(columns, "is another kind of table;")
            raise UserError(f"{str(self.path)!r} {told} choose another output")
        rows, number = csv.reader(lines(), strict=True), 1  # the line that a row ends in
        before = csv.field_size_limit(MOST_CELL)
        try:
            for cells in rows:
                if len(cells) == len(self.COLUMNS):
                    cells = [self._bare(cell) for cell in cells]
                    image, caption, _, error, *_ = cells
                    yield self._line(cells), read_name(image), bool(error and not caption)
                elif cells and last.endswith("\n"):
                    raise self._odd(number + 1)
                number = 1 + rows.line_num
        except csv.Error:
            # An earlier run was cut short within quotes, or else a quote too many has swallowed the rows below it.
            if last.endswith("\n") or next(file, None) is not None:
                raise self._odd(number + 1) from None
        finally:
            csv.field_size_limit(before)

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


class CsvWithLiterals(Csv):
    """The same with one more column: the literal caption that a prompted model starts from."""

    COLUMNS = (*Csv.COLUMNS, "literal")


WRITERS: dict[str, type[Writer]] = {".jsonl": JsonLines, ".csv": Csv, ".html": PictureBook}


def open_writer(path: str | Path, literal: bool = False) -> Writer:
    """Open the writer for this file's ending; without an ending it writes JSON lines.

    Args:
        path: the file.
        literal: whether rows may have a literal caption, for which a table needs a column.

    Raises:
        UserError: the ending is unknown, or the file cannot be written or is not one that this writer has written.
    """
    ending = Path(path).suffix.lower()
    if ending not in ("", *WRITERS):
        raise UserError(f"{str(path)!r} ends in {ending!r}; an output ends in {', '.join(WRITERS)}")
    return CsvWithLiterals(path) if literal and ending == ".csv" else WRITERS[ending or ".jsonl"](path)
