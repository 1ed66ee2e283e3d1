"""The options of decoding and of the captions themselves, on the command line and by name in Python; and pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from clipcap.captioning.posts import INSTAGRAM
from clipcap.captioning.rules import KEEP_OR_NONE, RANKS, Rules
from clipcap.cli.options import arg
from clipcap.decoding.options import METHODS, Decoding
from clipcap.errors import UserError, at_least, shown
from clipcap.model.controls import LENGTHS

Picture = str | Path | Image.Image
# The method that an option belongs to. The command line refuses it with any other; in Python it is just not used there.
METHOD_OF = {"beams": "beam", "temperature": "nucleus", "top_p": "nucleus", "top_k": "nucleus", "seed": "nucleus"}
MOST_PICTURES = 4096  # in a batch: their pixels are in memory together, up to 0.3 MB each
FIRST = 32  # pictures in the first batch, so that its captions come soon
MOST_PROCESSES = 256  # that decode pictures, each of which takes 50 MB and more


@dataclass
class DecodingArguments:
    """The fields of `Decoding` that the command line can set, with the defaults of `Decoding`."""

    _argument_group_name = "decoding"

    method: str = arg(Decoding.method, "how captions are searched for", choices=list(METHODS))
    beams: int | None = arg(None, f"of beam: beams per picture (default: {Decoding.beams})")
    temperature: float | None = arg(
        None, f"of nucleus: below 1 is safer, above 1 bolder (default: {Decoding.temperature})"
    )
    top_p: float | None = arg(
        None, f"of nucleus: the likeliest tokens that together have this probability (default: {Decoding.top_p})"
    )
    top_k: int | None = arg(None, f"of nucleus: that many tokens and no more; 0: no limit (default: {Decoding.top_k})")
    seed: int | None = arg(None, f"of nucleus (default: {Decoding.seed})")
    min_tokens: int = arg(Decoding.min_tokens, "shortest caption")
    max_tokens: int = arg(Decoding.max_tokens, "longest caption")
    no_repeat_ngram: int = arg(Decoding.no_repeat_ngram, "no N tokens in a row occur twice in a caption; 0: no limit")

    def __post_init__(self) -> None:
        Decoding(**self.given())  # so that a mistake shows at once, before anything is loaded

    def given(self) -> dict[str, Any]:
        """The options that were given, by name, and those that have a default for all methods."""
        return _given(self)


@dataclass
class CaptionArguments:
    """The fields of `Rules`, with the defaults of `Rules`."""

    _argument_group_name = "captions to choose from"

    num_captions: int = arg(
        Rules.num_captions, "captions per picture, distinct, best first; above 1, greedy turns nucleus"
    )
    rank: str = arg(Rules.rank, "what is best: for the model, or for CLIP", choices=list(RANKS))
    ban: str | None = arg(None, "no caption holds this word; may be repeated", action="append", metavar="WORD")
    ban_file: str | None = arg(None, "a file of such words, one a line", metavar="FILE")
    require: str | None = arg(None, "one of the captions holds it; may be repeated", action="append", metavar="WORD")
    hashtags: str = arg(Rules.hashtags, "#hashtags in captions", choices=list(KEEP_OR_NONE))
    emoji: str = arg(Rules.emoji, "emoji in captions", choices=list(KEEP_OR_NONE))
    mentions: str = arg(Rules.mentions, "@mentions in captions", choices=list(KEEP_OR_NONE))
    max_hashtags: int | None = arg(None, f"most hashtags in a caption; Instagram allows {INSTAGRAM.hashtags}")
    max_chars: int | None = arg(
        None, f"most characters of a caption, an emoji being two or more; Instagram allows {INSTAGRAM.characters:,}"
    )
    start_with: str | None = arg(
        None,
        "captions go on from it; {folder}, {date} (EXIF): only of pictures that have them",
        metavar="TEXT",
    )
    prepend: str | None = arg(None, "stands in front of every caption, {folder} and {date} too", metavar="TEXT")
    append: str | None = arg(None, "stands behind every caption, {folder} and {date} too", metavar="TEXT")
    length: str | None = arg(None, "ask weights trained with --controls length for it", choices=list(LENGTHS))
    emoji_count: int | None = arg(None, "ask weights trained with --controls emoji for N of them", metavar="N")
    hashtag_count: int | None = arg(None, "ask weights trained with --controls hashtags for N", metavar="N")

    def __post_init__(self) -> None:
        rules = Rules(**self.given())  # so that a mistake shows at once, before anything is loaded
        if self.ban_file:  # is read only once, since it may be a pipe
            vars(self).update(ban=list(rules.ban), ban_file=None)

    def given(self) -> dict[str, Any]:
        """The options that were given, by name, as `Captioner.__call__` takes them."""
        return _given(self)


def _given(arguments: DecodingArguments | CaptionArguments) -> dict[str, Any]:
    return {name: value for name, value in asdict(arguments).items() if value is not None}


def chosen(decoding: DecodingArguments, captions: CaptionArguments | None = None) -> tuple[Decoding, Rules]:
    """The options of a command line -> how to search, and the rules.

    Raises:
        UserError: an option cannot have an effect, since another search was chosen.
    """
    search, rules = decoding_and_rules(**decoding.given(), **(captions.given() if captions else {}))
    for name, method in METHOD_OF.items():
        if getattr(decoding, name) is not None and search.method != method:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} has an effect only with --method {method}, and the method is {search.method}")
    if rules.rank == "clip" and rules.num_captions == 1 and search.method != "beam" and not rules.require:
        raise UserError("--rank has an effect only where captions can be compared: ask for more with --num-captions")
    return search, rules


def decoding_and_rules(decoding: Decoding | None = None, **options: Any) -> tuple[Decoding, Rules]:
    """Options by name -> how to search, and the rules.

    Several captions need samples or beams, so that greedy then becomes nucleus.

    Raises:
        UserError: an option is unknown or has an impossible value.
    """
    of_decoding = {field.name for field in fields(Decoding)}
    of_rules = {field.name for field in fields(Rules)}
    unknown = sorted(options.keys() - of_decoding - of_rules)
    if unknown:
        known = ", ".join(sorted(of_decoding | of_rules))
        raise UserError(f"unknown option {unknown[0]!r} for captions; known are {known}")
    decoding = replace(decoding or Decoding(), **{name: options[name] for name in options.keys() & of_decoding})
    if decoding.num_captions > 1 and decoding.method == "greedy":
        decoding = replace(decoding, method="nucleus")
    count = decoding.width if decoding.return_all else decoding.num_captions
    rules = {name: options[name] for name in options.keys() & of_rules} | {"num_captions": count}
    return decoding, Rules(**rules)


def pictures_in(images: Any) -> list[Picture]:
    """A picture, or any number of them -> a list. Raises UserError for what is none."""
    one = isinstance(images, Picture | os.PathLike | bytes | bytearray) or not isinstance(images, Iterable)
    listed: list[Any] = [images] if one else list(images)
    for image in listed:
        if not isinstance(image, Picture | os.PathLike):
            raise UserError(
                f"captions are for paths and PIL pictures, one or a list of them, not {shown(image)}: "
                "make bytes a picture by PIL's Image.open and io.BytesIO, an array by Image.fromarray"
            )
    return [image if isinstance(image, Picture) else Path(image) for image in listed]


def batch_sizes(decoding: Decoding, rules: Rules, batch_size: int | None = None) -> tuple[int, int]:
    """How many pictures the first batch has, and each that follows."""
    size = batch_size or replace(decoding, num_captions=rules.num_captions).batch
    return batch_size or min(FIRST, size), size


def check_sizes(batch_size: int | None, workers: int | None = None) -> None:
    """Raise a UserError for a batch or a number of processes that is no use, or more than a machine can hold."""
    at_least(1, option=True, batch_size=batch_size)
    at_least(0, option=True, workers=workers)
    for option, value, most in (("--batch-size", batch_size, MOST_PICTURES), ("--workers", workers, MOST_PROCESSES)):
        if value is not None and value > most:
            raise UserError(f"{option} must be at most {most}, not {value}: more than that do not fit into memory")
