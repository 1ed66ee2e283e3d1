"""The pictures of a run, and how several processes take turns at them.

A round gives each process as many pictures that follow each other as it captions together, in the order of their ranks.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

from clipcap.captioning.rows import Row
from clipcap.cli.processes import Processes
from clipcap.clip.images import find_images
from clipcap.errors import UserError


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run that are to be captioned, in order. Iterating gives their paths, again and again.

    Attributes:
        found: how many pictures there are.
        todo: how many of them are to be captioned.
        identity: a fingerprint of the paths of all that were found.
        packed: the paths of those to be captioned, compressed, since there may be millions.
    """

    found: int
    todo: int
    identity: str
    packed: bytes

    @classmethod
    def find(cls, paths: Sequence[str], wanted: Callable[[Path], bool]) -> Pictures:
        """Look through files and folders. Raises UserError if there are no pictures."""
        found = todo = 0
        identity, packed = sha256(), io.BytesIO()
        with gzip.open(packed, "wb", compresslevel=1) as file:
            for path in find_images(paths):
                line = f"{json.dumps(str(path))}\n".encode()
                identity.update(line)
                found += 1
                if wanted(path):
                    file.write(line)
                    todo += 1
        if not found:
            raise UserError(f"no pictures in {', '.join(map(repr, paths))}")
        return cls(found, todo, identity.hexdigest()[:8], packed.getvalue())

    def __iter__(self) -> Iterator[Path]:
        with gzip.open(io.BytesIO(self.packed)) as file:
            for line in file:
                yield Path(json.loads(line))


@dataclass(frozen=True)
class Turns:
    """How the pictures of a run are dealt out. Iterating gives the most pictures of a process in each round.

    Attributes:
        processes: those that caption.
        total: the number of pictures.
        first: pictures of each process in the first round, at most.
        size: the same in all other rounds. In the last one the pictures that are left are shared out evenly.
    """

    processes: Processes
    total: int
    first: int
    size: int

    def __iter__(self) -> Iterator[int]:
        left, most = self.total, self.first
        while left > 0:
            count = min(most, -(-left // self.processes.world))
            yield count
            left, most = left - self.processes.world * count, self.size

    def own(self, pictures: Iterable[Path]) -> Iterator[Path]:
        """Those of all pictures that this process captions."""
        pictures = iter(pictures)
        for count in self:
            for rank in range(self.processes.world):
                batch = list(islice(pictures, count))
                yield from batch if rank == self.processes.rank else []

    def joined(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows of this process -> those of all, in order, after each round. Raises Ended if another has ended."""
        rows = iter(rows)
        for count in self:
            for batch in self.processes.gather(list(islice(rows, count))):
                yield from batch
