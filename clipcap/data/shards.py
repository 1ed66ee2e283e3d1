"""Writing a dataset in shards, so that an interrupted run goes on where it stopped.

While it grows, a dataset is `.parts/plan.json` (what is being made), `.parts/pictures.arrow` (the list of examples) and
one Arrow file per finished shard, which knows the contents of its pictures (see `clipcap.data.changes`). Each file
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
from typing import TYPE_CHECKING, Any, NoReturn

from clipcap.cli.status import no_room
from clipcap.data import tables
from clipcap.data.changes import (
    PICTURES,
    Mark,
    changed_pictures,
    changed_since,
    marks_of,
    pictures_of,
    schema,
    some,
    what_differs,
)
from clipcap.data.examples import Example
from clipcap.data.tables import FORMAT, INFO, embedding_array, read_info, read_json, read_table, write_table
from clipcap.errors import UserError
from clipcap.files import NO_ROOM, probe_folder, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

DATA = "data.arrow"  # in a folder per split
PARTS = ".parts"
LIST = "list of images and captions"  # in a plan: their fingerprint
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

    def __init__(self, folder: Path, plan: dict[str, Any], shards: Sequence[Shard] = ()) -> None:
        self.folder, self.parts, self.plan = folder, folder / PARTS, json.loads(json.dumps(plan))
        self.marks: dict[str, Sequence[Mark]] = {}  # by the name of a shard
        begun = self._begun()
        if begun is None:
            with _writing(folder):
                self.parts.mkdir(exist_ok=True)
                write_table(self.parts / PICTURES, pictures_of(_examples(shards), contents=False))
                write_whole(self.parts / "plan.json", json.dumps(self.plan, indent=1).encode())
            return
        old, new = _flat(begun), _flat(self.plan)
        # An older version had not yet the options that the plan lacks: they are off.
        if different := [key for key in new | old if new.get(key, False) != old.get(key, False)]:
            key, how = different[0], f"{old.get(different[0])}, now {new.get(different[0])}"
            if key == LIST:
                before = self._pictures_before()
                how = "which is not known" if before is None else what_differs(before, _examples(shards))
            raise UserError(
                f"{str(folder)!r} holds a dataset made with another {key.replace('_', ' ')} "
                f"({how}); choose another --output or delete it"
            )
        self._check_pictures(shards)
        if self.complete:
            shutil.rmtree(self.parts, ignore_errors=True)  # left by a run that ended in its very last step

    def _check_pictures(self, shards: Sequence[Shard]) -> None:
        """Raise a UserError if pictures that are embedded already have changed under their names."""
        if self.complete:
            known = [(self._pictures_before(), _examples(shards))] if shards else []
        else:
            there = [shard for shard in shards if (self.parts / shard.name).is_file()]
            known = [(self._pictures(shard), list(shard.examples)) for shard in there]
        changed: list[str] = []
        for table, examples in known:
            if table is None:  # an older version wrote it
                continue
            if table.schema != schema() or table["image_id"].to_pylist() != [example.image_id for example in examples]:
                raise UserError(f"{str(self.folder)!r} is damaged or was cut into other shards; make the dataset again")
            changed += changed_pictures(table, examples)
        if changed:
            raise UserError(
                f"{str(self.folder)!r} is stale: {len(changed)} of its pictures changed after they were embedded "
                f"({some(changed)}); put them back, choose another --output, or delete it to make it anew"
            )

    @property
    def complete(self) -> bool:
        """Whether the folder holds the finished dataset."""
        return (self.folder / INFO).is_file()

    def _begun(self) -> dict[str, Any] | None:
        """The plan of the dataset that is already here, finished or not; None where there is none."""
        if self.complete:
            return read_info(self.folder).get("plan", {})
        return read_json(self.parts / "plan.json", dict) if (self.parts / "plan.json").is_file() else None

    def _pictures_before(self) -> pa.Table | None:
        """The list of examples of the dataset that is already here; None if an older version made it."""
        file = (self.folder if self.complete else self.parts) / PICTURES
        return read_table(file) if file.is_file() else None

    def missing(self, shards: Sequence[Shard]) -> list[Shard]:
        """Those of the shards that are still to be written. Their pictures must stay as they are until `write`."""
        missing = [shard for shard in shards if not (self.parts / shard.name).is_file()]
        self.marks = {shard.name: marks_of(shard.examples) for shard in missing}
        return missing

    def write(self, shard: Shard, rows: pa.Table, skipped: list[dict[str, str]]) -> None:
        """Write a shard; its schema holds which images were skipped, and what the pictures were. Raises UserError."""
        if changed := changed_since(self.marks.get(shard.name, ()), shard.examples):
            raise UserError(
                f"{len(changed)} pictures changed or went away while they were embedded ({some(changed)}); "
                "run the same command again when they are all there"
            )
        with _writing(self.folder):
            pictures = tables.as_bytes(pictures_of(shard.examples, contents=True))
            metadata = {"skipped": json.dumps(skipped), "pictures": pictures}
            write_table(self.parts / shard.name, rows.replace_schema_metadata(metadata))

    def finish(self, shards: Sequence[Shard], info: dict[str, Any]) -> dict[str, Any]:
        """Join the shards, write `skipped.jsonl` and `dataset.json` (whose content is returned), remove the parts.

        Raises:
            UserError: no image, or no image to train on, could be used.
        """
        skipped = [record for shard in shards for record in self._skipped(shard)]
        with _writing(self.folder):
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in skipped)
            write_whole(self.folder / "skipped.jsonl", lines.encode())
            pictures = [self._pictures(shard) or pictures_of(shard.examples, contents=True) for shard in shards]
            write_table(self.folder / PICTURES, tables.join(pictures))
            counts: dict[str, int] = {}
            content = sha256(json.dumps(info["clip"], sort_keys=True).encode())
            for split in dict.fromkeys(shard.split for shard in shards):
                table = tables.join([self._read(shard) for shard in shards if shard.split == split])
                if table.num_rows:
                    counts[split] = table.num_rows
                    self._join(split, table.replace_schema_metadata(None), content)
            if not counts or ("train" not in counts and any(shard.split == "train" for shard in shards)):
                self._give_up(skipped)
            info = {"format": FORMAT, **info, "splits": counts, "skipped": len(skipped)}
            info |= {"identity": content.hexdigest(), "plan": self.plan}
            text = json.dumps(info, indent=1, ensure_ascii=False)
            write_whole(self.folder / INFO, text.encode("utf-8", "backslashreplace"))  # a path may not be UTF-8
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

    def _pictures(self, shard: Shard) -> pa.Table | None:
        """What a written shard knows about its pictures; None if an older version wrote it."""
        stream = self._read(shard).schema.metadata.get(b"pictures")
        return tables.from_bytes(stream) if stream else None

    def _join(self, split: str, table: pa.Table, content: Any) -> None:
        """Write a split, and add what training sees of it to the hash `content`."""
        (self.folder / split).mkdir(exist_ok=True)
        write_table(self.folder / split / DATA, table)
        content.update(embedding_array(table).data)
        content.update(json.dumps([split, table["caption"].to_pylist(), table["image_id"].to_pylist()]).encode())


def _examples(shards: Sequence[Shard]) -> list[Example]:
    return [example for shard in shards for example in shard.examples]


def claim_folder(folder: Path) -> None:
    """Make sure, before any work, that a dataset can be written here. Raises UserError."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {str(folder)!r} is a file; give a folder")
    with _writing(folder):
        probe_folder(folder)
    others = [entry for entry in folder.iterdir() if entry.name != ".lock" and not entry.name.startswith(".probe-")]
    if others and not (folder / INFO).is_file() and not (folder / PARTS).is_dir():
        raise UserError(f"output {str(folder)!r} holds other files and no dataset; give a new or empty folder")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn the OSErrors inside into a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(no_room(error)) from None
        raise UserError(
            f"cannot write into {str(folder)!r} ({error.strerror or error}); choose another --output"
        ) from None


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    """{"clip": {"dim": 512}} -> {"clip dim": 512}: one level, so that a message can name what differs."""
    flat: dict[str, Any] = {}
    for key, value in plan.items():
        flat |= {f"{key} {name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return flat
