"""The command-line options of decoding and of the captions themselves, for every script that writes captions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from clipcap.captions import KEEP_OR_NONE, RANKS, Rules
from clipcap.cli import arg


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
