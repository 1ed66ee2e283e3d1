"""The progress bar of all long operations."""

from __future__ import annotations

import os
import stat
import sys
from typing import Any

from tqdm import tqdm

from clipcap.cli.processes import launched

TRANSIENT = 10.0  # seconds from which on lines tell of a step that leaves no bar behind


class ProgressBar(tqdm):
    """A progress bar on stderr; one line for every tenth of the way where that is no terminal.

    So it is where stdout is a pipe too. The pipe may end in the same terminal, and rows would be printed into the bar.
    Of several processes that a launcher started, the first alone shows its bars.

    Args:
        *args, **options: those of tqdm.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.lines = sys.stderr is None or not sys.stderr.isatty() or _is_pipe(sys.stdout)
        self.tenths = 0  # that were told
        if self.lines:
            delay = 0 if options.get("leave", True) else TRANSIENT
            options |= {"mininterval": 0, "miniters": 1, "smoothing": 0, "delay": delay}
        if sys.stderr is None or launched()[0]:  # the shell has closed it, or another process shows the bar
            options["disable"] = True
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Draw the bar, or print its line if another tenth is done."""
        if not self.lines:
            return super().display(msg, pos)
        tenths = int(10 * self.n / self.total) if self.total else 0
        if tenths > self.tenths:
            self._line()
            self.tenths = tenths
        return True

    def clear(self, *args: Any, **options: Any) -> None:
        """Make room for other output, which lines need not."""
        if not self.lines:
            super().clear(*args, **options)

    def close(self) -> None:
        """End the bar as it stands; a line says where it ended, if none has said that it is done."""
        if self.lines and not self.disable:
            if self.n and self.tenths < 10 and self.format_dict["elapsed"] >= self.delay:
                self._line()
            self.sp = None  # without it, tqdm's own end prints nothing
        super().close()

    def _line(self) -> None:
        self.fp.write(f"{self}\n")
        self.fp.flush()


def _is_pipe(stream: Any) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):  # there is no stream, or no file behind it
        return False
