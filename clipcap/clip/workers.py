"""Pictures decoded in worker processes: a batch ahead, in order, and no picture can take the run down with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import chain, islice

import numpy as np

from clipcap.clip.images import ImageSource, UnreadableImage, load_pixels
from clipcap.clip.preprocessing import Preprocessing

Decoded = np.ndarray | UnreadableImage  # uint8 (H, W, 3), or why not
MOST_WORKERS = 16
FEW = 8  # so many pictures are decoded sooner than worker processes start
CHUNK = 16  # pictures per message to a worker


def pixel_batches(
    sources: Iterable[ImageSource],
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int | None = None,
    first_batch: int | None = None,
) -> Iterator[list[tuple[ImageSource, Decoded]]]:
    """Yield lists of `batch_size` (source, pixels or UnreadableImage), in the order of `sources`.

    `sources` is read as it is needed, and at most about two batches of pixels exist at a time. The processes are
    spawned: a script that asks for them keeps its work under `if __name__ == "__main__"`.

    Args:
        workers: processes; None: one per CPU core, at most MOST_WORKERS; 0: decode in this process.
        first_batch: a smaller size for the first batch, so that something is ready soon.
    """
    sources = iter(sources)
    head = list(islice(sources, FEW + 1))
    sources = chain(head, sources)
    workers = min(MOST_WORKERS, os.cpu_count() or 1) if workers is None else workers
    if workers and len(head) > FEW:
        stream = _decode_in_workers(sources, preprocessing, workers, ahead=batch_size)
    else:
        stream = ((source, _decode(source, preprocessing)) for source in sources)
    with closing(stream):
        size = first_batch or batch_size
        while batch := list(islice(stream, size)):
            yield batch
            size = batch_size


def _decode(source: ImageSource, preprocessing: Preprocessing) -> Decoded:
    try:
        return load_pixels(source, preprocessing)
    except UnreadableImage as error:
        return UnreadableImage(error.reason)  # without its cause and traceback, which keep memory alive


def _decode_all(sources: list[ImageSource], preprocessing: Preprocessing) -> list[Decoded]:
    return [_decode(source, preprocessing) for source in sources]


def _decode_in_workers(
    sources: Iterator[ImageSource], preprocessing: Preprocessing, workers: int, ahead: int
) -> Iterator[tuple[ImageSource, Decoded]]:
    with closing(_Workers(workers, preprocessing)) as pool:
        chunks = iter(lambda: list(islice(sources, CHUNK)), [])
        in_flight = deque((chunk, pool.submit(chunk)) for chunk in islice(chunks, -(-ahead // CHUNK) + workers))
        while in_flight:
            chunk, future = in_flight.popleft()
            yield from zip(chunk, pool.result(chunk, future), strict=True)
            in_flight.extend((chunk, pool.submit(chunk)) for chunk in islice(chunks, 1))


class _Workers:
    """A process pool that outlives its processes; where none can start, this process decodes."""

    def __init__(self, count: int, preprocessing: Preprocessing) -> None:
        self.count, self.preprocessing = count, preprocessing
        self.pool: ProcessPoolExecutor | None = _start(count)

    def submit(self, chunk: list[ImageSource]) -> Future | None:
        try:
            return self.pool.submit(_decode_all, chunk, self.preprocessing) if self.pool else None
        except BrokenProcessPool:
            self.pool = _start(self.count)
            return self.pool.submit(_decode_all, chunk, self.preprocessing)

    def result(self, chunk: list[ImageSource], future: Future | None) -> list[Decoded]:
        try:
            return future.result() if future and self.pool else _decode_all(chunk, self.preprocessing)
        except BrokenProcessPool:  # a worker was killed: all chunks in flight are lost, and any picture may be to blame
            return self._one_by_one(chunk)

    def _one_by_one(self, chunk: list[ImageSource]) -> list[Decoded]:
        decoded, pool = [], None
        for source in chunk:
            pool = pool or _start(1)
            try:
                pool.submit(os.getpid).result()
            except BrokenProcessPool:
                print("worker processes cannot start here: pictures are decoded in this process", file=sys.stderr)
                self.close()
                self.pool = None
                return decoded + _decode_all(chunk[len(decoded) :], self.preprocessing)
            try:
                decoded.append(pool.submit(_decode, source, self.preprocessing).result())
            except BrokenProcessPool:
                decoded.append(UnreadableImage("its decoder crashed or ran out of memory"))
                pool = None
        if pool:
            pool.shutdown()
        return decoded

    def close(self) -> None:
        if self.pool:
            self.pool.shutdown(wait=False, cancel_futures=True)


def _start(count: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the caller holds torch, whose threads do not survive a fork.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _prepare_worker)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends its workers
    warnings.simplefilter("ignore")
    if hasattr(os, "nice"):
        os.nice(19)  # torch's threads wait for each other: one that a decoder holds up holds up all (measured: 3 times)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
