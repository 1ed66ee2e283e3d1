"""Where a disk is full, a run ends with one sentence that says how it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipcap.errors import UserError
from clipcap.files import NO_ROOM


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Inside this context, a full disk is a UserError. `folder` is the run's output folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"{error.filename or folder} could not be written ({error.strerror}): weights and state saved before are "
            "kept; make room and run the same command with --resume to go on"
        ) from None
