"""The options of decoding and of the captions themselves: on the command line, and by name in Python."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from clipcap.captioning.rules import KEEP_OR_NONE, RANKS, Rules
from clipcap.cli import arg
from clipcap.decoding.options import METHODS, Decoding
from clipcap.errors import UserError


@dataclass
class DecodingArguments:
    """The fields of `Decoding` that the command line can set, with the defaults of `Decoding`."""

    _argument_group_name = "decoding"

    method: str = arg(Decoding.method, "how captions are searched for", choices=list(METHODS))
    beams: int = arg(Decoding.beams, "beams per picture")
    temperature: float = arg(Decoding.temperature, "of nucleus: below 1 is safer, above 1 bolder")
    top_p: float = arg(Decoding.top_p, "of nucleus: the likeliest tokens that together have this probability")
    top_k: int = arg(Decoding.top_k, "of nucleus: at most this many tokens; 0: no limit")
    seed: int = arg(Decoding.seed, "of nucleus")
    min_tokens: int = arg(Decoding.min_tokens, "shortest caption")
    max_tokens: int = arg(Decoding.max_tokens, "longest caption")
    no_repeat_ngram: int = arg(Decoding.no_repeat_ngram, "no N tokens in a row occur twice in a caption; 0: no limit")


@dataclass
class CaptionArguments:
    """The fields of `Rules`, with the defaults of `Rules`."""

    _argument_group_name = "captions to choose from"

    num_captions: int = arg(
        Rules.num_captions, "captions per picture, all distinct, best first; above 1, greedy becomes nucleus"
    )
    rank: str = arg(Rules.rank, "what is best: for the model, or for CLIP", choices=list(RANKS))
    ban: str | None = arg(None, "no caption holds this word; may be repeated", action="append", metavar="WORD")
    ban_file: str | None = arg(None, "a file of such words, one a line", metavar="FILE")
    require: str | None = arg(None, "one of the captions holds it; may be repeated", action="append", metavar="WORD")
    hashtags: str = arg(Rules.hashtags, "#hashtags in captions", choices=list(KEEP_OR_NONE))
    emoji: str = arg(Rules.emoji, "emoji in captions", choices=list(KEEP_OR_NONE))
    mentions: str = arg(Rules.mentions, "@mentions in captions", choices=list(KEEP_OR_NONE))

    def __post_init__(self) -> None:
        Rules(**self.given())  # so that a mistake shows at once, before anything is loaded

    def given(self) -> dict[str, Any]:
        """The options that were given, by name, as `Captioner.__call__` takes them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


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
