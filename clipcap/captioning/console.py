"""Rows as they come: printed for people and pipes, written to the outputs, summed up at the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TextIO

from tqdm import tqdm

from clipcap.captioning.rows import Row, Writer
from clipcap.captioning.writers import Sidecars


def write_out(rows: Iterable[Row], total: int, outputs: Sequence[Writer | Sidecars], skipped: int) -> int:
    """Print and write every row, with a progress bar, then a summary on stderr.

    Returns:
        The exit status: 0 all captioned, 1 some pictures failed, 2 all of them.
    """
    started, done, failures = time.perf_counter(), 0, Counter()
    for row in tqdm(rows, total=total, unit="image", desc="captioning", smoothing=0.1):
        problems = [row.error, *(output.write(row) for output in outputs if output.wants(row.image))]
        problems = [problem for problem in problems if problem]
        say(row, problems)
        failures.update(problems[:1])
        done += row.error is None
    seconds = time.perf_counter() - started
    parts = [f"captioned {done}"]
    parts += [f"skipped {skipped} (captioned already)"] if skipped else []
    reasons = "; ".join(f"{number} {reason}" for reason, number in failures.most_common())
    parts += [f"failed {failures.total()} ({reasons})" if failures else "failed 0"]
    print(f"{', '.join(parts)} in {seconds:.1f} s, {total / seconds:.1f} images/s", file=sys.stderr)
    return 0 if not failures else 1 if done or skipped else 2


def say(row: Row, problems: Sequence[str]) -> None:
    """path<TAB>caption, a line each, on stdout; problems on stderr."""
    captions = [f"literal: {row.literal}"] * bool(row.literal) + row.captions
    for caption in captions:
        _line(f"{row.image}\t{' '.join(caption.split())}", sys.stdout)
    for problem in [*problems, *filter(None, [row.note])]:
        _line(f"{row.image}: {problem}", sys.stderr)


def _line(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"  # file names may be any bytes, and captions hold emoji
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    write = tqdm.write if stream.isatty() else print  # a terminal's line may hold the progress bar
    write(text, file=stream)
    stream.flush()
