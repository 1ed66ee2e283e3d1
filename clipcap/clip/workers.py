"""Pictures decoded in worker processes, in order and one batch ahead.

A picture that crashes its decoder is reported like any other that cannot be read, and the run goes on.

Shapes: H x W pixels.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import chain, islice
from typing import Generic, TypeVar

import numpy as np

from clipcap.cli.processes import on_this_machine
from clipcap.clip.images import ImageSource, UnreadableImage, load_or_leave
from clipcap.clip.preprocessing import PixelMaker

# What the preprocessing makes: uint8 (H, W, 3), with a thumbnail where one was asked for.
Pixels = TypeVar("Pixels", bound=np.ndarray | tuple[np.ndarray, bytes])
Result = TypeVar("Result")
MOST_WORKERS = 16
MOST_ON_WINDOWS = 61  # processes of a pool, which cannot wait for more there
FEW = 8  # up to this many pictures are decoded in less time than worker processes take to start
CHUNK = 16  # pictures per message to a worker
UNABLE = (BrokenProcessPool, OSError, NotImplementedError, ImportError)  # what a system raises that starts no process


def pixel_batches(
    sources: Iterable[ImageSource],
    preprocessing: PixelMaker[Pixels],
    batch_size: int,
    workers: int | None = None,
    first_batch: int | None = None,
) -> Generator[list[tuple[ImageSource, Pixels | UnreadableImage]], None, None]:
    """Yield lists of `batch_size` (source, pixels or UnreadableImage), in the order of `sources`.

    `sources` is read only as far as it is needed, and at most about two batches of pixels, or of JPEGs left for the
    device, exist at a time. The workers are spawned, so a script that uses them must do its work under
    `if __name__ == "__main__"`.

    Args:
        sources: pictures, in any of the forms of `ImageSource`.
        preprocessing: makes the pixels, in the worker.
        batch_size: pictures per list.
        workers: number of processes; None: one per CPU core, at most MOST_WORKERS, and divided among the processes that
            a launcher started on this machine; 0: decode in this process.
        first_batch: a smaller size for the first batch, so that the first results are there soon.
    """
    sources = iter(sources)
    head = list(islice(sources, FEW + 1))
    sources = chain(head, sources)
    if workers is None:
        workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // on_this_machine()[1]))
    if workers and len(head) > FEW:
        stream = _decode_in_workers(sources, preprocessing, workers, ahead=batch_size)
    else:
        stream = ((source, _decode(source, preprocessing)) for source in sources)
    with closing(stream):  # ends the workers, also when the caller stops early
        size = first_batch or batch_size
        while batch := list(islice(stream, size)):
            if preprocessing.plain.jpeg_device:
                from clipcap.clip.jpegs import decode_left  # needs torch, which workers do without

                batch = decode_left(batch)
            yield batch
            size = batch_size


def _decode(source: ImageSource, preprocessing: PixelMaker[Pixels]) -> Pixels | UnreadableImage:
    try:
        return load_or_leave(source, preprocessing)
    except UnreadableImage as error:
        return UnreadableImage(error.reason)  # without its cause and traceback, which keep memory alive


def _decode_all(sources: list[ImageSource], preprocessing: PixelMaker[Pixels]) -> list[Pixels | UnreadableImage]:
    return [_decode(source, preprocessing) for source in sources]


def _decode_in_workers(
    sources: Iterator[ImageSource], preprocessing: PixelMaker[Pixels], workers: int, ahead: int
) -> Generator[tuple[ImageSource, Pixels | UnreadableImage], None, None]:
    """Keep `ahead` pictures in flight, and one more chunk for each worker; yield results in the order of `sources`."""
    with closing(_Workers(workers, preprocessing)) as pool:
        chunks = iter(lambda: list(islice(sources, CHUNK)), [])
        in_flight = deque((chunk, pool.submit(chunk)) for chunk in islice(chunks, -(-ahead // CHUNK) + workers))
        while in_flight:
            chunk, future = in_flight.popleft()
            yield from zip(chunk, pool.result(chunk, future), strict=True)
            in_flight.extend((chunk, pool.submit(chunk)) for chunk in islice(chunks, 1))


class _Workers(Generic[Pixels]):
    """A process pool that survives the death of its processes; if none can be started, this process decodes.

    A broken pool is waited for before it is let go: Python 3.12.1 and 3.13.0 hang when a pool is collected while it is
    ending its processes.
    """

    def __init__(self, count: int, preprocessing: PixelMaker[Pixels]) -> None:
        self.count, self.preprocessing = count, preprocessing
        self.pool: ProcessPoolExecutor | None = None
        self._open()

    def _open(self) -> None:
        try:
            self.pool = _start(self.count)
        except UNABLE:  # without semaphores or shared memory
            self._give_up()

    def _give_up(self) -> None:
        print("worker processes cannot start here: pictures are decoded in this process", file=sys.stderr)
        self.close(wait=True)
        self.pool = None

    def submit(self, chunk: list[ImageSource]) -> Future[list[Pixels | UnreadableImage]] | None:
        """Start decoding a chunk; None where there are no processes, so that `result` decodes it."""
        for _ in range(2):
            try:
                return _submit(self.pool, _decode_all, chunk, self.preprocessing) if self.pool else None
            except BrokenProcessPool:
                self.close(wait=True)
                self._open()
            except UNABLE:  # too many processes
                self._give_up()
        return None

    def result(
        self, chunk: list[ImageSource], future: Future[list[Pixels | UnreadableImage]] | None
    ) -> list[Pixels | UnreadableImage]:
        """Wait for a chunk's pixels."""
        try:
            return future.result() if future and self.pool else _decode_all(chunk, self.preprocessing)
        except BrokenProcessPool:
            return self._one_by_one(chunk)
        except Exception:  # a picture that cannot be sent to a process, such as a PIL picture whose file is gone
            return _decode_all(chunk, self.preprocessing)

    def _one_by_one(self, chunk: list[ImageSource]) -> list[Pixels | UnreadableImage]:
        """Decode the chunk again, after a worker has died.

        A dead worker breaks the whole pool: every chunk in flight is lost, and nothing says which picture is to blame.
        So each picture is sent alone to a process of its own pool; one that kills that process is reported and the next
        picture gets a new process. A call that decodes nothing comes first: if even that fails, no picture is
        to blame, and processes cannot run here at all.
        """
        decoded: list[Pixels | UnreadableImage] = []
        pool = None
        for source in chunk:
            try:
                pool = pool or _start(1)
                _submit(pool, os.getpid).result()
            except UNABLE:
                if pool:
                    pool.shutdown()
                self._give_up()
                return decoded + _decode_all(chunk[len(decoded) :], self.preprocessing)
            try:
                decoded.append(_submit(pool, _decode, source, self.preprocessing).result())
            except BrokenProcessPool:
                decoded.append(UnreadableImage("its decoder crashed or ran out of memory"))
                pool.shutdown()
                pool = None
        if pool:
            pool.shutdown()
        return decoded

    def close(self, wait: bool = False) -> None:
        """Drop the chunks that have not begun and let the processes end."""
        if self.pool:
            self.pool.shutdown(wait=wait, cancel_futures=True)


def _start(count: int) -> ProcessPoolExecutor:
    if sys.platform == "win32":
        count = min(count, MOST_ON_WINDOWS)
    # Spawned, not forked: the caller has loaded torch, whose threads do not survive a fork.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _prepare_worker)


def _submit(pool: ProcessPoolExecutor, function: Callable[..., Result], *args: object) -> Future[Result]:
    """Hand a call to a pool. It may start processes for that; Ctrl-C, which is for the parent, is kept from them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return pool.submit(function, *args)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what is started now inherits this
    try:
        return pool.submit(function, *args)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also where `_submit` cannot block it
    warnings.simplefilter("ignore")
    if hasattr(os, "nice"):
        # Low priority: torch's threads wait for each other, so a decoder that delays one delays all (measured: 3x).
        os.nice(19)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a worker
    parent.join()
    os._exit(1)
