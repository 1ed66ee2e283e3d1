"""Read a caption of the demo world: does it name the right thing in the right colour, and is it written like a post?

Only the text is looked at. A caption is right about the subject when it names that subject and no other, in its words
or in a hashtag ("#redcat"), and the same for the colour; hearts in the right colour do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clipcap.text import EMOJI, HASHTAG
from clipcap.world.scenes import COLOURS, Scene
from clipcap.world.subjects import SUBJECTS

WORD = re.compile(r"#?\w+")
TAG = re.compile(f"#(?P<colour>{'|'.join(COLOURS)})?(?P<subject>{'|'.join(SUBJECTS)})(s|love)?")


@dataclass(frozen=True)
class Verdict:
    """What is right about one caption, or the shares of many (0 to 1)."""

    subject: float
    colour: float
    instagram: float

    def __str__(self) -> str:
        told = {"right subject": self.subject, "right colour": self.colour, "Instagram style": self.instagram}
        return "   ".join(f"{what} {share:6.1%}" for what, share in told.items())


def named(caption: str, names: Iterable[str], part: str) -> set[str]:
    """Which of `names` a caption mentions; `part` is the group of a hashtag they may stand in."""
    words = WORD.findall(caption.lower())
    tagged = {match[part] for word in words if (match := TAG.fullmatch(word))}
    return {name for name in names if name in words or f"{name}s" in words or f"#{name}" in words or name in tagged}


def is_instagram(caption: str) -> bool:
    """A post carries an emoji or a hashtag; a plain description carries neither."""
    return bool(EMOJI.search(caption) or HASHTAG.search(caption))


def judge(caption: str, scene: Scene) -> Verdict:
    return Verdict(
        subject=named(caption, SUBJECTS, "subject") == {scene.subject},
        colour=named(caption, COLOURS, "colour") == {scene.colour},
        instagram=is_instagram(caption),
    )


def shares(captions: Sequence[str], scenes: Sequence[Scene]) -> Verdict:
    """The mean over captions, each with the scene it describes."""
    verdicts = [judge(caption, scene) for caption, scene in zip(captions, scenes, strict=True)]
    parts = ("subject", "colour", "instagram")
    return Verdict(*(sum(getattr(verdict, part) for verdict in verdicts) / max(len(verdicts), 1) for part in parts))
