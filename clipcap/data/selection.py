"""Which examples of a source become a dataset: limited, cleaned and divided into splits."""

from __future__ import annotations

from dataclasses import replace

from clipcap.data.cleaning import Cleaner, Cleaning
from clipcap.data.examples import Example, carve_splits, limit_examples
from clipcap.data.sources import SourceArguments
from clipcap.errors import UserError


def select(examples: list[Example], cleaning: Cleaning, args: SourceArguments) -> tuple[list[Example], dict[str, int]]:
    """Limit, clean and split -> the examples that still have a caption, and how often each cleaning step applied.

    Raises:
        UserError: no caption is left, or too few images to divide.
    """
    clean = Cleaner(cleaning)
    kept = []
    for example in limit_examples(examples, args.limit):
        cleaned = [clean(caption, example.image_id) for caption in example.captions]
        if captions := tuple(caption for caption in cleaned if caption is not None):
            kept.append(replace(example, captions=captions))
    if not kept:
        given = " ".join(args.source or ())
        raise UserError(f"no image of --source {given} has a caption left after cleaning ({clean.counts})")
    return carve_splits(kept, {"validation": args.val_fraction, "test": args.test_fraction}, args.seed), clean.counts
