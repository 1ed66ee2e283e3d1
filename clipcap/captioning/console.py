"""Rows as they are finished: printed for people and pipes, written to the outputs, and summed up at the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TextIO

from clipcap.captioning.rows import Row, Writer
from clipcap.captioning.sidecars import Sidecars
from clipcap.cli.progress import ProgressBar
from clipcap.text import visible


def write_out(rows: Iterable[Row], total: int, outputs: Sequence[Writer | Sidecars], skipped: int) -> int:
    """Print and write every row, with a progress bar, then a summary on stderr.

    Returns:
        The exit status: 0 if all pictures have captions, 1 if some failed, 2 if all of them failed.
    """
    started, done = time.perf_counter(), 0
    failures: Counter[str] = Counter()
    with ProgressBar(rows, total=total, unit="image", desc="captioning", smoothing=0.1) as progress:
        for row in progress:
            told = [row.error, *(output.write(row) for output in outputs)]
            problems = [problem for problem in told if problem]
            say(row, problems)
            failures.update(problems[:1])
            done += row.error is None
    seconds = time.perf_counter() - started
    parts = [f"captioned {done}"]
    parts += [f"skipped {skipped} (captioned already)"] if skipped else []
    reasons = "; ".join(f"{number} {visible(reason)}" for reason, number in failures.most_common())
    parts += [f"failed {failures.total()} ({reasons})" if failures else "failed 0"]
    print(f"{', '.join(parts)} in {seconds:.1f} s, {total / seconds:.1f} images/s", file=sys.stderr)
    return 0 if not failures else 1 if done or skipped else 2


def say(row: Row, problems: Sequence[str]) -> None:
    r"""Print path<TAB>caption, one line per caption, to stdout, and problems to stderr.

    Control characters are shown as Python writes them, a line end in a name as \n and a tab as \t, so that a line stays
    one line of two fields; a byte that is not UTF-8 is shown as \udcff and the like. A .jsonl holds the exact name.
    """
    captions = [f"literal: {row.literal}"] * bool(row.literal) + row.captions
    for caption in captions:
        _line(f"{visible(row.image)}\t{visible(' '.join(caption.split()))}", sys.stdout)
    for problem in [*problems, *filter(None, [row.note])]:
        _line(visible(f"{row.image}: {problem}"), sys.stderr)


def _line(text: str, stream: TextIO | None) -> None:
    if stream is None:  # the shell has closed it
        return
    encoding = stream.encoding or "utf-8"
    # File names may hold any bytes and captions hold emoji: what the stream cannot show is escaped.
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    write = ProgressBar.write if stream.isatty() else print  # a terminal may be showing the progress bar
    write(text, file=stream)
    stream.flush()
