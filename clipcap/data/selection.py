"""Which examples of a source become a dataset: limited, cleaned and divided into splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from clipcap.data.cleaning import Cleaner, Cleaning
from clipcap.data.examples import Example, Listing, carve_splits, limit_examples
from clipcap.data.sources import SourceArguments
from clipcap.errors import UserError


def select(examples: Iterable[Example], cleaning: Cleaning, args: SourceArguments) -> tuple[Listing, dict[str, int]]:
    """Limit, clean and split -> the examples that still have a caption, and how often each cleaning step applied.

    Raises:
        UserError: no caption is left, or too few images to divide.
    """
    cleaners: list[Cleaner] = []

    def cleaned() -> Iterator[Example]:
        clean = Cleaner(cleaning)
        cleaners.append(clean)
        for example in limit_examples(examples, args.limit):
            captions = [clean(caption, example.image_id) for caption in example.captions]
            if kept := tuple(caption for caption in captions if caption is not None):
                yield replace(example, captions=kept)

    fractions = {"validation": args.val_fraction, "test": args.test_fraction}
    selected = carve_splits(Listing(cleaned), fractions, args.seed)  # which lists them once, to the end
    counts = cleaners[0].counts
    if next(iter(selected), None) is None:
        given = " ".join(args.source or ())
        raise UserError(f"no image of --source {given} has a caption left after cleaning ({counts})")
    return selected, counts
