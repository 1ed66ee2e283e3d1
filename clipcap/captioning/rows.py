"""What is known of a picture after captioning, and the file that keeps it: row by row, continued by the next run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from clipcap.errors import UserError


@dataclass
class Row:
    """What became of one picture."""

    image: str
    captions: list[str] = field(default_factory=list)  # best first
    error: str | None = None
    literal: str | None = None  # the literal caption that prompted weights started from
    missing: list[str] = field(default_factory=list)  # required words that no caption holds
    asked: int = 1  # how many captions were asked for

    @property
    def note(self) -> str:
        return f"no caption with {', '.join(map(repr, self.missing))} was found" if self.missing else ""

    def as_dict(self) -> dict:
        """As a .jsonl file holds it: always "image", then "error" or "caption"."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        row: dict = {"image": self.image, "caption": self.captions[0] if self.captions else ""}
        if self.asked > 1:
            row["captions"] = self.captions
        extra = {"literal": self.literal, "missing": self.missing or None}
        return row | {name: value for name, value in extra.items() if value is not None}


class Writer:
    """Appends rows to a file, each on the disk before the next picture is captioned.

    A file of an earlier run is continued: its captions stay; its failures, and a last row cut short by a crash, are
    dropped, and so tried again.
    """

    def __init__(self, path: str | Path) -> None:
        """
        Raises:
            UserError: the file cannot be written, or is something else than what this writer writes.
        """
        self.path, self.written = Path(path), 0
        self.done: set[str] = set()
        try:
            self.created = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            continued = not self.created and self.path.stat().st_size > 0
            if continued:
                self._recover()
            self.file = self.path.open("a", encoding="utf-8", errors="surrogateescape", newline="")
            if not continued:
                self._put(self.header())
        except OSError as error:
            raise UserError(f"{str(path)!r} cannot be written ({error.strerror}); choose another output") from None
        except UnicodeDecodeError:
            raise UserError(f"{str(path)!r} is not a text file; choose another output") from None

    def wants(self, image: str | Path) -> bool:
        """Whether a caption of this picture is still missing."""
        return os.path.abspath(image) not in self.done

    def write(self, row: Row) -> None:
        """Raises UserError when the disk is full or gone."""
        try:
            self._put(self.format(row))
        except OSError as error:
            raise UserError(f"{str(self.path)!r} could not be written ({error.strerror}); run again to go on") from None
        self.written += 1

    def close(self) -> None:
        if self.created and not self.written:
            self.file.close()
            self.path.unlink()
            return
        self._put(self.footer())
        self.file.close()

    def header(self) -> str:
        return ""

    def footer(self) -> str:
        return ""

    def format(self, row: Row) -> str:
        """The text of a row, its line end included."""
        raise NotImplementedError

    def read(self, file: TextIO) -> Iterator[tuple[str, str | None, bool]]:
        """The complete rows of an earlier run: (text, picture if any, whether it is a failure)."""
        raise NotImplementedError

    def _put(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()

    def _recover(self) -> None:
        partial = self.path.with_name(f".{self.path.name}.part")
        codec = {"errors": "surrogateescape", "newline": ""}  # file names need not be UTF-8
        try:
            with (
                self.path.open(encoding="utf-8-sig", **codec) as old,
                partial.open("w", encoding="utf-8", **codec) as new,
            ):
                new.write(self.header())
                for text, image, failed in self.read(old):
                    if not failed:
                        new.write(text)
                        self.done |= {os.path.abspath(image)} if image is not None else set()
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
