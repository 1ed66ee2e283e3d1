"""Writing files and folders: a file appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clipcap.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write bytes to. It gets its name only when all of it is on the disk.

    After an error inside, or if the process ends, the file that had the name before is still there. Raises OSError.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to a file, whole or not at all. Raises OSError."""
    with whole_file(path) as file:
        file.write(content)


def probe_folder(folder: Path) -> None:
    """Create a folder and a file in it, so that an error of the disk shows before hours of work. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{os.getpid()}"
    probe.touch()
    probe.unlink()


def make_folder(folder: str | Path) -> None:
    """Create an output folder and make sure that files can be written there. Raises UserError."""
    try:
        probe_folder(Path(folder))
    except OSError as error:
        raise UserError(f"the output folder {folder} cannot be written ({error.strerror}): choose another") from None
