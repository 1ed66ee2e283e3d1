"""The files beside pictures that their captions are written to: a .txt, and XMP for photo programs."""

from __future__ import annotations

import os
import unicodedata
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from clipcap.captioning.held_folders import HeldFolders
from clipcap.captioning.rows import Row, one_line
from clipcap.captioning.xmp import LeftAlone, described, description_of, embedded_description
from clipcap.clip.images import EXTENSIONS
from clipcap.errors import UserError
from clipcap.files import NO_ROOM, write_whole

EXISTING = ("skip", "overwrite", "append", "prepend")
LARGEST = 16 << 20  # bytes of a file that is read
KNOWN = 64  # folders whose names are remembered
MOST_NOTED = 3  # files that a note names


@dataclass(frozen=True)
class Kind:
    """What stands in a file beside a picture.

    Attributes:
        ending: that of the file.
        read: its content -> the text in it.
        change: its content and another text -> its new content.
        mixed: whether other things stand in it too. Then it holds the best caption; else all of them, a line each.
    """

    ending: str
    read: Callable[[bytes], str]
    change: Callable[[bytes, str], bytes]
    mixed: bool


def _text_of(content: bytes) -> str:
    return content.decode("utf-8-sig")


def _with_text(content: bytes, text: str) -> bytes:
    mark = BOM_UTF8 if content.startswith(BOM_UTF8) else b""  # as Windows' Notepad puts in front
    return mark + text.encode("utf-8", "backslashreplace")


TEXT = Kind(".txt", _text_of, _with_text, mixed=False)
XMP = Kind(".xmp", description_of, described, mixed=True)


class Sidecars:
    """A file beside each picture that holds its captions: a.txt or a.xmp for a.jpg.

    Where a folder holds a.jpg and a.png, nobody could tell whose a.txt is: then they are a.jpg.txt and a.png.txt. An
    a.txt from before there were two counts for both, as it does when a folder is read for training. No other run writes
    into the same folders meanwhile.

    Args:
        existing: what to do where there are captions already: "skip" the picture, "overwrite" them, or "append" or
            "prepend" the new ones. These are not put behind a text that ends with them, nor in front of one that begins
            with them, so that a second run changes nothing. An .xmp is also skipped where the picture itself holds a
            description.
        kinds: which files.
        named: the pictures and folders that the user named; no file is written outside them, where a link in a folder
            of strangers may lead. None: anywhere.
    """

    def __init__(
        self, existing: str = "skip", kinds: Sequence[Kind] = (TEXT,), named: Iterable[str | Path] | None = None
    ) -> None:
        self.existing, self.kinds = existing, kinds
        self._named = None if named is None else {_place(Path(path)) for path in named}
        self._names = lru_cache(KNOWN)(_names)
        self._held = HeldFolders()
        self._shared: dict[Path, set[str]] = {}  # a few files that count for several pictures, and these
        self._outside = ""  # a picture outside what the user named, if there is any
        self._described = 0  # pictures that are left alone for what they hold themselves

    def wants(self, image: str | Path) -> bool:
        """Whether a caption of this picture is to be written. Raises UserError if another run writes to its folder."""
        if not Path(image).name:  # ".", which is here because it may not be listed
            return True
        if not any([self._wants(Path(image), kind) for kind in self.kinds]):
            return False
        if not self._is_named(Path(image)):
            self._outside = self._outside or str(image)
            return False
        with suppress(OSError):  # `write` will say so
            self._held.hold(Path(image).parent)
        return True

    def _is_named(self, image: Path) -> bool:
        """Whether the user named this picture, or a folder above it."""
        place = _place(image)
        return self._named is None or not self._named.isdisjoint([place, *place.parents])

    def _wants(self, image: Path, kind: Kind) -> bool:
        if self.existing != "skip":
            return True
        with suppress(OSError, LeftAlone):  # `write` will say so
            own, *shared = self._files(image, kind.ending)
            for file in filter(_filled, (own, *shared)):
                if not kind.mixed or kind.read(_content(file)):
                    if file != own and (file in self._shared or len(self._shared) <= MOST_NOTED):
                        self._shared.setdefault(file, set()).add(image.name)
                    return False
            if kind.mixed and embedded_description(image):
                self._described += 1
                return False
        return True

    @property
    def notes(self) -> list[str]:
        """What a user should know about pictures that are not wanted, once all of them were asked about."""
        told = []
        if self._outside:
            told.append(
                f"note: {self._outside!r}, reached by a link, lies outside the folders named, where no .txt or .xmp is "
                "written for it or for others: name its folder too"
            )
        if self._shared:
            named = [f"{str(file)!r} ({', '.join(map(repr, sorted(by)))})" for file, by in self._shared.items()]
            shown = ", ".join(named[:MOST_NOTED]) + ", ..." * (len(named) > MOST_NOTED)
            example = min(next(iter(self._shared.values()))) + next(iter(self._shared)).suffix
            told.append(
                f"note: a text counts for all pictures of its name: {shown}; "
                f"give it the whole name of one of them, as {example!r}, and the others get their own"
            )
        if self._described:
            told.append(
                f"note: {self._described} of the pictures hold a description themselves, and get no .xmp: "
                "--existing overwrite writes one"
            )
        return told

    def write(self, row: Row) -> str | None:
        """Write a picture's files, each whole or not at all. Raises UserError when the disk is full.

        Returns:
            None, or why one could not be written. That is no error of the run: other folders may be writable.
        """
        if row.error is not None or not self._is_named(Path(row.image)):
            return None
        wanted = [kind for kind in self.kinds if self._wants(Path(row.image), kind)]
        return "; ".join(filter(None, [self._write(row, kind) for kind in wanted])) or None

    def _write(self, row: Row, kind: Kind) -> str | None:
        file, *_ = files = self._files(Path(row.image), kind.ending)
        there = next(filter(_filled, files), file)  # what pictures share goes along to each
        if os.path.islink(file) or os.path.islink(there):  # strangers' folders bring links, which lead anywhere
            return f"its {kind.ending} is a link, which is left as it is"
        captions = [*map(one_line, row.captions)] if row.asked > 1 else row.captions
        text = "\n".join(captions) + "\n" if not kind.mixed else (row.captions or [""])[0]
        try:
            self._held.hold(Path(row.image).parent)
            content = _content(there) if kind.mixed or self.existing in ("append", "prepend") else b""
            if self.existing in ("append", "prepend") and (before := kind.read(content)):
                text = _together(before, kind.read(kind.change(b"", text)), self.existing)  # as it will be read there
            write_whole(file, kind.change(content, text))
        except OSError as error:
            if error.errno in NO_ROOM:
                raise UserError(f"{str(file)!r} could not be written ({error.strerror}); run again to go on") from None
            return f"its {kind.ending} cannot be written ({error.strerror})"
        except UserError as error:  # another run writes into its folder
            return f"its {kind.ending} is not written: {error}"
        except UnicodeDecodeError:
            return f"its {kind.ending} is not UTF-8 text"
        except LeftAlone as error:
            return f"its {kind.ending} is {error}, and is left as it is"
        return None

    def close(self) -> None:
        """Let go of the folders; every .txt is closed already."""
        self._held.close()

    def _files(self, image: Path, ending: str) -> list[Path]:
        """The file for a picture's caption, and the one, if any, that counts as well, since nobody else has it."""
        short, long = image.with_suffix(ending), image.with_name(image.name + ending)
        if image.suffix.lower() not in EXTENSIONS:
            return [long]
        other = image.with_suffix("")  # the whole name of another picture, whose a.txt may be
        if self._names(str(image.parent))[_name(image.stem)] <= 1 and not other.is_file():
            return [short] if _filled(short) or not _filled(long) else [long]
        others = other.is_file() and (other.suffix.lower() in EXTENSIONS or _place(other) in (self._named or ()))
        return [long] if others else [long, short]


