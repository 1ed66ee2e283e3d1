"""The embeddings of a split, read from the disk as they are asked for.

Shapes: N captions of the split, I images, C CLIP width, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from clipcap.data.tables import let_go

if TYPE_CHECKING:
    import pyarrow as pa

MAPPED = 1024  # rows that are read before their pages are let go of; Linux maps up to 64 KB around each


class Embeddings:
    """Float32 (N, C), read-only: row n is the embedding of the image of caption n.

    It is indexed like an array of NumPy in its first axis, and `np.asarray` loads all of it. The captions of an image
    share one stored embedding. Nothing is in memory but 8 bytes per caption: pages of the files that were read are let
    go of again, and are the system's to keep.

    Args:
        table: the rows of a split, see `clipcap.data.tables.row_schema`.
        maps: the maps into memory that it lies in; none for a table that is in memory.

    Attributes:
        shape: (N, C).
    """

    dtype = np.dtype(np.float32)

    def __init__(self, table: pa.Table, maps: Sequence[pa.Buffer] = ()) -> None:
        import pyarrow as pa

        self.maps, self.read = maps, MAPPED  # finding the rows has read pages too
        column = table["clip_embedding"]
        shared = pa.types.is_dictionary(column.type)
        width = (column.type.value_type if shared else column.type).list_size
        self.parts: list[np.ndarray] = []  # (I of the part, C)
        numbers = [np.empty(0, np.int64)]
        images = 0
        for chunk in column.chunks:
            stored = chunk.dictionary if shared else chunk  # an older store repeats the embedding for each caption
            # Not Arrow's to_numpy, which imports pandas and drops an interrupt that comes meanwhile.
            self.parts.append(np.from_dlpack(stored.flatten()).reshape(-1, width))
            places = np.from_dlpack(chunk.indices) if shared else np.arange(len(chunk))
            numbers.append(places.astype(np.int64) + images)
            images += len(stored)
        self.numbers = np.concatenate(numbers)  # (N,) of its image, counted through all parts
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.shape = (len(self.numbers), width)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, rows: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray: ...

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """(C,) for one row, a copy (B, C) for several."""
        numbers = self.numbers[rows]
        parts = np.searchsorted(self.starts, numbers, side="right") - 1
        self._count(np.size(numbers))
        if np.ndim(numbers) == 0:
            return self.parts[parts][numbers - self.starts[parts]]
        found = np.empty((len(numbers), self.shape[1]), np.float32)
        for part in np.unique(parts):
            here = parts == part
            found[here] = self.parts[part][numbers[here] - self.starts[part]]
        return found

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("embeddings lie in several parts on the disk: an array of all of them is a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def take(self, rows: Sequence[int]) -> Embeddings:
        """These rows, still on the disk."""
        taken = copy(self)
        taken.numbers = self.numbers[np.asarray(rows, np.int64)]
        taken.shape = (len(taken.numbers), self.shape[1])
        return taken

    def _count(self, rows: int) -> None:
        """Let go of the pages that were read, once enough have come together."""
        self.read += rows
        if self.read > MAPPED:
            self.read = 0
            let_go(self.maps)

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process of a data loader, which gets a copy that lies in no file."""
        return vars(self) | {"maps": ()}

    def unfit(self, rows: int) -> int | None:
        """The first of so many rows whose embedding has NaN or infinity; None if all are finite."""
        bad = []
        for part in self.parts:
            self._count(len(part))
            bad.append(np.flatnonzero(~np.isfinite(part).all(axis=1)))
        numbers = np.concatenate([[], *(found + start for found, start in zip(bad, self.starts[:-1], strict=True))])
        found = np.flatnonzero(np.isin(self.numbers[:rows], numbers))
        return int(found[0]) if len(found) else None
