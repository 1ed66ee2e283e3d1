"""Which examples of a source become a dataset: limited, cleaned and divided into splits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from clipcap.data.cleaning import Cleaner, Cleaning
from clipcap.data.examples import Example, Listing, carve_splits, limit_examples
from clipcap.data.sources import SourceArguments
from clipcap.errors import UserError


def select(examples: Iterable[Example], cleaning: Cleaning, args: SourceArguments) -> tuple[Listing, dict[str, int]]:
    """Limit, clean and split -> the examples that still have a caption, and how often each cleaning step applied.

    Cleaning is what takes long with millions of captions. It is done once, into a temporary file.

    Raises:
        UserError: no caption is left, or too few images to divide.
    """
    clean = Cleaner(cleaning)
    folder = TemporaryDirectory(prefix="clipcap-captions-")
    file = Path(folder.name) / "captions.jsonl"  # what is left of each example's captions
    some = False
    with file.open("w", encoding="ascii") as lines:
        for example in limit_examples(examples, args.limit):
            cleaned = [clean(caption, example.image_id) for caption in example.captions]
            kept = [caption for caption in cleaned if caption is not None]
            some = some or bool(kept)
            lines.write(json.dumps(kept) + "\n")
    if not some:
        given = " ".join(args.source or ())
        raise UserError(f"no image of --source {given} has a caption left after cleaning ({clean.counts})")

    def selected(folder: TemporaryDirectory[str] = folder) -> Iterator[Example]:  # it is there as long as this is
        listed = limit_examples(examples, args.limit)
        with file.open(encoding="ascii") as lines:
            for line in lines:
                example = next(listed, None)
                if example is None:
                    raise UserError("the source has lost images while they were listed: run the same command again")
                if captions := json.loads(line):
                    yield replace(example, captions=tuple(captions))

    fractions = {"validation": args.val_fraction, "test": args.test_fraction}
    return carve_splits(Listing(selected), fractions, args.seed), clean.counts
