"""Which examples of a source become a dataset: limited, cleaned and divided into splits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

from clipcap.data.cleaning import Cleaner, Cleaning
from clipcap.data.examples import Example, Listing, carve_splits, limit_examples
from clipcap.data.sources import SourceArguments
from clipcap.errors import UserError
from clipcap.files import temporary_room


def select(examples: Iterable[Example], cleaning: Cleaning, args: SourceArguments) -> tuple[Listing, dict[str, int]]:
    """Limit, clean and split -> the examples that still have a caption, and how often each cleaning step applied.

    Cleaning is what takes long with millions of captions. It is done once, into a temporary file.

    Raises:
        UserError: no caption is left, too few images to divide, or no room for the temporary file.
    """
    clean = Cleaner(cleaning)
    folder = TemporaryDirectory(prefix="clipcap-captions-")
    file = Path(folder.name) / "captions.jsonl"  # of each example its identity and what is left of its captions
    some = any_before = False
    with temporary_room(folder.name, "the cleaned captions"), file.open("w", encoding="ascii") as lines:
        for example in limit_examples(examples, args.limit):
            cleaned = [clean(caption, example.image_id) for caption in example.captions]
            kept = [caption for caption in cleaned if caption is not None]
            some, any_before = some or bool(kept), any_before or bool(cleaned)
            lines.write(json.dumps([example.image_id, kept]) + "\n")
    if not some:
        counts = ", ".join(f"{step} {count}" for step, count in clean.counts.items() if count)
        told = f" left after cleaning ({counts})" if any_before else ": see where a source has them in --help"
        raise UserError(f"no image of --source {' '.join(args.source or ())} has a caption{told}")

    def selected(folder: TemporaryDirectory[str] = folder) -> Iterator[Example]:  # it is there as long as this is
        with file.open(encoding="ascii") as lines:
            for example, line in zip_longest(limit_examples(examples, args.limit), lines):
                image_id, captions = json.loads(line or "[null, null]")
                if example is None or example.image_id != image_id:
                    raise UserError(
                        "images were added to the source or taken away while they were listed: run the same command "
                        "again when they are all there"
                    )
                if captions:
                    yield replace(example, captions=tuple(captions))

    fractions = {"validation": args.val_fraction, "test": args.test_fraction}
    return carve_splits(Listing(selected), fractions, args.seed), clean.counts
