"""The identity of a dataset: two with the same one train the same models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from clipcap.data.embeddings import Embeddings

if TYPE_CHECKING:
    import pyarrow as pa


class Identity:
    """SHA-256 over everything that training sees: the CLIP's name, embeddings, captions, and whose they are.

    It does not depend on where shards begin.
    """

    def __init__(self, clip: dict[str, Any]) -> None:
        self.clip, self.vectors, self.texts = clip, sha256(), sha256()

    def watch(self, split: str, shards: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Pass on the shards of a split, and take them in."""
        images = 0
        for table in shards:
            embeddings = Embeddings(table)
            for part in embeddings.parts:
                self.vectors.update(part.data)
            texts = zip(table["caption"].to_pylist(), table["image_id"].to_pylist(), strict=True)
            for number, (caption, image) in zip(embeddings.numbers.tolist(), texts, strict=True):
                self.texts.update(json.dumps([split, images + number, caption, image]).encode())
            images += int(embeddings.starts[-1])
            yield table

    def hexdigest(self) -> str:
        """Of all that was taken in so far."""
        whole = sha256(json.dumps(self.clip, sort_keys=True).encode())
        whole.update(self.vectors.digest() + self.texts.digest())
        return whole.hexdigest()
