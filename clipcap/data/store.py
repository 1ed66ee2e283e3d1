"""The embedding store: a dataset on disk whose CLIP embeddings were computed once.

Shapes: N captions of a split, C CLIP width. Embeddings are float32 and not normalised.

    folder/dataset.json        source, CLIP, cleaning counts, canaries, splits, identity, and the plan it was made from
    folder/<split>/data.arrow  rows: clip_embedding (C), caption, image_id, image_path | null, thumbnail JPEG | null
    folder/shards/             in place of these, with `--keep-shards`: <split>-<number>.arrow
    folder/skipped.jsonl       {"image", "error"} for every image that could not be read
    folder/pictures.arrow      size, time and SHA-256 of every picture, to notice that it has changed
    folder/literal_captions/   what a literal captioner said about the first rows, by the identity of its weights
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.clip.names import ClipIdentity
from clipcap.data.canaries import Canary
from clipcap.data.embeddings import Embeddings
from clipcap.data.reading import Home
from clipcap.data.shards import shard_name
from clipcap.data.tables import DATA, INFO, PARTS, PLAN, SHARDS, is_whole, map_table, read_info, read_json
from clipcap.errors import UserError
from clipcap.files import only_writer, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from clipcap.model.config import ClipCapConfig

SET_ASIDE = {"validation": "--val-fraction", "test": "--test-fraction"}  # options of load_data.py


class EmbeddingStore:
    """A complete dataset, read through memory maps. `info` is the content of its dataset.json."""

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        self.path, self.info = path, info
        self._mapped = cache(self._read)

    @classmethod
    def open(cls, path: str | Path) -> EmbeddingStore:
        """Open a dataset. Raises UserError when it is missing, unfinished or damaged."""
        import pyarrow  # noqa: F401  # whoever lacks the extra [train] hears of it before anything else

        path = Path(path)
        if not (path / INFO).is_file():
            begun = (path / PARTS).is_dir() or (path / SHARDS / PLAN).is_file()
            state = "was begun and not finished" if begun else "is no dataset" if path.exists() else "does not exist"
            advice = "run the same load_data.py command again to go on" if begun else "make one with load_data.py"
            raise UserError(f"data {str(path)!r} {state}; {advice}")
        info = read_info(path)
        store = cls(path, info)
        for split in store.splits:
            if missing := next((file for file in store._files(split) if not file.is_file()), None):
                name = missing.relative_to(path)
                raise UserError(
                    f"data {str(path)!r} lacks {str(name)!r} of its split {split!r}; make the dataset again"
                )
        return store

    @property
    def clip(self) -> dict[str, Any]:
        """{"model", "pretrained", "dim"} of the CLIP that made the embeddings."""
        return self.info["clip"]

    @property
    def identity(self) -> str:
        """SHA-256 over everything that training sees: embeddings, captions, image identities and the CLIP's name."""
        return self.info["identity"]

    @property
    def canaries(self) -> list[Canary]:
        """The sentences with a secret that were planted among the training captions."""
        return [Canary(**canary) for canary in self.info.get("canaries", [])]

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have rows."""
        return list(self.info["splits"])

    def embeddings(self, name: str) -> Embeddings:
        """Float32 (N, C), read-only: read from the disk only as far as it is used."""
        return Embeddings(*self._mapped(name))

    def captions(self, name: str) -> list[str]:
        """The N captions of a split."""
        return self.column(name, "caption")

    def column(self, name: str, column: str, rows: Sequence[int] | None = None) -> list[Any]:
        """One column of a split as Python objects: caption, image_id, image_path or thumbnail; all rows, or these."""
        values = self._mapped(name)[0][column]
        if rows is not None:
            values = values.take(rows) if len(rows) else values[:0]  # Arrow would take no rows for rows of no type
        return values.to_pylist()

    def literal_captions(self, split: str, captioner: str) -> list[str]:
        """What this literal captioner said about the first rows of the split; none if nothing was saved yet."""
        file = self._literal_file(split, captioner)
        captions = read_json(file, list) if file.is_file() else []
        if not all(isinstance(caption, str) and _is_text(caption) for caption in captions):
            return []
        return captions if len(captions) <= self.info["splits"][split] else []

    def save_literal_captions(self, split: str, captioner: str, captions: list[str]) -> None:
        """Save the literal captions of the first rows of the split, in place of those that were saved.

        Raises:
            UserError: the folder cannot be written.
        """
        rows = self.info["splits"][split]
        if len(captions) > rows:
            raise ValueError(f"{len(captions)} literal captions for the {rows} rows of split {split!r}")
        file = self._literal_file(split, captioner)
        if not Home(self.path).holds(file.parent / "x"):
            raise UserError(f"{str(file.parent)!r} is a link out of the dataset; remove it, to keep literal captions")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(UserError), only_writer(file):  # where another run writes the same captions at this moment
                write_whole(file, json.dumps(captions, ensure_ascii=False, indent=0).encode())
        except OSError as error:
            raise UserError(f"cannot keep literal captions in {str(self.path)!r} ({error.strerror})") from None

    def _literal_file(self, split: str, captioner: str) -> Path:
        self._check_split(split)
        return self.path / "literal_captions" / captioner / f"{split}.json"

    def _check_split(self, name: str) -> None:
        if name not in self.splits:
            option = SET_ASIDE.get(name)
            told = f": make it again with {option} above 0, in another folder" if option else ""
            raise UserError(f"data {str(self.path)!r} has no split {name!r}; it has {', '.join(self.splits)}{told}")

    def _files(self, name: str) -> Iterator[Path]:
        """The files of a split, one after the other: the joined one, or its shards."""
        self._check_split(name)
        if "shards" in self.info:
            yield from (self.path / SHARDS / shard_name(name, number) for number in range(self.info["shards"][name]))
        else:
            yield self.path / name / DATA

    def _read(self, name: str) -> tuple[pa.Table, list[pa.Buffer]]:
        import pyarrow as pa

        tables, maps = [], []
        for file in self._files(name):
            table, mapped = map_table(file)
            tables.append(table.replace_schema_metadata(None))
            maps.append(mapped)
            if not is_whole(tables[-1], self.clip["dim"]):
                break
        else:
            table = pa.concat_tables(tables)
            if table.num_rows == self.info["splits"][name]:
                return table, maps
        raise UserError(f"{str(file)!r} does not fit its dataset.json; make the dataset again")


def _is_text(caption: str) -> bool:
    """Whether a string can be written down, which half of an emoji cannot."""
    try:
        caption.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_clip(store: EmbeddingStore, config: ClipCapConfig) -> None:
    """Raise a UserError if the dataset's embeddings come from another CLIP than the one that the model takes."""
    if not same_clip(store, config):
        raise UserError(
            f"data {str(store.path)!r} was made with CLIP {ClipIdentity(**store.clip)}, but the model takes "
            f"{clip_of(config)}; make the data with --clip {config.clip_model}, or start from other weights"
        )


def same_clip(store: EmbeddingStore, config: ClipCapConfig) -> bool:
    """Whether the stored embeddings come from the CLIP that the model takes."""
    return ClipIdentity(**store.clip).same_as(clip_of(config))


def clip_of(config: ClipCapConfig) -> ClipIdentity:
    """The CLIP whose embeddings a model takes."""
    return ClipIdentity(config.clip_model, config.clip_pretrained, config.clip_dim)
