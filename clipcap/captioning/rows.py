"""The result for one picture, and files of such results: written row by row, and continued by the next run."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TextIO

from clipcap.errors import UserError
from clipcap.files import append_whole, only_writer, whole_file


@dataclass
class Row:
    """The result for one picture.

    Attributes:
        image: its path.
        captions: best first.
        error: why there are none, for a picture that cannot be read.
        literal: the literal caption in its prompt, with prompted weights.
        missing: required words that no caption holds.
        asked: how many captions were asked for.
    """

    image: str
    captions: list[str] = field(default_factory=list)
    error: str | None = None
    literal: str | None = None
    missing: list[str] = field(default_factory=list)
    asked: int = 1

    @property
    def note(self) -> str:
        """What a reader should know about the captions; mostly empty."""
        return f"no caption with {', '.join(map(repr, self.missing))} was found" if self.missing else ""

    def as_dict(self) -> dict[str, Any]:
        """The row as a .jsonl file holds it: always "image", then "error" or "caption"."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        row: dict[str, Any] = {"image": self.image, "caption": self.captions[0] if self.captions else ""}
        if self.asked > 1:
            row["captions"] = self.captions
        extra = {"literal": self.literal, "missing": self.missing or None}
        return row | {name: value for name, value in extra.items() if value is not None}


class Writer:
    """Appends rows to a file; each is handed to the system before the next picture is captioned.

    The file of an earlier run is continued. Its captions stay; its failures, and a last row that was cut short by a
    crash, are dropped, so that these pictures are tried again.

    Raises:
        UserError: the file cannot be written, or is not one that this writer has written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.written = Path(path), 0
        self.done: set[str] = set()  # pictures with captions in the file of an earlier run, by their whole paths
        self.end = 0  # of what was written, in bytes: a shorter file was cut by somebody
        self.failed = False  # a row could not be written, as the user was told
        self.absolute = False  # every row gets the whole path of its picture
        try:
            self.created = not self.path.exists()
            regular = self.created or self.path.is_file()  # a pipe or a device needs no lock, nor is it continued
            if regular:  # what a shell names /dev/fd/63 has no other name
                self.path = Path(os.path.realpath(path))  # one lock, whichever links lead to the file
                self.absolute = not self.path.is_relative_to(os.path.realpath(os.curdir))
            self._places = lru_cache(64)(partial(_folders, self.path))
            self._real = lru_cache(64)(os.path.realpath)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                if regular:
                    stack.enter_context(only_writer(self.path))
                continued = self.path.is_file() and self.path.stat().st_size > 0
                if continued:
                    self._recover()
                self.file = stack.enter_context(self.path.open("ab", buffering=0))
                if not continued:
                    self._put(self.header())
                self._held = stack.pop_all()
        except OSError as error:
            raise UserError(f"{str(path)!r} cannot be written ({error.strerror}); choose another output") from None

    def wants(self, image: str | Path) -> bool:
        """Whether a caption of this picture is still missing."""
        folder, name = os.path.split(os.path.abspath(image))
        return os.path.join(self._real(folder), name) not in self.done

    def write(self, row: Row) -> None:
        """Write a row, unless its picture has one. Raises UserError when the disk is full or no longer there.

        A file outside the working folder may be continued from another one, where a relative path would lead elsewhere:
        it gets absolute paths, and so does one that holds a relative path which could mean two pictures. In any file a
        picture gets its absolute path if the relative one could mean another picture too.
        """
        if not self.wants(row.image):
            return
        absolute = self.absolute or len(self._meant(row.image)) > 1
        image = os.path.abspath(row.image) if absolute else row.image
        self._put_or_say(self.format(replace(row, image=image)))
        self.written += 1

    def close(self) -> None:
        """Write the footer; remove a new file that got no row. Raises UserError if `write` has not done so already."""
        with self._held:  # closes the file, then lets go of it
            if self.created and not self.written:
                self.file.close()
                self.path.unlink(missing_ok=True)
            elif self.failed:
                with suppress(OSError):
                    self._put(self.footer())
            else:
                self._put_or_say(self.footer())

    def header(self) -> str:
        """The text in front of the first row."""
        return ""

    def footer(self) -> str:
        """The text behind the last row."""
        return ""

    def format(self, row: Row) -> str:
        """The text of a row, with its line end."""
        raise NotImplementedError

    def read(self, file: TextIO) -> Iterator[tuple[str, str | None, bool]]:
        """The complete rows of an earlier run: (text, picture if known, whether it is a failure). Raises UserError."""
        raise NotImplementedError

    def _put_or_say(self, text: str) -> None:
        try:
            self._put(text)
        except OSError as error:
            self.failed = True
            raise UserError(f"{str(self.path)!r} could not be written ({error.strerror}); run again to go on") from None

    def _put(self, text: str) -> None:
        """Write all of a text or nothing, also where the disk is full or a signal comes. Raises OSError."""
        data, status = _bytes(text), os.fstat(self.file.fileno())
        size = status.st_size
        if stat.S_ISREG(status.st_mode):  # others have no place on a disk that they could lose
            if not os.path.samestat(status, os.stat(self.path)):
                raise OSError(errno.ESTALE, "another file has taken its place")
            if size < self.end:
                raise OSError(errno.ESTALE, "somebody has cut it")
        append_whole(self.file, data)
        self.end = size + len(data)

    def _recover(self) -> None:
        """Rewrite the file of an earlier run with its complete captions only, and remember their pictures."""
        with (
            whole_file(self.path) as new,  # replaces the old file, so that one must be closed first
            self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as old,
        ):
            lost = 0
            new.write(_bytes(self.header()))
            for text, image, failed in self.read(old):
                if not failed:
                    new.write(_bytes(text))
                    lost += image is not None and not self._remember(image)
        if lost:
            told = "that cannot be found from its folder, and do not count as captioned"
            print(f"note: pictures in {str(self.path)!r} {told}: {lost}", file=sys.stderr)

    def _remember(self, image: str) -> bool:
        """Take the picture of an earlier row for captioned, unless the row could be that of several pictures.

        Returns whether the row leads anywhere: what a relative path means may not be there.
        """
        there = self._meant(image)
        if len(there) == 1:
            self.done |= there
        self.absolute |= len(there) > 1
        return bool(there) or os.path.isabs(image)

    def _meant(self, image: str) -> set[str]:
        """The pictures that the path in a row can mean; where these are several, each of them is there."""
        folder, name = os.path.split(image)
        there = {os.path.join(place, name) for place in self._places(folder)}
        return {place for place in there if os.path.isfile(place)} if len(there) > 1 else there


def _folders(file: Path, folder: str) -> set[str]:
    """The folders that the folder in a row of a file can mean.

    A relative path begins at the working folder of the run that wrote it: the file's own folder, or any above it.
    """
    places = (os.path.join(above, folder) for above in file.parents)
    return {os.path.realpath(place) for place in places if os.path.isdir(place)}


def one_line(caption: str) -> str:
    """A caption where several stand in a file, one per line."""
    return " ".join(caption.splitlines())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # file names need not be UTF-8, and \udcff is how JSON escapes too


def written_name(name: str) -> str:
    r"""A path as tables and pages hold it: a byte that is not UTF-8 as \udcff and the like."""
    return _bytes(re.sub(r"\\(?=udc[89a-f][0-9a-f]|u005c)", r"\\u005c", name)).decode()


def read_name(text: str) -> str:
    """The path that `written_name` made this text of."""
    return re.sub(r"\\u(dc[89a-f][0-9a-f]|005c)", lambda found: chr(int(found[1], 16)), text)
