"""A report that grows model by model, and what an interruption leaves of it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from clipcap.cli.processes import Ended
from clipcap.errors import Interrupted
from clipcap.evaluation.report import write_report
from clipcap.files import only_writer


@contextmanager
def report_writer(
    folder: Path, models: int, pictures: Sequence[bytes | str | None], main: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Hold the folder of a report; gives the function that writes the report into it, anew after each model.

    Args:
        folder: an existing one.
        models: how many are compared.
        pictures: those of the page, as in `write_report`.
        main: whether this process, of several, is the one that writes.

    Raises:
        Interrupted: in the place of any KeyboardInterrupt; it says what the report holds, and that nothing goes on.
        Ended: in the place of one that says that it goes on, likewise.
        UserError: another process holds the folder.
    """
    written = 0

    def write(report: dict[str, Any]) -> None:
        nonlocal written
        if main:
            write_report(report, folder, pictures)
        written = len(report["models"])

    try:
        with only_writer(folder) if main else nullcontext():
            yield write
    except (KeyboardInterrupt, Ended) as error:
        held, anew = "no report was written yet", "begins anew"
        if written:
            held = f"the report in {folder} holds {written} of {models} models"
            anew += ", so to keep it name the others with another --output"
        kept = f"{held}; the same command {anew}"
        if isinstance(error, Ended):
            raise Ended(error.world, error.cause, kept) from None
        raise Interrupted(f"interrupted: {kept}", getattr(error, "number", signal.SIGINT)) from None
