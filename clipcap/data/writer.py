"""Writing a dataset in shards, so that an interrupted run goes on where it stopped.

While it grows, a dataset is `.parts/plan.json` (what is being made), `.parts/pictures.arrow` (the list of examples) and
one Arrow file per finished shard, which knows the contents of its pictures (see `clipcap.data.changes`). Each file
appears whole or not at all, so a run that was interrupted has lost at most the shard that it was working on. At the end
the shards of a split become one file, or stay as they are; one is in memory at a time. `dataset.json` is written last
and says that the dataset is complete.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clipcap.cli.progress import ProgressBar
from clipcap.cli.status import no_room
from clipcap.data import changes, tables
from clipcap.data.changes import PICTURES, Mark, pictures_of, some
from clipcap.data.identity import Identity
from clipcap.data.shards import Shard, Shards
from clipcap.data.tables import DATA, FORMAT, INFO, PARTS, PLAN, SHARDS, read_table
from clipcap.errors import UserError
from clipcap.files import NO_ROOM, contents, probe_folder, whole_file, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

LIST = "list of images and captions"  # in a plan: their fingerprint


class DatasetWriter:
    """Writes the dataset that `plan` describes into a folder that `claim_folder` accepted.

    A folder that was begun with the same plan is continued.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], shards: Shards) -> None:
        self.folder, self.plan, self.shards = folder, json.loads(json.dumps(plan)), shards
        self.parts = folder / (SHARDS if (folder / SHARDS / PLAN).is_file() else PARTS)
        self.marks: dict[str, Sequence[Mark]] = {}  # by the name of a shard

    def begin(self) -> None:
        """Begin the dataset, or make sure that it can be continued; one process does it for all.

        Raises:
            UserError: the folder holds a dataset of another plan, or of pictures that have changed, or cannot be
                written.
        """
        begun = self._earlier_plan()
        if begun is None:
            with _writing(self.folder):
                self.parts.mkdir(exist_ok=True)
                listed = (pictures_of(shard.examples, contents=False) for shard in self.shards)
                tables.write_tables(self.parts / PICTURES, changes.schema(), listed)
                write_whole(self.parts / PLAN, json.dumps({"format": FORMAT, **self.plan}, indent=1).encode())
            return
        if different := changes.changed_plan(begun, self.plan):
            key, how = different
            if key == LIST:
                before = self._earlier_pictures()
                how = "which is not known" if before is None else changes.what_differs(before, self.shards.examples)
            raise UserError(
                f"{str(self.folder)!r} holds a dataset made with another {key.replace('_', ' ')} "
                f"({how}); choose another --output or delete it"
            )
        self._check_pictures()
        if self.complete:
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)  # left by a run that ended in its very last step

    def _check_pictures(self) -> None:
        """Raise a UserError if pictures that are embedded already have changed under their names."""
        changed: list[str] = []
        for shard, table in self._earlier_shards():
            same = table.schema == changes.schema()
            if not same or table["image_id"].to_pylist() != [example.image_id for example in shard.examples]:
                raise UserError(f"{str(self.folder)!r} is damaged or was cut into other shards; make the dataset again")
            changed += changes.changed_pictures(table, shard.examples)
        if changed:
            raise UserError(
                f"{str(self.folder)!r} is stale: {len(changed)} of its pictures changed after they were embedded "
                f"({some(changed)}); put them back, choose another --output, or delete it to make it anew"
            )

    def _earlier_shards(self) -> Iterator[tuple[Shard, pa.Table]]:
        """Each shard that is written already, with what is known about its pictures."""
        if not self.complete:
            for shard in self.shards:
                if (self.parts / shard.name).is_file():
                    yield shard, self._pictures(shard.name)
        elif (known := self._earlier_pictures()) is not None:  # else an older version wrote it
            size, images = self.shards.images_per_shard, self.shards.images
            starts = dict(zip(images, accumulate(images.values(), initial=0), strict=False))
            for shard in self.shards:
                yield shard, known.slice(starts[shard.split] + shard.number * size, len(shard.examples))

    @property
    def complete(self) -> bool:
        """Whether the folder holds the finished dataset."""
        return (self.folder / INFO).is_file()

    @property
    def next_step(self) -> str:
        """What a user can still do for the finished dataset, in words."""
        if skipped := tables.read_info(self.folder)["skipped"]:
            return f"{skipped} pictures were skipped: delete it, or choose another --output, to try them again"
        return "nothing to do"

    def _earlier_plan(self) -> dict[str, Any] | None:
        """The plan of the dataset that is already here, finished or not; None where there is none."""
        if self.complete:
            return tables.read_info(self.folder).get("plan", {})
        if not (self.parts / PLAN).is_file():
            return None
        plan = tables.read_json(self.parts / PLAN, dict)
        if plan.pop("format", None) != FORMAT:
            raise UserError(
                f"{str(self.folder)!r} was begun by another version of load_data.py: delete it, or finish it with that"
            )
        return plan

    def _earlier_pictures(self) -> pa.Table | None:
        """The list of examples of the dataset that is already here; None if an older version made it."""
        file = (self.folder if self.complete else self.parts) / PICTURES
        return read_table(file) if file.is_file() else None

    def missing(self) -> list[str]:
        """The names of the shards that are still to be written."""
        names = (name for files in self.shards.names().values() for name, _ in files)
        return [name for name in names if not (self.parts / name).is_file()]

    def shards_named(self, names: Collection[str]) -> Iterator[Shard]:
        """The shards of these names. Their pictures must stay as they are until `write`."""
        for shard in self.shards:
            if shard.name in names:
                self.marks[shard.name] = changes.marks_of(shard.examples)
                yield shard

    def write(self, shard: Shard, rows: pa.Table, skipped: list[dict[str, str]]) -> None:
        """Write a shard; its schema holds which images were skipped, and what the pictures were. Raises UserError."""
        if changed := changes.changed_since(self.marks.pop(shard.name, ()), shard.examples):
            raise UserError(
                f"{len(changed)} pictures changed or went away while they were embedded ({some(changed)}); "
                "run the same command again when they are all there"
            )
        with _writing(self.folder):
            pictures = tables.as_bytes(pictures_of(shard.examples, contents=True))
            metadata = {"skipped": json.dumps(skipped), "pictures": pictures}
            tables.write_table(self.parts / shard.name, rows.replace_schema_metadata(metadata))

    def finish(self, info: dict[str, Any], keep_shards: bool = False) -> None:
        """Join the shards, or keep them, and write `skipped.jsonl` and, from `info` and the counts, `dataset.json`.

        Raises:
            UserError: no image, or no image to train on, could be used, or a shard has gone or is damaged.
        """
        files = {split: [name for name, _ in files] for split, files in self.shards.names().items()}
        counts, skipped, first = dict.fromkeys(files, 0), 0, None
        with _writing(self.folder):
            with whole_file(self.folder / "skipped.jsonl") as lines:
                every = [(split, name) for split in files for name in files[split]]
                for split, name in ProgressBar(every, "checking", unit="shard", leave=False):
                    table = self._read(name)
                    counts[split] += table.num_rows
                    for record in json.loads(table.schema.metadata[b"skipped"]):
                        skipped, first = skipped + 1, first or record
                        lines.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
                    del table  # some systems delete no file that is mapped
            counts = {split: rows for split, rows in counts.items() if rows}
            if not counts or ("train" not in counts and "train" in files):
                self._give_up(skipped, first)
            tables.write_tables(self.folder / PICTURES, changes.schema(), (self._pictures(name) for _, name in every))
            identity = Identity(info["clip"])
            for split in counts:
                bar = ProgressBar(files[split], f"joining {split}", unit="shard", leave=False)
                self._join(split, identity.watch(split, map(self._read, bar)), keep_shards)
            info = {"format": FORMAT, **info, "splits": counts, "skipped": skipped}
            if keep_shards:
                info["shards"] = {split: len(files[split]) for split in counts}
                self.parts = self.parts.rename(self.folder / SHARDS)
            info |= {"identity": identity.hexdigest(), "plan": self.plan}
            text = json.dumps(info, indent=1, ensure_ascii=False)
            write_whole(self.folder / INFO, text.encode("utf-8", "backslashreplace"))  # a path may not be UTF-8
            if not keep_shards:
                shutil.rmtree(self.parts, ignore_errors=True)  # what stays goes when this dataset is written again

    def _give_up(self, skipped: int, first: dict[str, str] | None) -> NoReturn:
        """Raise UserError, after removing the shards, so that the same command tries again once images can be read."""
        for part in self.parts.glob("*.arrow"):
            if part.name != PICTURES:
                part.unlink()
        told = f"; the first, {first['image']}: {first['error']}" if first else ""
        raise UserError(f"no image to train on could be used ({skipped} skipped{told})")

    def _read(self, name: str) -> pa.Table:
        """A shard that was written. Raises UserError if it is not whole."""
        part, advice = self.parts / name, "delete it, if it is there, and run the same command again"
        table = read_table(part, advice)
        known = table.schema.metadata or {}
        if not {b"skipped", b"pictures"} <= known.keys():
            raise UserError(f"{str(part)!r} is no shard of a dataset; {advice}")
        # A file that ends where a record of Arrow's does is read like a whole one.
        images = sum(len(chunk.dictionary) for chunk in table["clip_embedding"].chunks)
        if images + len(json.loads(known[b"skipped"])) != tables.from_bytes(known[b"pictures"]).num_rows:
            raise UserError(f"{str(part)!r} is cut off; {advice}")
        return table

    def _pictures(self, name: str) -> pa.Table:
        """What a written shard knows about its pictures."""
        return tables.from_bytes(self._read(name).schema.metadata[b"pictures"])

    def _join(self, split: str, shards: Iterator[pa.Table], keep_shards: bool) -> None:
        """Write the one file of a split, with a record batch for each shard; or only go through the shards."""
        if keep_shards:
            deque(shards, maxlen=0)
            return
        (self.folder / split).mkdir(exist_ok=True)
        plain = (table.replace_schema_metadata(None) for table in shards)
        first = next(plain)
        tables.write_tables(self.folder / split / DATA, first.schema, chain([first], plain))


def claim_folder(folder: Path) -> None:
    """Make sure, before any work, that a dataset can be written here. Raises UserError."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {str(folder)!r} is a file; give a folder")
    with _writing(folder):
        probe_folder(folder)
    if contents(folder) and not any((folder / name).exists() for name in (INFO, PARTS, f"{SHARDS}/{PLAN}")):
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
