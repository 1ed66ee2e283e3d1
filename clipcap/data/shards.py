"""Writing a dataset in shards, so that an interrupted run goes on where it stopped.

While it grows, a dataset is `.parts/plan.json` (what is being made) and one Arrow file per finished shard. Each file
appears whole or not at all, so a run that was interrupted has lost at most the shard that it was working on. At the end
the shards of a split become one file of one record batch, which readers map into memory without a copy. `dataset.json`
is written last and says that the dataset is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa

from clipcap.data.examples import Example
from clipcap.data.tables import embedding_array, read_json, read_table, write_table
from clipcap.errors import UserError
from clipcap.files import probe_folder, write_whole

FORMAT = 1
INFO = "dataset.json"
DATA = "data.arrow"  # in a folder per split
PARTS = ".parts"
IMAGES_PER_SHARD = 1024


@dataclass(frozen=True)
class Shard:
    """Consecutive examples of one split, embedded and written together."""

    split: str
    number: int
    examples: Sequence[Example]

    @property
    def name(self) -> str:
        """Its file in `.parts`."""
        return f"{self.split}-{self.number:05d}.arrow"


def cut_shards(examples: Sequence[Example], images_per_shard: int = IMAGES_PER_SHARD) -> list[Shard]:
    """Shards of each split: train, validation, test, then other splits in the order in which they appear."""
    splits: dict[str, list[Example]] = {name: [] for name in ("train", "validation", "test")}
    for example in examples:
        splits.setdefault(example.split, []).append(example)
    return [
        Shard(split, number, members[start : start + images_per_shard])
        for split, members in splits.items()
        for number, start in enumerate(range(0, len(members), images_per_shard))
    ]


class DatasetWriter:
    """Writes the dataset that `plan` describes into a folder that `claim_folder` accepted.

    A folder that was begun with the same plan is continued.

    Raises:
        UserError: the folder holds a dataset of another plan, or cannot be written.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self.parts, self.plan = folder, folder / PARTS, json.loads(json.dumps(plan))
        begun = self._begun()
        if begun is None:
            with _writing(folder):
                self.parts.mkdir(exist_ok=True)
                write_whole(self.parts / "plan.json", json.dumps(self.plan, indent=1).encode())
            return
        old, new = _flat(begun), _flat(self.plan)
        if different := [key for key in new | old if new.get(key) != old.get(key)]:
            key = different[0]
            raise UserError(
                f"{str(folder)!r} holds a dataset made with another {key.replace('_', ' ')} "
                f"({old.get(key)}, now {new.get(key)}); choose another --output or delete it"
            )

    @property
    def complete(self) -> bool:
        """Whether the folder holds the finished dataset."""
        return (self.folder / INFO).is_file()

    def _begun(self) -> dict[str, Any] | None:
        """The plan of the dataset that is already here, finished or not; None where there is none."""
        if self.complete:
            return read_json(self.folder / INFO).get("plan", {})
        return read_json(self.parts / "plan.json") if (self.parts / "plan.json").is_file() else None

    def missing(self, shards: Sequence[Shard]) -> list[Shard]:
        """Those of the shards that are still to be written."""
        return [shard for shard in shards if not (self.parts / shard.name).is_file()]

    def write(self, shard: Shard, rows: pa.Table, skipped: list[dict[str, str]]) -> None:
        """Write one shard. The images that had to be skipped are stored in its schema, so that both appear together."""
        with _writing(self.folder):
            write_table(self.parts / shard.name, rows.replace_schema_metadata({"skipped": json.dumps(skipped)}))

    def finish(self, shards: Sequence[Shard], info: dict[str, Any]) -> dict[str, Any]:
        """Join the shards, write `skipped.jsonl` and `dataset.json` (whose content is returned), remove the parts.

        Raises:
            UserError: no image, or no image to train on, could be used.
        """
        skipped = [record for shard in shards for record in self._skipped(shard)]
        with _writing(self.folder):
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in skipped)
            write_whole(self.folder / "skipped.jsonl", lines.encode())
            counts: dict[str, int] = {}
            content = sha256(json.dumps(info["clip"], sort_keys=True).encode())
            for split in dict.fromkeys(shard.split for shard in shards):
                table = pa.concat_tables([self._read(shard) for shard in shards if shard.split == split])
                if table.num_rows:
                    counts[split] = table.num_rows
                    self._join(split, table.replace_schema_metadata(None).combine_chunks(), content)
            if not counts or ("train" not in counts and any(shard.split == "train" for shard in shards)):
                self._give_up(skipped)
            info = {"format": FORMAT, **info, "splits": counts, "skipped": len(skipped)}
            info |= {"identity": content.hexdigest(), "plan": self.plan}
            write_whole(self.folder / INFO, json.dumps(info, indent=1, ensure_ascii=False).encode())
            shutil.rmtree(self.parts)
        return info

    def _give_up(self, skipped: list[dict[str, str]]) -> NoReturn:
        """Raise UserError, after removing the shards, so that the same command tries again once images can be read."""
        for part in self.parts.glob("*.arrow"):
            part.unlink()
        first = f"; the first, {skipped[0]['image']}: {skipped[0]['error']}" if skipped else ""
        raise UserError(f"no image to train on could be used ({len(skipped)} skipped{first})")

    def _read(self, shard: Shard) -> pa.Table:
        return read_table(self.parts / shard.name)

    def _skipped(self, shard: Shard) -> list[dict[str, str]]:
        return json.loads(self._read(shard).schema.metadata[b"skipped"])

    def _join(self, split: str, table: pa.Table, content: Any) -> None:
        """Write a split, and add what training sees of it to the hash `content`."""
        (self.folder / split).mkdir(exist_ok=True)
        write_table(self.folder / split / DATA, table)
        content.update(embedding_array(table).data)
        content.update(json.dumps([split, table["caption"].to_pylist(), table["image_id"].to_pylist()]).encode())


def claim_folder(folder: Path) -> None:
    """Make sure, before any work, that a dataset can be written here. Raises UserError."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {str(folder)!r} is a file; give a folder")
    with _writing(folder):
        probe_folder(folder)
    if any(folder.iterdir()) and not (folder / INFO).is_file() and not (folder / PARTS).is_dir():
        raise UserError(f"output {str(folder)!r} holds other files and no dataset; give a new or empty folder")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn the OSErrors inside into a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write into {str(folder)!r} ({error.strerror or error}); choose another --output"
        ) from None


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    """{"clip": {"dim": 512}} -> {"clip dim": 512}: one level, so that a message can name what differs."""
    flat: dict[str, Any] = {}
    for key, value in plan.items():
        flat |= {f"{key} {name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return flat
