"""Captions that somebody has accepted, as `load_data.py --source folder` reads them: in a ZIP, or in a folder.

metadata.jsonl has one line per caption, with file_name, caption, written (by the model), weights and rating. Beside it
are the pictures, named by their content: upright, smaller, and without EXIF, which can tell where they were taken.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from clipcap.errors import UserError, at_least, check_text
from clipcap.files import append_whole, write_whole

TABLE = "metadata.jsonl"
LONGEST_SIDE = 1024  # pixels of a picture: more than any CLIP looks at
MOST_CHARACTERS = 4000
BEST_RATING = 5


@dataclass(frozen=True)
class Accepted:
    """A caption that somebody has accepted.

    Attributes:
        picture: a JPEG, as `clipcap.page.small_jpeg` makes it.
        caption: as the person has edited it.
        written: as the model wrote it.
        weights: the name of the model.
        rating: how well the caption suits the picture, from 0 to 5; None if it was not rated.

    Raises:
        UserError: there is no caption, or it is too long or no text, or the rating is none.
    """

    picture: bytes
    caption: str
    written: str
    weights: str
    rating: int | None = None

    def __post_init__(self) -> None:
        if not self.caption.strip():
            raise UserError("the caption is empty: choose one, or write your own")
        if len(self.caption) > MOST_CHARACTERS:
            raise UserError(f"a caption has at most {MOST_CHARACTERS} characters, and this one has {len(self.caption)}")
        check_text(caption=self.caption)
        at_least(0, rating=self.rating)
        if self.rating is not None and self.rating > BEST_RATING:
            raise UserError(f"rating must be at most {BEST_RATING}, not {self.rating}")

    @cached_property
    def file_name(self) -> str:
        """The name of the picture's file."""
        return f"{sha256(self.picture).hexdigest()[:16]}.jpg"

    @property
    def line(self) -> bytes:
        """The line of metadata.jsonl."""
        row = {"file_name": self.file_name, "caption": self.caption, "written": self.written}
        text = json.dumps(row | {"weights": self.weights, "rating": self.rating}, ensure_ascii=False)
        return f"{text}\n".encode()


def zipped(accepted: Sequence[Accepted]) -> bytes:
    """A ZIP with all of them. A picture with several captions is in it once."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(TABLE, b"".join(one.line for one in accepted))
        for name, picture in {one.file_name: one.picture for one in accepted}.items():
            archive.writestr(name, picture)
    return file.getvalue()


def keep(accepted: Accepted, folder: Path) -> None:
    """Add one of them to a folder: the picture first, so that no line names one that is not there. Raises OSError."""
    write_whole(folder / accepted.file_name, accepted.picture)
    with (folder / TABLE).open("ab+", buffering=0) as file:
        if file.seek(0, io.SEEK_END):
            file.seek(-1, io.SEEK_END)
        unended = file.read(1) not in (b"", b"\n")  # an editor may leave out the last line end
        append_whole(file, b"\n" * unended + accepted.line)
