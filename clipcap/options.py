"""The options of decoding and of the captions themselves: on the command line, and by name in Python."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from clipcap.captions import KEEP_OR_NONE, RANKS, Rules
from clipcap.cli import arg
from clipcap.errors import UserError

if TYPE_CHECKING:
    from clipcap.decoding import Decoding


@dataclass
class DecodingArguments:
    _argument_group_name = "decoding"

    method: str = arg("greedy", "greedy becomes nucleus for several captions", choices=["greedy", "nucleus", "beam"])
    beams: int = arg(5, "beams per picture")
    temperature: float = arg(1.0, "of nucleus: below 1 is safer, above 1 bolder")
    top_p: float = arg(0.9, "of nucleus: the likeliest tokens that together have this probability")
    top_k: int = arg(0, "of nucleus: at most so many tokens; 0: no limit")
    seed: int = arg(0, "of nucleus")
    min_tokens: int = arg(0, "shortest caption")
    max_tokens: int = arg(67, "longest caption")
    no_repeat_ngram: int = arg(0, "no N tokens in a row come twice in a caption; 0: no limit")


@dataclass
class CaptionArguments:
    _argument_group_name = "captions to choose from"

    num_captions: int = arg(1, "so many distinct captions, best first")
    rank: str = arg("likelihood", "what is best: for the model, or for CLIP", choices=list(RANKS))
    ban: str | None = arg(None, "no caption holds this word; may be repeated", action="append", metavar="WORD")
    ban_file: str | None = arg(None, "a file of such words, one a line", metavar="FILE")
    require: str | None = arg(None, "one of the captions holds it; may be repeated", action="append", metavar="WORD")
    hashtags: str = arg("keep", "#hashtags in captions", choices=list(KEEP_OR_NONE))
    emoji: str = arg("keep", "emoji in captions", choices=list(KEEP_OR_NONE))
    mentions: str = arg("keep", "@mentions in captions", choices=list(KEEP_OR_NONE))

    def __post_init__(self) -> None:
        Rules(**self.given())  # a slip shows at once, before anything is loaded

    def given(self) -> dict[str, Any]:
        """The options as `Captioner(...)` takes them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def settings(decoding: Decoding | None = None, **options: Any) -> tuple[Decoding, Rules]:
    """Options by name -> how to search and the rules. Several captions need samples or beams: greedy becomes nucleus.

    Raises:
        UserError: an option is unknown or has an impossible value.
    """
    from clipcap.decoding import Decoding

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
