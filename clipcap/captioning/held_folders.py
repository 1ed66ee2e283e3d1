"""Many folders that one run writes to, as beside pictures, and no other run meanwhile."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

from clipcap.files import only_writer

MOST_HELD = 64  # folders at a time: each takes a file handle, and systems allow 256


class HeldFolders:
    """The folders used last, which this process alone writes to."""

    def __init__(self) -> None:
        self.locks: dict[str, ExitStack] = {}  # by folder; the one not used for longest comes first

    def hold(self, folder: Path) -> None:
        """Keep other runs out of a folder until `close`, or until many others were held since.

        Raises:
            UserError: another process holds it.
            OSError: nothing can be written there.
        """
        place = os.path.realpath(folder)
        if (lock := self.locks.pop(place, None)) is None:
            if len(self.locks) == MOST_HELD:
                self.locks.pop(next(iter(self.locks))).close()
            lock = ExitStack()
            try:
                lock.enter_context(only_writer(Path(place)))
            except OSError as error:
                if error.errno != errno.EMFILE or not self.locks:
                    raise
                self.close()  # a system that allows few open files
                lock.enter_context(only_writer(Path(place)))
        self.locks[place] = lock

    def close(self) -> None:
        """Let go of all of them."""
        while self.locks:
            self.locks.popitem()[1].close()
