"""Where a disk or a memory is full, a run ends with one sentence that says how it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipcap.errors import UserError, first_line, is_out_of_memory
from clipcap.files import NO_ROOM


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Inside this context, a full disk and a full memory are a UserError. `folder` is the run's output folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"{error.filename or folder} could not be written ({error.strerror}): weights and state saved before are "
            "kept; make room and run the same command with --resume to go on"
        ) from None
    except Exception as error:
        if isinstance(error, UserError) or not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory ({first_line(error)}): start anew with a smaller --batch-size and a larger --accumulate, "
            "which learns from as many captions per step; --resume takes no other values of these, and goes on only "
            "where there is more memory, such as that of more GPUs under torchrun"
        ) from None