def _filled(file: Path) -> bool:
    """Whether a file holds anything: an empty one is no caption."""
    with suppress(OSError):
        return os.path.isfile(file) and os.stat(file).st_size > 0
    return False


def _place(path: Path) -> Path:
    """Where a folder, or the files beside a picture, are: without links, but for one that is the picture itself."""
    return Path(os.path.realpath(path)) if os.path.isdir(path) else Path(os.path.realpath(path.parent), path.name)


def _names(folder: str) -> Counter[str]:
    """How often a name in a folder is that of a picture, or of a picture without its ending."""
    try:
        files = [*map(_name, os.listdir(folder))]
    except OSError:
        files = []
    pictures = [os.path.splitext(name) for name in files]
    return Counter(text for stem, ending in pictures if ending in EXTENSIONS for text in (stem, stem + ending))


def _name(text: str) -> str:
    """A name as file systems compare it to which "É" is "é", in one character or two."""
    return unicodedata.normalize("NFC", text).casefold()


def _content(file: Path) -> bytes:
    """What is in a file; nothing if there is none. Raises OSError, and LeftAlone for one that nobody wrote by hand."""
    if not file.is_file():
        return b""
    if file.stat().st_size > LARGEST:
        raise LeftAlone(f"larger than {LARGEST >> 20} MB")
    return file.read_bytes()


def _together(before: str, text: str, existing: str) -> str:
    """The text that is there and the new one, with a line end between."""
    new = text.rstrip("\n")
    if existing == "append":
        there = f"\n{before}".rstrip("\n").endswith(f"\n{new}")
        return before if there else before + "\n" * (not before.endswith("\n")) + text
    return before if f"{before}\n".startswith(f"{new}\n") else f"{new}\n{before}"
